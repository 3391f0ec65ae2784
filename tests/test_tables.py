"""Every row of every registry keeps its contract."""

from __future__ import annotations

import inspect
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from robustglimpse.attacks import ATTACKS, options_of
from robustglimpse.corruptions import CORRUPTIONS
from robustglimpse.data import DATASETS
from robustglimpse.data.augment import AUGMENTS, pipeline
from robustglimpse.records import PROTOCOLS, Norm, Threat
from robustglimpse.registry import parse_call, resolve
from robustglimpse.rng import KeyedDraws

OWN = [name for name, row in ATTACKS.items() if not row.parts]


@pytest.mark.parametrize("name", OWN)
def test_an_attack_yields_iterates_inside_the_ball_and_lets_samples_go(name: str) -> None:
    row = ATTACKS[name]
    attack = resolve(row)
    assert list(inspect.signature(attack).parameters)[:5] == ["logits", "x", "y", "threat", "draws"]
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.linspace(-1, 1, 192).view(3, 8, 8)
    options = {"steps": 3, "step_size": 0.02} if row.iterative else {}

    def logits(batch: torch.Tensor) -> torch.Tensor:
        score = (batch * weight).flatten(1).sum(1)
        return torch.stack([score, -score, score * 0.5], 1)

    norms: list[Norm] = ["linf", "l2"]
    for norm in (n for n in norms if n in row.norms):
        threat = Threat(norm, 0.05)
        kept = x.clone()
        draws = KeyedDraws(0, torch.arange(6))
        iterates = attack(logits, x, torch.zeros(6, dtype=torch.int64), threat, draws, **options)
        first = next(iterates)
        assert first.shape == x.shape
        assert first.dtype == torch.float32
        assert not first.requires_grad
        delta = (first - x).flatten(1)
        size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
        assert row.may_leave or float(size.max()) <= 0.05 + 1e-6
        assert float(size.min()) > 0
        assert first.min() >= 0
        assert first.max() <= 1
        assert torch.equal(x, kept), "the images given are never written to"
        if row.iterative:
            keep = torch.tensor([True, False, True, False, False, True])
            assert len(iterates.send(keep)) == 3


@pytest.mark.parametrize("name", OWN)
def test_an_attack_makes_a_correct_linear_model_fail(name: str) -> None:
    row = ATTACKS[name]
    x = torch.full((1, 3, 8, 8), 0.5)

    def logits(batch: torch.Tensor) -> torch.Tensor:
        score = batch.flatten(1).mean(1) - 0.49
        return torch.stack([torch.zeros_like(score), score], 1)

    options = {"steps": 10, "step_size": 0.01} if row.iterative else {}
    iterates = resolve(row)(
        logits,
        x,
        torch.ones(1, dtype=torch.int64),
        Threat("linf", 0.02),
        KeyedDraws(0, torch.arange(1)),
        **options,
    )
    assert 0 in [int(logits(x_adv).argmax()) for x_adv in iterates]


def linear_logits(x: torch.Tensor) -> torch.Tensor:
    weight = torch.linspace(-1, 1, 192).view(3, 8, 8)
    score = (x * weight).flatten(1).sum(1)
    return torch.stack([score, -score, score * 0.5], 1)


def few_iterates(name: str, **options: Any) -> list[torch.Tensor]:
    """Return the first three iterates of an attack on six images, of three steps if it is told how many."""
    row = ATTACKS[name]
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels, draws = torch.zeros(6, dtype=torch.int64), options.pop("draws", KeyedDraws(0, torch.arange(6)))
    short = {"steps": 3, "step_size": 0.02}
    options |= {key: value for key, value in short.items() if key in options_of(row)}
    return list(islice(resolve(row)(linear_logits, x, labels, Threat("linf", 0.05), draws, **options), 4))


@pytest.mark.parametrize("name", OWN)
def test_a_row_says_how_many_iterates_come(name: str) -> None:
    row = ATTACKS[name]
    assert not (row.iterative and row.runs_long)
    assert set(options_of(row)) >= ({"steps", "step_size"} if row.iterative else set())
    if not row.runs_long:
        assert len(few_iterates(name)) == (3 if row.iterative else 1)


@pytest.mark.parametrize("name", OWN)
def test_a_row_says_whether_another_restart_is_another_attack(name: str) -> None:
    row = ATTACKS[name]
    options = {"random_start": False} if "random_start" in options_of(row) else {}
    here, there = (few_iterates(name, draws=KeyedDraws(seed, torch.arange(6)), **options) for seed in (0, 1))
    is_random = not all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    assert is_random == row.is_random, "set is_random where it draws numbers, whatever its random_start"


@pytest.mark.parametrize("name", AUGMENTS)
def test_an_augmentation_keeps_shape_and_type_and_changes_pixels(name: str) -> None:
    call = {"shift": "shift(pixels=4)", "crop": "crop(area=0.3)"}.get(name, name)
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    out = pipeline([call])(images)
    assert out.shape == images.shape
    assert out.dtype == torch.uint8
    assert not torch.equal(out, images)


def test_rows_say_what_they_are() -> None:
    for table in (ATTACKS, CORRUPTIONS, DATASETS, AUGMENTS):
        for row in table.values():
            parts = getattr(row, "parts", ())
            assert {parse_call(part).name for part in parts} <= set(OWN)
            assert parts or callable(resolve(row))  # type: ignore[arg-type]
    assert list(PROTOCOLS) == ["plain", "standard", "paper", "adaptive"]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_has_its_row_in_readme(name: str) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (line,) = re.findall(rf"^\| `{name}`.*", readme, re.M)
    _, _, where, start, clip, gradient, verdict, _ = line.split("|")
    row = PROTOCOLS[name]
    assert ("normalised" in where, "none" in clip) == (row.normalised, row.normalised)
    assert ("random" in start) == row.random_start
    assert gradient.count(",") >= len(row.surrogates) - 1
    assert ("last iterate" in verdict) == (row.judges[0] == "last")


def test_protocols_have_places_and_lines_of_their_own() -> None:
    assert sorted(row.rank for row in PROTOCOLS.values()) == list(range(1, len(PROTOCOLS) + 1))
    assert len({row.dashes for row in PROTOCOLS.values()}) == len(PROTOCOLS)


def test_how_a_protocol_is_drawn_is_not_in_the_text_that_seeds_random_models() -> None:
    assert not {"rank", "dashes"} & set(re.findall(r"\w+", str(PROTOCOLS["paper"])))
