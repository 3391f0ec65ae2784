"""What CONTRIBUTING.md tells a developer to write works as it stands there, in a copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDES = (ROOT / "CONTRIBUTING.md").read_text()
LARGE = ("*.safetensors", "*.npz")


@dataclass(frozen=True)
class Guide:
    """A chapter of CONTRIBUTING.md: files that it shows whole, and the row that goes into a table."""

    files: dict[str, str]
    table: str
    file: str
    row: str


def guide(title: str) -> Guide:
    chapter = re.split(r"^## ", GUIDES, flags=re.M)
    (text,) = (each for each in chapter if each.startswith(f"{title}\n"))
    blocks = re.findall(r"^```python\n# ([^\n]*)\n(.*?)^```$", text, re.M | re.S)
    files = {head: body for head, body in blocks if not head.startswith("in ")}
    ((head, row),) = ((head, body) for head, body in blocks if head.startswith("in "))
    table, file = re.fullmatch(r"in (\w+) of (\S+)", head).groups()  # type: ignore[union-attr]
    return Guide(files, table, file, row)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project without results; large files are links."""
    root = tmp_path / "project"
    for name in ("robustglimpse", "tests", "docs", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__", *LARGE)
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
        for pattern in LARGE:
            for path in (ROOT / name).rglob(pattern):
                (root / path.relative_to(ROOT)).symlink_to(path)
    for name in ("README.md", "CONTRIBUTING.md", "pyproject.toml", "tox.ini", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    (root / "results").symlink_to(ROOT / "results")
    return root


def follow(guide: Guide, root: Path) -> None:
    """Write what the guide says."""
    for name, text in guide.files.items():
        assert not (root / name).exists()
        (root / name).write_text(text)
    path = root / guide.file
    table = re.compile(rf"(^{guide.table}: dict\[.*?)(^\}})", re.M | re.S)
    text, count = table.subn(lambda match: match[1] + guide.row + match[2], path.read_text(), count=1)
    assert count == 1
    path.write_text(text)


def run(root: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    environment.setdefault("ROBUSTGLIMPSE_SHARED", str(ROOT.parent / "shared"))
    if not Path(environment["ROBUSTGLIMPSE_SHARED"]).is_dir():
        del environment["ROBUSTGLIMPSE_SHARED"]
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


def passes(root: Path, *selected: str, name: str) -> None:
    """Run the tests that a row gets by its name, of which there must be some in every file."""
    told = run(
        root, "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not browser", *selected,
        "-k", name, "-rA",
    )  # fmt: skip
    for path in selected:
        assert re.search(rf"^PASSED {re.escape(path)}::", told, re.M), f"no test of {name} in {path}"


def test_the_guide_for_an_attack_works_as_it_stands(copy: Path) -> None:
    follow(guide("An attack"), copy)
    assert "Kurakin et al. 2017" in run(copy, "robustglimpse", "list", "attacks")
    command = "robustglimpse bench --model ffnet-r18 --attack ifgsm --limit 8 --steps 1 --steps 4"
    assert "ifgsm" in run(copy, *command.split(), "--device", "cpu", "--out", str(copy / "run"))
    files = ("tests/test_tables.py", "tests/attacks/test_metamorphic.py", "tests/test_evaluate.py")
    passes(copy, *files, "tests/attacks/test_planted.py", name="ifgsm and not mifgsm")


def test_the_guide_for_a_corruption_works_as_it_stands(copy: Path) -> None:
    follow(guide("A corruption"), copy)
    assert "dimming" in run(copy, "robustglimpse", "list", "corruptions")
    command = "robustglimpse corruptions --model ffnet-r18 --corruption dimming --limit 8 --severity 1"
    assert "dimming" in run(copy, *command.split(), "--device", "cpu", "--out", str(copy / "run"))
    run(copy, "robustglimpse", "report", str(copy / "run"), "--out", str(copy / "report.html"))
    assert "dimming" in (copy / "report.html").read_text()
    (told,) = re.findall(r'^    (python -c "from robustglimpse\.golden.*)$', GUIDES, re.M)
    golden = copy / "robustglimpse" / "golden.npz"
    before = golden.resolve().read_bytes()
    subprocess.run(
        [sys.executable, "-c", told.split('"')[1]],
        cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, check=True,
    )  # fmt: skip
    assert (ROOT / "robustglimpse" / "golden.npz").read_bytes() == before, "the link was followed"
    assert "dimming" in run(copy, "robustglimpse", "verify", "corruptions")
    passes(copy, "tests/corruptions/test_corrupt.py", name="dimming")
    run(copy, "pytest", "-q", "tests/test_golden.py", "tests/report/test_table2.py", "tests/test_tables.py")


@pytest.mark.slow
def test_the_guide_for_a_model_works_as_it_stands(copy: Path) -> None:
    """With the bundled recipe under another name, for one epoch: its row, its file and their tests."""
    recipes = copy / "robustglimpse" / "recipes"
    text = (recipes / "ffnet-r18-glimpse-digits.toml").read_text()
    text = text.replace("ffnet-r18", "mine")
    text = text.replace('train_split = "train"', 'train_split = "test"')
    (recipes / "mine-glimpse-digits.toml").write_text(text)
    out = copy / "runs" / "mine"
    command = "robustglimpse train mine-glimpse-digits --epochs 1 --precision f32 --device cpu"
    run(copy, *command.split(), "--out", str(out))
    (told,) = re.findall(r"^    python -m (robustglimpse\.register) runs/mine/(\S+)$", GUIDES, re.M)
    for _ in range(2):  # the second time its row is replaced
        assert "mine@glimpse-digits" in run(copy, told[0], str(out / told[1]))
    assert "mine" in run(copy, "robustglimpse", "list", "models")
    passes(copy, "tests/models/test_zoo.py", name="mine or recipe")
