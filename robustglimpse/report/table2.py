"""The paper's Table 2 and what is told beside it: accuracy under corruptions, per network and exit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from robustglimpse.corruptions import CORRUPTIONS, FAMILIES, SEVERITIES, names
from robustglimpse.records import UserError
from robustglimpse.report.tables import latex, markdown, row_dicts
from robustglimpse.sheets import csv_text
from robustglimpse.stats import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERROR,
    holm,
    mean_corruption_error,
    paired_p_value,
)

PAPER = Path(__file__).with_name("paper") / "table2.csv"
SIGNIFICANCE = 0.05
OTHER = "other"  # the family of corruptions that a saved set has of its own
LABELS = {"model": "Model", "glimpses": "T", "gmacs": "GMACs", "clean": "Clean", "average": "Average"}


@dataclass(frozen=True)
class Table2:
    """Accuracies as fractions, a row per model and glimpses used; NaN where cells are missing.

    values: columns model, glimpses, gmacs, clean, average (over all but our 4 extras), then the corruptions:
        ours in the paper's order, then those that a saved set has of its own.
    is_best: bool, the same rows, for average and the corruptions: not significantly below the highest.
    """

    values: pd.DataFrame
    is_best: pd.DataFrame

    @property
    def corruptions(self) -> list[str]:
        """The corruptions it has columns for."""
        return [name for name in self.values.columns if name not in (*LABELS, "average")]


def short_name(corruption: str) -> str:
    """Return what a column is called: our short name, or a saved set's own name as it is."""
    return (CORRUPTIONS[corruption].short if corruption in CORRUPTIONS else "") or corruption


def family_of(corruption: str) -> str:
    """Return the family of a corruption, OTHER where it is none of ours."""
    return CORRUPTIONS[corruption].family if corruption in CORRUPTIONS else OTHER


def is_extra(corruption: str) -> bool:
    """Return whether a corruption is one of our 4 extras, which means leave out where there are others."""
    return corruption in CORRUPTIONS and CORRUPTIONS[corruption].extra


def table2(results: pd.DataFrame, correct: pd.DataFrame) -> Table2:
    """Return Table 2 of results; correct (sweep.correctness) decides what may stand out as best.

    An accuracy is the mean over the severities in results; the average is that of the corruptions.
    """
    rows = results[results["status"] == "ok"]
    corrupted = rows[rows["kind"] == "corruption"]
    # What was asked for, crashed or not: a hole must not look like a mean of less.
    asked = results[results["kind"] == "corruption"]
    cells = _means(corrupted, ["model", "exit", "corruption"], asked["severity"].nunique())
    means = cells.unstack("corruption")
    found = set(asked["corruption"])
    columns = [name for name in names(extras=True) if name in found]
    columns += sorted(found - set(columns))
    means = means.reindex(columns=columns)
    means.insert(0, "average", means[averaged_columns(columns)].mean(axis=1, skipna=False))
    clean = rows[rows["kind"] == "clean"].drop_duplicates(["model", "exit", "accuracy"])
    clean = clean.drop_duplicates(["model", "exit"], keep=False).set_index(["model", "exit"])
    means.insert(0, "clean", clean["accuracy"].reindex(means.index))
    gmacs = corrupted.drop_duplicates(["model", "exit"]).set_index(["model", "exit"])
    means.insert(0, "gmacs", gmacs["gmacs"].reindex(means.index))
    order = gmacs.reset_index().sort_values(["backbone", "family", "model", "exit"], kind="stable")
    means = means.reindex(pd.MultiIndex.from_frame(order[["model", "exit"]]))
    is_best = _best(means, correct, columns)
    values = means.reset_index().rename(columns={"exit": "glimpses"})
    return Table2(values, is_best)


def _means(corrupted: pd.DataFrame, by: list[str], severities: int) -> pd.Series[float]:
    """Return mean accuracies over the severities, NaN where one is not there, or there more than once."""
    cells = corrupted.groupby(by)
    accuracy, known = cells["accuracy"], cells["severity"].nunique()
    return accuracy.mean().where((accuracy.count() == severities) & (known == severities))


def averaged_columns(columns: Sequence[str]) -> list[str]:
    """Return the columns that the average is over: all but our 4 extras, or those where they are alone."""
    usual = [name for name in columns if not is_extra(name)]
    return usual or list(columns)


def _best(means: pd.DataFrame, correct: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return which rows of each column are not significantly worse than its highest.

    Paired over images (Student's t), all comparisons of a column corrected together (Holm).
    """
    shown = ["average", *columns]
    is_best = np.zeros((len(means), len(shown)), bool)
    can_test = len(means) > 1 and len(correct) > 0 and correct.shape[1] > 1
    for x, column in enumerate(shown if can_test else []):
        of = averaged_columns(columns) if column == "average" else [column]
        scores = correct[correct.index.get_level_values("corruption").isin(of)]
        if scores.empty:
            continue
        per_image = scores.groupby(level=["model", "exit"]).mean().reindex(means.index).to_numpy()
        accuracy = means[column].to_numpy(float)
        present = np.flatnonzero(~np.isnan(accuracy))
        if not len(present):
            continue
        highest = present[accuracy[present].argmax()]
        others = [int(k) for k in present if k != highest]
        p_values = holm([paired_p_value(per_image[highest], per_image[k]) for k in others])
        is_best[highest, x] = True
        is_best[[k for k, p in zip(others, p_values, strict=True) if p >= SIGNIFICANCE], x] = True
    return pd.DataFrame(is_best, columns=shown)


def paper_rows() -> pd.DataFrame:
    """Return the published Table 2 in the form of Table2.values, accuracies as fractions."""
    published = pd.read_csv(PAPER)
    out = published.reindex(columns=list(names())) / 100
    out.insert(0, "average", published["average"] / 100)
    out.insert(0, "clean", np.nan)
    out.insert(0, "gmacs", published["gflops"])
    out.insert(0, "glimpses", published["glimpses"])
    out.insert(0, "model", "paper: " + published["network"] + " " + published["backbone"])
    return out


def to_markdown(table: Table2, *, paper: bool = False) -> str:
    """Return the table in percent, the best in bold; paper: the published rows below."""
    header = [*LABELS.values(), *(short_name(name) for name in table.corruptions)]
    lines = _lines(table, lambda text: f"**{text}**")
    if paper:
        lines += _lines(_published(table), lambda text: text)
    return markdown(header, lines)


def to_latex(table: Table2, *, paper: bool = False) -> str:
    """Return the table for LaTeX with booktabs, corruptions under their families."""
    shown = table.corruptions
    families = [(f, [n for n in shown if family_of(n) == f]) for f in (*FAMILIES, OTHER)]
    shown = [name for _, members in families for name in members]
    table = Table2(table.values[[*LABELS, *shown]], table.is_best[["average", *shown]])
    spans, rules, at = [], [], len(LABELS) + 1
    for family, members in families:
        if members:
            spans.append(rf"\multicolumn{{{len(members)}}}{{c}}{{{family.title()}}}")
            rules.append(rf"\cmidrule(lr){{{at}-{at + len(members) - 1}}}")
            at += len(members)
    lines = _lines(table, lambda text: rf"\textbf{{{text}}}")
    blocks = [lines, _lines(_published(table), lambda text: text)] if paper else [lines]
    body: list[str] = []
    for k, block in enumerate(blocks):
        body += [r"\midrule"] if k else []
        body += [" & ".join([latex(line[0]), *line[1:]]) + r" \\" for line in block]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{lr{'r' * (len(LABELS) - 2 + len(shown))}}}",
            r"\toprule",
            "&" * (len(LABELS) - 1) + " & " + " & ".join(spans) + r" \\",
            " ".join(rules),
            " & ".join([*LABELS.values(), *(latex(short_name(name)) for name in shown)]) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def to_csv(table: Table2, *, paper: bool = False) -> str:
    """Return the table as fractions; is_best holds the columns that would be bold."""
    values = table.values.copy()
    values["is_best"] = [" ".join(c for c, b in row.items() if b) for row in row_dicts(table.is_best)]
    if paper:
        values = pd.concat([values, _published(table).values], ignore_index=True)
    return csv_text(values, float_format="%.6g")


def _published(table: Table2) -> Table2:
    rows = paper_rows().reindex(columns=table.values.columns)
    return Table2(rows, pd.DataFrame(False, index=rows.index, columns=table.is_best.columns))


def _lines(table: Table2, bold: Callable[[str], str]) -> list[list[str]]:
    """Return the rows as text; bold marks what is best."""
    columns = [str(column) for column in table.is_best]
    lines = []
    for row, best in zip(row_dicts(table.values), row_dicts(table.is_best), strict=True):
        first = [
            str(row["model"]),
            str(int(row["glimpses"])),
            _number(row["gmacs"], 4),
            _percent(row["clean"]),
        ]
        shown = {column: _percent(row[column]) for column in columns}
        lines.append(first + [bold(text) if best[column] else text for column, text in shown.items()])
    return lines


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}"


def _number(value: float, digits: int) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}g}"


@dataclass(frozen=True)
class Baseline:
    """What mCE divides by: mean errors over severities by corruption, and the clean error (NaN: unknown)."""

    name: str
    errors: Mapping[str, float]
    severities: tuple[int, ...]
    clean_error: float


def alexnet() -> Baseline:
    """Return AlexNet on ImageNet-C; it fits nothing but 1000-class ImageNet at 224 px."""
    return Baseline("AlexNet", ALEXNET_ERROR, SEVERITIES, ALEXNET_CLEAN_ERROR)


def baseline_from(results: pd.DataFrame, *, where: str) -> Baseline:
    """Return the last exit of the one model in results as a baseline. Raises UserError if there are more."""
    rows = results[results["status"] == "ok"]
    corrupted = rows[rows["kind"] == "corruption"]
    models = list(dict.fromkeys(corrupted["model"]))
    if len(models) != 1:
        raise UserError(
            f"{where}: a baseline must hold the corruptions of one model, got {', '.join(models) or 'none'}"
        )
    severities = tuple(sorted(int(s) for s in results[results["kind"] == "corruption"]["severity"].unique()))
    corrupted = corrupted[corrupted["exit"] == corrupted["exit"].max()]
    clean = rows[(rows["kind"] == "clean") & (rows["exit"] == corrupted["exit"].max())]
    errors = 1 - _means(corrupted, ["corruption"], len(severities)).dropna()
    return Baseline(
        models[0],
        {str(name): float(error) for name, error in errors.items()},
        severities,
        float(1 - clean["accuracy"].iloc[0]) if len(clean) else float("nan"),
    )


def summary(results: pd.DataFrame, baseline: Baseline | None) -> pd.DataFrame:
    """Return per model and exit: clean accuracy, mean accuracy in all and per family, mCE, relative mCE.

    A set with corruptions of its own has one family more, "other".

    mCE is NaN without a baseline, and where the baseline has other severities or lacks a corruption; relative
    mCE also where a corruption adds nothing to the baseline's clean error.
    """
    table = table2(results, pd.DataFrame())
    values, columns = table.values, averaged_columns(table.corruptions)
    out = values[["model", "glimpses", "gmacs", "clean", "average"]].copy()
    has_own = any(family_of(name) == OTHER for name in columns)
    for family in (*FAMILIES, OTHER) if has_own else FAMILIES:
        members = [name for name in columns if family_of(name) == family]
        out[family] = values[members].mean(axis=1, skipna=False) if members else np.nan
    asked = results[results["kind"] == "corruption"]
    severities = tuple(sorted(int(s) for s in asked["severity"].unique()))
    out["mce"] = out["relative_mce"] = np.nan
    fits = baseline is not None and baseline.severities == severities and set(columns) <= set(baseline.errors)
    if baseline is None or not fits:
        return out
    for at, row in enumerate(row_dicts(values)):
        errors = {name: 1 - float(row[name]) for name in columns}
        if any(np.isnan(list(errors.values()))):
            continue
        out.loc[at, "mce"] = mean_corruption_error(errors, baseline.errors)
        adds_error = all(baseline.errors[name] > baseline.clean_error for name in columns)  # not so for NaN
        if adds_error and not np.isnan(row["clean"]):
            out.loc[at, "relative_mce"] = mean_corruption_error(
                errors, baseline.errors, clean=1 - row["clean"], baseline_clean=baseline.clean_error
            )
    return out


def summary_markdown(frame: pd.DataFrame) -> str:
    """Return summary() in percent."""
    families = [f.title() for f in (*FAMILIES, OTHER) if f in frame]
    header = ["Model", "T", "GMACs", "Clean", "Mean", *families, "mCE", "Relative mCE"]
    lines = []
    for row in row_dicts(frame):
        first = [str(row["model"]), str(int(row["glimpses"])), _number(row["gmacs"], 4)]
        lines.append([*first, *(_percent(row[str(c)]) for c in frame.columns[3:])])
    return markdown(header, lines)
