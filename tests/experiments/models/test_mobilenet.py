"""MobileNetV2 with a reduced ASPP, and the decoder of one task."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import mobilenet_v2

from experiments.models.mobilenet import Decoder, MobileNetV2
from ktlib.mtl import split


@pytest.fixture
def network():
    torch.manual_seed(0)
    return MobileNetV2(3, 4).eval()


def test_maps_of_a_sixteenth_and_a_quarter(network):
    shapes = {}
    for index in (3, 6, 13, 17):
        network.features[index].register_forward_hook(
            lambda _module, _given, found, index=index: shapes.update({index: tuple(found.shape)})
        )
    with torch.no_grad():
        features = network(torch.randn(2, 3, 48, 64))
    assert shapes == {3: (2, 3, 12, 16), 6: (2, 4, 6, 8), 13: (2, 12, 3, 4), 17: (2, 40, 3, 4)}
    assert (network.low_channels, network.feature_dim) == (3, 19)
    assert features.shape == (2, 19, 12, 16)


def test_features_are_the_fine_map_and_the_interpolated_aspp(network):
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = network(images)
        low = network.features[:4](images)
        deep = network.aspp(network.features[4:](low))
    fine = F.interpolate(deep, scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(features, torch.cat((low, fine), dim=1), rtol=0, atol=0)


def test_the_aspp_sees_the_place_and_the_mean_over_the_image(network):
    torch.manual_seed(1)
    x = torch.randn(1, 40, 4, 4)
    moved = x.flip(3)
    with torch.no_grad():
        one, other = network.aspp(x), network.aspp(moved)
        torch.testing.assert_close(one.flip(3), other)
        x[0, :, 0, 0] += 5
        assert (network.aspp(x)[..., 3, 3] - one[..., 3, 3]).abs().max() > 1e-4
    assert one.shape == (1, 16, 4, 4)


def test_dilation_in_place_of_the_last_stride(network):
    convolutions = [m for m in network.features.modules() if isinstance(m, nn.Conv2d)]
    depthwise = [m for m in convolutions if m.groups > 1]
    assert [m.stride[0] for m in depthwise] == [1, 2, 1, 2, 1, 1, 2, *[1] * 10]
    assert [m.dilation[0] for m in depthwise] == [*[1] * 14, 2, 2, 2]
    assert all(m.padding == m.dilation for m in depthwise)


def test_without_dilation_it_is_torchvisions_network():
    torch.manual_seed(0)
    theirs = mobilenet_v2(weights=None, width_mult=1 / 8, round_nearest=1).eval()
    torch.manual_seed(0)
    ours = MobileNetV2(3, 4).eval()
    ours.features[14].conv[1][0].stride = (2, 2)
    for block in ours.features[15:]:
        block.conv[1][0].dilation = block.conv[1][0].padding = (1, 1)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = ours.features(images), theirs.features[:-1](images)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_every_parameter_is_trained_by_one_task_and_follows_the_seed():
    firsts = []
    for _ in range(2):
        torch.manual_seed(2)
        firsts.append(MobileNetV2(1, 4).features[0][0].weight)
    assert torch.equal(*firsts)
    assert firsts[0].shape == (4, 1, 3, 3)
    network = MobileNetV2(1, 4)
    head = Decoder(network.feature_dim, network.low_channels, 2)
    head(network(torch.randn(4, 1, 64, 64))).square().mean().backward()
    for name, parameter in (*network.named_parameters(), *head.named_parameters()):
        assert parameter.grad.abs().sum() > 0, name


def test_it_is_split_behind_a_prefix_that_is_computed_once(network):
    layer = "features.15.conv.1.0"
    trunk = split(network, [layer, "aspp.projection.1"], ["one", "two"])
    assert trunk.shares_prefix
    calls = []
    trunk.trunk_of("one").features[0][0].register_forward_hook(lambda *_: calls.append(1))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = trunk(images)
        assert len(calls) == 1
        assert torch.equal(features["one"], features["two"])
        assert torch.equal(features["one"], network(images))
        trunk.trunk_of("two").get_submodule(layer).weight.mul_(-1)
        other = trunk(images)
    assert torch.equal(other["one"], features["one"])
    assert not torch.equal(other["two"], features["two"])


def test_the_decoder_gives_a_map_of_the_images_size_and_uses_both_maps():
    torch.manual_seed(0)
    decoder = Decoder(19, 3, 5).eval()
    features = torch.randn(2, 19, 4, 6)
    with torch.no_grad():
        maps = decoder(features)
        assert maps.shape == (2, 5, 16, 24)
        for channel in (2, 3):
            changed = features.clone()
            changed[:, channel] += 1
            assert not torch.allclose(decoder(changed), maps)
        coarse = decoder.logits(decoder.convolutions(torch.cat(
            (decoder.reduce(features[:, :3]), features[:, 3:]), dim=1)))  # fmt: skip
    assert decoder.reduce[0].weight.shape == (6, 3, 1, 1)
    torch.testing.assert_close(maps, F.interpolate(coarse, scale_factor=4, mode="bilinear"))


def test_weights_of_a_file_are_torchvisions(tmp_path):
    torch.manual_seed(4)
    theirs = mobilenet_v2(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    ours = MobileNetV2(3, 32, str(tmp_path / "x.pth"))
    assert torch.equal(ours.features[17].conv[2].weight, theirs.features[17].conv[2].weight)
    with pytest.raises(
        ValueError, match=r"fit torchvision's MobileNetV2. In .* has shape \(32, 3,"
    ):
        MobileNetV2(1, 32, str(tmp_path / "x.pth"))
    with pytest.raises(FileNotFoundError, match="None, one of 'IMAGENET1K_V1', 'IMAGENET1K_V2'"):
        MobileNetV2(3, 4, "nowhere.pth")


def test_images_with_other_sides_are_refused(network):
    with pytest.raises(ValueError, match="multiples of 4. Found 32 x 30."):
        network(torch.zeros(1, 3, 32, 30))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((8, 0, 1), r"lie in \[1, 8\). Found low_channels=0"), ((8, 8, 1), "Found low_channels=8"),
     ((8, 2, 0), "out_channels must be at least 1. Found out_channels=0")],
)  # fmt: skip
def test_decoders_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        Decoder(*arguments)
