"""Damaged and hostile files of results: refused by name, or made again with a line. Never a traceback.

The files are made by a real run of a small model and damaged here; the last test damages them at random.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

from robustglimpse import Bench, bench, cli, evaluate, wrap
from robustglimpse.columns import DamageError, pack, read_arrays, unpack
from robustglimpse.data import Dataset, from_tensors
from robustglimpse.policy import load_policy
from robustglimpse.records import Classifier, UserError
from robustglimpse.regress import compare, plan, update
from robustglimpse.report import page, verdicts
from robustglimpse.report.board import make_board
from robustglimpse.store import Store, read_failures, read_outcomes, read_results, read_run

Damage = Callable[[bytes], bytes]
BATCH = 5


def model() -> Classifier:
    torch.manual_seed(0)
    return wrap(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), name="net", size_px=8)


def data() -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 8), np.uint8)
    return from_tensors(images, [0, 1, 2] * 4, name="noise")


def asked(**other: Any) -> Bench:
    told: dict[str, Any] = {"steps": (1, 2), "protocols": ("paper",), "batch_size": BATCH, "device": "cpu"}
    return Bench(models=(model(),), data=data(), **{**told, **other})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a run with a crashed cell, and a baseline of that run before the crash."""
    root = tmp_path_factory.mktemp("made")
    bench(asked(), root / "run", command="robustglimpse bench")
    bench(asked(curve="eps", eps="1/255,2/255", protocols=("standard",)), root / "run", command="sweep")
    update(root / "base", root / "run", reason="first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "attack", crash)
        bench(asked(attacks=("fgsm",)), root / "run", command="crash")
    return root


def crash(*_: Any, **__: Any) -> None:
    raise RuntimeError("out of memory")


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "here"))


def gate(here: Path) -> None:
    found = compare(here / "base", here / "run")
    for text in (verdicts.to_markdown, verdicts.to_junit, verdicts.to_github, verdicts.to_json):
        text(found)
    plan(here / "base")


def report(here: Path, *formats: str) -> None:
    board = make_board([read_run(here / "run")])
    for name in formats or ("md", "csv", "tex"):
        page.FORMATS[name](board)


def read(here: Path) -> None:
    read_results(here / "run")
    read_failures(here / "run")
    read_outcomes(here / "run")


READERS = (gate, report, read)


def refusal(read: Callable[[Path], Any], here: Path) -> str | None:
    """Return what a reader says of the folder, one line, or None where it takes it."""
    try:
        read(here)
    except UserError as error:
        assert str(error).isprintable()
        return str(error)
    return None


def is_named(path: Path, told: str) -> bool:
    """Return whether the file is named; of the three that make a baseline, the folder is enough."""
    return path.name in told or (path.parent.name == "base" and str(path.parent) in told)


# One file of every kind, and who reads it.
KINDS: dict[str, tuple[str, tuple[Callable[[Path], None], ...]]] = {
    "record": ("run/cells/*.json", (gate, report, read)),
    "outcomes": ("run/outcomes/*.csv.gz", (gate, report, read)),
    "crash": ("run/failures/*.json", (gate, report, read)),
    "commands": ("run/run.json", (report,)),
    "results": ("run/results.csv", (gate, report, read)),
    "manifest": ("base/baseline.json", (gate,)),
    "accuracies": ("base/accuracy.csv", (gate,)),
    "bits": ("base/outcomes.npz", (gate,)),
}
SHAPES: dict[str, Damage] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "cut by one": lambda content: content[:-2],
    "binary": lambda content: bytes(range(256)) * 4,
    "other json": lambda content: b'{"a": 1}',
    "a list": lambda content: b'[1, "x", null]',
    "a number": lambda content: b"3",
    "nothing": lambda content: b"null",
    "deep": lambda content: b"[" * 200_000,
    "a long number": lambda content: b"9" * 10_000,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_of_another_shape_is_refused_by_name(here: Path, kind: str, shape: str) -> None:
    pattern, readers = KINDS[kind]
    path = next(iter(sorted(here.glob(pattern))))
    path.write_bytes(SHAPES[shape](path.read_bytes()))
    if (kind, shape) == ("results", "cut by one"):  # the end of the last row's text: nothing tells
        return
    for reader in readers:
        told = refusal(reader, here)
        assert told is not None, "it was taken"
        assert is_named(path, told), told


def record_of(here: Path) -> Path:
    """Return the path of the record of the cell that was attacked under the protocol paper."""
    paths = sorted((here / "run" / "cells").iterdir())
    return next(path for path in paths if '"protocol": "paper"' in path.read_text())


def put(path: Path, where: str, value: Any) -> None:
    """Set one value in a JSON file: rows.0.correct."""
    whole = json.loads(path.read_text())
    *outer, last = (int(part) if part.isdigit() else part for part in where.split("."))
    at = whole
    for part in outer:
        at = at[part]
    at[last] = value
    path.write_text(json.dumps(whole))


OUT_OF_RANGE = [
    ("rows", []), ("rows", {}), ("rows.0", None), ("rows.0.correct", 13), ("rows.0.correct", -1),
    ("rows.0.correct", "9"), ("rows.0.correct", 9.0), ("rows.0.correct", True), ("rows.0.total", 0),
    ("rows.0.total", 10**30), ("rows.0.accuracy", float("nan")), ("rows.0.accuracy", 2.0),
    ("rows.0.accuracy", 0.123), ("rows.0.exit", 0), ("rows.0.steps", -4), ("rows.0.steps", float("inf")),
    ("rows.0.judge", None), ("rows.0.eps", float("nan")), ("rows.0.eps", -1.0),
    ("rows.0.gmacs", float("inf")),
    ("rows.0.model", 3), ("rows.0.model", "other"), ("rows.0.status", "failed"), ("rows.0.kind", "attak"),
    ("rows.0.cell", "other"), ("rows.0.corruption", "fgo"), ("rows.0.seed", 10**40),
    ("cell.model", ["a"]), ("cell.model", "renamed"), ("cell.perturb", "pgd("), ("cell.perturb", 3),
    ("cell.perturb", "pgd(radii='x')"), ("cell.threat", None), ("cell.threat.eps", "4/255"),
    ("cell.threat.eps", float("nan")), ("cell.limit", -1), ("cell.batch_size", 1.5), ("cell.protocol", None),
    ("provenance", []), ("provenance.weights_sha256", None), ("provenance.answers", "x"),
    ("provenance.answers", [["x"]]), ("outcomes", 3), ("outcomes.sha256", None),
    ("outcomes.sha256", "0" * 64),
    ("schema", "1"), ("schema", 2), ("schema", 10**30), ("key", "0" * 16), ("cell.split", "\ud800"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "value"), OUT_OF_RANGE, ids=str)
def test_a_value_that_cannot_be_is_refused_wherever_a_record_is_read(
    here: Path, where: str, value: Any
) -> None:
    path = record_of(here)
    put(path, where, value)
    for reader in READERS:
        if where.startswith("outcomes.") and reader is read:
            continue
        told = refusal(reader, here)
        assert told is not None and path.stem in told, told


def test_a_row_or_a_name_that_is_there_twice_is_refused(here: Path) -> None:
    path = record_of(here)
    whole = path.read_text()
    put(path, "rows", 2 * json.loads(whole)["rows"])
    assert "a row twice" in str(refusal(gate, here))
    path.write_text(whole.replace('"schema": 1,', '"schema": 1, "schema": 1,', 1))
    assert "a name is there twice" in str(refusal(gate, here))
    path.write_text(whole)
    manifest = here / "base" / "baseline.json"
    put(manifest, "cells", 2 * json.loads(manifest.read_text())["cells"])
    assert "a cell twice" in str(refusal(gate, here))


def test_a_record_that_lacks_a_row_of_its_grid_is_refused(here: Path) -> None:
    path = record_of(here)
    rows = json.loads(path.read_text())["rows"]
    two = [{**row, "exit": exit_number} for exit_number in (1, 2) for row in rows]
    put(path, "rows", two[:-1])
    assert "an exit lacks a row that others have" in str(refusal(gate, here))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("margin = " + "9" * 5000, "not TOML"),
        ("a = " + "[" * 5000, "not TOML"),
        ("margin = nan", "margin must be a fraction"),
        ("exits = [1]", "exits must be one of last, all"),
        ("drift_samples = " + "'" + "x" * 9000 + "'", "must be a whole number"),
        ("[margins]\nmodel = 'x'", "margins must be tables"),
        ("expires = 2026-13-45", "not TOML"),
    ],
)
def test_a_damaged_policy_is_refused_in_a_short_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "gate.toml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_policy(path)
    told = str(error.value)
    assert says in told and str(path) in told and told.isprintable() and len(told) < 600
    for content in (b"\xff\xfe\x00", b"\x00"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not TOML"):
            load_policy(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="the policy cannot be read"):
        load_policy(path)


def test_the_command_exits_with_2_and_one_line_and_never_with_1(here: Path) -> None:
    for pattern, _ in KINDS.values():
        path = next(iter(sorted(here.glob(pattern))))
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 3])
        result = CliRunner().invoke(cli.app, ["regress", str(here / "base"), str(here / "run")])
        if path.name != "run.json":  # which the gate does not read
            assert isinstance(result.exception, UserError), path  # exit code 2, by cli.main
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", ["record", "outcomes", "results", "manifest", "accuracies", "bits"])
def test_what_is_no_file_is_refused_and_not_waited_for(here: Path, kind: str) -> None:
    path = next(iter(sorted(here.glob(KINDS[kind][0]))))
    path.unlink()
    os.mkfifo(path)
    told = refusal(gate, here)
    if kind == "results":  # none there: the records tell all
        return
    assert told is not None and is_named(path, told)


# Bombs


def outcomes_path(here: Path) -> Path:
    return here / "run" / "outcomes" / f"{record_of(here).stem}.csv.gz"


def without_digest(here: Path) -> None:
    """Make the records those of an older version, which told nothing of their outcomes."""
    for path in (here / "run" / "cells").iterdir():
        record = json.loads(path.read_text())
        del record["outcomes"]
        path.write_text(json.dumps(record))


@pytest.mark.parametrize("line", [b"\n", b"0" * 1000, b"0,0,1,0\n"])
def test_outcomes_that_unpack_to_more_than_their_record_allows_are_refused(here: Path, line: bytes) -> None:
    without_digest(here)
    header = b"index,label,exit,pred\n"
    outcomes_path(here).write_bytes(gzip.compress(header + line * (50_000_000 // len(line)), 1))
    assert "not a table of outcomes" in str(refusal(gate, here))


def zipped(*members: tuple[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            file.writestr(name, data)
    return content.getvalue()


def header(text: str) -> bytes:
    """Return the start of a .npy file whose header spells the text."""
    body = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body


HEADER = "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }"
ARRAYS = {
    "a bomb": zipped(("bits.npy", header(HEADER % ("|u1", "1000000000,")) + b"\0" * 50_000_000)),
    "room for more than there is": zipped(("bits.npy", header(HEADER % ("<f8", "100000000000000,")))),
    "objects": zipped(("bits.npy", header(HEADER % ("|O", "1,")) + b"cos\nsystem\n")),
    "a structure": zipped(("bits.npy", header("{'descr': [('a', '<f8')], 'shape': (1,)}"))),
    "code": zipped(("bits.npy", header("{'descr': __import__('os').getcwd(), 'shape': (1,)}"))),
    "two dimensions": zipped(("bits.npy", header(HEADER % ("|u1", "2, 2")) + b"\0" * 4)),
    "no member": zipped(),
    "another": zipped(("other.npy", header(HEADER % ("|u1", "1,")) + b"\0")),
    "another version": zipped(("bits.npy", b"\x93NUMPY\x03\x00" + b"\0" * 20)),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_none_are_refused_before_room_is_made_for_them(here: Path, name: str) -> None:
    (here / "base" / "outcomes.npz").write_bytes(ARRAYS[name])
    assert "outcomes.npz: the baseline cannot be read" in str(refusal(gate, here))


def test_an_array_twice_or_an_encrypted_one_is_damage(tmp_path: Path) -> None:
    one = header(HEADER % ("|u1", "1,")) + b"\0"
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = zipped(("bits.npy", one), ("bits.npy", one))
    with pytest.raises(DamageError, match="twice"):
        read_arrays(twice, most=1000)
    locked = bytearray(zipped(("bits.npy", one)))
    for sign, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.index(sign) + place] |= 1
    with pytest.raises(DamageError):
        read_arrays(bytes(locked), most=1000)


# Baselines


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (",1,worst,2,", ",2,worst,2,", "accuracy.csv has"),
        (",12,", ",-12,", "the baseline cannot be read"),
        (",12,", ",10000000000000,", "the baseline cannot be read"),
        (",12,", ",12.5,", "the baseline cannot be read"),
        (",12,", ",,", "the baseline cannot be read"),
        ("net,", "other,", "does not have so"),
        ("key,", "kye,", "the baseline cannot be read"),
    ],
)
def test_accuracies_that_cannot_be_are_refused(here: Path, old: str, new: str, says: str) -> None:
    path = here / "base" / "accuracy.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert says in str(refusal(gate, here))


def test_a_row_of_accuracies_too_many_or_too_few_is_refused(here: Path) -> None:
    path = here / "base" / "accuracy.csv"
    lines = path.read_text().splitlines(keepends=True)
    unknown = "0" * 16 + lines[-1][16:]  # of a cell that the manifest does not have
    for changed in ([*lines, lines[-1]], lines[:-1], lines[:1], [*lines, unknown]):
        path.write_text("".join(changed))
        told = refusal(gate, here)
        assert told is not None and is_named(path, told)


def test_an_accuracy_that_its_counts_do_not_give_is_refused(here: Path) -> None:
    path = here / "base" / "accuracy.csv"
    line = path.read_text().splitlines()[1]
    path.write_text(path.read_text().replace(line, line.rpartition(",")[0] + ",0.5001"))
    assert "not that of its counts" in str(refusal(gate, here))


# Batches of a cell under way


def stopped(out: Path, monkeypatch: pytest.MonkeyPatch, batches: int = 2) -> Path:
    """Run until so many batches of the attack are done; return the folder where they are kept."""
    whole, left = evaluate.attack, [batches]

    def stops(*arguments: Any, **options: Any) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return whole(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "attack", stops)
        with pytest.raises(KeyboardInterrupt):
            bench(asked(), out)
    (folder,) = (out / "parts").iterdir()
    assert len(list(folder.glob("*.npz"))) == batches
    return folder


def part(folder: Path, first: int) -> Path:
    return folder / f"0-{first:09d}.npz"


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any], *, first: int = 0) -> None:
    """Change the columns of a kept batch, checksum and all, as a hostile hand would."""
    with np.load(path) as arrays:
        columns = {name: arrays[name] for name in arrays.files}
    told = json.loads(bytes(columns.pop("check")))["told"]
    change(columns)
    path.write_bytes(pack(columns, {**told, "at": [0, first]}))


def plain(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the columns of a kept batch and leave its checksum."""
    with np.load(path) as arrays:
        columns = {name: arrays[name] for name in arrays.files}
    change(columns)
    np.savez(path, **columns)


PART_DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut short": lambda folder: part(folder, 0).write_bytes(part(folder, 0).read_bytes()[:-30]),
    "empty": lambda folder: part(folder, 0).write_bytes(b""),
    "without a column": lambda folder: plain(part(folder, 0), lambda c: c.pop("pred")),
    "without a column, well sealed": lambda folder: rewritten(part(folder, 0), lambda c: c.pop("pred")),
    "without an extra column, well sealed": lambda folder: rewritten(
        part(folder, BATCH), lambda c: c.pop("pred_at_1"), first=BATCH
    ),
    "with another value": lambda folder: plain(part(folder, 0), lambda c: c["pred"].__iadd__(1)),
    "of another batch": lambda folder: shutil.copy(part(folder, BATCH), part(folder, 0)),
    "of another batch, well sealed": lambda folder: (
        shutil.copy(part(folder, BATCH), part(folder, 0)), rewritten(part(folder, 0), lambda c: None),
    ),
    "of fewer samples, well sealed": lambda folder: rewritten(
        part(folder, 0), lambda c: c.update({k: v[:3] for k, v in c.items() if k != "seconds"})
    ),
    "without its time, well sealed": lambda folder: rewritten(part(folder, 0), lambda c: c.pop("seconds")),
    "of unlike lengths, well sealed": lambda folder: rewritten(
        part(folder, 0), lambda c: c.update(pred=c["pred"][:2])
    ),
    "an older version's": lambda folder: plain(part(folder, 0), lambda c: c.pop("check")),
    "told nothing of": lambda folder: (folder / "provenance.json").unlink(),
    "told nonsense of": lambda folder: (folder / "provenance.json").write_text('{"answers": 3}'),
    "told of a later version": lambda folder: put(folder / "provenance.json", "robustglimpse", "99"),
}  # fmt: skip


@pytest.mark.parametrize("damage", PART_DAMAGES)
def test_a_damaged_batch_is_made_again_with_a_line(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    folder = stopped(tmp_path, monkeypatch)
    PART_DAMAGES[damage](folder)
    capfd.readouterr()
    results = bench(asked(), tmp_path)
    told = capfd.readouterr().err
    assert "made again" in told and "Traceback" not in told
    assert (results["status"] == "ok").all()
    for path in (tmp_path / "outcomes").iterdir():
        assert path.read_bytes() == (made / "run" / "outcomes" / path.name).read_bytes()


def test_batches_beside_those_that_are_asked_for_change_nothing(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = stopped(tmp_path, monkeypatch)
    rewritten(Path(shutil.copy(part(folder, 0), part(folder, 1))), lambda c: None, first=1)
    (folder / "notes-mine.npz").write_text("mine")
    results = bench(asked(), tmp_path)
    assert (results["total"] == 12).all()
    for path in (tmp_path / "outcomes").iterdir():
        assert path.read_bytes() == (made / "run" / "outcomes" / path.name).read_bytes()
    assert "made again" not in capfd.readouterr().err


def test_a_cell_that_two_machines_made_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stopped(tmp_path, monkeypatch) / "provenance.json"
    here = json.loads(path.read_text())["machine"]
    assert here.endswith("threads")
    put(path, "machine", "another, AVX512, 2 threads")
    bench(asked(), tmp_path)
    found = [json.loads(each.read_text())["provenance"]["machine"] for each in (tmp_path / "cells").iterdir()]
    assert sorted(found) == sorted([here, f"another, AVX512, 2 threads; {here}"])


def test_a_whole_batch_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stopped(tmp_path, monkeypatch)
    whole, seen = evaluate.attack, []

    def counts(classifier: Any, batch: Any, *others: Any, **options: Any) -> Any:
        seen.append(batch.index.tolist())
        return whole(classifier, batch, *others, **options)

    monkeypatch.setattr(evaluate, "attack", counts)
    bench(asked(), tmp_path)
    assert seen == [[10, 11]]
    assert "made again" not in capfd.readouterr().err


def test_columns_come_back_only_as_what_they_were_written_as() -> None:
    columns = {"a": np.arange(5), "b": np.array([0.5, np.nan], np.float32), "c": np.array([True])}
    content = pack(columns, {"at": [0, 5]})
    back = unpack(content, {"at": [0, 5]})
    assert {name: column.dtype for name, column in back.items()} == {n: c.dtype for n, c in columns.items()}
    assert all(np.array_equal(back[name], columns[name], equal_nan=name == "b") for name in columns)
    with pytest.raises(DamageError):
        unpack(content, {"at": [0, 6]})
    for k in range(len(content)):  # a flipped bit anywhere is seen, or changes nothing
        flipped = bytearray(content)
        flipped[k] ^= 1
        try:
            found = unpack(bytes(flipped), {"at": [0, 5]})
        except DamageError:
            continue
        assert all(np.array_equal(found[name], columns[name], equal_nan=name == "b") for name in columns)


# Outcomes of a finished cell


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize(
    "damage", [lambda c: c[:-9], lambda c: b"", lambda c: gzip.compress(gzip.decompress(c)[:-40], mtime=0)]
)
def test_cut_outcomes_do_not_count_as_done(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: Damage, is_old: bool
) -> None:
    here = Path(shutil.copytree(made, tmp_path / "here"))
    if is_old:
        without_digest(here)
    path = outcomes_path(here)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert (bench(asked(), here / "run")["status"] == "ok").all()
    told = capfd.readouterr().err
    assert "its outcomes are damaged" in told and "made again" in told
    assert path.read_bytes() == whole


def test_a_changed_outcome_is_seen_by_its_checksum(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = outcomes_path(here)
    whole = path.read_bytes()
    frame = pd.read_csv(io.BytesIO(gzip.decompress(whole)))
    frame.loc[0, "margin"] += 1.0  # which no count would tell
    content = io.BytesIO()
    frame.to_csv(content, index=False, compression={"method": "gzip", "mtime": 0})
    path.write_bytes(content.getvalue())
    assert "was cut or changed since it was written" in str(refusal(gate, here))
    bench(asked(), here / "run")
    assert path.read_bytes() == whole


COLUMN_DAMAGES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "a column less": lambda frame: frame.drop(columns="pred_at_2"),
    "no exit": lambda frame: frame.drop(columns="exit"),
    "a text": lambda frame: frame.assign(pred="x"),
    "a half": lambda frame: frame.assign(label=0.5),
    "a hole": lambda frame: frame.assign(index=frame["index"].where(frame["index"] > 0)),
    "one below 0": lambda frame: frame.assign(index=frame["index"] - 1),
    "a sample twice": lambda frame: frame.assign(index=frame["index"].clip(lower=1)),
    "exit 0": lambda frame: frame.assign(exit=0),
    "huge": lambda frame: frame.assign(index=10**30),
    "a sample more": lambda frame: pd.concat([frame, frame.tail(1).assign(index=99)]),
    "other answers": lambda frame: frame.assign(pred_at_2=frame["label"]),
}


@pytest.mark.parametrize("damage", COLUMN_DAMAGES)
def test_outcomes_of_another_kind_are_refused_where_no_checksum_tells(here: Path, damage: str) -> None:
    without_digest(here)
    path = outcomes_path(here)
    COLUMN_DAMAGES[damage](pd.read_csv(path)).to_csv(path, index=False)
    for reader in READERS:
        told = refusal(reader, here)
        assert told is not None and path.name in told, told


def test_records_of_an_older_version_are_read_as_before(here: Path) -> None:
    without_digest(here)
    for path in (here / "run" / "cells").iterdir():
        record = json.loads(path.read_text())
        record["provenance"] = {k: record["provenance"][k] for k in ("weights_sha256", "data_sha256")}
        record["rows"] = [
            {k: v for k, v in row.items() if k not in ("labels", "preparation", "options")}
            for row in record["rows"]
        ]
        path.write_text(json.dumps(record))
    for reader in READERS:
        assert refusal(reader, here) is None


# At random


VALUES: list[Any] = [
    None, True, 0, -1, 1, 10**30, 1.5, float("nan"), float("inf"), -0.5, "", "x", "a\nb", "\0", "\ud800",
    "=1",
    "$\\frac{1}$", "pgd(", "pgd(radii=[1e400])", "fog(severity=[1])", "f" + "(" * 200, [], {}, [[]], {"a": 1},
    [1, "a"], "last", "worst", "image", 2**53, 1e300,
]  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*at, key))


def other_json(rng: random.Random, content: bytes) -> bytes:
    """Return JSON with one value replaced, taken away or there twice."""
    whole = json.loads(content)
    *outer, last = ("whole", *rng.choice(list(places(whole))))
    holder: Any = {"whole": whole}
    for key in outer:
        holder = holder[key]
    how = rng.choice(["other", "other", "gone", "more"])
    if how == "gone":
        del holder[last]
    elif how == "more" and isinstance(holder, list):
        holder.append(holder[last])
    else:
        holder[last] = rng.choice(VALUES)
    return json.dumps(holder.get("whole") if not outer else whole).encode()


def other_csv(rng: random.Random, content: bytes) -> bytes:
    """Return CSV with one cell replaced or taken away, or a line there twice."""
    lines = content.decode().split("\n")
    k = rng.randrange(len(lines))
    cells = lines[k].split(",")
    at = rng.randrange(len(cells))
    how = rng.choice(["other", "other", "gone", "twice", "line gone"])
    if how == "other":
        cells[at] = str(rng.choice(VALUES)).encode("utf-8", "replace").decode()
    elif how == "gone":
        del cells[at]
    lines[k : k + 1] = [",".join(cells)] * {"twice": 2, "line gone": 0}.get(how, 1)
    return "\n".join(lines).encode()


def other_bytes(rng: random.Random, content: bytes) -> bytes:
    """Return bytes cut short, with some flipped, a piece taken out, or others altogether."""
    how, a, b = rng.randrange(4), rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)
    if how == 0:
        return content[:a]
    if how == 1:
        return content[:a] + content[b:]
    if how == 2:
        return rng.randbytes(a % 300)
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 8])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def damaged(rng: random.Random, path: Path, content: bytes) -> bytes:
    if rng.random() < 0.3:
        return other_bytes(rng, content)
    if path.suffix == ".json":
        return other_json(rng, content)
    if path.suffix == ".csv":
        return other_csv(rng, content)
    if path.suffix == ".gz":
        return gzip.compress(other_csv(rng, gzip.decompress(content)), mtime=0)
    return other_bytes(rng, content)


def check_at_random(made: Path, seed: int, *formats: str) -> None:
    """Damage a file of the folder, read it in every way, and put it back."""
    rng = random.Random(seed)
    files = [path for path in sorted(made.rglob("*")) if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    path = rng.choice(files)
    touched = [path]
    try:
        path.write_bytes(damaged(rng, path, before[path]))
        if path.suffix == ".gz" and rng.random() < 0.7:  # no checksum either
            without_digest(made)
            touched += (made / "run" / "cells").iterdir()
        for reader in (gate, read, lambda here: report(here, *formats)):
            told = refusal(reader, made)
            assert told is None or any(is_named(each, told) for each in touched), told
    finally:
        for each, content in before.items():
            each.write_bytes(content)


RANDOM = settings(derandomize=True, deadline=None, database=None)


@settings(RANDOM, max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_whatever_happened_to_a_file_it_is_refused_by_name_or_read(made: Path, seed: int) -> None:
    check_at_random(made, seed)


@pytest.mark.slow
@settings(RANDOM, max_examples=600)
@given(seed=st.integers(0, 2**32))
def test_whatever_happened_to_a_file_at_length(made: Path, seed: int) -> None:
    check_at_random(made, seed, "html", "md", "csv", "tex")


@settings(RANDOM, max_examples=15)
@given(seed=st.integers(0, 2**32))
def test_a_batch_damaged_at_random_is_passed_over(made: Path, seed: int) -> None:
    rng = random.Random(seed)
    content = pack({"index": np.arange(5), "pred": np.ones(5)}, {"at": [0, 0]})
    try:
        found = unpack(other_bytes(rng, content), {"at": [0, 0]})
    except DamageError:
        return
    assert found["index"].tolist() == [0, 1, 2, 3, 4] and found["pred"].tolist() == [1.0] * 5


def test_a_damaged_results_csv_is_written_anew_with_a_line(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "run" / "results.csv").write_text("\0broken")
    bench(asked(), here / "run")
    assert "it is written anew" in capfd.readouterr().err
    assert refusal(report, here) is None
    assert len(Store(here / "run").results()) == len(read_results(here / "run"))
