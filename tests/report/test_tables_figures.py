"""Tables and figures from hand-written rows."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from robustglimpse import frames
from robustglimpse.records import PROTOCOLS, RESULT_COLUMNS, UserError
from robustglimpse.registry import fraction_text, options_text
from robustglimpse.report import figures, tables
from robustglimpse.stats import wilson


def row(model: str, protocol: str, judge: str, steps: int, correct: int, **other: Any) -> dict[str, Any]:
    estimate = wilson(correct, 100)
    family, backbone = model.split("-")
    return {
        **dict.fromkeys(RESULT_COLUMNS, None),
        "model": model,
        "family": family,
        "backbone": {"r18": "resnet18", "r50": "resnet50"}[backbone],
        "dataset": "set",
        "n": 100,
        "kind": "attack" if protocol else "clean",
        "attack": "pgd" if protocol else "",
        "norm": "linf",
        "eps_text": "4/255",
        "protocol": protocol,
        "judge": judge,
        "steps": steps,
        "exit": 1,
        "correct": correct,
        "total": 100,
        "accuracy": estimate.value,
        "ci_low": estimate.low,
        "ci_high": estimate.high,
        "status": "ok",
        **other,
    }


ROWS = pd.DataFrame(
    [
        row("mgnet-r18", "", "", 0, 94),
        row("mgnet-r18", "standard", "worst", 1, 80),
        row("mgnet-r18", "standard", "worst", 4, 0),
        row("mgnet-r18", "paper", "last", 1, 91),
        row("mgnet-r18", "paper", "worst", 1, 89),
        row("ffnet-r18", "", "", 0, 98),
        row("ffnet-r18", "standard", "worst", 1, 70),
        row("ffnet-r50", "", "", 0, 99),
        row("ffnet-r50", "standard", "worst", 1, 60),
        row("ffnet-r50", "standard", "worst", 4, 50, status="failed", accuracy=None),
    ]
)


def test_a_protocol_is_quoted_by_its_own_verdict_and_the_last_exit() -> None:
    earlier = pd.DataFrame([row("mgnet-r18", "", "", 0, 90, exit=0)])
    rows = tables.headline(pd.concat([earlier, ROWS]))
    quoted = set(zip(rows["model"], rows["protocol"], rows["judge"], rows["correct"], strict=True))
    assert ("mgnet-r18", "paper", "last", 91) in quoted
    assert ("mgnet-r18", "paper", "worst", 89) not in quoted
    assert ("mgnet-r18", "", "", 90) not in quoted


def test_steps_table_has_a_line_per_model_and_protocol() -> None:
    lines = tables.steps_table(ROWS).splitlines()
    assert len(lines) == 2 + 4
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["model", "attack", "protocol", "clean", "1 step", "4 steps"]
    assert [c[0] for c in cells[2:]] == ["ffnet-r18", "mgnet-r18", "mgnet-r18", "ffnet-r50"]
    assert [c[2] for c in cells[2:]] == ["standard", "paper", "standard", "standard"]
    # 80 of 100: Wilson's interval is 0.7112 to 0.8666.
    assert cells[4][4] == "80.0 [71.1, 86.7]"
    # Nothing left standing of 100: the bound is z^2 / (n + z^2) = 3.7 %.
    assert cells[4][5] == "0.0 [<= 3.7]"
    # A crashed cell is a hole.
    assert cells[5][5] == "-"


def test_steps_table_has_a_line_per_exit_where_several_were_judged() -> None:
    rows = pd.DataFrame(
        [
            *(row("mgnet-r18", "", "", 0, 90 + k, exit=k) for k in (1, 2)),
            *(row("mgnet-r18", "standard", "worst", 1, 80 + k, exit=k) for k in (1, 2)),
        ]
    )
    lines = [line.split("|")[1:-1] for line in tables.steps_table(rows).splitlines()]
    assert [cell.strip() for cell in lines[0]] == ["model", "exit", "attack", "protocol", "clean", "1 step"]
    assert [line[1].strip() for line in lines[2:]] == ["1", "2"]
    assert [line[4].split()[0] for line in lines[2:]] == ["91.0", "92.0"]
    assert [line[5].split()[0] for line in lines[2:]] == ["81.0", "82.0"]


def test_figure4_draws_a_panel_per_backbone_and_a_line_per_model_and_protocol() -> None:
    figure = figures.figure4(ROWS)
    panels = figure.axes
    assert [panel.get_title() for panel in panels] == ["ResNet-18", "ResNet-50"]
    labels = [line.get_label() for line in panels[0].get_lines()]
    assert labels == ["FF-Net, standard", "MGNet, paper", "MGNet, standard"]
    standard = panels[0].get_lines()[2]
    assert list(standard.get_xdata()) == [0, 1, 4]
    assert list(standard.get_ydata()) == pytest.approx([94, 80, 0])
    assert len(panels[0].collections) == 3, "each line has its interval band"


@pytest.mark.parametrize(("file_format", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_figure_renders_to_the_same_bytes_twice(file_format: str, magic: bytes) -> None:
    content = figures.render(figures.figure4(ROWS), file_format)
    assert content.startswith(magic)
    assert content == figures.render(figures.figure4(ROWS), file_format)


# Cells that an attack's name does not tell apart


def cells_of(table: str) -> list[list[str]]:
    """Return a Markdown table's lines, without the header, as texts."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


# What the clean cell shares with the attacked ones of its run.
SHARED = ("dataset", "split", "n", "size_px", "data_sha256", "weights_sha256", "batch_size", "run")


def ran(clean: int, *correct: int, model: str = "mgnet-r18", **told: Any) -> list[dict[str, Any]]:
    """Return the rows of a run of one attack, judged after 1, 4, 16 steps, the clean one first."""
    told = {"eps": 4 / 255, "step_size": 1 / 255, "seed": 0, "cell": f"{correct} {told}", **told}
    attacked = [row(model, "standard", "worst", 4**k, right, **told) for k, right in enumerate(correct)]
    return [row(model, "", "", 0, clean, **{k: v for k, v in told.items() if k in SHARED}), *attacked]


TWO_CALLS = pd.DataFrame([*ran(94, 80, 60, options="loss='dlr'"), *ran(94, 70, 50)[1:]])


def test_two_calls_of_one_attack_are_two_lines() -> None:
    assert [(line[1], line[4][:4], line[5][:4]) for line in cells_of(tables.steps_table(TWO_CALLS))] == [
        ("pgd 4/255", "70.0", "50.0"), ("pgd(loss='dlr') 4/255", "80.0", "60.0")
    ]  # fmt: skip
    curve = frames.steps_curve(TWO_CALLS)
    assert curve.loc[("mgnet-r18", "pgd(loss='dlr')", "4/255", "standard")].tolist() == [0.94, 0.8, 0.6]
    assert curve.loc[("mgnet-r18", "pgd", "4/255", "standard")].tolist() == [0.94, 0.7, 0.5]
    (panel,) = figures.figure4(TWO_CALLS).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in panel.get_lines()}
    assert drawn["MGNet, standard, pgd(loss='dlr')"] == pytest.approx([94, 80, 60])
    assert drawn["MGNet, standard, pgd"] == pytest.approx([94, 70, 50])
    assert len({line.get_marker() for line in panel.get_lines()}) == 2


SWEPT = pd.DataFrame(
    [
        row("mgnet-r18", "", "", 0, 100, seed=0),
        *(
            row(
                "mgnet-r18",
                "standard",
                "worst",
                4,
                right,
                eps=k / 255,
                eps_text=f"{k}/255",
                cell=cell,
                **told,
            )
            for cell, told, rights in (("a", {}, (80, 20)), ("b", {"options": "eot=5"}, (70, 0)))
            for k, right in zip((2, 8), rights, strict=True)
        ),
    ]
)


def test_an_eps_table_has_a_line_per_cell_and_an_interval_to_every_number() -> None:
    first, second = cells_of(tables.eps_table(SWEPT))
    assert first[:4] == ["mgnet-r18", "1", "pgd", "standard"]
    assert second[2] == "pgd(eot=5)"
    # Wilson's of 100, 80 and 20 of 100, and the areas (100 + 80) / 2 * 2 + (80 + 20) / 2 * 6 of 8 and so on.
    assert first[4:] == ["100.0 [96.3, 100.0]", "80.0 [71.1, 86.7]", "20.0 [13.3, 28.9]", "60.0 [52.6, 66.7]"]
    assert second[5:] == ["70.0 [60.4, 78.1]", "0.0 [<= 3.7]", "47.5 [42.2, 52.9]"]
    curve = tables.eps_curve(SWEPT)
    assert curve.loc[("mgnet-r18", 1, "pgd", "standard")].tolist() == pytest.approx([1, 0.8, 0.2, 0.6])
    assert curve.loc[("mgnet-r18", 1, "pgd(eot=5)", "standard")].tolist() == pytest.approx([1, 0.7, 0, 0.475])
    (panel,) = figures.eps_figure(SWEPT).axes
    assert [line.get_label() for line in panel.get_lines()] == [
        "MGNet, standard, pgd", "MGNet, standard, pgd(eot=5)"
    ]  # fmt: skip
    assert [list(line.get_xdata()) for line in panel.get_lines()] == [pytest.approx([0, 2, 8])] * 2


def test_one_sweep_is_called_by_its_attack_alone() -> None:
    one = SWEPT[SWEPT["cell"] != "b"]
    assert [line[2] for line in cells_of(tables.eps_table(one))] == ["pgd"]
    assert [line.get_label() for line in figures.eps_figure(one).axes[0].get_lines()] == ["MGNet, standard"]


def test_the_area_of_a_curve_that_ends_early_is_not_told() -> None:
    area = tables.eps_curve(SWEPT[(SWEPT["cell"] != "b") | (SWEPT["eps_text"] == "2/255")])["area"]
    assert area.notna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("told", "label"),
    [
        ({"seed": 1}, "seed 1"),
        ({"norm": "l2"}, "l2"),
        ({"step_size": 2 / 255}, "steps of 2/255"),
        ({"restarts": 5}, "restarts 5"),
        ({"dataset": "other"}, "other"),
        ({"split": "train"}, "train"),
        ({"n": 50}, "50 images"),
        ({"size_px": 96}, "96 px"),
        ({"run": "runs/b"}, "runs/b"),
        ({"weights_sha256": "0123456789ab"}, "weights 01234567"),
        ({"data_sha256": "0123456789ab"}, "data 01234567"),
        ({"batch_size": 32}, "batches of 32"),
        ({"cell": "0123456789ab"}, "cell 01234567"),
    ],
)
def test_what_tells_two_cells_apart_is_in_their_labels(told: dict[str, Any], label: str) -> None:
    same = {
        "restarts": 1, "dataset": "set", "split": "test", "n": 100, "size_px": 64, "run": "runs/a",
        "weights_sha256": "a" * 64, "data_sha256": "d" * 64, "batch_size": 64,
    }  # fmt: skip
    frame = pd.DataFrame([*ran(94, 80, **same), *ran(90, 70, **{**same, **told})])
    lines = cells_of(tables.steps_table(frame))
    assert [line[4][:4] for line in lines] == ["80.0", "70.0"]
    assert lines[0][1] != lines[1][1] == f"pgd 4/255, {label}"
    assert sorted(frames.steps_curve(frame)[1]) == [0.7, 0.8]
    assert len({line.get_label() for line in figures.figure4(frame).axes[0].get_lines()}) == 2
    by_eps = tables.eps_curve(frame)
    assert sorted(by_eps[4 / 255]) == [0.7, 0.8]
    assert by_eps.index.is_unique
    # Each has the clean accuracy of its own images, weights and run.
    if not {"seed", "norm", "step_size", "restarts", "cell"} & set(told):
        assert [line[3][:4] for line in lines] == ["94.0", "90.0"]


def test_models_that_met_other_threats_say_so_too() -> None:
    frame = pd.DataFrame([*ran(94, 80), *ran(98, 70, model="ffnet-r18", norm="l2")])
    assert [line[1] for line in cells_of(tables.steps_table(frame))] == ["pgd 4/255, l2", "pgd 4/255, linf"]


def test_clean_rows_that_contradict_each_other_are_a_hole() -> None:
    frame = pd.DataFrame([*ran(94, 80), row("mgnet-r18", "", "", 0, 90)])
    assert [line[3] for line in cells_of(tables.steps_table(frame))] == ["-"]
    assert frames.steps_curve(frame)[0].isna().all()


def test_the_counts_of_two_evaluations_are_not_one_mean_over_eps() -> None:
    frame = pd.DataFrame(ran(94, 80, 60))
    assert [line[2] for line in cells_of(tables.eps_table(frame))] == ["pgd, 1 step", "pgd, 4 steps"]


@pytest.mark.parametrize(
    "told_by", [tables.steps_table, tables.eps_table, frames.steps_curve, figures.figure4]
)
def test_a_row_that_is_there_twice_is_refused(told_by: Any) -> None:
    frame = pd.DataFrame(ran(94, 80))
    with pytest.raises(
        UserError, match=r"expected one row for pgd on mgnet-r18, standard.*read every results"
    ):
        told_by(pd.concat([frame, frame]))


def test_two_networks_of_a_family_go_by_their_own_names() -> None:
    robust = [{**each, "model": "ffnet-r18-robust"} for each in ran(90, 85, 80, model="ffnet-r18")]
    frame = pd.DataFrame([*ran(98, 70, 40, model="ffnet-r18"), *robust, *ran(94, 60, 30)])
    for figure in (figures.figure4(frame), figures.eps_figure(frame[frame["steps"] != 4])):
        lines = figure.axes[0].get_lines()
        assert [line.get_label() for line in lines] == [
            "ffnet-r18, standard", "ffnet-r18-robust, standard", "MGNet, standard"
        ]  # fmt: skip
        assert len({(line.get_color(), line.get_marker()) for line in lines}) == 3
        assert len(figure.legends[0].get_texts()) == 3


def test_a_page_s_panel_draws_runs_that_contradict_each_other_apart() -> None:
    rows = [*ran(94, 80, 60, run="a"), *ran(94, 70, 50, run="b")[1:]]
    frame = pd.DataFrame(rows).assign(shown="mgnet-r18")
    (panel,) = figures.steps_panel(frame).axes
    assert [list(line.get_ydata()) for line in panel.get_lines()] == [
        pytest.approx([94, 80, 60]), pytest.approx([94, 70, 50])
    ]  # fmt: skip
    assert {text.get_text() for text in panel.texts} == {
        "mgnet-r18, standard, a", "mgnet-r18, standard, b"
    }  # fmt: skip


def test_names_from_files_are_no_formulas() -> None:
    frame = pd.DataFrame([{**each, "model": "$x$", "family": ""} for each in ran(94, 80)])
    assert [text.get_text() for text in figures.figure4(frame).legends[0].get_texts()] == [r"\$x\$, standard"]


# Protocols


def test_protocols_are_told_from_the_mildest_to_the_hardest_each_with_its_own_line() -> None:
    assert tables.PROTOCOL_ORDER == ("paper", "plain", "standard", "adaptive")
    every = pd.DataFrame(
        [
            row("mgnet-r18", "", "", 0, 94),
            *(row("mgnet-r18", name, row_.judges[0], 1, 50) for name, row_ in PROTOCOLS.items()),
        ]
    )
    figure = figures.figure4(every)
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == [f"MGNet, {name}" for name in tables.PROTOCOL_ORDER]
    # What matplotlib draws: the dash pattern of each, None for solid.
    assert len({str(line._dash_pattern) for line in lines}) == len(PROTOCOLS)


# Texts


@pytest.mark.parametrize(
    ("call", "options"),
    [
        ("pgd", ""),
        ("clean", ""),
        ("pgd(steps=[1, 2], step_size=0.01, radii=[0.1, 0.2])", ""),
        ("pgd(steps=4, loss='dlr', eot=20)", "eot=20, loss='dlr'"),
        ("fog(severity=1, preset=64, store='exact')", ""),
    ],
)
def test_options_are_what_no_column_tells(call: str, options: str) -> None:
    assert options_text(call) == options


@pytest.mark.parametrize(
    ("value", "text"), [(4 / 255, "4/255"), (0.25 / 255, "0.25/255"), (0.51, "0.51"), (1.0, "255/255")]
)
def test_an_eps_reads_as_it_was_typed(value: float, text: str) -> None:
    assert fraction_text(value) == text


def test_latex_takes_every_sign_literally() -> None:
    assert tables.latex(r"a\b_c <= 5 % & ~^$#{}") == (
        r"a\textbackslash{}b\_c $\leq$ 5 \% \& \textasciitilde{}\textasciicircum{}\$\#\{\}"
    )
