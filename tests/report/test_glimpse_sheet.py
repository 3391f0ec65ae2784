"""The glimpse sheet from hand-made looks: boxes at known places, kinds, what is drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from robustglimpse.report import figures
from robustglimpse.report.glimpses import (
    KINDS,
    REGION_COLOURS,
    Case,
    Look,
    box,
    choose,
    glimpse_sheet,
    overlap,
    quotas,
    to_markdown,
)

WHOLE = (1.0, 0.0, 0.0)


def look(*answers: str, second: tuple[float, float, float] = (0.5, 0.5, -0.5), side: int = 9) -> Look:
    """Return a look of two glimpses at a grey image."""
    image = np.full((side, side, 3), 128, np.uint8)
    return Look(image, np.array([WHOLE, second]), np.stack([image[:4, :4]] * 2), answers, (0.5, 0.9))


def case(index: int, before: str, after: str, **other: Any) -> Case:
    """Return an image of class "a" answered before and after an attack."""
    return Case(index, "a", look("a", before), look("b", after, **other))


@pytest.mark.parametrize(
    "region, expected",
    [
        (WHOLE, (0, 0, 8, 8)),  # from the centre of the first pixel to that of the last
        ((0.5, 0.5, -0.5), (4, 0, 4, 4)),  # the upper right quarter
        ((0.25, 0.0, 0.0), (3, 3, 2, 2)),
        ((0.5, -0.5, 0.5), (0, 4, 4, 4)),
    ],
)
def test_a_region_is_a_box_between_pixel_centres(region: Any, expected: tuple[float, ...]) -> None:
    assert box(np.array(region), 9, 9) == pytest.approx(expected)


def test_a_box_is_what_the_network_samples() -> None:
    # On a ramp the corners of the glimpse read off where it looked.
    import torch

    from robustglimpse.models.mgnet import look as look_at

    rows, columns = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")
    region = (0.3, -0.2, 0.45)
    seen = look_at(torch.stack([columns, rows])[None], torch.tensor([region]), 5)[0]
    left, top, width, height = box(np.array(region), 33, 33)
    corners = [float(seen[0, 0, 0]), float(seen[1, 0, 0]), float(seen[0, -1, -1]), float(seen[1, -1, -1])]
    assert corners == pytest.approx([left, top, left + width, top + height], abs=1e-4)


@pytest.mark.parametrize(
    "a, b, share",
    [
        (WHOLE, WHOLE, 1.0),
        (WHOLE, (0.5, 0.5, 0.5), 1 / 4),
        ((0.5, -0.5, 0.0), (0.5, 0.5, 0.0), 0.0),
        ((0.5, 0.0, 0.0), (0.5, 0.5, 0.0), 1 / 3),
        ((0.2, -0.8, 0.8), (0.2, 0.8, -0.8), 0.0),
    ],
)
def test_overlap_is_intersection_over_union(a: Any, b: Any, share: float) -> None:
    assert overlap(np.array(a), np.array(b)) == pytest.approx(share)
    assert overlap(np.array(b), np.array(a)) == pytest.approx(share)


def test_kinds_are_told_by_the_last_answer() -> None:
    assert case(0, "a", "b").kind == "fooled"
    assert case(0, "a", "a").kind == "stands"
    assert case(0, "b", "b").kind == "wrong before"
    assert case(0, "a", "b", second=(0.5, 0.0, -0.5)).overlaps == pytest.approx((1.0, 1 / 3))


@pytest.mark.parametrize(
    "count, expected", [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (2, 1, 0)), (8, (4, 2, 2)), (5, (3, 1, 1))]
)
def test_half_of_the_sheet_is_fooled(count: int, expected: tuple[int, ...]) -> None:
    assert tuple(quotas(count).values()) == expected
    assert tuple(quotas(count)) == KINDS


def test_cases_are_the_first_of_their_kind() -> None:
    kinds = {"f": ("a", "b"), "s": ("a", "a"), "w": ("b", "b")}
    cases = [case(i, *kinds[kind]) for i, kind in enumerate("sssfffswwfff")]
    chosen = choose(cases[::-1], 8)
    assert [c.index for c in chosen] == [3, 4, 5, 9, 0, 1, 7, 8]
    assert [c.kind for c in chosen] == ["fooled"] * 4 + ["stands"] * 2 + ["wrong before"] * 2
    # What a kind lacks is made up with the first others.
    assert [c.index for c in choose(cases[:5], 4)] == [3, 4, 0, 1]
    assert [c.index for c in choose(cases, 100)] == [3, 4, 5, 9, 10, 11, 0, 1, 2, 6, 7, 8]


def rectangles(panel: Any) -> list[tuple[tuple[float, ...], str, bool]]:
    """Return every coloured rectangle of a panel: its place, colour, and whether it is dashed."""
    return [
        (
            (*r.get_xy(), r.get_width(), r.get_height()),
            to_hex(r.get_edgecolor()),
            r.get_linestyle() != "solid",
        )
        for r in panel.patches
        if isinstance(r, Rectangle) and to_hex(r.get_edgecolor()) != "#000000"
    ]


def test_the_sheet_draws_the_regions_where_they_are() -> None:
    # The second regions share 1/16, and cover 1 and 1/4: 1/19 of what both cover.
    cases = [case(7, "a", "b", second=(0.25, 0.0, 0.0)), case(9, "a", "a")]
    figure = glimpse_sheet(cases, title="m on set, cost 5 $")
    assert len(figure.axes) == 2 * 2 * 3
    first, second = (colour.lower() for colour in REGION_COLOURS[:2])
    clean, attacked = figure.axes[0], figure.axes[3]
    assert rectangles(clean) == [((0, 0, 8, 8), first, False), ((4, 0, 4, 4), second, False)]
    assert rectangles(attacked) == [
        ((0, 0, 8, 8), first, False), ((4, 0, 4, 4), second, True), ((3, 3, 2, 2), second, False),
    ]  # fmt: skip
    assert [t.get_text() for t in clean.texts] == ["1", "2"]
    assert clean.get_ylabel() == "image 7\ntrue: a\nfooled"
    assert [panel.get_title() for panel in figure.axes[:6]] == [
        "clean", "glimpse 1", "glimpse 2", "attacked", "glimpse 1", "glimpse 2",
    ]  # fmt: skip
    assert [t.get_text() for t in figure.axes[1].texts] == ["✓ a  50 %"]
    assert [t.get_text() for t in figure.axes[5].texts] == ["✗ b  90 %", "overlap 5 %"]
    assert [t.get_text() for t in figure.axes[11].texts] == ["✓ a  90 %", "overlap 100 %"]


@pytest.mark.parametrize(("file_format", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_sheet_renders_to_the_same_bytes_twice(file_format: str, magic: bytes) -> None:
    cases = [case(7, "a", "b")]
    content = figures.render(glimpse_sheet(cases, title="m"), file_format)
    assert content.startswith(magic)
    assert content == figures.render(glimpse_sheet(cases, title="m"), file_format)


def test_a_long_name_is_cut() -> None:
    long = Case(0, "hippopotamus amphibius", look("a", "tench, Tinca tinca"), look("a", "x"))
    figure = glimpse_sheet([long], title="m")
    assert figure.axes[0].get_ylabel().split("\n")[1] == "true: hippopotamus…"[: len("true: ") + 13]
    assert "tench " in figure.axes[2].texts[0].get_text()


@pytest.mark.parametrize("name", ["a", "n01641577", "woolly mammoth, or whatever it was"])
def test_the_names_of_the_rows_are_whole(name: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = glimpse_sheet([replace(case(0, "a", "b"), label=name)], title="t")
    FigureCanvasAgg(figure).draw()  # puts the labels where they go
    assert figure.axes[0].yaxis.label.get_window_extent().x0 >= 0


def test_no_case_is_no_sheet() -> None:
    with pytest.raises(ValueError, match="a case or more"):
        glimpse_sheet([], title="m")


def test_the_table_tells_what_the_sheet_shows() -> None:
    lines = to_markdown([case(7, "a", "b", second=(0.25, 0.0, 0.0))]).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == ["7", "a", "fooled", "a 50 > a 90", "b 50 > b 90", "5"]
