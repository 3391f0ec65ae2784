"""Model cards: what a bundled checkpoint is, how it was made, and what was measured of it.

Made from the manifest, the recipe and results, never by hand: a number that no run gave is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import pandas as pd

from robustglimpse.models import ModelRow, how_to_get
from robustglimpse.records import UserError
from robustglimpse.report.tables import headline, markdown, percent

LIMITS = {
    "glimpse-digits": "trained and tested on digits drawn into two photographs: a set to try attacks and "
    "evaluations on, which says nothing about photographs of objects",
    "tiny-imagenet-20": "trained on the first 20 classes of Tiny ImageNet, 500 images each, at 64 px",
}


def card(row: ModelRow, recipe: str, results: pd.DataFrame | None = None) -> str:
    """Return the card as Markdown.

    recipe: the text of its recipe.  results: rows of runs of this very file (other weights are left out).
    Raises UserError for a model that has no bundled file to tell of.
    """
    if row.source != "bundled":
        raise UserError(f"{row.name} is not bundled, and has no card; {how_to_get(row)}")
    parts = [f"# {row.name}", _architecture(row), "## Accuracy", _accuracy(row)]
    found = headline(results[results["weights_sha256"] == row.sha256]) if results is not None else None
    if found is not None and (found["kind"] == "attack").any():
        parts += ["## Under attack", _attacks(found)]
    if found is not None and (found["kind"] == "corruption").any():
        parts += ["## Under corruptions", _corruptions(found)]
    parts += ["## Limits", _limits(row), "## Recipe", f"```toml\n{recipe.strip()}\n```", _provenance(row)]
    return "\n\n".join(parts) + "\n"


def _architecture(row: ModelRow) -> str:
    if row.glimpses == 1 and Fraction(row.downsample) == 1:
        return f"FF-Net: {row.backbone}, the whole image of {row.size_px} px at once, {row.classes} classes."
    side = int(row.size_px / Fraction(row.downsample))
    return (
        f"MGNet: {row.backbone}, T = {row.glimpses} glimpses of {side} px (M = {row.downsample}) of an image "
        f"of {row.size_px} px, {row.classes} classes; it may answer after each."
    )


def _accuracy(row: ModelRow) -> str:
    lines = [[str(t + 1), f"{100 * value:.1f}"] for t, value in enumerate(row.accuracy)]
    return f"On the test images of {row.dataset}, all of them, in percent:\n\n" + markdown(
        ["exit", "clean"], lines
    )


def _attacks(found: pd.DataFrame) -> str:
    attacked = found[found["kind"] == "attack"]
    most = attacked[attacked["steps"] == attacked.groupby("cell")["steps"].transform("max")]
    lines = [
        [str(r["attack"]), str(r["norm"]), str(r["eps_text"]), str(r["steps"]), str(r["protocol"]),
         str(r["n"]), percent(r["accuracy"], r["ci_low"], r["ci_high"])]
        for r in most.sort_values(["attack", "norm", "protocol", "eps"]).to_dict("records")
    ]  # fmt: skip
    header = ["attack", "norm", "eps", "steps", "protocol", "images", "accuracy"]
    return "In percent with 95 % intervals, at the last exit:\n\n" + markdown(header, lines)


def _corruptions(found: pd.DataFrame) -> str:
    cells = found[found["kind"] == "corruption"]
    return (
        f"Mean accuracy over {len(cells)} cells ({cells['corruption'].nunique()} corruptions, "
        f"{cells['severity'].nunique()} severities): {100 * cells['accuracy'].mean():.1f} %."
    )


def _limits(row: ModelRow) -> str:
    known: Mapping[str, str] = LIMITS
    return f"It was {known.get(row.dataset, f'trained on {row.dataset}, and judged there')}."


def _provenance(row: ModelRow) -> str:
    return (
        f"Made by `robustglimpse train {row.recipe}`. File {row.file}, {row.bytes / 1e6:.1f} MB, "
        f"SHA-256 {row.sha256}."
    )
