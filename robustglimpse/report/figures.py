"""Figures: frames of results in, matplotlib figures out. The only room for matplotlib."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pandas as pd

from robustglimpse.report.tables import headline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette: told apart by readers with any colour vision, and by marker in grey print.
FAMILY_STYLES = {
    "ffnet": ("FF-Net", "#0072B2", "o"),
    "mgnet": ("MGNet", "#D55E00", "s"),
}
OTHER_STYLE = ("", "#009E73", "^")
PROTOCOL_LINES = {"paper": (0, (1, 1.2)), "standard": "solid", "adaptive": (0, (5, 2))}
BACKBONE_TITLES = {
    "resnet18": "ResNet-18", "resnet34": "ResNet-34", "resnet50": "ResNet-50",
    "resnext50": "ResNeXt-50", "wrn50": "WRN-50",
}  # fmt: skip


def figure4(results: pd.DataFrame) -> Figure:
    """Return accuracy against attack steps: a panel per backbone, a line per model and protocol.

    The band around a line is its 95 % Wilson interval; step 0 is the clean accuracy.
    """
    from matplotlib.figure import Figure

    rows = headline(results)
    attacked = rows[rows["kind"] == "attack"]
    backbones = list(dict.fromkeys(attacked["backbone"]))
    figure = Figure(figsize=(4.6 * len(backbones) + 1.9, 4.2), layout="constrained")
    panels = figure.subplots(1, len(backbones), sharey=True, squeeze=False)[0]
    for panel, backbone in zip(panels, backbones, strict=True):
        _steps_panel(panel, rows[rows["backbone"] == backbone])
        panel.set_title(BACKBONE_TITLES.get(str(backbone), str(backbone)))
    panels[0].set_ylabel("accuracy (%)")
    first = attacked.iloc[0]
    attacks = ", ".join(dict.fromkeys(attacked["attack"].str.upper()))
    figure.suptitle(
        f"{attacks}, {first['norm']} eps {', '.join(dict.fromkeys(attacked['eps_text']))}, "
        f"{first['dataset']} ({int(first['n'])} images)",
        fontsize=10,
    )
    handles = {h.get_label(): h for panel in panels for h in panel.get_lines()}
    figure.legend(handles=list(handles.values()), loc="outside right center", frameon=False, fontsize=8.5)
    return figure


def _steps_panel(panel: Axes, rows: pd.DataFrame) -> None:
    """Draw one backbone's lines."""
    clean = rows[rows["kind"] == "clean"].drop_duplicates("model").set_index("model")
    attacked = rows[rows["kind"] == "attack"]
    counts = sorted({0, *attacked["steps"]})
    many_attacks = attacked["attack"].nunique() > 1
    groups = attacked.groupby(["model", "family", "attack", "protocol"], sort=False)
    for (model, family, attack, protocol), group in groups:
        title, colour, marker = FAMILY_STYLES.get(str(family), OTHER_STYLE)
        line = pd.concat([clean.loc[[model]], group.sort_values("steps")])
        label = f"{title or model}, {protocol}{f', {attack}' if many_attacks else ''}"
        panel.plot(
            line["steps"], 100 * line["accuracy"], label=label, color=colour, marker=marker,
            linestyle=PROTOCOL_LINES.get(str(protocol), "solid"), markersize=4.5, linewidth=1.7,
            clip_on=False,
        )  # fmt: skip
        panel.fill_between(
            line["steps"], 100 * line["ci_low"], 100 * line["ci_high"], color=colour, alpha=0.13, linewidth=0
        )
    panel.set_xscale("symlog", base=2, linthresh=1, linscale=0.6)
    panel.set_xticks(counts, [str(k) for k in counts])
    panel.set_xticks([], minor=True)
    panel.set_xlim(0, max(counts))
    panel.set_ylim(0, 100)
    panel.set_xlabel("attack steps (0: clean)")
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def render(figure: Figure, file_format: str) -> bytes:
    """Return the figure as "png" (160 dpi) or "svg" bytes, the same bytes for the same figure."""
    import matplotlib

    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "robustglimpse", "svg.fonttype": "none"}):
        metadata = {"Date": None} if file_format == "svg" else {"Software": None}
        figure.savefig(content, format=file_format, dpi=160, metadata=metadata)
    return content.getvalue()
