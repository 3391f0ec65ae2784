"""Which runs a report compares: those on the same photographs, whatever they were called or numbered as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from colours import save_level
from torch import Tensor, nn

from robustglimpse import Bench, Sweep, bench, load_data, sweep_corruptions, wrap
from robustglimpse.data import Dataset
from robustglimpse.records import Classifier
from robustglimpse.report.board import Board, make_board
from robustglimpse.store import read_run

NAMES = ("ape", "bee", "cow")


class Levels(nn.Module):
    """Answers class `places[k]` where the red level is nearest to 20 k."""

    def __init__(self, *places: int) -> None:
        super().__init__()
        self.places = list(places)

    def forward(self, x: Tensor) -> Tensor:
        red = x[:, 0].mean((1, 2))[:, None] * 255
        logits = -((red - torch.arange(len(self.places)) * 20.0) ** 2) / 100
        return logits[:, np.argsort(self.places).tolist()]


def photographs(root: Path, offset: int = 0) -> Path:
    """A folder of three classes of two images each."""
    for k, name in enumerate(NAMES):
        for i in range(2):
            save_level(root / name / f"{i}.png", 20 * k + i + offset)
    return root


def named() -> Classifier:
    return wrap(Levels(2, 0, 1), name="named", classes=["bee", "cow", "ape"], size_px=16)


def numbered() -> Classifier:
    return wrap(Levels(0, 1, 2), name="numbered", size_px=16)


def read(folder: Path, size_px: int = 16) -> Dataset:
    return load_data(f"imagefolder:{folder}", size_px=size_px)


def board(*runs: Path) -> Board:
    return make_board([read_run(run) for run in runs])


def benched(model: Classifier, data: Dataset, out: Path) -> Path:
    rows = bench(Bench(models=(model,), data=data, steps=(1,)), out)
    assert rows.iloc[0]["accuracy"] == 1.0
    return out


def test_a_model_that_numbers_its_classes_is_tied_with_one_that_names_them(tmp_path: Path) -> None:
    data = read(photographs(tmp_path / "photos"))
    runs = [benched(model, data, tmp_path / model.name) for model in (named(), numbered())]
    clean = board(*runs).comparisons[0]
    assert [(entry.model, entry.ties) for entry in clean.entries] == [("named", "A"), ("numbered", "A")]


def test_networks_of_two_sizes_on_the_same_photographs_stand_together_and_say_how_they_saw_them(
    tmp_path: Path,
) -> None:
    folder = photographs(tmp_path / "photos")
    runs = [
        benched(model, read(folder, size_px), tmp_path / model.name)
        for model, size_px in ((named(), 16), (numbered(), 12))
    ]
    clean = board(*runs).comparisons[0]
    assert [entry.ties for entry in clean.entries] == ["A", "A"]
    assert [entry.flags for entry in clean.entries] == [
        ("images as stored, 16 px",), ("images resize 14 crop 12, 12 px",),
    ]  # fmt: skip


def test_other_photographs_in_a_folder_of_the_same_name_are_another_comparison(tmp_path: Path) -> None:
    here, there = (photographs(tmp_path / side / "photos", offset) for side, offset in (("a", 0), ("b", 3)))
    runs = [benched(named(), read(here), tmp_path / "r1"), benched(numbered(), read(there), tmp_path / "r2")]
    comparisons = [c for c in board(*runs).comparisons if c.kind == "clean"]
    assert [len(comparison.entries) for comparison in comparisons] == [1, 1]


@pytest.mark.parametrize("offset, together", [(0, True), (3, False)])
def test_table_2_pairs_models_on_equal_images_alone(tmp_path: Path, offset: int, together: bool) -> None:
    folders = (photographs(tmp_path / side / "photos", shift) for side, shift in (("a", 0), ("b", offset)))
    runs = []
    for model, folder in zip((named(), numbered()), folders, strict=True):
        out = tmp_path / model.name
        asked = Sweep(models=(model,), data=read(folder), corruptions=("brightness",), severities=(1, 2))
        sweep_corruptions(asked, out)
        runs.append(out)
    sweeps = board(*runs).sweeps
    assert [sorted(set(sweep.table.values["model"])) for sweep in sweeps] == (
        [["named", "numbered"]] if together else [["named"], ["numbered"]]
    )
    assert all(len(sweep.correct.columns) == 6 for sweep in sweeps)
