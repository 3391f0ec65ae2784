"""The commands corruptions, corrupt and verify: their files, their tables, and one line for what is wrong."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from colours import colour_classifier, offer, save_colours
from PIL import Image
from torch import Tensor

from robustglimpse import cli, evaluate, golden, runner
from robustglimpse.corruptions import CORRUPTIONS, corrupt, names
from robustglimpse.store import read_results

CLASSES = ("n01", "n02", "n03")


@dataclass(frozen=True)
class Ran:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line that it was refused with, nothing done."""
        assert self.code == 2, self
        assert self.out == ""
        assert len(self.err.splitlines()) == 1, self.err
        assert self.err.startswith("robustglimpse: ")
        assert not Path("runs").exists()
        return self.err


Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command in tmp_path, as the shell would."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["robustglimpse", *arguments])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        return Ran(code, *capfd.readouterr())

    return command


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images of three classes, which the model "colours" knows."""
    save_colours(tmp_path / "photos", CLASSES, count=4)
    offer(monkeypatch, colour_classifier(CLASSES))
    return tmp_path / "photos"


COLOURS = ("corruptions", "--model", "colours", "--data", "imagefolder:photos", "--severity", "2,5")
FOG = (*COLOURS, "--corruption", "fog", "--corruption", "spatter")


def lines_of(text: str, first: str) -> list[list[str]]:
    """Return the cells of the lines of Markdown that begin with first."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith(f"| {first}")
    ]


def size_of(path: str | Path) -> tuple[int, int]:
    """Return an image's width and height."""
    with Image.open(path) as image:
        return image.size


def test_corruptions_prints_its_tables_and_leaves_its_files(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, colour_classifier(CLASSES), colour_classifier(CLASSES, name="glance", glances=1))
    command = (
        *COLOURS, "--model", "glance", "--corruption", "contrast", "--corruption", "impulse_noise",
        "--limit", "7", "--batch-size", "3", "--out", "made", "--paper",
    )  # fmt: skip
    first = run(*command)
    assert first.code == 0, first
    assert first.err == ""
    made = Path("made")
    assert {path.name for path in made.iterdir() if path.is_file()} == {
        "results.csv", "run.json", "summary.csv",
        "table2.md", "table2.tex", "table2.csv", "table2.png", "table2.svg",
    }  # fmt: skip
    results = read_results(made)
    assert len(results) == 3 * (1 + 2 * 2)
    assert set(results["total"]) == {7}
    table = pd.read_csv(made / "table2.csv")
    assert len(table) == 3 + 13
    found = results[results["kind"] == "corruption"]
    means = found.groupby(["model", "exit", "corruption"])["accuracy"].mean()
    for row in table[:3].to_dict("records"):
        for name in ("contrast", "impulse_noise"):
            assert row[name] == pytest.approx(means[row["model"], row["glimpses"], name], abs=1e-5)
    assert (made / "table2.md").read_text().rstrip() in first.out
    assert len(lines_of(first.out, "colours ")) == 2 + 2, "a line per exit in table and summary"
    assert len(lines_of(first.out, "glance ")) == 1 + 1
    assert len(lines_of(first.out, "paper: ")) == 13
    assert (made / "table2.tex").read_text().startswith(r"\begin{tabular}")
    assert size_of(made / "table2.png") > (300, 200)
    assert (made / "table2.svg").read_text().startswith("<?xml")
    assert len(pd.read_csv(made / "summary.csv")) == 3
    for name in ("results.csv", "table2.md", "table2.png"):
        assert str(made / name) in first.out.splitlines()
    # Again: nothing is shown to a model, and every file stays as it was.
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    monkeypatch.setattr(evaluate, "judge_clean", lambda *_, **__: pytest.fail("nothing was missing"))
    assert run(*command) == first
    assert before == {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}


def test_a_bundled_model_is_judged_on_its_own_data(run: Run) -> None:
    flags = ("--corruption", "contrast", "--severity", "5", "--limit", "3")
    ran = run("corruptions", "--model", "ffnet-r18", *flags)
    assert ran.code == 0, ran
    (line, _) = lines_of(ran.out, "ffnet-r18")
    assert (line[0], line[1], line[3]) == ("ffnet-r18", "1", "100.0")
    results = read_results(Path("runs/corruptions"))
    assert set(results["dataset"]) == {"glimpse-digits"}
    assert results["corruption"].fillna("").tolist() == ["", "contrast"]


def test_a_results_csv_serves_as_baseline_for_mce(run: Run, photos: Path) -> None:
    assert run(*FOG).code == 0
    ran = run(*FOG, "--baseline", "runs/corruptions/results.csv")
    assert ran.code == 0
    # The last exit against itself; fog alone counts, spatter being an extra.
    assert pd.read_csv("runs/corruptions/summary.csv")["mce"].iloc[1] == pytest.approx(1)
    assert lines_of(ran.out, "colours")[-1][-2] == "100.0"
    assert ran.err == ""


def test_alexnet_is_refused_as_baseline_with_its_reason(run: Run, photos: Path) -> None:
    ran = run(*FOG, "--baseline", "alexnet")
    assert ran.code == 0
    assert ran.err.startswith("mCE: AlexNet's errors are those of 1000-class ImageNet-C at 224 px")
    assert pd.read_csv("runs/corruptions/summary.csv")["mce"].isna().all()
    assert lines_of(ran.out, "colours")[-1][-2:] == ["-", "-"]


def crashing(monkeypatch: pytest.MonkeyPatch, *doomed: str) -> None:
    """Make these corruptions crash."""

    def crashes(images: Tensor, name: str, severity: int, **options: Any) -> Tensor:
        if name in doomed:
            raise RuntimeError("out of fog")
        return corrupt(images, name, severity, **options)

    monkeypatch.setattr(runner, "corrupt", crashes)


def test_a_crash_is_exit_code_1_and_a_hole_for_the_next_run(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashing(monkeypatch, "fog")
    ran = run(*FOG)
    assert ran.code == 1
    assert "RuntimeError: out of fog" in ran.err
    assert "Traceback" not in ran.err
    assert (read_results(Path("runs/corruptions"))["status"] == "failed").sum() == 2
    monkeypatch.setattr(runner, "corrupt", corrupt)
    ran = run(*FOG)
    assert (ran.code, ran.err) == (0, "")
    assert (read_results(Path("runs/corruptions"))["status"] == "ok").all()


def test_a_crash_of_every_cell_is_exit_code_1(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashing(monkeypatch, "fog", "spatter")
    assert run(*FOG).code == 1


def test_one_image_is_enough_for_a_table(run: Run, photos: Path) -> None:
    assert run(*FOG, "--limit", "1").code == 0


# The sheet


def test_a_sheet_is_drawn_and_nothing_run(run: Run, tmp_path: Path) -> None:
    command = ("corruptions", "--sheet", "sheet.png", "--corruption", "fog", "--corruption", "contrast")
    ran = run(*command, "--severity", "1,5")
    assert (ran.code, ran.out, ran.err) == (0, "sheet.png\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    small = size_of("sheet.png")
    run(*command, "--sheet-index", "3")
    assert size_of("sheet.png") > small, "five severities are wider than two"


def test_a_sheet_may_be_svg_and_of_another_image(run: Run) -> None:
    command = ("corruptions", "--corruption", "fog", "--severity", "3")
    sheets = []
    for name, index in (("a.svg", "0"), ("b.svg", "3"), ("c.svg", "0")):
        assert run(*command, "--sheet", name, "--sheet-index", index).code == 0
        sheets.append(Path(name).read_bytes())
    assert sheets[0].startswith(b"<?xml")
    assert sheets[0] == sheets[2] != sheets[1]


# What is refused


def with_model(*arguments: str) -> tuple[str, ...]:
    return ("--model", "mgnet-r18", *arguments)


@pytest.mark.parametrize(
    "arguments, says",
    [
        ((), "name a model with --model"),
        (("--model", "mgnet-r81"), "did you mean 'mgnet-r18'?"),
        (with_model("--corruption", "frog"), "unknown corruption 'frog'; did you mean 'fog'?"),
        (with_model("--severity", "6"), "severity must be 1, 2, 3, 4 or 5, got 6"),
        (with_model("--severity", "x"), "severity must be whole numbers with commas between, got 'x'"),
        (with_model("--severity", ""), "severity must be whole numbers"),
        (with_model("--preset", "96"), "preset must be 32, 64 or 224, got 96"),
        (with_model("--batch-size", "0"), "batch size must be at least 1"),
        (with_model("--limit", "0"), "limit must be at least 1"),
        (with_model("--device", "warp"), "device 'warp'"),
        (with_model("--data", "imagenet-d"), "did you mean 'imagenet-c'?"),
        (with_model("--data", "imagenet-c"), "give the folder that holds them as --data-dir"),
        (with_model("--data", "imagenet-c", "--data-dir", "nowhere"), "nowhere: no such folder"),
        (with_model("--baseline", "nowhere.csv"), "nowhere.csv: no such results"),
        (("--sheet", "out.txt"), "--sheet must end in .png or .svg, got 'out.txt'"),
        (("--sheet", "out.png", "--severity", "7"), "severity must be 1, 2, 3, 4 or 5, got 7"),
        pytest.param(
            ("--sheet", "out.png", "--corruption", "frog"), "did you mean 'fog'?",
        ),
        pytest.param(
            with_model("--corruption", "frost", "--limit", "2", "--frost-dir", "nowhere"), "nowhere",
        ),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, tuple) else "",
)  # fmt: skip
def test_corruptions_refuses_in_one_line(arguments: tuple[str, ...], says: str, run: Run) -> None:
    assert says in run("corruptions", *arguments).line
    assert not Path("out.png").exists()


def test_a_sheet_of_an_image_that_there_is_not_is_refused(run: Run, photos: Path) -> None:
    line = run("corruptions", "--data", "imagefolder:photos", "--sheet", "a.png", "--sheet-index", "12").line
    assert "has images 0 to 11, not 12" in line


def test_another_store_is_refused_with_the_choices(run: Run) -> None:
    ran = run("corruptions", "--model", "mgnet-r18", "--store", "png")
    assert (ran.code, ran.out) == (2, "")
    assert "exact" in ran.err
    assert "jpeg85" in ran.err
    assert not Path("runs").exists()


def test_a_baseline_of_two_models_is_refused(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, colour_classifier(CLASSES), colour_classifier(CLASSES, name="other"))
    assert run(*FOG, "--model", "other", "--out", "two").code == 0
    assert "one model, got colours, other" in run(*FOG, "--baseline", "two").line


# Saved sets


def saved(root: Path, cell: str, classes: tuple[str, ...]) -> None:
    save_colours(root / cell, classes, count=1, size_px=32, name="{}.JPEG")


SAVED = ("corruptions", "--model", "colours", "--data", "imagenet-c", "--data-dir", "set", "--severity", "3")


def test_a_missing_cell_is_named(run: Run, photos: Path, tmp_path: Path) -> None:
    saved(tmp_path / "set", "fog/3", CLASSES)
    line = run(*SAVED, "--corruption", "fog", "--corruption", "snow").line
    assert "set: snow/3 is missing" in line
    assert run(*SAVED, "--corruption", "fog").code == 0


def test_a_frost_folder_of_1000_classes_is_told_of(run: Run, photos: Path, tmp_path: Path) -> None:
    others = tuple(f"n{k:04}" for k in range(997))
    picture = io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, "PNG")
    for name in others:
        (tmp_path / "set/frost/3" / name).mkdir(parents=True)
        (tmp_path / "set/frost/3" / name / "0.JPEG").write_bytes(picture.getvalue())
    saved(tmp_path / "set", "frost/3", CLASSES)
    saved(tmp_path / "set", "fog/3", CLASSES)
    ran = run(*SAVED, "--corruption", "fog", "--corruption", "frost")
    assert ran.code == 0
    (note,) = ran.err.splitlines()
    assert "frost/3: 997 of its classes are not colours's (n0000, ...)" in note
    results = read_results(Path("runs/corruptions"))
    assert set(results["total"]) == {3}
    # The same images lie in both folders.
    assert results.groupby("corruption")["correct"].sum().nunique() == 1


# The other commands


def test_corrupt_writes_a_copy_and_says_how_much(run: Run, photos: Path) -> None:
    command = ("corrupt", "photos", "copy", "--corruption", "fog", "--severity", "3,1", "--size", "0")
    ran = run(*command)
    assert (ran.code, ran.out, ran.err) == (0, "24 images written to copy\n", "")
    assert len(list(Path("copy/fog/1/n02").glob("*.JPEG"))) == 4
    assert size_of("copy/fog/3/n03/0.JPEG") == (32, 32)
    assert run(*command).out == "0 images written to copy\n"
    assert run(*command, "--severity", "2").out == "12 images written to copy\n"
    line = run(*command, "--store", "exact", "--seed", "7").line
    assert "copy was made with --seed 0 and --store jpeg85, not --seed 7 and --store exact" in line


def test_corrupt_takes_224_px_and_all_of_the_paper_unless_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustglimpse import corruptions

    monkeypatch.setattr(corruptions, "corrupt", lambda images, *_, **__: images)
    save_colours(tmp_path / "photos", ("n01",), count=1)
    ran = run("corrupt", "photos", "copy")
    assert ran.out == "75 images written to copy\n"
    assert ran.err.splitlines() == [
        "photos: images are resized to 256 px (shorter side) and cropped to 224 px; --size 0 takes them as "
        "they are stored",
        "photos: 1 of 1 images is smaller than 256 px and enlarged",
    ]
    assert {path.name for path in Path("copy").iterdir()} == {*names(), "robustglimpse.json"}
    assert size_of("copy/fog/3/n01/0.JPEG") == (224, 224)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("nowhere", "copy"), "nowhere: no such folder"),
        (("photos", "copy", "--corruption", "frog"), "did you mean 'fog'?"),
        (("photos", "copy", "--severity", "6"), "severity must be 1, 2, 3, 4 or 5, got 6"),
        (("photos", "copy", "--severity", "a"), "severity must be whole numbers"),
        (("photos", "copy", "--preset", "96"), "preset must be 32, 64 or 224"),
        (("photos", "photos/copy", "--corruption", "fog"), "lies inside photos"),
        (("photos", "/dev/null/copy", "--corruption", "fog"), "cannot be written"),
        (("photos", "copy", "--size", "-5"), "size must be at least 1 px"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_corrupt_refuses_in_one_line(arguments: tuple[str, ...], says: str, run: Run, photos: Path) -> None:
    assert says in run("corrupt", *arguments).line
    assert not Path("copy").exists()


def test_verify_passes_here_and_says_so_for_each(run: Run) -> None:
    ran = run("verify", "corruptions")
    assert (ran.code, ran.err) == (0, "")
    assert [line.split()[0] for line in ran.out.splitlines()[1:]] == list(CORRUPTIONS)
    assert "DIFFERS" not in ran.out


def test_verify_fails_where_a_corruption_differs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [golden.Check("fog", 1, 0.001, 1, 0.005), golden.Check("snow", 3, 0.5, 1, 0.005)]
    monkeypatch.setattr(golden, "verify_corruptions", lambda: iter(checks))
    ran = run("verify", "corruptions")
    assert ran.code == 1
    fog, snow = ran.out.splitlines()[1:]
    assert "DIFFERS" not in fog
    assert snow.endswith("DIFFERS")
    assert "3 levels" in snow


def test_list_corruptions_has_a_line_for_each(run: Run) -> None:
    ran = run("list", "corruptions")
    assert ran.code == 0
    lines = [line.split() for line in ran.out.splitlines()[1:]]
    assert [line[0] for line in lines] == list(CORRUPTIONS)
    assert len(lines) == 19
    assert [line[1] for line in lines] == [row.family for row in CORRUPTIONS.values()]
    extras = np.array([row.extra for row in CORRUPTIONS.values()])
    assert ["yes" in line[3:4] for line in lines] == extras.tolist()
