"""The rewritten network answers as the usual one, whatever it is made for and asked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustglimpse.data import Dataset
from robustglimpse.models import fast, zoo
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


@pytest.mark.parametrize("architecture", [MGNET, FFNET], ids=["mgnet", "ffnet"])
def test_logits_are_the_same(architecture: Architecture) -> None:
    torch.manual_seed(0)
    network = MGNet(architecture).eval()
    rewritten = FastMGNet(network)
    for count, size_px in ((1, 112), (5, 112), (2, 96)):
        x = images(count, size_px)
        with torch.no_grad():
            expected = network(x).logits
        assert float(expected.std()) > 0.1
        torch.testing.assert_close(rewritten(x), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(rewritten(x, glimpses=1), expected[:1], atol=1e-4, rtol=0)


# In f32 a glimpse's place is known to some 1e-5 of a pixel, and these digits have sharp rims: the network
# itself is 4e-4 from the same in f64 for the worst of 64 images, and 3e-6 for the median.
@pytest.mark.parametrize("name", ["mgnet-r18", "ffnet-r18"])
def test_bundled_checkpoints_answer_as_near_the_truth_as_ever(name: str, digits: Dataset) -> None:
    network = zoo.load_network(name)[0]
    network.eval().requires_grad_(False)
    x = ((torch.from_numpy(digits.images) / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)
    usual, found = network(x).logits, FastMGNet(network)(x)
    truth = network.double()(x.double()).logits
    usual_error, error = ((logits - truth).abs().amax((0, 2)) for logits in (usual, found))
    assert float(error.median()) < 1e-5
    assert float(error.max()) < 4 * float(usual_error.max())
    assert torch.equal(found.argmax(2), truth.argmax(2))


def test_the_given_network_is_left_as_it_is() -> None:
    network = MGNet(MGNET)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    FastMGNet(network)(images(4, 112))
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
