"""Models beside their data: what is told, what counts as the same cell, and what is put back afterwards."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustglimpse import Bench, bench, from_tensors, wrap
from robustglimpse.data import Dataset
from robustglimpse.models.answers import answers
from robustglimpse.pairs import checked, load_pairs
from robustglimpse.records import Classifier
from robustglimpse.store import Provenance, Store
from robustglimpse.surroundings import own_surroundings

FILES = ("weights_sha256", "data_sha256", "labels_sha256", "images_sha256")


@pytest.fixture
def data() -> Dataset:
    rng = np.random.default_rng(0)
    return from_tensors(rng.integers(0, 256, (12, 3, 8, 8), np.uint8), np.arange(12) % 3, name="noise")


def linear(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))


def asked(model: Classifier, data: Dataset) -> Bench:
    return Bench(models=(model,), data=data, steps=(2,), batch_size=5)


def accuracy(model: Classifier, data: Dataset, out: Path) -> float:
    rows = bench(asked(model, data), out)
    return float(rows[rows["kind"] == "clean"].iloc[0]["accuracy"])


def test_a_model_from_outside_gets_embedded_images_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    # Its size is what it was made for, not what it was trained on this set at: nothing is resized for it.
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 10))
    model = wrap(pooled, name="pooled", size_px=32, classes=[str(k) for k in range(10)])
    ((_, _, shown, _),) = load_pairs(Bench((model,), data="glimpse-digits", limit=2), "cpu")
    assert shown.size_px == 64
    assert "pooled: made for images of 32 px, gets those of glimpse-digits as they" in capfd.readouterr().err


def test_a_module_that_was_trained_on_is_attacked_anew(
    data: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module = linear()
    model = wrap(module, name="m", size_px=8)
    first = bench(asked(model, data), tmp_path)
    with torch.no_grad():  # as training does: the same module, other weights
        module[1].weight.neg_()
        module[1].bias.neg_()
    again = bench(asked(model, data), tmp_path)
    assert set(first["weights_sha256"]) != set(again["weights_sha256"])
    fresh = bench(asked(wrap(module, name="m", size_px=8), data), tmp_path / "fresh")
    columns = ["kind", "steps", "correct", "weights_sha256"]
    assert again[columns].equals(fresh[columns])
    assert "weights or code have changed; what is there of it is made again" in capfd.readouterr().err


def test_a_function_whose_answers_changed_is_attacked_anew_though_no_hash_sees_it(
    data: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    turned = [1.0]
    weight = torch.linspace(-1, 1, 192 * 3).reshape(3, 192)
    model = wrap(linear(), name="m", size_px=8)
    model = replace(
        model, logits=lambda x: turned[0] * x.flatten(1) @ weight.T, renew=None,
        exits=lambda x: (turned[0] * x.flatten(1) @ weight.T)[None], surrogates={},
    )  # fmt: skip
    bench(asked(model, data), tmp_path)
    assert "answers otherwise" not in capfd.readouterr().err
    turned[0] = -1.0
    after = accuracy(model, data, tmp_path)
    assert "answers otherwise on the same probe images" in capfd.readouterr().err
    assert after == accuracy(model, data, tmp_path / "fresh")


def test_a_run_again_makes_nothing_anew_and_says_nothing(
    data: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = wrap(linear(), name="m", size_px=8)
    bench(asked(model, data), tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    capfd.readouterr()
    bench(asked(model, data), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == stamps
    assert capfd.readouterr().err == ""


def provenance(*rows: tuple[float, ...], **other: str) -> Provenance:
    return Provenance(**{**dict.fromkeys(FILES, "x"), **other}, answers=rows)


@pytest.mark.parametrize(
    "kept, told",
    [
        ({"weights_sha256": "w", "data_sha256": "x"}, "weights or code"),
        ({"weights_sha256": "x", "data_sha256": "d"}, "data has changed"),
        ({"weights_sha256": "x", "data_sha256": "x"}, "older version"),
        ({**dict.fromkeys(FILES, "x"), "labels_sha256": "l", "answers": [[1.0, 2.0]]}, "labels were matched"),
        ({**dict.fromkeys(FILES, "x"), "answers": [[1.0, 2.0, 3.0]]}, "answers otherwise"),
        ({**dict.fromkeys(FILES, "x"), "answers": [[1.0, 2.1]]}, "by up to 0.1"),
        ({**dict.fromkeys(FILES, "x"), "answers": [[1.0, float("nan")]]}, "answers otherwise"),
        ({**dict.fromkeys(FILES, "x"), "answers": [[1.0, 2.001]]}, ""),
        ({**dict.fromkeys(FILES, "x"), "answers": [[1.0, 2.0]]}, ""),
    ],
)
def test_what_was_kept_counts_only_if_all_that_decided_it_is_the_same(kept: object, told: str) -> None:
    difference = provenance((1.0, 2.0)).difference(kept)  # type: ignore[arg-type]
    assert told in difference and bool(told) == bool(difference)


def test_batches_of_a_model_that_answered_otherwise_are_not_gone_on_with(
    tmp_path: Path, data: Dataset
) -> None:
    model = wrap(linear(), name="m", size_px=8)
    bench(asked(model, data), tmp_path / "made")
    record = next((tmp_path / "made" / "cells").iterdir())
    assert record.is_file()
    _, _, was = checked(model, data, "cpu")
    from robustglimpse.records import Cell, Threat

    cell = Cell("m", "noise", "all", "clean", Threat("linf", 0.0), "", 1, None, 5, 0)
    store = Store(tmp_path / "run")
    store.save_part(cell, was, (0, 0), {"pred": np.arange(5)}, 0.1)
    assert list(store.parts(cell, was)) == [(0, 0)]
    other = replace(was, answers=tuple(tuple(-v for v in row) for row in was.answers))
    assert store.parts(cell, other) == {}
    assert store.parts(cell, was) == {}


def test_answers_are_kept_short_and_see_every_logit(data: Dataset) -> None:
    wide = wrap(nn.Sequential(nn.Flatten(), nn.Linear(192, 1000)), name="wide", size_px=8)
    x = torch.from_numpy(data.images[:4]).float() / 255
    before = answers(wide, x)
    assert len(before) == 6 and all(len(row) <= 34 for row in before)

    def nudged(x: Tensor) -> Tensor:
        logits = wide.logits(x).clone()
        logits[:, 501] += 100.0  # none of those kept one by one
        return logits

    after = answers(replace(wide, logits=nudged), x)
    apart = np.abs(np.array(after) - np.array(before)).max(0)
    assert apart[:-2].max() == 0 and apart[-2] > 50  # the largest of all tells


def test_a_size_that_the_model_was_not_made_for_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))
    small = from_tensors(
        np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), np.uint8), [0, 1, 2, 0], name="s"
    )
    bench(asked(wrap(module, name="m", size_px=16), small), tmp_path)
    assert "m: made for images of 16 px, gets those of s as they are, 8 x 8 px" in capfd.readouterr().err


def test_gradients_and_results_are_those_of_a_fresh_process_under_inference_mode_and_autocast(
    data: Dataset, tmp_path: Path
) -> None:
    model = wrap(linear(), name="m", size_px=8)
    plain = bench(asked(model, data), tmp_path / "plain")
    with torch.inference_mode():
        inferred = bench(asked(model, data), tmp_path / "inferred")
    with torch.autocast("cpu"), torch.no_grad():
        cast = bench(asked(model, data), tmp_path / "cast")
    for other in (inferred, cast):
        assert other["correct"].tolist() == plain["correct"].tolist()
        assert other["backwards"].tolist() == plain["backwards"].tolist()
    assert plain["backwards"].sum() > 0


def test_what_a_run_sets_is_put_back() -> None:
    path, dtype = list(sys.path), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ValueError, match="crash"), own_surroundings():
            assert torch.get_default_dtype() == torch.float32
            sys.path.append("elsewhere")
            raise ValueError("crash")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(dtype)
    assert sys.path == path
