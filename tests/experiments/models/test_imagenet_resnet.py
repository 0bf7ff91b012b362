"""torchvision's ResNet18 as an embedding network, with and without weights from a file."""

from urllib.error import URLError

import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18

from experiments.models.resnet import IMAGENET_MEAN, IMAGENET_STD, imagenet_resnet18_features
from ktlib.fcl import last_convolutions, split_network


@pytest.fixture(scope="module")
def theirs():
    """A whole ResNet18 of torchvision, whose weights and statistics are not the initial ones."""
    torch.manual_seed(0)
    network = resnet18(weights=None).eval()
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value).mul_(0.01))
    return network


@pytest.fixture(scope="module")
def file(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(theirs.state_dict(), path)
    return path


def test_weights_of_a_file_give_what_torchvision_computes(theirs, file):
    ours = imagenet_resnet18_features(str(file)).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        embeddings = ours(images)
        assert embeddings.shape == (2, 512) == (2, ours.feature_dim)
        torch.testing.assert_close(theirs.fc(embeddings), theirs(images), rtol=0, atol=0)


def test_without_weights_the_network_is_random_and_follows_the_seed():
    torch.manual_seed(5)
    first = imagenet_resnet18_features()
    torch.manual_seed(5)
    second, third = imagenet_resnet18_features(), imagenet_resnet18_features()
    assert torch.equal(first.conv1.weight, second.conv1.weight)
    assert not torch.equal(first.conv1.weight, third.conv1.weight)
    assert not [name for name in first.state_dict() if name.startswith("fc")]
    assert first(torch.zeros(1, 3, 33, 47)).shape == (1, 512)


@pytest.mark.filterwarnings("error")
def test_it_is_cut_like_the_other_backbones():
    network = imagenet_resnet18_features().eval()
    layers = last_convolutions(network, 4)
    assert layers == [f"layer4.{i}.conv{j}" for i in (0, 1) for j in (1, 2)]
    split = split_network(network, layers)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = split.prefix(images)
        assert features.shape == (1, 256, 4, 4)
        torch.testing.assert_close(split.tail_forward(features), network(images), rtol=0, atol=0)


def test_files_without_classifier_or_counters_are_taken(theirs, tmp_path):
    state = {
        name: value for name, value in theirs.state_dict().items()
        if not name.startswith("fc.") and "num_batches" not in name
    }  # fmt: skip
    torch.save(state, tmp_path / "old.pth")
    ours = imagenet_resnet18_features(str(tmp_path / "old.pth"))
    assert torch.equal(ours.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    assert torch.equal(ours.bn1.running_var, theirs.bn1.running_var)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "conv1.weight"), "In .*x.pth conv1.weight is missing"),
        (lambda s: {**s, "layer5.weight": s["conv1.weight"]}, "layer5.weight is unknown"),
        (lambda s: {**s, "conv1.weight": torch.zeros(64, 3, 3, 3)},
         r"conv1.weight has shape \(64, 3, 3, 3\)"),
        (lambda s: {"conv1.weight": s["conv1.weight"]}, r"bn1.bias is missing; .* and \d+ more\."),
        (lambda s: {"state_dict": s}, "must be a file with a state dict"),
        (lambda s: torch.zeros(2), "must be a file with a state dict"),
    ],
)  # fmt: skip
def test_files_of_other_networks_are_refused(theirs, tmp_path, change, message):
    torch.save(change(theirs.state_dict()), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message):
        imagenet_resnet18_features(str(tmp_path / "x.pth"))


class Evil:
    """Is made by a call when an obedient unpickler reads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_cut_or_foreign_file_is_told_and_no_code_in_it_is_run(file, tmp_path):
    path = tmp_path / "x.pth"
    for content in (b"", b"<html></html>", file.read_bytes()[:1000]):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match="weights must be a file of tensors. .* cannot be read"
        ):
            imagenet_resnet18_features(str(path))
    torch.save({"conv1.weight": Evil(tmp_path / "done")}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        imagenet_resnet18_features(str(path))
    assert not (tmp_path / "done").exists()


def test_a_missing_file_is_told_with_what_is_allowed(tmp_path):
    with pytest.raises(FileNotFoundError, match="None, one of 'IMAGENET1K_V1'.* no such file"):
        imagenet_resnet18_features(str(tmp_path / "none.pth"))


def test_without_a_network_it_is_told_where_to_put_the_weights(monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(RuntimeError) as caught:
        imagenet_resnet18_features("DEFAULT")
    message = str(caught.value)
    for part in ("'DEFAULT'", "no network", "resnet18-", str(tmp_path), "weights='path/to/file"):
        assert part in message


def test_default_weights_are_those_in_torchvisions_cache(theirs, monkeypatch, tmp_path):
    name = ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(theirs.state_dict(), tmp_path / "hub" / "checkpoints" / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    ours = imagenet_resnet18_features("DEFAULT")
    assert torch.equal(ours.conv1.weight, theirs.conv1.weight)


def test_mean_and_std_are_those_that_torchvision_states():
    usual = ResNet18_Weights.DEFAULT.transforms()
    assert tuple(usual.mean) == IMAGENET_MEAN
    assert tuple(usual.std) == IMAGENET_STD
