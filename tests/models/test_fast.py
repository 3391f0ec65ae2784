"""The rewritten network answers as the usual one, whatever it is made for and asked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustglimpse.data import Dataset
from robustglimpse.models import fast, zoo
from robustglimpse.models.backbones import Backbone, fold_batch_norm_
from robustglimpse.models.fast import FastMGNet
from robustglimpse.models.mgnet import Architecture, MGNet, look

MGNET, FFNET = Architecture("resnet18", 4, "7/3", 10, 0.02), Architecture("resnet18", 1, "1", 10, 0.02)
MEAN, STD = (torch.tensor(c)[:, None, None] for c in (zoo.IMAGENET_MEAN, zoo.IMAGENET_STD))


def images(count: int, size_px: int) -> Tensor:
    """Return smooth random images, channels-last: the slope of noise would magnify rounding of positions."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    x = nn.functional.interpolate(coarse, (size_px, size_px), mode="bicubic")
    return x.contiguous(memory_format=torch.channels_last)


@pytest.fixture(params=["packed", "plain"])
def _either_kind_of_convolution(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with the operators that torch.compile calls, and as on a torch without them."""
    if request.param == "plain":
        monkeypatch.setattr(fast, "can_pack", lambda: False)
    elif not fast.can_pack():
        pytest.skip("this torch has no packed convolutions")


@pytest.mark.usefixtures("_either_kind_of_convolution")
@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("architecture", [MGNET, FFNET], ids=["mgnet", "ffnet"])
def test_logits_are_the_same(architecture: Architecture, batch_size: int) -> None:
    torch.manual_seed(0)
    network = MGNet(architecture).eval()
    rewritten = FastMGNet(network, size_px=112, batch_size=batch_size)
    for count in (1, 5, 7):  # what it was made for, and other numbers of images
        x = images(count, 112)
        with torch.no_grad():
            expected = network(x).logits
        assert float(expected.std()) > 0.1
        torch.testing.assert_close(rewritten(x), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(rewritten(x, glimpses=1), expected[:1], atol=1e-4, rtol=0)


def test_images_of_another_size_are_refused() -> None:
    rewritten = FastMGNet(MGNet(MGNET), size_px=112, batch_size=1)
    with pytest.raises(ValueError, match=r"made for images \[3, 112, 112\], got \[3, 84, 112\]"):
        rewritten(images(1, 112)[:, :, :84])


@pytest.mark.usefixtures("_either_kind_of_convolution")
@pytest.mark.parametrize("name", ["resnet50-nopool", "resnext50", "wrn50"])
def test_every_kind_of_block_is_rewritten(name: str) -> None:
    torch.manual_seed(0)
    backbone = Backbone(name).eval().requires_grad_(False)
    fold_batch_norm_(backbone)
    x = images(4, 32)
    found = fast._FastBackbone(backbone, 32, 4)
    assert any(isinstance(module, fast._AsVolume) for module in found.blocks) is fast.can_pack()
    with torch.inference_mode():
        expected = backbone(x)
        torch.testing.assert_close(found(x), expected, atol=1e-5 * float(expected.max()), rtol=0)


@pytest.mark.skipif(not fast.can_pack(), reason="this torch has no packed convolutions")
def test_volumes_are_for_small_maps_of_several_images() -> None:
    backbone = Backbone("resnet18").eval().requires_grad_(False)
    fold_batch_norm_(backbone)

    def first_volume(side: int, batch_size: int) -> list[int]:
        blocks = fast._FastBackbone(backbone, side, batch_size).blocks
        return [i for i, module in enumerate(blocks) if isinstance(module, fast._AsVolume)]

    assert first_volume(224, 16) == [6]  # maps of 7 x 7, in the last two of eight blocks
    assert first_volume(96, 16) == [4]  # of 6 x 6
    assert first_volume(96, 3) == []


# In f32 a glimpse's place is known to some 1e-5 of a pixel, and these digits have sharp rims: the network
# itself is 4e-4 from the same in f64 for the worst of 64 images, and 3e-6 for the median.
@pytest.mark.parametrize("name", ["mgnet-r18", "ffnet-r18"])
def test_bundled_checkpoints_answer_as_near_the_truth_as_ever(name: str, digits: Dataset) -> None:
    network, card = zoo.load_network(name)
    network.eval().requires_grad_(False)
    x = ((torch.from_numpy(digits.images) / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)
    usual, found = network(x).logits, FastMGNet(network, size_px=card.size_px, batch_size=64)(x)
    truth = network.double()(x.double()).logits
    usual_error, error = ((logits - truth).abs().amax((0, 2)) for logits in (usual, found))
    assert float(error.median()) < 1e-5
    assert float(error.max()) < 4 * float(usual_error.max())
    assert torch.equal(found.argmax(2), truth.argmax(2))


def test_the_given_network_is_left_as_it_is() -> None:
    network = MGNet(MGNET)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    FastMGNet(network, size_px=112, batch_size=4)(images(4, 112))
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("side", [5, 32])
def test_glimpses_are_those_of_look(side: int) -> None:
    x = images(3, 33)
    region = torch.tensor([[1.0, 0.0, 0.0], [0.3, 0.7, -0.7], [0.45, -0.1, 0.2]])
    torch.testing.assert_close(
        fast._look(x, region, fast._across(side)), look(x, region, side), atol=1e-5, rtol=0
    )
