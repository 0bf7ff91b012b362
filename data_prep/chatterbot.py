"""The English dialogues of chatterbot-corpus 1.3.3 (BSD): ``python -m data_prep.chatterbot``."""

from __future__ import annotations

from collections.abc import Iterator

from data_prep.common.command import main
from data_prep.common.conversations import Conversation, Turn, conversation
from data_prep.common.files import FileFacts
from data_prep.common.text_sets import ConversationSet


def _dialogues(file: str, content: bytes) -> Iterator[Conversation]:
    """Dialogues of two sides in turn; the answer is the last turn of the second side."""
    import yaml

    # The faster loader of the same safe kind, where PyYAML has it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for dialogue in yaml.load(content, Loader=loader)["conversations"]:  # noqa: S506
        if not isinstance(dialogue, list):  # one entry of the set is a question without answer
            continue
        turns = [
            Turn(("user", "assistant")[i % 2], str(line).strip()) for i, line in enumerate(dialogue)
        ]
        found = conversation(turns, f"chatterbot/{file.removesuffix('.yml')}")
        if found is not None:
            yield found


DATA = ConversationSet(
    name="chatterbot",
    files={
        "ai.yml": FileFacts(
            8_340, "620a65787a56641db4a03e1419a7578e813967218cf6721e3ea4ef90844916aa"
        ),
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
    },
    package="chatterbot-corpus==1.3.3",
    member="chatterbot_corpus/data/english/{file}",
    parse=_dialogues,
)
prepare, load = DATA.prepare, DATA.load


if __name__ == "__main__":
    main(DATA)
