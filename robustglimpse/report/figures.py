"""Figures: frames of results in, matplotlib figures out. The only room for matplotlib."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from robustglimpse.records import PROTOCOLS
from robustglimpse.report.table2 import Table2, family_of, short_name
from robustglimpse.report.tables import ESTIMATE, clean_of, condition_text, headline, lines_of
from robustglimpse.texts import safe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# Okabe & Ito's palette: told apart by readers with any colour vision, and by marker in grey print.
FAMILY_STYLES = {
    "ffnet": ("FF-Net", "#0072B2", "o"),
    "mgnet": ("MGNet", "#D55E00", "s"),
}
PROTOCOL_LINES = {name: (0, row.dashes) if row.dashes else "solid" for name, row in PROTOCOLS.items()}
BACKBONE_TITLES = {
    "resnet18": "ResNet-18", "resnet34": "ResNet-34", "resnet50": "ResNet-50",
    "resnext50": "ResNeXt-50", "wrn50": "WRN-50",
}  # fmt: skip


def figure4(results: pd.DataFrame) -> Figure:
    """Return accuracy against attack steps: a panel per backbone, a line per model, attack and protocol.

    The band around a line is its 95 % Wilson interval; step 0 is the clean accuracy.
    """
    rows = headline(results)
    attacked = lines_of(rows, along="steps")
    figure, panels = _line_panels(rows, attacked, "steps")
    for panel, (_, of_backbone) in zip(panels, attacked.groupby("backbone", sort=False), strict=True):
        _steps_axis(panel, of_backbone["steps"])
    calls = (attack.partition("(") for attack in attacked["attack"])
    names = [f"{name.upper()}{bracket}{rest}" for name, bracket, rest in calls]
    figure.suptitle(
        f"{literal(_listed(names))}, {literal(_listed(attacked['norm']))} eps "
        f"{literal(_listed(attacked['eps_text']))}, "
        f"{_data_text(attacked)}",
        fontsize=10,
    )
    return figure


def eps_figure(results: pd.DataFrame) -> Figure:
    """Return accuracy against eps: a panel per backbone, a line per model, attack and protocol."""
    rows = headline(results)
    attacked = lines_of(rows, along="eps")
    figure, panels = _line_panels(rows, attacked.assign(eps=255 * attacked["eps"]), "eps")
    for panel in panels:
        panel.set_xlim(0, 255 * attacked["eps"].max())
        panel.set_xlabel(f"{literal(_listed(attacked['norm']))} eps (1/255)")
    figure.suptitle(f"{literal(_listed(attacked['attack']))}, {_data_text(attacked)}", fontsize=10)
    return figure


def _line_panels(rows: pd.DataFrame, attacked: pd.DataFrame, along: str) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with a panel per backbone and a line per model, attack and protocol, from clean on.

    rows: what is quoted, at the last exit.  attacked: its lines (tables.lines_of); along: the column that
    changes along them.
    """
    from matplotlib.figure import Figure

    clean = clean_of(rows, attacked).assign(**{along: 0.0})
    shown = _shown(attacked)
    styles = _model_styles(shown)
    backbones = list(dict.fromkeys(shown["backbone"]))
    figure = Figure(figsize=(4.6 * len(backbones) + 1.9, 4.2), layout="constrained")
    panels = figure.subplots(1, len(backbones), sharey=True, squeeze=False)[0]
    for panel, backbone in zip(panels, backbones, strict=True):
        for line, group in shown[shown["backbone"] == backbone].groupby("line"):
            row = group.iloc[0]
            points = pd.concat([clean.loc[[line]], group.sort_values(along)])
            _draw_line(
                panel, points, along, *styles[row["shown"]], row["protocol"],
                label=literal(f"{row['called']}, {row['protocol']}{row['how']}"),
            )  # fmt: skip
        _percent_axis(panel)
        panel.set_ylabel("")
        panel.set_title(BACKBONE_TITLES.get(str(backbone), literal(str(backbone))))
    panels[0].set_ylabel("accuracy (%)")
    handles = {h.get_label(): h for panel in panels for h in panel.get_lines()}
    figure.legend(
        handles=list(handles.values()), loc="outside right center", frameon=False, fontsize=8.5,
        handlelength=4,  # long enough to tell dashes from dots beside the marker
    )  # fmt: skip
    return figure, panels


def _shown(attacked: pd.DataFrame) -> pd.DataFrame:
    """Return the lines with what the legend calls them, `called` a model and `how` the attack, and `shown`.

    A family's name stands for its one network of a backbone; where there are several, their own do.
    shown: what has a style of its own whatever the protocol.
    """
    networks = attacked.groupby(["family", "backbone"])["model"].nunique().groupby("family").max()
    is_family = attacked["family"].isin(FAMILY_STYLES) & (attacked["family"].map(networks) == 1)
    titles = attacked["family"].map({name: title for name, (title, _, _) in FAMILY_STYLES.items()})
    how = attacked["apart"]
    if attacked["attack"].nunique() > 1:
        how = ", " + attacked["attack"] + how
    called = titles.where(is_family, attacked["model"])
    return attacked.assign(called=called, how=how, shown=called + how)


def _draw_line(
    panel: Axes, points: pd.DataFrame, along: str, colour: str, marker: str, protocol: str, *, label: str
) -> None:
    """Draw accuracies in percent along a column, with their intervals as a band."""
    x = points[along].to_numpy(float)
    y, low, high = (100 * points[name].to_numpy(float) for name in ESTIMATE)
    panel.plot(
        x, y, label=label, color=colour, marker=marker, linestyle=PROTOCOL_LINES.get(protocol, "solid"),
        markersize=4.5, linewidth=1.7, clip_on=False,
    )  # fmt: skip
    panel.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)


def _steps_axis(panel: Axes, steps: pd.Series) -> None:
    """Give a panel an axis of step counts, each twice as far as its half."""
    counts = sorted({0, *(int(k) for k in steps)})
    panel.set_xscale("symlog", base=2, linthresh=1, linscale=0.6)
    panel.set_xticks(counts, [str(k) for k in counts])
    panel.set_xticks([], minor=True)
    panel.set_xlim(0, max(counts))
    panel.set_xlabel("attack steps (0: clean)")


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def steps_panel(rows: pd.DataFrame) -> Figure:
    """Return Figure 4 of one backbone for a page: the lines of its models and protocols, named at their ends.

    rows: clean and attacked rows of one threat on one data set.  A model without clean rows starts at its
    first step.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.5), layout="constrained")
    panel = figure.subplots()
    clean = rows[rows["kind"] == "clean"]
    attacked = rows[rows["kind"] == "attack"]
    styles = _model_styles(attacked)
    ends = []
    for (model, protocol), group in attacked.groupby(["shown", "protocol"], sort=False):
        before = clean[clean["shown"] == model]
        for apart, part in _not_contradicting(group):
            points = pd.concat([before if len(before) == 1 else before[:0], part.sort_values("steps")])
            _draw_line(panel, points, "steps", *styles[str(model)], str(protocol), label="")
            last = points.iloc[-1]
            label = f"{model}, {protocol}{apart}"
            ends.append((float(last["steps"]), 100 * float(last["accuracy"]), label, styles[str(model)][0]))
    _steps_axis(panel, attacked["steps"])
    _percent_axis(panel)
    _label_ends(panel, ends)
    return figure


def _not_contradicting(group: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield what tells a line's rows from others, and them: all, or each run's where runs contradict."""
    if group["steps"].is_unique:
        yield "", group
        return
    lines = lines_of(group, along="steps")
    for _, part in lines.groupby("line"):
        yield str(part["apart"].iloc[0]), part


def figure3(points: pd.DataFrame, rules: pd.DataFrame) -> Figure:
    """Return Figure 3: accuracy against GMACs, a panel per condition, with 95 % intervals.

    A network with exits is a solid line, its exits numbered; one exit at several input sizes is a line of
    sizes; exit by confidence is a dashed line of thresholds, dotted where the attack was made against it.

    points, rules: frames of exits.POINT_COLUMNS and exits.RULE_COLUMNS; rows without GMACs are left out.
    """
    from matplotlib.figure import Figure

    points = points[points["gmacs"].notna()]
    rules = rules[rules["mean_gmacs"].notna()]
    conditions = list(dict.fromkeys(map(condition_text, points.to_dict("records"))))
    figure = Figure(figsize=(4.4 * len(conditions) + 2.4, 4.3), layout="constrained")
    panels = figure.subplots(1, len(conditions), sharey=True, squeeze=False)[0]
    styles = _model_styles(points.assign(shown=points["model"]))
    told = [
        frame.assign(shown=frame["model"], at=[condition_text(row) for row in frame.to_dict("records")])
        for frame in (points, rules)
    ]
    for panel, shown in zip(panels, conditions, strict=True):
        here, ruled = (frame[frame["at"] == shown] for frame in told)
        for model, line in here.groupby("shown", sort=False):
            _draw_points(panel, line, *styles[str(model)])
        for (ruled_model, against), line in ruled.groupby(["shown", "against"], sort=False):
            _draw_rule(panel, line.sort_values("mean_gmacs"), styles[str(ruled_model)][0], str(against))
        panel.set_title(literal(shown), fontsize=10)
        panel.set_xlim(0, 1.15 * float(points["gmacs"].max()) or 1)
        panel.locator_params(axis="x", nbins=6)
        panel.set_xlabel("GMACs per image")
        _percent_axis(panel)
        panel.set_ylim(0, 103)
        panel.set_ylabel("")
    panels[0].set_ylabel("accuracy (%)")
    handles = {str(h.get_label()): h for panel in panels for h in panel.get_legend_handles_labels()[0]}
    figure.legend(
        handles=[handles[name] for name in sorted(handles)], loc="outside right center", frameon=False,
        fontsize=8.5,
    )  # fmt: skip
    figure.suptitle(_data_text(points), fontsize=10)
    return figure


def _draw_points(panel: Axes, line: pd.DataFrame, colour: str, marker: str) -> None:
    """Draw a network's exits, or its sizes, with what tells them apart written beside."""
    line = line.sort_values("gmacs")
    is_sizes = line["exit"].max() == 1
    x, y, low, high = (line[c].to_numpy(float) for c in ("gmacs", "accuracy", "ci_low", "ci_high"))
    what = "each size" if is_sizes and len(line) > 1 else "each exit"
    label = f"{literal(str(line['shown'].iloc[0]))}{f', {what}' if len(line) > 1 else ''}"
    panel.errorbar(
        x, 100 * y, yerr=100 * np.array([y - low, high - y]).clip(0), label=label, color=colour,
        marker=marker, markersize=5, linewidth=1.6, elinewidth=0.9, capsize=2, zorder=3,
    )  # fmt: skip
    names = [f"{size} px" for size in line["size_px"]] if is_sizes else [str(k) for k in line["exit"]]
    for at, height, name in zip(x, y, names, strict=True):
        panel.annotate(
            name, (at, 100 * height), xytext=(5, -11), textcoords="offset points", fontsize=8, color=colour,
            zorder=4,
        )  # fmt: skip


RULE_LINES = {"": (0, (4, 2)), "last exit": (0, (4, 2)), "rule": (0, (1, 1.3))}


def _draw_rule(panel: Axes, line: pd.DataFrame, colour: str, against: str) -> None:
    """Draw accuracy against mean cost, a point per threshold."""
    label = f"{literal(str(line['shown'].iloc[0]))}, leaving when sure"
    label += ", attacked itself" if against == "rule" else ""
    panel.plot(
        line["mean_gmacs"], 100 * line["accuracy"], color=colour, linestyle=RULE_LINES[against], marker=".",
        markersize=5, linewidth=1.3, label=label, zorder=2,
    )  # fmt: skip


def thresholds_figure(rules: pd.DataFrame) -> Figure:
    """Return what a threshold keeps and costs: accuracy and mean GMACs against it, a line per condition.

    rules: the columns of exits.RULE_COLUMNS.  Bands are 95 % intervals of the accuracy.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.6, 4.0), layout="constrained")
    kept, spent = figure.subplots(1, 2)
    thresholds = sorted(rules["threshold"].unique())
    styles = _model_styles(rules.assign(shown=rules["model"]))
    conditions = list(dict.fromkeys(map(_rule_text, rules.to_dict("records"))))
    several = rules["model"].nunique() > 1
    for model, of_model in rules.groupby("model", sort=False):
        colours = CONDITION_COLOURS if not several else (styles[str(model)][0],)
        for k, condition in enumerate(conditions):
            line = of_model[[_rule_text(row) == condition for row in of_model.to_dict("records")]]
            line = line.sort_values("threshold")
            x = [thresholds.index(t) for t in line["threshold"]]
            style = {
                "color": colours[k % len(colours)], "linestyle": CONDITION_LINES[k % len(CONDITION_LINES)],
                "marker": "osD^vP"[k % 6], "markersize": 4, "linewidth": 1.6,
            }  # fmt: skip
            name = literal(f"{model}, {condition}" if several else condition)
            kept.plot(x, 100 * line["accuracy"], label=name, **style)
            kept.fill_between(
                x, 100 * line["ci_low"], 100 * line["ci_high"], color=style["color"], alpha=0.1, linewidth=0
            )
            spent.plot(x, line["mean_gmacs"], **style)
    for panel in (kept, spent):
        _percent_axis(panel)
        panel.set_xticks(range(len(thresholds)), [f"{t:g}" for t in thresholds], rotation=45)
        panel.set_xlabel("leaves at a confidence of")
    spent.set_ylabel("mean GMACs per image")
    spent.set_ylim(0, 1.08 * float(rules["mean_gmacs"].max()) if rules["mean_gmacs"].notna().any() else 1)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8.5, ncols=2)
    name = "" if several else f" of {literal(str(rules['model'].iloc[0]))}"
    figure.suptitle(f"exit by confidence{name}, {_data_text(rules)}", fontsize=10)
    return figure


def _data_text(rows: pd.DataFrame) -> str:
    """Return "glimpse-digits (200 images)"."""
    sets = rows[["dataset", "n"]].drop_duplicates().itertuples(index=False)
    return ", ".join(f"{literal(str(dataset))} ({n} images)" for dataset, n in sets)


CONDITION_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#7F7F7F")
CONDITION_LINES = ("solid", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))


def _rule_text(row: Mapping[Hashable, Any]) -> str:
    against = "" if row["condition"] == "clean" else f", against the {row['against']}"
    return f"{condition_text(row)}{against}"


def exits_panel(points: pd.DataFrame) -> Figure:
    """Return Figure 3 for a page: accuracy against GMACs, a point per exit, a line per model.

    points: columns shown, family, exit, gmacs, accuracy, ci_low, ci_high; fractions, intervals may be NaN.
    The axis of accuracy need not start at 0.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    panel = figure.subplots()
    styles = _model_styles(points)
    for model, group in points.groupby("shown", sort=False):
        colour, marker = styles[str(model)]
        line = group.sort_values("exit")
        x, y, low, high = (line[c].to_numpy(float) for c in ("gmacs", "accuracy", "ci_low", "ci_high"))
        errors = 100 * np.nan_to_num([y - low, high - y]).clip(0)
        panel.errorbar(
            x, 100 * y, yerr=errors, label=literal(str(model)), color=colour, marker=marker, markersize=5,
            linewidth=1.4, elinewidth=1, clip_on=False, zorder=3,
        )  # fmt: skip
    panel.set_xlim(0, 1.08 * float(points["gmacs"].max()))
    panel.locator_params(axis="x", nbins=5)
    _percent_axis(panel)
    lowest = 100 * float(points[["accuracy", "ci_low"]].min().min())
    panel.set_ylim(10 * max(0, min(8, int(lowest // 10))), 100)
    panel.set_xlabel("GMACs per image")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _model_styles(rows: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Return colour and marker by model: its family's colour, and a marker that no other of it has."""
    others = ["#009E73", "#CC79A7", "#E69F00", "#7F7F7F"]
    markers = {family: [marker, "^", "D", "v", "P", "X"] for family, (_, _, marker) in FAMILY_STYLES.items()}
    styles: dict[str, tuple[str, str]] = {}
    for model, family in rows[["shown", "family"]].drop_duplicates().itertuples(index=False):
        if family in FAMILY_STYLES:
            free = markers[family]
            styles[str(model)] = FAMILY_STYLES[family][1], free.pop(0) if len(free) > 1 else free[0]
        else:
            styles[str(model)] = others[len(styles) % len(others)], "o"
    return styles


def _percent_axis(panel: Axes) -> None:
    panel.set_ylim(0, 100)
    panel.set_ylabel("accuracy (%)")
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _label_ends(panel: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each line's name beside its right end, moved apart vertically where they would touch."""
    gap, place = 6.5, -np.inf
    heights = {}
    for k in sorted(range(len(ends)), key=lambda k: ends[k][1]):
        place = max(ends[k][1], place + gap)
        heights[k] = place
    top = max(heights.values(), default=0)
    for k, (_, _, name, colour) in enumerate(ends):
        panel.annotate(
            literal(name), (1, (heights[k] - max(0.0, top - 100)) / 100), xycoords="axes fraction",
            xytext=(8, 0), textcoords="offset points", va="center", fontsize=9, color=colour,
            annotation_clip=False,
        )  # fmt: skip


def literal(text: str) -> str:
    """Return text that matplotlib takes literally: names come from files, and $ would start a formula."""
    return safe(text, "figure")


def inline_svg(figure: Figure, *, prefix: str, title: str) -> str:
    """Return the figure as an <svg> element for a page: the page's ink, no ids or links beyond its own.

    Black becomes currentColor, grid and series CSS variables (--grid, --s-0072b2), so that a page can
    turn dark.  prefix: put before every id, for several figures share a page.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has its own
        text = render(figure, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.S)
    text = re.sub(r"\s*<g id=\"patch_1\">.*?</g>", "", text, count=1, flags=re.S)  # the white sheet
    view_box = re.search(r'viewBox="([\d. ]+)"', text)
    assert view_box is not None
    head = f'<svg viewBox="{view_box[1]}" role="img" aria-label="{escape(title, quote=True)}">'
    text = re.sub(r"<svg.*?>", lambda _: head, text, count=1, flags=re.S)
    text = re.sub(r'\b(id="|href="#|url\(#)', lambda m: f"{m[1]}{prefix}-", text).replace(
        "xlink:href", "href"
    )
    for name, value in {"#000000": "currentColor", "#ffffff": "var(--bg)", "#dddddd": "var(--grid)"}.items():
        text = re.sub(rf"(fill|stroke): {name}", rf"\1: {value}", text)
    return re.sub(r"(fill|stroke): #([0-9a-f]{6})", r"\1: var(--s-\2, #\2)", text)


def table2_heatmap(table: Table2) -> Figure:
    """Return Table 2 as a heat map: a row per model and exit, a column per corruption, in percent."""
    from matplotlib.figure import Figure

    columns = ["clean", "average", *table.corruptions]
    accuracy = 100 * table.values[columns].to_numpy(float)
    figure = Figure(figsize=(0.62 * len(columns) + 3.2, 0.42 * len(accuracy) + 1.6), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(accuracy, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for (y, x), value in np.ndenumerate(accuracy):
        if not np.isnan(value):
            is_best = columns[x] in table.is_best and bool(table.is_best[columns[x]].iloc[y])
            panel.text(
                x, y, f"{value:.0f}", ha="center", va="center", fontsize=8.5,
                color="black" if value > 55 else "white", weight="bold" if is_best else "normal",
            )  # fmt: skip
    titles = ["Clean", "Average", *(literal(short_name(name)) for name in table.corruptions)]
    panel.set_xticks(range(len(columns)), titles, rotation=45, ha="left", rotation_mode="anchor")
    panel.xaxis.tick_top()
    rows = table.values[["model", "glimpses"]].itertuples(index=False)
    names = [literal(f"{model}, exit {exit_number}") for model, exit_number in rows]
    panel.set_yticks(range(len(accuracy)), names)
    panel.tick_params(length=0)
    families = [family_of(name) for name in table.corruptions]
    for x in range(len(columns) - 1):
        if x < 2 or families[x - 2] != families[x - 1]:
            panel.axvline(x + 0.5, color="white", linewidth=2.5)
    for side in panel.spines.values():
        side.set_visible(False)
    figure.colorbar(image, ax=panel, label="accuracy (%)", pad=0.01, fraction=0.03)
    return figure


def corruption_sheet(
    pictures: Mapping[tuple[str, int], NDArray[np.uint8]], clean: NDArray[np.uint8]
) -> Figure:
    """Return one image under corruptions, a row each, severity growing to the right, clean at the left.

    pictures: (corruption, severity) -> u8 [H,W,3].  clean: u8 [H,W,3].
    """
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys(name for name, _ in pictures))
    severities = sorted({severity for _, severity in pictures})
    figure = Figure(figsize=(1.25 * (len(severities) + 1) + 1.3, 1.25 * len(rows) + 0.4))
    panels = figure.subplots(
        len(rows), len(severities) + 1, squeeze=False,
        gridspec_kw={
            "wspace": 0.03, "hspace": 0.03, "left": 0.15, "right": 0.995, "top": 0.98, "bottom": 0.005,
        },
    )  # fmt: skip
    for y, name in enumerate(rows):
        panels[y, 0].imshow(clean, interpolation="nearest")
        label = literal(name).replace("_", "\n")
        panels[y, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        for x, severity in enumerate(severities, 1):
            panels[y, x].imshow(pictures[name, severity], interpolation="nearest")
    for x, title in enumerate(["clean", *map(str, severities)]):
        panels[0, x].set_title(title, fontsize=8, pad=2)
    for panel in panels.flat:
        panel.set_xticks([])
        panel.set_yticks([])
        for side in panel.spines.values():
            side.set_visible(False)
    return figure


def render(figure: Figure, file_format: str) -> bytes:
    """Return the figure as "png" (160 dpi) or "svg" bytes, the same bytes for the same figure."""
    import matplotlib

    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "robustglimpse", "svg.fonttype": "none"}):
        metadata = {"Date": None} if file_format == "svg" else {"Software": None}
        figure.savefig(content, format=file_format, dpi=160, metadata=metadata)
    return content.getvalue()
