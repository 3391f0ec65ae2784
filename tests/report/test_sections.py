"""Early exits and glimpse sheets: figures and tables from hand-written rows, and their place on the page."""

from __future__ import annotations

from base64 import b64encode
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_page import Page, board_of, check_page
from written_runs import bench_run

from robustglimpse.exits import POINT_COLUMNS, RULE_COLUMNS
from robustglimpse.records import UserError
from robustglimpse.report import figures, page, sections, tables
from robustglimpse.stats import wilson


def counted(correct: int) -> dict[str, Any]:
    estimate = wilson(correct, 100)
    return {
        "correct": correct, "n": 100, "accuracy": estimate.value, "ci_low": estimate.low,
        "ci_high": estimate.high,
    }  # fmt: skip


def condition(protocol: str) -> dict[str, Any]:
    attacked = protocol != ""
    return {
        "dataset": "set", "condition": "attack" if attacked else "clean", "attack": "pgd" if attacked else "",
        "options": "", "norm": "linf" if attacked else "", "eps_text": "4/255" if attacked else "0",
        "steps": 16 if attacked else 0, "protocol": protocol,
    }  # fmt: skip


def point(
    model: str, exit_number: int, size: int, protocol: str, gmacs: float, correct: int
) -> dict[str, Any]:
    told = {"model": model, "family": model[:5], "exit": exit_number, "size_px": size, "gmacs": gmacs}
    return {**told, **condition(protocol), **counted(correct)}


def rule(
    threshold: float, protocol: str, against: str, gmacs: float, more: float, correct: int
) -> dict[str, Any]:
    told = {"model": "mgnet<b>", "family": "mgnet", "threshold": threshold, "against": against}
    costs = {"mean_gmacs": gmacs, "more_gmacs": more, "more_low": more - 0.25, "more_high": more + 0.25}
    left = {"left_1": 0.75, "left_2": 0.25}
    return {**told, **condition(protocol), **costs, **counted(correct), **left}


POINTS = pd.DataFrame(
    [
        row
        for k, protocol in enumerate(("", "standard"))
        for row in (
            point("ffnet", 1, 32, protocol, 1.0, 60 - 30 * k),
            point("ffnet", 1, 64, protocol, 4.0, 98 - 30 * k),
            point("mgnet<b>", 1, 64, protocol, 1.0, 90 - 50 * k),
            point("mgnet<b>", 2, 64, protocol, 2.0, 95 - 50 * k),
        )
    ]
)[list(POINT_COLUMNS)]
RULES = pd.DataFrame(
    [
        rule(0.8, "", "", 1.25, nan, 91),
        rule(0.9, "", "", 1.5, nan, 93),
        rule(0.8, "standard", "last exit", 1.5, 0.25, 44),
        rule(0.9, "standard", "last exit", 2.0, 0.5, 45),
        rule(0.8, "standard", "rule", 1.75, 0.5, 30),
    ]
)[[*RULE_COLUMNS, "left_1", "left_2"]]


def test_figure3_has_a_panel_per_condition_and_a_line_per_network_and_rule() -> None:
    figure = figures.figure3(POINTS, RULES)
    clean, attacked = figure.axes
    assert [panel.get_title() for panel in figure.axes] == [
        "clean images",
        "PGD linf 4/255, 16 steps, standard",
    ]
    labels = [handle.get_label() for handle in attacked.get_legend_handles_labels()[0]]
    assert sorted(map(str, labels)) == [
        "ffnet, each size", "mgnet<b>, each exit", "mgnet<b>, leaving when sure",
        "mgnet<b>, leaving when sure, attacked itself",
    ]  # fmt: skip
    sizes, exits = (container.lines[0] for container in clean.containers)
    assert (list(sizes.get_xdata()), list(sizes.get_ydata())) == ([1, 4], pytest.approx([60, 98]))
    assert (list(exits.get_xdata()), list(exits.get_ydata())) == ([1, 2], pytest.approx([90, 95]))
    assert [text.get_text() for text in clean.texts] == ["32 px", "64 px", "1", "2"]
    rules = [line for line in attacked.get_lines() if "leaving" in str(line.get_label())]
    drawn = {str(line.get_label()): list(line.get_xdata()) for line in rules}
    assert drawn["mgnet<b>, leaving when sure"] == [1.5, 2.0]
    assert drawn["mgnet<b>, leaving when sure, attacked itself"] == [1.75]


def test_two_calls_of_one_attack_are_two_conditions() -> None:
    other = POINTS[POINTS["condition"] == "attack"]
    told = pd.concat([POINTS, other.assign(options="loss='dlr'", accuracy=0.25)])
    header, lines = tables.points_grid(told)
    assert header[-2:] == [
        "PGD linf 4/255, 16 steps, standard", "PGD(loss='dlr') linf 4/255, 16 steps, standard"
    ]  # fmt: skip
    assert {line[-1][:4] for line in lines} == {"25.0"}
    assert len(figures.figure3(told, RULES).axes) == 3


def test_points_that_nothing_tells_apart_are_all_shown() -> None:
    again = POINTS[(POINTS["condition"] == "attack") & (POINTS["size_px"] == 32)]
    _, lines = tables.points_grid(pd.concat([POINTS, again.assign(accuracy=0.25)]))
    assert lines[0][-1] == "30.0 [21.9, 39.6] / 25.0 [21.9, 39.6]"


def test_what_costs_nothing_known_is_left_out_of_figure3() -> None:
    unknown = POINTS.assign(gmacs=POINTS["gmacs"].where(POINTS["model"] != "ffnet"))
    figure = figures.figure3(unknown, RULES.assign(mean_gmacs=nan))
    assert [len(panel.containers) for panel in figure.axes] == [1, 1]
    assert not any("leaving" in str(line.get_label()) for line in figure.axes[0].get_lines())


def test_thresholds_are_drawn_with_what_they_keep_and_cost() -> None:
    kept, spent = figures.thresholds_figure(RULES).axes
    assert [text.get_text() for text in kept.get_xticklabels()] == ["0.8", "0.9"]
    assert [list(line.get_ydata()) for line in kept.get_lines()] == [
        pytest.approx([91, 93]), pytest.approx([44, 45]), pytest.approx([30]),
    ]  # fmt: skip
    assert [list(line.get_ydata()) for line in spent.get_lines()] == [[1.25, 1.5], [1.5, 2.0], [1.75]]
    assert len({str(line.get_linestyle()) + str(line.get_color()) for line in kept.get_lines()}) == 3


@pytest.mark.parametrize("name", ["png", "svg"])
def test_the_figures_render_to_the_same_bytes_twice(name: str) -> None:
    for draw in (lambda: figures.figure3(POINTS, RULES), lambda: figures.thresholds_figure(RULES)):
        assert figures.render(draw(), name) == figures.render(draw(), name)


def test_the_tables_tell_the_same() -> None:
    header, lines = tables.points_grid(POINTS)
    assert header == ["model", "input", "exit", "GMACs", "clean images", "PGD linf 4/255, 16 steps, standard"]
    assert [line[:4] for line in lines] == [
        ["ffnet", "32 px", "1", "1"], ["ffnet", "64 px", "1", "4"],
        ["mgnet<b>", "64 px", "1", "1"], ["mgnet<b>", "64 px", "2", "2"],
    ]  # fmt: skip
    assert [line[5].split()[0] for line in lines] == ["30.0", "68.0", "40.0", "45.0"]
    header, lines = tables.rules_grid(RULES)
    assert [line[6] for line in lines] == ["-", "-", "+20 [+0, +40]", "+33 [+17, +50]", "+40 [+20, +60]"]
    assert lines[0][:4] == ["mgnet<b>", "0.8", "clean images", "-"]
    assert lines[4][3] == "rule"
    assert {line[7] for line in lines} == {"75 25"}


# The page


def test_the_page_shows_early_exits_where_a_run_has_them(tmp_path: Path) -> None:
    root = bench_run(tmp_path / "bench")
    before = page.to_html(board_of(root))
    assert 'id="confidence"' not in before
    POINTS.to_csv(root / "figure3.csv", index=False)
    RULES.to_csv(root / "thresholds.csv", index=False)
    text = page.to_html(board_of(root))
    read = check_page(text)
    assert '<a href="#confidence">Early exits</a>' in text
    assert len(read.tables) == len(Page(before).tables) + 2
    ours = [table for table in read.tables if table[0][-1].startswith("leaving at exit")]
    assert [[" ".join(cell.split()) for cell in row] for row in ours[0][1:]] == tables.rules_grid(RULES)[1]
    assert "<b>mgnet" not in text
    assert "mgnet&lt;b&gt;" in text


def test_a_run_without_thresholds_has_its_points_alone(tmp_path: Path) -> None:
    root = bench_run(tmp_path / "bench")
    POINTS.to_csv(root / "figure3.csv", index=False)
    read = check_page(page.to_html(board_of(root)))
    assert not any(table[0][-1].startswith("leaving at exit") for table in read.tables)
    assert any(table[0][:3] == ["model", "input", "exit"] for table in read.tables)


@pytest.mark.parametrize(
    "content, message", [("model\nm\n", "lacks the column"), ("", "not a table"), ('"', "not a table")]
)
def test_a_broken_table_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    root = bench_run(tmp_path / "bench")
    (root / "figure3.csv").write_text(content)
    with pytest.raises(UserError, match=message) as refused:
        page.to_html(board_of(root))
    assert "figure3.csv" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_page_carries_a_small_sheet_and_names_a_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = [bench_run(tmp_path / name) for name in ("one", "two")]
    content = b"\x89PNG" + bytes(2000)
    for root in roots:
        (root / "glimpses.png").write_bytes(content)
    text = page.to_html(board_of(*roots))
    check_page(text)
    assert text.count(f"data:image/png;base64,{b64encode(content).decode()}") == 2
    monkeypatch.setattr(sections, "SHEETS_BYTES", 3000)
    text = page.to_html(board_of(*roots))
    check_page(text)
    assert text.count("data:image/png;base64,") == 1
    assert "two: its glimpses.png is too large to carry along" in text
