"""Train variations of one recipe over several seeds, attack each, and write one table for each question.

    python benchmarks/ablations.py                              # benchmarks/ablations.toml, all of it
    python benchmarks/ablations.py --table alpha --table gradient-scale --seeds 1,2
    python benchmarks/ablations.py --epochs 1 --limit 50 --seeds 1 --work runs/try --out runs/try

One process, one run after the other.  Killed, the same command goes on: a training from its last epoch, an
attack from its last batch.  A recipe that several tables have is trained once.

--work holds trainings and attacks, a folder for each recipe by the hash of all it says.  --out gets two
files, written anew after every run: ablations.csv, a row for each table, variation, seed, condition and exit,
and ablations.md, for each table the mean over seeds with the lowest and the highest, and what each seed gave.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from robustglimpse import Bench, UserError, bench, load_model
from robustglimpse.files import write_file
from robustglimpse.train import Recipe, load_recipe, train

HERE = Path(__file__).parent
COLUMNS = [
    "table", "variation", "seed", "condition", "exit", "correct", "total", "accuracy", "weights_sha256",
]  # fmt: skip
BENCH_KEYS = {
    "attacks", "steps", "eps", "step_size", "norm", "restarts", "protocols", "limit", "batch_size", "split",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A file of ablations, understood.

    tables: for each table its variations by name, each a whole recipe but for its seed.
    bench: arguments of Bench.
    """

    tables: dict[str, dict[str, Recipe]]
    seeds: tuple[int, ...]
    bench: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training, and where its lines go."""

    table: str
    variation: str
    recipe: Recipe

    def folder(self, work: Path) -> Path:
        """Where it is trained: of its own for every recipe, whatever tables it is in."""
        said = json.dumps(asdict(self.recipe), sort_keys=True)
        return work / "models" / hashlib.sha256(said.encode()).hexdigest()[:12]


def read_plan(path: Path, **changes: Any) -> Plan:
    """Return what a file of ablations asks for; changes: of the recipe, over those that the file has.

    Raises UserError for keys and values that it cannot have.
    """
    try:
        said = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    expected = {"recipe", "seeds", "changes", "bench", "tables"}
    _check_keys(path, "key", said, expected)
    if missing := expected - said.keys():
        raise UserError(f"{path}: missing key {min(missing)!r}")
    _check_keys(path, "key of bench", said["bench"], BENCH_KEYS)
    seeds = tuple(said["seeds"])
    if not seeds or not all(type(seed) is int for seed in seeds):
        raise UserError(f"{path}: seeds must be whole numbers, one or more, got {said['seeds']!r}")
    base = load_recipe(said["recipe"])
    shared = {**said["changes"], **changes}
    tables = {
        table: {name: _varied(path, base, {**shared, **own}) for name, own in variations.items()}
        for table, variations in said["tables"].items()
    }
    return Plan(tables, seeds, said["bench"])


def _check_keys(path: Path, what: str, given: dict[str, Any], known: set[str]) -> None:
    if wrong := given.keys() - known:
        raise UserError(f"{path}: unknown {what} {min(wrong)!r}; known: {', '.join(sorted(known))}")


def _varied(path: Path, base: Recipe, changes: dict[str, Any]) -> Recipe:
    """Return the recipe with other values, each of the type that it had."""
    _check_keys(path, "key of a recipe", changes, {f.name for f in fields(Recipe)} - {"seed"})
    values: dict[str, Any] = {}
    for key, value in changes.items():
        had = getattr(base, key)
        values[key] = tuple(value) if isinstance(value, list) else value
        if isinstance(had, float) and type(value) is int:
            values[key] = float(value)
        if type(values[key]) is not type(had):
            raise UserError(f"{path}: {key} must be like {had!r}, got {value!r}")
    return replace(base, **values)


def runs(plan: Plan) -> Iterator[Run]:
    """Yield every run, seed by seed, so that all tables have a first line early."""
    for seed in plan.seeds:
        for table, variations in plan.tables.items():
            for name, recipe in variations.items():
                yield Run(table, name, replace(recipe, seed=seed))


def measured(run: Run, plan: Plan, work: Path, data_dir: Path | None) -> pd.DataFrame:
    """Return a run's rows, COLUMNS: it is trained and attacked as far as that is not done yet."""
    folder = run.folder(work)
    checkpoint = folder / "model.safetensors"
    if not checkpoint.exists():
        train(run.recipe, folder, data_dir=data_dir)
        (folder / "last.pt").unlink()  # ten times the weights, and needed no more
    model = replace(load_model(str(checkpoint)), name=folder.name)
    asked = Bench(models=(model,), all_exits=True, data_dir=data_dir, **plan.bench)
    rows = bench(asked, work / "bench" / folder.name)
    if (rows["status"] != "ok").any():
        raise UserError(f"{folder}: {rows['error'].dropna().iloc[0]}; its traceback is in {work / 'bench'}")
    rows = rows.sort_values("kind", key=lambda kinds: kinds != "clean", kind="stable")  # clean first
    return pd.DataFrame(
        {
            "table": run.table, "variation": run.variation, "seed": run.recipe.seed,
            "condition": [condition(row) for _, row in rows.iterrows()],
            **{key: rows[key].to_numpy() for key in COLUMNS[4:]},
        }
    )  # fmt: skip


def condition(row: pd.Series) -> str:
    """Return what a row was measured under: "clean", "pgd linf 4/255, 16 steps, standard, worst"."""
    if row["kind"] == "clean":
        return "clean"
    attack = f"{row['attack']} {row['norm']} {row['eps_text']}"
    return f"{attack}, {row['steps']} steps, {row['protocol']}, {row['judge']}"


def to_markdown(frame: pd.DataFrame) -> str:
    """Return a section for each table: the mean over seeds (lowest to highest), then every seed's."""
    parts = []
    for table, rows in frame.groupby("table", sort=False):
        seeds = rows["seed"].nunique()
        parts.append(f"## {table}\n")
        for name, found in rows.groupby("condition", sort=False):
            wide = found.pivot_table("accuracy", ["variation", "seed"], "exit", sort=False)
            header = ["variation", "seeds", *(f"exit {number}" for number in wide.columns)]
            lines = []
            for variation, of_seeds in wide.groupby(level="variation", sort=False):
                lines.append([variation, str(len(of_seeds)), *(_spread(of_seeds[c]) for c in wide.columns)])
            parts.append(f"{name}: accuracy in %, mean over up to {seeds} seeds (lowest to highest)\n")
            parts.append(_table(header, lines))
            each = [
                [variation, str(seed), *(f"{100 * share:.1f}" for share in shares)]
                for (variation, seed), shares in zip(wide.index, wide.to_numpy(), strict=True)
            ]
            parts.append(_table(["variation", "seed", *header[2:]], each))
    return "\n".join(parts)


def _spread(shares: pd.Series) -> str:
    percent = 100 * shares
    if len(percent) == 1:
        return f"{percent.iloc[0]:.1f}"
    return f"{percent.mean():.1f} ({percent.min():.1f} to {percent.max():.1f})"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=Path, default=HERE / "ablations.toml")
    parser.add_argument("--table", action="append", help="Only this one. Repeatable.")
    parser.add_argument("--seeds", help="Others than the file's, with commas between.")
    parser.add_argument("--epochs", type=int, help="Others than the file's.")
    parser.add_argument("--limit", type=int, help="Attack so many images.")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    asked = parser.parse_args(arguments)
    plan = read_plan(asked.file, **({} if asked.epochs is None else {"epochs": asked.epochs}))
    if asked.seeds:
        plan = replace(plan, seeds=tuple(int(seed) for seed in asked.seeds.split(",")))
    if asked.limit is not None:
        plan = replace(plan, bench={**plan.bench, "limit": asked.limit})
    if asked.table:
        _check_keys(asked.file, "table", dict.fromkeys(asked.table), set(plan.tables))
        plan = replace(plan, tables={name: plan.tables[name] for name in asked.table})
    wanted = list(runs(plan))
    found: list[pd.DataFrame] = []
    for number, run in enumerate(wanted, 1):
        print(
            f"{number} of {len(wanted)}: {run.table}, {run.variation}, seed {run.recipe.seed}",
            file=sys.stderr,
        )
        found.append(measured(run, plan, asked.work, asked.data_dir))
        frame = pd.concat(found, ignore_index=True)
        write_file(asked.out / "ablations.csv", frame.to_csv(index=False).encode())
        write_file(asked.out / "ablations.md", to_markdown(frame).encode())
    print(asked.out / "ablations.md")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
