"""Modules and tensors from outside go through the same loop as what is bundled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustglimpse.data import from_loader, from_tensors
from robustglimpse.models.sources import wrap
from robustglimpse.records import UserError
from robustglimpse.runner import Bench, bench
from robustglimpse.sweep import Sweep, sweep_corruptions

EPS = 4 / 255


class Brightness(nn.Module):
    """Tells dark from light: the boundary is a mean of 0.5, so every image's distance to it is known."""

    def __init__(self, gain: float = 10.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        score = self.dropout((x.mean((1, 2, 3)) - 0.5) * self.gain)
        return torch.stack([-score, score], 1)


@pytest.fixture
def images() -> Tensor:
    """Eight flat images: four nearer to the boundary than EPS, four farther."""
    means = torch.tensor([0.5 - 0.9 * EPS, 0.5 - 1.1 * EPS, 0.5 + 0.9 * EPS, 0.5 + 1.1 * EPS] * 2)
    return means[:, None, None, None].expand(8, 3, 8, 8).contiguous()


LABELS = torch.tensor([0, 0, 1, 1] * 2)


def test_a_module_is_attacked_on_tensors_up_to_its_exact_distance(images: Tensor, tmp_path: Path) -> None:
    model = wrap(Brightness(), name="brightness", classes=2, size_px=8)
    # The loop stores 256 levels: distances of 4.4 and 3.6 levels from 127.5 become 4.5 and 3.5.
    data = from_tensors(images, LABELS, name="flat")
    results = bench(Bench(models=(model,), data=data, steps=(1, 8), batch_size=3), tmp_path)
    accuracy = results[results["kind"] == "attack"].set_index("steps")["accuracy"]
    assert accuracy[8] == 0.5
    assert results["dataset"].unique().tolist() == ["flat"]
    assert results[results["kind"] == "clean"]["accuracy"].item() == 1
    before = (tmp_path / "results.csv").stat().st_mtime_ns
    outcomes = sorted((tmp_path / "outcomes").iterdir())
    stamps = [path.stat().st_mtime_ns for path in outcomes]
    bench(Bench(models=(model,), data=data, steps=(1, 8), batch_size=3), tmp_path)
    assert [path.stat().st_mtime_ns for path in outcomes] == stamps, "done cells are not run again"
    assert (tmp_path / "results.csv").stat().st_mtime_ns >= before


def test_a_module_is_swept_over_corruptions_of_tensors(images: Tensor, tmp_path: Path) -> None:
    model = wrap(Brightness(), name="brightness", classes=2, size_px=8)
    data = from_tensors(images, LABELS, name="flat")
    asked = Sweep(models=(model,), data=data, corruptions=("brightness",), severities=(5,))
    rows = sweep_corruptions(asked, tmp_path)
    # Brighter by 0.3 (the constants of 32 px): everything is light.
    assert rows[rows["kind"] == "corruption"]["accuracy"].item() == 0.5


def test_a_loader_is_the_tensors_it_yields(images: Tensor) -> None:
    whole = from_tensors(images, LABELS, name="flat")
    parts = from_loader([(images[:5], LABELS[:5]), (images[5:], LABELS[5:])], name="flat")
    assert whole.fingerprint == parts.fingerprint
    assert whole.images.dtype == np.uint8
    assert whole.images[0, 0, 0, 0] == round((0.5 - 0.9 * EPS) * 255)


def test_other_weights_are_another_hash() -> None:
    hashes = {wrap(Brightness(g), name="b", classes=2, size_px=8).sha256 for g in (10.0, 10.0, 11.0)}
    assert len(hashes) == 2


def test_a_wrapped_module_normalises_and_is_frozen() -> None:
    module = Brightness()
    model = wrap(module, name="b", classes=["dark", "light"], size_px=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert not module.training
    assert not module.gain.requires_grad
    x = torch.full((1, 3, 8, 8), 0.6)
    torch.testing.assert_close(model.logits(x), torch.tensor([[1.0, -1.0]]))
    assert model.classes == ("dark", "light")


class Odd(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        score = x.mean((1, 2, 3))
        logits = torch.stack([score, -score], 1)
        if self.how == "batch":
            return logits - logits.mean(0) * 5
        if self.how == "nan":
            return logits * float("nan")
        if self.how == "channels":
            return logits @ torch.ones(3, 2)
        return (logits, logits)  # type: ignore[return-value]


@pytest.mark.parametrize("how", ["batch", "nan", "channels", "tuple"])
def test_a_module_that_gives_no_logits_of_its_own_is_refused(how: str) -> None:
    with pytest.raises(UserError, match=r"^odd: ") as error:
        wrap(Odd(how), name="odd", classes=2, size_px=8)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 8, 8), torch.zeros(3, dtype=torch.int64)),
        (torch.full((2, 3, 8, 8), 2.0), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int32), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 8, 8), torch.tensor([0, -1])),
    ],
)
def test_tensors_that_are_no_images_are_refused(images: Tensor, labels: Tensor) -> None:
    with pytest.raises(UserError, match=r"^mine: "):
        from_tensors(images, labels, name="mine")


def test_two_models_of_one_name_are_refused(images: Tensor, tmp_path: Path) -> None:
    models = tuple(wrap(Brightness(g), name="same", classes=2, size_px=8) for g in (1.0, 2.0))
    with pytest.raises(UserError, match="two models are called 'same'"):
        bench(Bench(models=models, data=from_tensors(images, LABELS, name="flat")), tmp_path)
