"""Table 2 from hand-written rows: means, holes, what stands out as best, and the published rows."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from robustglimpse.corruptions import CORRUPTIONS, FAMILIES, names
from robustglimpse.records import RESULT_COLUMNS
from robustglimpse.report import figures
from robustglimpse.report.table2 import (
    PAPER,
    Baseline,
    Table2,
    alexnet,
    baseline_from,
    paper_rows,
    short_name,
    summary,
    summary_markdown,
    table2,
    to_csv,
    to_latex,
    to_markdown,
)
from robustglimpse.stats import ALEXNET_CLEAN_ERROR, ALEXNET_ERROR
from robustglimpse.sweep import misfit

NO_PAIRS = pd.DataFrame()
FIRST = ["model", "glimpses", "gmacs", "clean", "average"]


def cell(
    model: str, corruption: str, severity: int, accuracy: float, exit_number: int = 1, **other: Any
) -> dict[str, Any]:
    """Return a row of results; one of the clean images where the corruption is ""."""
    family, _, backbone = model.partition("-")
    return {
        **dict.fromkeys(RESULT_COLUMNS, None),
        "model": model, "family": family, "backbone": backbone, "dataset": "set", "exit": exit_number,
        "kind": "corruption" if corruption else "clean", "corruption": corruption, "severity": severity,
        "accuracy": accuracy, "gmacs": 0.25 * exit_number, "status": "ok", **other,
    }  # fmt: skip


def grid(model: str, accuracy: Mapping[str, Sequence[float]], exit_number: int = 1) -> list[dict[str, Any]]:
    """Return rows of a model: its clean accuracy ("") and those by corruption at severities 1, 2, ..."""
    return [
        cell(model, name, severity if name else 0, value, exit_number)
        for name, values in accuracy.items()
        for severity, value in enumerate(values, 1)
    ]


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(rows))


TWO = frame(
    *grid("mgnet-r18", {"": [0.9], "snow": [0.8, 0.4], "shot_noise": [0.5, 0.3], "saturate": [0.1, 0.2]}, 2),
    *grid("mgnet-r18", {"": [0.8], "snow": [0.6, 0.4], "shot_noise": [0.3, 0.3], "saturate": [0.1, 0.0]}),
    *grid("ffnet-r18", {"": [0.99], "snow": [0.7, 0.1], "shot_noise": [0.2, 0.0], "saturate": [1.0, 1.0]}),
)


def split(line: str) -> list[str]:
    """Return the cells of a line of Markdown."""
    return [text.strip() for text in line.strip("|").split("|")]


# Means


def test_a_row_per_model_and_exit_of_means_over_severities() -> None:
    values = table2(TWO, NO_PAIRS).values
    assert list(values.columns) == [*FIRST, "shot_noise", "snow", "saturate"]
    assert list(zip(values["model"], values["glimpses"], strict=True)) == [
        ("ffnet-r18", 1), ("mgnet-r18", 1), ("mgnet-r18", 2)
    ]  # fmt: skip
    assert values["clean"].tolist() == [0.99, 0.8, 0.9]
    assert values["gmacs"].tolist() == [0.25, 0.25, 0.5]
    assert values["shot_noise"].tolist() == pytest.approx([0.1, 0.3, 0.4])
    assert values["snow"].tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert values["saturate"].tolist() == pytest.approx([1.0, 0.05, 0.15])


def test_the_average_leaves_the_extras_out() -> None:
    assert table2(TWO, NO_PAIRS).values["average"].tolist() == pytest.approx([0.25, 0.4, 0.5])
    extras = TWO[TWO["corruption"].isin(["", "saturate"])]
    assert table2(extras, NO_PAIRS).values["average"].tolist() == pytest.approx([1.0, 0.05, 0.15])


def test_rows_come_in_any_order() -> None:
    table = table2(TWO, NO_PAIRS).values
    shuffled = TWO.sample(frac=1, random_state=3).reset_index(drop=True)
    pd.testing.assert_frame_equal(table2(shuffled, NO_PAIRS).values, table)


def test_backbones_are_told_apart_before_families() -> None:
    rows = frame(
        *(
            row
            for m in ("mgnet-r50", "ffnet-r50", "mgnet-r18", "ffnet-r18")
            for row in grid(m, {"fog": [0.5]})
        )
    )
    assert table2(rows, NO_PAIRS).values["model"].tolist() == [
        "ffnet-r18", "mgnet-r18", "ffnet-r50", "mgnet-r50"
    ]  # fmt: skip


# Holes


def without(model: str, corruption: str, severity: int) -> pd.DataFrame:
    """Return TWO with one cell crashed, at every exit of the model."""
    hole = (TWO["model"] == model) & (TWO["corruption"] == corruption) & (TWO["severity"] == severity)
    assert hole.any()
    rows = TWO.copy()
    rows.loc[hole, ["status", "accuracy"]] = ["failed", np.nan]
    return rows


def test_a_hole_is_a_dash_and_never_a_zero() -> None:
    table = table2(without("mgnet-r18", "snow", 2), NO_PAIRS)
    values = table.values
    assert values["snow"].tolist() == pytest.approx([0.4, np.nan, np.nan], nan_ok=True)
    assert values["average"].tolist() == pytest.approx([0.25, np.nan, np.nan], nan_ok=True)
    assert values["shot_noise"].tolist() == pytest.approx([0.1, 0.3, 0.4]), "the rest stays"
    lines = [split(line) for line in to_markdown(table).splitlines()]
    assert lines[3] == ["mgnet-r18", "1", "0.25", "80.0", "-", "30.0", "-", "5.0"]
    assert r"mgnet-r18 & 1 & 0.25 & 80.0 & - & 30.0 & - & 5.0 \\" in to_latex(table)
    back = pd.read_csv(io.StringIO(to_csv(table)))
    assert back["snow"].isna().tolist() == back["average"].isna().tolist() == [False, True, True]
    shown = summary(without("mgnet-r18", "snow", 2), Baseline("b", {"snow": 1, "shot_noise": 1}, (1, 2), 0))
    assert shown["weather"].isna().tolist() == shown["mce"].isna().tolist() == [False, True, True]
    assert shown["noise"].notna().all()


def test_a_hole_in_an_extra_leaves_the_average() -> None:
    values = table2(without("ffnet-r18", "saturate", 1), NO_PAIRS).values
    assert values["saturate"].tolist() == pytest.approx([np.nan, 0.05, 0.15], nan_ok=True)
    assert values["average"].tolist() == pytest.approx([0.25, 0.4, 0.5])


def test_a_missing_clean_cell_is_a_dash() -> None:
    table = table2(TWO[TWO["kind"] == "corruption"], NO_PAIRS)
    assert table.values["clean"].isna().all()
    assert {split(line)[3] for line in to_markdown(table).splitlines()[2:]} == {"-"}


def test_a_severity_that_crashed_for_all_is_a_hole() -> None:
    rows = frame(
        cell("ffnet-r18", "fog", 3, 0.9), cell("ffnet-r18", "fog", 5, np.nan, status="failed"),
    )  # fmt: skip
    assert table2(rows, NO_PAIRS).values["fog"].isna().all()


def test_a_corruption_that_crashed_for_all_is_a_hole() -> None:
    rows = frame(
        *(cell("ffnet-r18", "fog", s, 0.9) for s in (1, 2)),
        *(cell("ffnet-r18", "snow", s, np.nan, status="failed") for s in (1, 2)),
    )
    values = table2(rows, NO_PAIRS).values
    assert values["average"].isna().all()
    assert values["snow"].isna().all()


# What stands out


def right_but(*wrong: int, count: int = 100) -> NDArray[np.float64]:
    """Return which of count images are right: all but these."""
    scores = np.ones(count)
    scores[list(wrong)] = 0
    return scores


def contest(**scores: Mapping[str, NDArray[np.float64]]) -> Table2:
    """Return the table of models whose scores per image are given by corruption."""
    rows = frame(*(cell(m, name, 3, float(s.mean())) for m, of in scores.items() for name, s in of.items()))
    pairs = {(m, 1, name): s for m, of in scores.items() for name, s in of.items()}
    index = pd.MultiIndex.from_tuples(list(pairs), names=["model", "exit", "corruption"])
    return table2(rows, pd.DataFrame(list(pairs.values()), index=index))


def best(table: Table2, column: str) -> set[str]:
    """Return the models that stand out in a column."""
    return set(table.values["model"][table.is_best[column].to_numpy()])


def test_only_what_is_significantly_worse_does_not_stand_out() -> None:
    table = contest(
        high={"fog": right_but(*range(10))},
        tied={"fog": right_but(*range(9, 20))},  # a point lower, on other images
        worse={"fog": right_but(*range(50))},
    )
    assert table.values["fog"].tolist() == [0.9, 0.89, 0.5]
    assert best(table, "fog") == best(table, "average") == {"high", "tied"}
    lines = {split(line)[0]: split(line)[-1] for line in to_markdown(table).splitlines()[2:]}
    assert lines == {"high": "**90.0**", "tied": "**89.0**", "worse": "50.0"}
    assert to_latex(table).count(r"\textbf{") == 4
    back = pd.read_csv(io.StringIO(to_csv(table)), keep_default_na=False).set_index("model")["is_best"]
    assert back.to_dict() == {"high": "average fog", "tied": "average fog", "worse": ""}


def test_equal_scores_stand_out_together() -> None:
    same = right_but(3, 4)
    table = contest(one={"fog": same}, two={"fog": same}, three={"fog": right_but(*range(40))})
    assert best(table, "fog") == {"one", "two"}


def test_comparisons_are_corrected_for_their_number() -> None:
    # Four images lost of 100 and none gained: p = .045, so .09 where there are two such comparisons.
    all_right, fewer, others = right_but(), right_but(1, 2, 3, 4), right_but(5, 6, 7, 8)
    assert best(contest(a={"fog": all_right}, b={"fog": fewer}), "fog") == {"a"}
    assert best(contest(a={"fog": all_right}, b={"fog": fewer}, c={"fog": others}), "fog") == {"a", "b", "c"}


def test_the_average_is_compared_by_images_means_without_extras() -> None:
    steady = right_but(*range(50))
    table = contest(
        a={"fog": steady, "snow": right_but(*range(40)), "saturate": right_but(*range(8))},
        b={"fog": steady, "snow": right_but(*range(48)), "saturate": right_but()},
    )
    assert best(table, "fog") == {"a", "b"}
    assert best(table, "snow") == best(table, "average") == {"a"}
    assert best(table, "saturate") == {"b"}


def test_each_column_has_its_own_best() -> None:
    table = contest(
        a={"fog": right_but(), "snow": right_but(*range(40))},
        b={"fog": right_but(*range(40)), "snow": right_but()},
    )
    assert (best(table, "fog"), best(table, "snow")) == ({"a"}, {"b"})
    assert best(table, "average") == {"a", "b"}


def test_a_single_row_has_nothing_to_stand_out_from() -> None:
    table = contest(only={"fog": right_but(1)})
    assert not table.is_best.to_numpy().any()
    assert "**" not in to_markdown(table)


def test_a_hole_never_stands_out() -> None:
    scores = {"a": right_but(*range(60)), "b": right_but(), "c": right_but(*range(90))}
    rows = frame(*(cell(m, "fog", s, float(x.mean())) for m, x in scores.items() for s in (1, 2)))
    rows.loc[(rows["model"] == "b") & (rows["severity"] == 2), ["status", "accuracy"]] = ["failed", np.nan]
    index = pd.MultiIndex.from_product([scores, [1], ["fog"]], names=["model", "exit", "corruption"])
    table = table2(rows, pd.DataFrame(list(scores.values()), index=index))
    assert best(table, "fog") == best(table, "average") == {"a"}


def test_nothing_stands_out_where_images_cannot_be_paired() -> None:
    assert not table2(TWO, NO_PAIRS).is_best.to_numpy().any()


def test_one_image_decides_nothing() -> None:
    table = contest(a={"fog": right_but(count=1)}, b={"fog": right_but(0, count=1)})
    assert best(table, "fog") != {"a"}


# Text


ALL = frame(
    *grid("mgnet-r18_b", {"": [0.9], **{name: [0.5, 0.4] for name in names(extras=True)}}),
    *grid("ffnet-r18", {"": [0.95], **{name: [0.25, 0.15] for name in names(extras=True)}}),
)


def test_markdown_has_a_column_per_corruption_in_the_papers_order() -> None:
    lines = [split(line) for line in to_markdown(table2(ALL, NO_PAIRS)).splitlines()]
    headings = [short_name(name) for name in names(extras=True)]
    assert headings[:2] == ["Gauss.", "Shot"]
    assert lines[0] == ["Model", "T", "GMACs", "Clean", "Average", *headings]
    assert {len(line) for line in lines} == {5 + len(CORRUPTIONS)}
    assert lines[2:] == [
        ["ffnet-r18", "1", "0.25", "95.0", *["20.0"] * (1 + len(CORRUPTIONS))],
        ["mgnet-r18_b", "1", "0.25", "90.0", *["45.0"] * (1 + len(CORRUPTIONS))],
    ]


def width(line: str) -> int:
    r"""Return how many columns a line of LaTeX fills."""
    spans = sum(int(span) - 1 for span in re.findall(r"\\multicolumn\{(\d+)\}", line))
    return line.count("&") + 1 + spans


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("chosen", [names(extras=True), names(), ("snow", "gaussian_noise"), ("saturate",)])
def test_latex_fills_every_line_and_spans_each_family(chosen: tuple[str, ...], paper: bool) -> None:
    text = to_latex(table2(ALL[ALL["corruption"].isin(["", *chosen])], NO_PAIRS), paper=paper)
    lines = text.splitlines()
    assert re.fullmatch(r"\\begin\{tabular\}\{lr+\}", lines[0])
    columns = len(lines[0].removeprefix(r"\begin{tabular}{").removesuffix("}"))
    assert columns == 5 + len(chosen)
    assert lines[-1] == r"\end{tabular}"
    assert lines[1] == r"\toprule"
    assert lines[-2] == r"\bottomrule"
    assert lines.count(r"\midrule") == 1 + paper
    rows = [line for line in lines if line.endswith(r"\\")]
    assert len(rows) == 2 + 2 + 13 * paper
    assert {width(line) for line in rows} == {columns}
    assert text.count("{") == text.count("}")
    # Each family's heading is over its own columns, and so is its rule.
    headings = rows[1].removesuffix(r" \\").split(" & ")
    at = 6
    for family in FAMILIES:
        members = [n for n in names(extras=True) if n in chosen and CORRUPTIONS[n].family == family]
        span = rf"\multicolumn{{{len(members)}}}{{c}}{{{family.title()}}}"
        assert (span in rows[0]) is bool(members)
        if members:
            assert headings[at - 1 : at - 1 + len(members)] == [short_name(n) for n in members]
            assert rf"\cmidrule(lr){{{at}-{at + len(members) - 1}}}" in lines[3]
            at += len(members)
    assert r"mgnet-r18\_b & 1" in text


def test_csv_keeps_the_fractions() -> None:
    back = pd.read_csv(io.StringIO(to_csv(table2(TWO, NO_PAIRS))))
    assert list(back.columns) == [*FIRST, "shot_noise", "snow", "saturate", "is_best"]
    assert back["shot_noise"].tolist() == pytest.approx([0.1, 0.3, 0.4])
    assert back["clean"].tolist() == pytest.approx([0.99, 0.8, 0.9])


# The published rows


def test_the_published_rows_are_those_of_the_paper(shared: Path) -> None:
    theirs = shared / "paper" / "table2.csv"
    if not theirs.is_file():
        pytest.skip(f"no {theirs}")
    pd.testing.assert_frame_equal(pd.read_csv(PAPER), pd.read_csv(theirs))


def test_published_averages_are_means_of_the_published_columns() -> None:
    published = pd.read_csv(PAPER)
    assert list(published.columns) == ["backbone", "network", "glimpses", "gflops", "average", *names()]
    assert len(published) == 13
    means = published[list(names())].mean(axis=1)
    # Columns are rounded to whole percents.
    assert (means - published["average"]).abs().max() < 0.6


def test_published_rows_take_the_form_of_ours() -> None:
    published, ours = pd.read_csv(PAPER), paper_rows()
    assert list(ours.columns) == [*FIRST, *names()]
    assert ours["clean"].isna().all()
    assert ours["model"].iloc[0] == "paper: ffnet resnet18"
    for name in (*names(), "average"):
        assert (ours[name] * 100).tolist() == pytest.approx(published[name].tolist())
    assert ours["glimpses"].tolist() == published["glimpses"].tolist()
    assert ours["gmacs"].tolist() == published["gflops"].tolist()


def test_published_rows_stand_below_ours_in_every_form() -> None:
    table = table2(ALL, NO_PAIRS)
    lines = [split(line) for line in to_markdown(table, paper=True).splitlines()]
    assert len(lines) == 2 + 2 + 13
    assert lines[4][:6] == ["paper: ffnet resnet18", "1", "1.815", "-", "46.2", "36.0"]
    assert lines[4][-4:] == ["-"] * 4, "the paper has no extras"
    assert len(to_markdown(table).splitlines()) == 2 + 2
    back = pd.read_csv(io.StringIO(to_csv(table, paper=True)))
    assert len(back) == 2 + 13
    assert back["gaussian_noise"].tolist()[2:5] == pytest.approx([0.36, 0.44, 0.45])
    assert "paper: mgnet wrn50 & 2 & 4.237 & - & 59.0 & 54.0 &" in to_latex(table, paper=True)


# Summary


FOUR = {
    "shot_noise": [0.5, 0.3],
    "glass_blur": [0.9, 0.7],
    "snow": [0.8, 0.4],
    "fog": [0.2, 0.2],
    "spatter": [0, 0],
}
SUMMED = frame(*grid("mgnet-r18", {"": [0.9], **FOUR}))
# Mean errors .6 .2 .4 .8 over the baseline's
BASELINE = Baseline(
    "b", {"shot_noise": 0.6, "glass_blur": 0.4, "snow": 0.8, "fog": 0.5, "pixelate": 0.1}, (1, 2), 0.2
)


def test_a_summary_averages_families_and_leaves_extras_out() -> None:
    found = summary(SUMMED, None).iloc[0]
    assert found["clean"] == 0.9
    assert found["average"] == pytest.approx((0.4 + 0.8 + 0.6 + 0.2) / 4)
    assert found["noise"] == pytest.approx(0.4)
    assert found["blur"] == pytest.approx(0.8)
    assert found["weather"] == pytest.approx(0.4)
    assert np.isnan(found["digital"])
    assert np.isnan(found["mce"])
    assert np.isnan(found["relative_mce"])


def test_a_summary_divides_errors_by_the_baselines_by_name() -> None:
    found = summary(SUMMED, BASELINE).iloc[0]
    assert found["mce"] == pytest.approx((0.6 / 0.6 + 0.2 / 0.4 + 0.4 / 0.8 + 0.8 / 0.5) / 4)
    # The clean error is .1, the baseline's .2.
    relative = (0.5 / 0.4 + 0.1 / 0.2 + 0.3 / 0.6 + 0.7 / 0.3) / 4
    assert found["relative_mce"] == pytest.approx(relative)
    line = split(summary_markdown(summary(SUMMED, BASELINE)).splitlines()[2])
    assert line == ["mgnet-r18", "1", "0.25", "90.0", "50.0", "40.0", "80.0", "40.0", "-", "90.0", "114.6"]


@pytest.mark.parametrize(
    "change",
    [
        {"severities": (1, 2, 3)},
        {"errors": {name: error for name, error in BASELINE.errors.items() if name != "fog"}},
    ],
    ids=["severities", "corruptions"],
)
def test_a_baseline_that_does_not_fit_divides_nothing(change: dict[str, Any]) -> None:
    from dataclasses import replace

    assert np.isnan(summary(SUMMED, replace(BASELINE, **change)).iloc[0]["mce"])


@pytest.mark.parametrize("clean_error", [0.45, np.nan])
def test_relative_mce_needs_a_baseline_that_corruptions_harm(clean_error: float) -> None:
    from dataclasses import replace

    # At .45 glass_blur, at an error of .4, does less harm than none.
    found = summary(SUMMED, replace(BASELINE, clean_error=clean_error)).iloc[0]
    assert np.isnan(found["relative_mce"])
    assert found["mce"] == pytest.approx(0.9)


def test_alexnet_against_itself_is_one_hundred_percent() -> None:
    accuracy = {name: [1 - error] * 5 for name, error in ALEXNET_ERROR.items()}
    rows = frame(*grid("alexnet", {"": [1 - ALEXNET_CLEAN_ERROR], **accuracy}))
    found = summary(rows, alexnet()).iloc[0]
    assert found["mce"] == pytest.approx(1)
    assert found["relative_mce"] == pytest.approx(1)
    assert found["average"] == pytest.approx(1 - 0.788993, abs=5e-7)
    own = baseline_from(rows, where="here")
    assert own.errors == pytest.approx(ALEXNET_ERROR)
    assert (own.severities, own.clean_error) == ((1, 2, 3, 4, 5), pytest.approx(ALEXNET_CLEAN_ERROR))
    assert summary(rows, own).iloc[0]["mce"] == pytest.approx(1)


# Corruptions that a saved set has of its own

OWN = frame(
    *grid(
        "mgnet-r18", {"": [0.9], "near_focus": [0.8, 0.6], "low & light": [0.5, 0.3], "saturate": [0.1, 0.1]}
    ),
    *grid(
        "ffnet-r18", {"": [0.8], "near_focus": [0.4, 0.2], "low & light": [0.1, 0.1], "saturate": [0.9, 0.9]}
    ),
)


def test_a_set_s_own_corruptions_have_columns_behind_ours_and_are_averaged() -> None:
    mixed = pd.concat([OWN, TWO[TWO["exit"] == 1]], ignore_index=True)
    mixed["model"] = "m"
    mixed = mixed.drop_duplicates(["corruption", "severity"])
    table = table2(mixed, NO_PAIRS)
    assert table.corruptions == ["shot_noise", "snow", "saturate", "low & light", "near_focus"]
    values = table2(OWN, NO_PAIRS).values
    assert list(values.columns) == [*FIRST, "saturate", "low & light", "near_focus"]
    assert values["near_focus"].tolist() == pytest.approx([0.3, 0.7])
    assert values["average"].tolist() == pytest.approx([0.2, 0.55]), "the extra is left out, as ever"


def test_their_names_are_shown_as_they_are_and_escaped_for_latex() -> None:
    table = table2(OWN, NO_PAIRS)
    assert split(to_markdown(table).splitlines()[0])[5:] == ["Saturate", "low & light", "near_focus"]
    text = to_latex(table)
    assert r"\multicolumn{1}{c}{Digital} & \multicolumn{2}{c}{Other}" in text
    assert r"Saturate & low \& light & near\_focus \\" in text
    assert list(pd.read_csv(io.StringIO(to_csv(table))).columns)[5:8] == [
        "saturate",
        "low & light",
        "near_focus",
    ]
    titles = [text.get_text() for text in figures.table2_heatmap(table).axes[0].get_xticklabels()]
    assert titles == ["Clean", "Average", "Saturate", "low & light", "near_focus"]


def test_they_are_a_family_of_their_own_and_have_no_mce() -> None:
    found = summary(OWN, BASELINE)
    assert found["other"].tolist() == pytest.approx([0.2, 0.55])
    assert found["mce"].isna().all()
    lines = [split(line) for line in summary_markdown(found).splitlines()]
    assert lines[0][5:] == ["Noise", "Blur", "Weather", "Digital", "Other", "mCE", "Relative mCE"]
    assert lines[2][-3:] == ["20.0", "-", "-"]
    assert misfit(BASELINE, OWN) == "b lacks low & light, near_focus"
    assert "other" not in summary(TWO, None), "there is no such family where there are only ours"


# Figures


def rendered(figure: Any) -> NDArray[np.uint8]:
    """Return the figure's pixels as its PNG holds them."""
    content = figures.render(figure, "png")
    assert content.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_the_heat_map_has_a_number_in_every_cell_but_the_holes() -> None:
    whole = figures.table2_heatmap(table2(TWO, NO_PAIRS)).axes[0]
    assert len(whole.texts) == 3 * (2 + 3)
    by_place = {tuple(map(int, text.get_position())): text.get_text() for text in whole.texts}
    assert [by_place[x, 1] for x in range(5)] == ["80", "40", "30", "50", "5"]
    assert [label.get_text() for label in whole.get_xticklabels()] == [
        "Clean", "Average", "Shot", "Snow", "Saturate"
    ]  # fmt: skip
    assert [label.get_text() for label in whole.get_yticklabels()][2] == "mgnet-r18, exit 2"
    holed = figures.table2_heatmap(table2(without("mgnet-r18", "snow", 2), NO_PAIRS)).axes[0]
    assert len(holed.texts) == 3 * (2 + 3) - 2 * 2


def test_the_heat_map_is_bold_where_the_table_is() -> None:
    table = contest(a={"fog": right_but()}, b={"fog": right_but(*range(40))})
    weights = {t.get_text(): t.get_weight() for t in figures.table2_heatmap(table).axes[0].texts}
    assert weights == {"100": "bold", "60": "normal"}


@pytest.mark.parametrize("file_format", ["png", "svg"])
def test_the_heat_map_renders_to_the_same_bytes_twice(file_format: str) -> None:
    once, twice = (
        figures.render(figures.table2_heatmap(table2(ALL, NO_PAIRS)), file_format) for _ in range(2)
    )
    assert once == twice
    assert len(once) > 10_000


def test_the_heat_map_fits_its_figure() -> None:
    picture = rendered(figures.table2_heatmap(table2(ALL, NO_PAIRS)))
    assert min(picture.shape[:2]) > 200
    # Nothing runs over the edge, and the numbers and the shades are there.
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (edge == 255).all()
    assert len(np.unique(picture[..., 0])) > 50


def flat(level: int) -> NDArray[np.uint8]:
    return np.full((16, 16, 3), level, np.uint8)


def test_a_sheet_has_a_row_per_corruption_with_the_clean_image_at_its_left() -> None:
    pictures = {(name, s): flat(10 * s + k) for k, name in enumerate(("fog", "snow")) for s in (1, 3, 5)}
    figure = figures.corruption_sheet(pictures, flat(255))
    panels = np.array(figure.axes).reshape(2, 4)
    shown = [[int(panel.get_images()[0].get_array()[0, 0, 0]) for panel in row] for row in panels]
    assert shown == [[255, 10, 30, 50], [255, 11, 31, 51]]
    assert [panel.get_title() for panel in panels[0]] == ["clean", "1", "3", "5"]
    assert [row[0].get_ylabel() for row in panels] == ["fog", "snow"]
    picture = rendered(figure)
    for level in (10, 30, 50, 11, 31, 51):
        assert (picture == level).all(2).sum() > 10_000
    again = figures.corruption_sheet(pictures, flat(255))
    assert figures.render(again, "png") == figures.render(figure, "png")


def test_a_severity_that_is_there_twice_stands_in_for_no_other() -> None:
    # Two runs: severity 1 in both, 2 in neither; asked for were both.
    rows = [
        *grid("a", {"": [0.9], "snow": [0.8]}),
        *grid("a", {"snow": [0.6]}),
        *grid("b", {"snow": [0.5, 0.4]}),
    ]
    values = table2(pd.DataFrame(rows), NO_PAIRS).values.set_index("model")
    assert np.isnan(values.loc["a", "snow"])
    assert values.loc["b", "snow"] == pytest.approx(0.45)


def test_clean_rows_that_contradict_each_other_are_a_hole() -> None:
    rows = [
        *grid("a", {"": [0.9], "snow": [0.8]}),
        *grid("b", {"": [0.7], "snow": [0.6]}),
        cell("a", "", 0, 0.5),
    ]
    values = table2(pd.DataFrame(rows), NO_PAIRS).values.set_index("model")
    assert np.isnan(values.loc["a", "clean"])
    assert values.loc["b", "clean"] == 0.7


def test_a_backslash_in_a_name_is_a_backslash() -> None:
    rows = pd.DataFrame(grid("a\\b", {"": [0.9], "snow": [0.8]}))
    assert r"a\textbackslash{}b & 1" in to_latex(table2(rows, NO_PAIRS))
