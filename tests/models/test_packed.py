"""A packed backbone answers, and has the gradients, of the plain one, whatever the batch."""

from __future__ import annotations

import copy
import json
import os
import pickle
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustglimpse.models import packed
from robustglimpse.models.backbones import BACKBONES, Backbone, fold_batch_norm_
from robustglimpse.models.packed import PackedBackbone, Tape, can_pack

RESIDUAL = [name for name, row in BACKBONES.items() if row.torchvision]
needs_packing = pytest.mark.skipif(not can_pack(), reason="this torch has no packed convolutions")


def plain(name: str) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(name).eval().requires_grad_(False)
    fold_batch_norm_(backbone)
    return backbone.to(memory_format=torch.channels_last)


def images(count: int, height: int, width: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, height, width or height, generator=generator)


def answer(backbone: torch.nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features [B,D] and the gradient of one weighted sum of them."""
    x = x.clone().requires_grad_()
    features = backbone(x)
    weight = torch.linspace(-1, 2, features.shape[1], dtype=x.dtype)
    return features.detach(), torch.autograd.grad((features * weight).sum(), x)[0]


def assert_near(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], rtol: float) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=rtol * float(b.abs().max()), rtol=0)


@pytest.fixture(params=["packed", "plain"])
def _either_kind_of_convolution(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with the operators that torch.compile calls, and as on a torch without them."""
    if request.param == "plain":
        monkeypatch.setattr(packed, "can_pack", lambda: False)
    elif not can_pack():
        pytest.skip("this torch has no packed convolutions")


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def _on_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def through_the_same_rectifiers(backbone: Backbone, x: Tensor, tape: Tape) -> tuple[Tensor, Tensor]:
    """Return features and gradient of doubles, f32, all rectifiers and the pool choosing as on the tape.

    A choice between numbers that rounding cannot tell apart makes the gradient jump; made alike, it does not.
    backbone: plain, in doubles.
    """
    maps = [packed._as_maps(part)[: len(x)] if part.ndim == 5 else part for part in tape[1:]]
    x = x.double().requires_grad_()
    y = backbone.conv1(x)
    if isinstance(backbone.maxpool, torch.nn.MaxPool2d):
        chosen = maps[1]
        maps = maps[2:]
        y = y.flatten(2).gather(2, chosen.flatten(2)).view(chosen.shape)
    y = y * (maps.pop(0) > 0)
    for block in [*backbone.layer1, *backbone.layer2, *backbone.layer3, *backbone.layer4]:
        shortcut = y if block.downsample is None else block.downsample(y)
        convs = [getattr(block, name) for name in ("conv1", "conv2", "conv3") if hasattr(block, name)]
        for conv in convs:
            y = conv(y) + (shortcut if conv is convs[-1] else 0)
            y = y * (maps.pop(0) > 0)
    assert not maps
    features = y.mean((2, 3))
    weight = torch.linspace(-1, 2, features.shape[1], dtype=x.dtype)
    return features.detach().float(), torch.autograd.grad((features * weight).sum(), x)[0].float()


@needs_packing
@pytest.mark.usefixtures("_on_threads")
@pytest.mark.parametrize("name", [*RESIDUAL, "resnet18-nopool", "resnet50-nopool"])
def test_every_backbone_answers_as_before(name: str) -> None:
    backbone = plain(name)
    found, exact = PackedBackbone(copy.deepcopy(backbone)), copy.deepcopy(backbone).double()
    for count in (1, 3, 6):  # alone, too few for a volume, and a volume with two empty places
        x = images(count, 32)
        tape: Tape = []
        found.features(x, tape)
        features, gradient = answer(found, x)
        assert_near((features, gradient), through_the_same_rectifiers(exact, x, tape), 3e-6)
        assert_near((features, features), (backbone(x), exact(x.double()).float()), 2e-6)


@pytest.mark.usefixtures("_on_threads")
@pytest.mark.parametrize("name", ["resnet18", "resnet50-nopool"])
def test_without_the_operators_a_backbone_answers_as_before(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "can_pack", lambda: False)
    backbone = plain(name)
    found = PackedBackbone(copy.deepcopy(backbone))
    for count in (1, 6):
        x = images(count, 32)
        assert_near(answer(found, x), answer(backbone, x), 2e-6)
    assert found.packed_bytes == 0


def differences() -> list[str]:
    """Return where bits differ: between batches, between one thread and two, and from the plain backbone."""
    found_differences = []
    for name in ("resnet18", "resnet50-nopool"):
        backbone = plain(name)
        x = images(18, 32)
        torch.set_num_threads(1)
        expected = answer(PackedBackbone(copy.deepcopy(backbone)), x)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found = PackedBackbone(copy.deepcopy(backbone))
            cases = {f"packed, the last {count}": (found, count) for count in (18, 17, 9, 8, 6, 5, 3, 2, 1)}
            cases |= {f"plain, the last {count}": (backbone, count) for count in (18, 16)}
            for what, (network, count) in cases.items():
                parts = zip(("features", "gradient"), answer(network, x[-count:]), expected, strict=True)
                for part, a, b in parts:
                    if not torch.equal(a, b[-count:]):
                        found_differences.append(f"{name}, {threads} threads, {what}: {part}")
    return found_differences


@needs_packing
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="kernels for AVX2 are for x86")
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="no AVX2")
def test_with_kernels_for_avx2_bits_depend_on_neither_batch_nor_threads() -> None:
    # In a process of its own: oneDNN chooses its kernels once.
    command = "import json, test_packed; print(json.dumps(test_packed.differences()))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    told = subprocess.run(
        [sys.executable, "-c", command],
        cwd=Path(__file__).parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout) == []


@needs_packing
@pytest.mark.usefixtures("_on_threads")
@pytest.mark.parametrize(("height", "width"), [(27, 27), (33, 48), (64, 64), (100, 65)])
def test_sides_that_a_stride_does_not_divide(height: int, width: int) -> None:
    backbone = plain("resnet18")
    found = PackedBackbone(copy.deepcopy(backbone))
    for count in (2, 8):
        x = images(count, height, width)
        assert_near(answer(found, x), answer(backbone, x), 2e-6)


@needs_packing
@pytest.mark.usefixtures("_on_threads")
def test_a_sample_gets_the_same_in_any_batch() -> None:
    found = PackedBackbone(plain("resnet18"))
    x = images(24, 64)
    features, gradient = answer(found, x)
    for count in (1, 2, 4, 5, 9, 12):
        for start in (0, 24 - count):
            part = slice(start, start + count)
            assert_near(answer(found, x[part]), (features[part], gradient[part]), 2e-6)


@needs_packing
def test_volumes_are_for_small_maps_of_several_images(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[tuple[int, int]] = []
    as_volumes = packed._as_volumes

    def noted(x: Tensor) -> Tensor:
        sides.append((len(x), x.shape[2]))
        return as_volumes(x)

    monkeypatch.setattr(packed, "_as_volumes", noted)
    found = PackedBackbone(plain("resnet18"))
    for count in (4, 5, 8, 9, 10):
        found(images(count, 64))
    found(images(8, 224))  # the last maps are 7 x 7
    assert sides == [(5, 8), (8, 8), (10, 8)]  # 8 x 8, which the block makes 4 x 4


@needs_packing
def test_weights_are_packed_once_a_size_and_counted() -> None:
    backbone = plain("resnet18")
    weights = 4 * sum(conv.weight.numel() for conv in backbone.modules() if isinstance(conv, torch.nn.Conv2d))
    found = PackedBackbone(backbone)
    assert found.packed_bytes == 0
    for _ in range(2):
        found(images(2, 64))
        assert weights <= found.packed_bytes < 1.01 * weights  # 3 channels are padded to more
        found(images(3, 64))
    for _ in range(2):
        answer(found, images(2, 64))
        assert 2 * weights <= found.packed_bytes < 2.01 * weights


@needs_packing
def test_what_a_first_call_without_gradients_packed_serves_gradients() -> None:
    backbone = plain("resnet18")
    found = PackedBackbone(copy.deepcopy(backbone))
    x = images(8, 64)
    with torch.inference_mode():
        found(x)
    assert_near(answer(found, x), answer(backbone, x), 2e-6)


@pytest.mark.usefixtures("_either_kind_of_convolution")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_stays_visible(value: float) -> None:
    x = images(6, 64)
    x[1, 0, 20, 20] = value
    features = PackedBackbone(plain("resnet18"))(x)
    assert not features[1].isfinite().all()
    assert features[[0, 2, 3, 4, 5]].isfinite().all()


@needs_packing
def test_a_gradient_can_be_asked_for_twice_and_not_of_second_order() -> None:
    found = PackedBackbone(plain("resnet18"))
    x = images(2, 32).requires_grad_()
    y = found(x).square().sum()
    first = torch.autograd.grad(y, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y, x)[0], first)
    slope = torch.autograd.grad(found(x).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_other_numbers_are_served_without_packing() -> None:
    backbone = plain("resnet18")
    found = PackedBackbone(copy.deepcopy(backbone)).double()
    x = images(8, 64).double()
    assert_near(answer(found, x), answer(backbone.double(), x), 1e-12)
    assert found.packed_bytes == 0


def test_copies_and_pickles_leave_packed_weights_behind() -> None:
    found = PackedBackbone(plain("resnet18"))
    x = images(2, 32)
    features, gradient = answer(found, x)
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert other.packed_bytes == 0
        assert_near(answer(other, x), (features, gradient), 2e-6)


def test_batch_norms_must_be_merged() -> None:
    with pytest.raises(ValueError, match="batch norms are merged"):
        PackedBackbone(Backbone("resnet18").eval())


def test_operators_that_are_missing_or_answer_otherwise_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, gradient = packed._Conv.answer, packed._Conv.gradient

    def missing(*_: object) -> Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_convolution_pointwise'")

    wrong = {
        "answer": [missing, lambda *parts: answer(*parts) * 1.01],
        "gradient": [missing, lambda *parts: gradient(*parts) * 1.01],
    }
    for name, instead in wrong.items():
        for function in instead:
            with monkeypatch.context() as patch:
                patch.setattr(packed._Conv, name, function)
                assert not can_pack.__wrapped__()
    before = torch.random.get_rng_state()
    with torch.inference_mode():
        assert can_pack.__wrapped__() is can_pack()
    assert torch.equal(torch.random.get_rng_state(), before)
