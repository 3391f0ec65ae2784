"""Model cards: made from what is on record, and the committed ones are what is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from test_tables_figures import row

from robustglimpse import recipes
from robustglimpse.models import bundled, model_row
from robustglimpse.report.card import card
from robustglimpse.store import read_results

ROOT = Path(__file__).parents[2]
# Directories whose runs the committed cards tell of.
RUNS = [
    ROOT / "results" / name
    for name in (
        "glimpse-digits", "glimpse-digits-c", "tiny-imagenet-20/pgd", "tiny-imagenet-20/corruptions"
    )
]  # fmt: skip


@pytest.mark.parametrize("name", bundled())
def test_the_committed_card_is_the_one_that_is_made(name: str) -> None:
    short = name.removesuffix("@glimpse-digits")
    written = (ROOT / "docs" / "models" / f"{short}.md").read_text()
    made = card(model_row(name), recipes.read(model_row(name).recipe), read_results(*RUNS))
    assert written == made, f"robustglimpse card {short} {' '.join(str(p.relative_to(ROOT)) for p in RUNS)}"


def test_a_card_tells_of_runs_of_its_own_weights_alone() -> None:
    own = replace(model_row("mgnet-r18"), name="small", sha256="aa", accuracy=(0.9, 0.95))
    results = pd.DataFrame(
        [
            row("mgnet-r18", "", "", 0, 94, weights_sha256="aa", cell="1"),
            row("mgnet-r18", "standard", "worst", 4, 33, weights_sha256="aa", cell="2"),
            row("mgnet-r18", "standard", "worst", 8, 21, weights_sha256="aa", cell="2"),
            row("mgnet-r18", "standard", "worst", 8, 77, weights_sha256="bb", cell="3"),
        ]
    )
    text = card(own, "epochs = 1", results)
    assert "| 1    | 90.0  |" in text
    assert "| 2    | 95.0  |" in text
    assert "21.0 [" in text
    assert "33.0 [" not in text, "the longest run stands for the others"
    assert "77.0 [" not in text, "other weights"
    assert "T = 3 glimpses of 32 px" in text
    assert "says nothing about photographs" in text
    assert "epochs = 1" in text


def test_a_card_without_runs_says_nothing_of_robustness() -> None:
    text = card(model_row("ffnet-r18"), "x = 1")
    assert "Under" not in text
    assert "FF-Net: resnet18" in text
