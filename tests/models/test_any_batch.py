"""An MGNet gives an image the same answer and gradient in any batch, on one thread and on two."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from robustglimpse.data import load_data
from robustglimpse.models import load_model
from robustglimpse.models.mgnet import linear
from robustglimpse.models.packed import can_pack
from robustglimpse.records import Classifier

COUNT = 24
SIZES = (1, 2, 3, 7, 10, 13)


def answer(model: Classifier, gradient: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits of all exits [T,B,K] and the gradient of the last one's loss along one way back."""
    x = x.clone().requires_grad_()
    loss = F.cross_entropy(model.surrogates[gradient](x), y, reduction="sum")
    return model.exits(x).detach(), torch.autograd.grad(loss, x)[0]


def differences() -> list[str]:
    """Return in which batches an image gets other bits, by thread count and gradient."""
    model = load_model("mgnet-r18")
    data = load_data("glimpse-digits", limit=COUNT)
    x, y = torch.from_numpy(data.images) / 255, torch.from_numpy(data.labels)
    found = []
    for gradient in ("as-trained", "exact"):
        torch.set_num_threads(1)
        logits, slopes = answer(model, gradient, x, y)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for size in SIZES:
                for first in (0, COUNT - size):
                    part = slice(first, first + size)
                    some, some_slopes = answer(model, gradient, x[part], y[part])
                    if not torch.equal(some, logits[:, part]):
                        found.append(f"{threads} threads, {size} images from {first}: logits")
                    if not torch.equal(some_slopes, slopes[part]):
                        found.append(f"{threads} threads, {size} images from {first}: {gradient} gradient")
    return found


@pytest.mark.skipif(not can_pack(), reason="this torch has no packed convolutions")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="kernels for AVX2 are for x86")
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="no AVX2")
def test_an_image_gets_the_same_in_any_batch() -> None:
    # In a process of its own: oneDNN and MKL choose their kernels once.
    done = subprocess.run(
        [sys.executable, "-c", "import json, test_any_batch as t; print(json.dumps(t.differences()))"],
        cwd=Path(__file__).parent,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(("inputs", "outputs"), [(515, 1030), (515, 3), (515, 10), (7, 40)])
def test_a_linear_layer_answers_as_torchs_and_has_its_gradients(inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs)
    for count in (1, 5, 16, 33):
        x = torch.randn(count, inputs)
        both = []
        for function in (linear, F.linear):
            parts = [part.clone().requires_grad_() for part in (x, weight, bias)]
            y = function(*parts)
            assert y.shape == (count, outputs)
            both.append([y, *torch.autograd.grad(y.sin().sum(), parts)])
        for ours, theirs in zip(*both, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.detach().abs().max()), rtol=0)
