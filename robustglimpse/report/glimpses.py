"""The glimpse sheet: where a network looked, what it saw there and what it said, clean beside attacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from robustglimpse.report.figures import literal
from robustglimpse.report.tables import markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["fooled", "stands", "wrong before"]
KINDS: tuple[Kind, ...] = ("fooled", "stands", "wrong before")
# Okabe & Ito's lighter colours, drawn on black: seen on any picture, by any colour vision.
REGION_COLOURS = ("#F0E442", "#56B4E9", "#E69F00", "#CC79A7", "#009E73", "#FFFFFF")
CORNERS = ((0, 0), (1, 0), (0, 1), (1, 1))  # where a region's number stands: right and down, as 0 or 1
RIGHT, WRONG = ("#0072B2", "✓"), ("#C04A00", "✗")
LONGEST_NAME = 13


@dataclass(frozen=True)
class Look:
    """One pass over one image, T glimpses of it.

    image: u8 [H,W,3].  regions: f64 [T,3], (a_s, a_x, a_y).  glimpses: u8 [T,h,w,3].
    answers, confidences: the class named after each glimpse, and its probability.
    """

    image: NDArray[np.uint8]
    regions: NDArray[np.float64]
    glimpses: NDArray[np.uint8]
    answers: tuple[str, ...]
    confidences: tuple[float, ...]


@dataclass(frozen=True)
class Case:
    """An image of a data set, before and after an attack; index is its place there."""

    index: int
    label: str
    clean: Look
    attacked: Look

    @property
    def kind(self) -> Kind:
        """What the attack did to the last answer."""
        if self.clean.answers[-1] != self.label:
            return "wrong before"
        return "stands" if self.attacked.answers[-1] == self.label else "fooled"

    @property
    def overlaps(self) -> tuple[float, ...]:
        """How much of each region stayed where it was: intersection over union, clean and attacked."""
        both = zip(self.clean.regions, self.attacked.regions, strict=True)
        return tuple(overlap(a, b) for a, b in both)


def choose(cases: Sequence[Case], count: int) -> list[Case]:
    """Return count cases, kind by kind in order of index: half fooled, the others standing or wrong before.

    What one kind lacks is made up with the first of the others.
    """
    picked = [
        case
        for kind, quota in quotas(count).items()
        for case in sorted((c for c in cases if c.kind == kind), key=lambda c: c.index)[:quota]
    ]
    taken = {case.index for case in picked}
    spare = sorted((case for case in cases if case.index not in taken), key=lambda c: c.index)
    picked += spare[: count - len(picked)]
    return sorted(picked, key=lambda case: (KINDS.index(case.kind), case.index))


def quotas(count: int) -> dict[Kind, int]:
    """Return how many of count cases each kind should have."""
    fooled = (count + 1) // 2
    stands = (count - fooled + 1) // 2
    return {"fooled": fooled, "stands": stands, "wrong before": count - fooled - stands}


def box(region: NDArray[Any], width: int, height: int) -> tuple[float, float, float, float]:
    """Return a region's left, top, width and height in an image's pixels, whose centres are whole numbers.

    The region (a_s, a_x, a_y) covers a_x +- a_s and a_y +- a_s of axes on which the first pixel's centre is
    -1 and the last one's is 1; a_y grows downwards.
    """
    a_s, a_x, a_y = (float(value) for value in region)
    left, top = (a_x - a_s + 1) / 2 * (width - 1), (a_y - a_s + 1) / 2 * (height - 1)
    return left, top, a_s * (width - 1), a_s * (height - 1)


def overlap(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the intersection of two regions over their union."""
    shared = 1.0
    for axis in (1, 2):
        low = max(a[axis] - a[0], b[axis] - b[0])
        high = min(a[axis] + a[0], b[axis] + b[0])
        shared *= max(0.0, float(high - low))
    return shared / (4 * float(a[0] ** 2 + b[0] ** 2) - shared)


def to_markdown(cases: Sequence[Case]) -> str:
    """Return what the sheet shows as a table: the answers after each glimpse, and how the regions moved."""
    lines = [
        [
            str(case.index), case.label, case.kind, _answers(case.clean), _answers(case.attacked),
            " ".join(f"{100 * share:.0f}" for share in case.overlaps[1:]) or "-",
        ]
        for case in cases
    ]  # fmt: skip
    return markdown(["image", "true", "case", "clean, %", "attacked, %", "regions overlap, %"], lines)


def _answers(look: Look) -> str:
    pairs = zip(look.answers, look.confidences, strict=True)
    return " > ".join(f"{answer} {100 * sure:.0f}" for answer, sure in pairs)


def glimpse_sheet(cases: Sequence[Case], *, title: str) -> Figure:
    """Return a row per case: the image with its regions numbered and the glimpses, clean and attacked.

    title: says which model, data and attack.  In an attacked image the clean regions are dashed.
    Raises ValueError without a case.
    """
    from matplotlib.figure import Figure

    if not cases:
        raise ValueError("expected a case or more to show")
    count = len(cases[0].clean.answers)
    side, text, head = 1.42, 0.42, 0.8  # inches
    named = max(1.0, 0.3 + 0.075 * max(len(_true_class(case)) for case in cases))  # for the rows' names
    width, height = (2 * count + 2) * side + 0.5 + named, len(cases) * (side + text) + head
    figure = Figure(figsize=(width, height))
    grid = figure.add_gridspec(
        len(cases), 2 * count + 3, width_ratios=[*[1] * (count + 1), 0.12, *[1] * (count + 1)],
        left=named / width, right=1 - 0.08 / width, top=1 - head / height, bottom=text / height,
        wspace=0.05, hspace=text / side,
    )  # fmt: skip
    for row, case in enumerate(cases):
        for at, look in ((0, case.clean), (count + 2, case.attacked)):
            panels = [figure.add_subplot(grid[row, at + k]) for k in range(count + 1)]
            is_attacked = at > 0
            _draw_image(panels[0], look, case.clean if is_attacked else None)
            for t, panel in enumerate(panels[1:]):
                moved = case.overlaps[t] if is_attacked and t else None
                _draw_glimpse(panel, look, t, case.label, moved)
            if row == 0:
                panels[0].set_title("attacked" if is_attacked else "clean", fontsize=9, pad=4)
                for t, panel in enumerate(panels[1:], 1):
                    panel.set_title(f"glimpse {t}", fontsize=9, pad=4)
            if not is_attacked:
                panels[0].set_ylabel(
                    f"image {case.index}\n{_true_class(case)}\n{case.kind}", rotation=0, ha="right",
                    va="center", fontsize=9, labelpad=8,
                )  # fmt: skip
    figure.text(0.5, 1 - 0.12 / height, literal(title), ha="center", va="top", fontsize=10.5)
    figure.text(
        0.5, 1 - 0.33 / height,
        "after each glimpse: the answer and its confidence, "
        f"{RIGHT[1]} right {WRONG[1]} wrong; dashed: where the clean image was looked at; "
        "overlap: of that region with the clean one; what was wrong before is not attacked",
        ha="center", va="top", fontsize=8, color="#444444",
    )  # fmt: skip
    return figure


def _draw_image(panel: Axes, look: Look, clean: Look | None) -> None:
    """Draw an image with its regions, numbered; clean: whose regions are dashed below them."""
    height, width = look.image.shape[:2]
    _draw_picture(panel, look.image)
    for t, region in enumerate(look.regions):
        colour = REGION_COLOURS[t % len(REGION_COLOURS)]
        if clean is not None and t:
            _draw_box(panel, box(clean.regions[t], width, height), colour, is_dashed=True)
        place = box(region, width, height)
        _draw_box(panel, place, colour, is_dashed=False)
        right, down = CORNERS[t % len(CORNERS)]
        panel.text(
            place[0] + right * place[2], place[1] + down * place[3], str(t + 1), fontsize=7, color="black",
            ha="right" if right else "left", va="bottom" if down else "top", zorder=5, clip_on=True,
            bbox={"facecolor": colour, "edgecolor": "black", "linewidth": 0.5, "pad": 1.0},
        )  # fmt: skip


def _draw_box(panel: Axes, place: tuple[float, float, float, float], colour: str, *, is_dashed: bool) -> None:
    """Draw a rectangle with a black rim, dashed on black for a dashed one: both are seen on any picture."""
    from matplotlib.patches import Rectangle

    for colour_of, line_width, line in (
        ("black", 1.5 if is_dashed else 2.6, "solid"),
        (colour, 1.1 if is_dashed else 1.3, (0, (2.5, 2.5)) if is_dashed else "solid"),
    ):
        panel.add_patch(
            Rectangle(
                place[:2], *place[2:], fill=False, edgecolor=colour_of, linestyle=line, linewidth=line_width,
                joinstyle="miter", zorder=2 if is_dashed else 3,
            )
        )  # fmt: skip


def _draw_glimpse(panel: Axes, look: Look, t: int, label: str, moved: float | None) -> None:
    """Draw what one glimpse saw, with the answer after it below; moved: its overlap with the clean region."""
    _draw_picture(panel, look.glimpses[t])
    for spine in panel.spines.values():
        spine.set(visible=True, color=REGION_COLOURS[t % len(REGION_COLOURS)], linewidth=2)
    colour, mark = RIGHT if look.answers[t] == label else WRONG
    answer = f"{mark} {_short(look.answers[t])}  {100 * look.confidences[t]:.0f} %"
    panel.text(
        0.5, -0.04, answer, transform=panel.transAxes, ha="center", va="top", fontsize=8.5, color=colour,
        weight="bold",
    )  # fmt: skip
    if moved is not None:
        panel.text(
            0.5, -0.17, f"overlap {100 * moved:.0f} %", transform=panel.transAxes, ha="center", va="top",
            fontsize=7.5, color="#444444",
        )  # fmt: skip


def _draw_picture(panel: Axes, picture: NDArray[np.uint8]) -> None:
    panel.imshow(picture, interpolation="nearest")
    panel.set_xticks([])
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set_visible(False)


def _true_class(case: Case) -> str:
    return f"true: {_short(case.label)}"


def _short(name: str) -> str:
    name = literal(name.partition(",")[0])
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
