"""The house's rules: imports go down only, outside packages have a room each, starting loads no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import robustglimpse

PACKAGE = Path(robustglimpse.__file__).parent
# A module may import from its own layer's folder and from layers below (later) only.
LAYERS = [
    ["cli", "__main__"],
    [
        "runner",
        "compare",
        "sweep",
        "exits",
        "glimpses",
        "export",
        "golden",
        "frames",
        "report",
        "regress",
        "testing",
        "audit",
        "train",
        "doctor",
    ],
    ["evaluate", "watched", "store", "stats", "cost", "policy"],
    ["models", "data", "attacks", "corruptions", "recipes"],
    ["registry", "rng", "progress", "team", "extras", "cache"],
    ["records", "__init__"],
]
ROOMS = {
    "torchvision": {"models/backbones.py", "models/sources.py", "data/folders.py", "data/augment.py"},
    "matplotlib": {"report/figures.py", "report/glimpses.py"},
    "sklearn": {"data/digits.py"},
    "torchattacks": set(),
    "foolbox": set(),
    "timm": {"models/sources.py"},
    "robustbench": {"models/sources.py"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer_of(module: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if module in names)


def imports(path: Path) -> list[tuple[str, bool]]:
    """Return every imported (or needed) module, and whether that is at the top of the file, for running."""
    tree = ast.parse(path.read_text())
    guarded = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.If) and ast.unparse(outer.test) == "TYPE_CHECKING"
        for node in ast.walk(outer)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            if node.module == "robustglimpse":
                names = [f"robustglimpse.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "need":
            names = [ast.literal_eval(node.args[0])] if isinstance(node.args[0], ast.Constant) else []
        else:
            continue
        if id(node) not in guarded:
            found += [(name, node in tree.body) for name in names]
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=room)
def test_imports_go_down_only(path: Path) -> None:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] != "robustglimpse" or len(parts) == 1 or parts[1] == first:
            continue
        if parts[1] == "__version__":
            continue
        assert layer_of(parts[1]) >= layer_of(first), f"{room(path)} imports {name}"


@pytest.mark.parametrize("first", ["attacks", "corruptions"])
def test_attacks_and_corruptions_see_only_tensors(first: str) -> None:
    for path in (PACKAGE / first).glob("*.py"):
        for name, _ in imports(path):
            assert not name.startswith(("pandas", "robustglimpse.models", "robustglimpse.data")), room(path)


@pytest.mark.parametrize("name", ROOMS)
def test_outside_packages_have_one_room(name: str) -> None:
    users = {room(path) for path in FILES for used, _ in imports(path) if used.split(".")[0] == name}
    assert users <= ROOMS[name]


@pytest.mark.parametrize("path", FILES, ids=room)
def test_heavy_packages_load_inside_the_function_that_needs_them(path: Path) -> None:
    heavy = set(ROOMS) | {"pooch", "sklearn"}
    assert not {name for name, is_top in imports(path) if is_top and name.split(".")[0] in heavy}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["bench", "--help"],
        ["corruptions", "--help"],
        ["doctor", "--help"],
        ["doctor", "rich"],
        *(["list", what] for what in ("models", "attacks", "corruptions", "data", "recipes")),
    ],
)
def test_help_and_list_start_without_torch(arguments: list[str]) -> None:
    script = (
        "import sys; sys.argv = ['robustglimpse', *sys.argv[1:]]\n"
        "from robustglimpse.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    "module", ["", ".stats", ".store", ".policy", ".regress", ".testing", ".report.verdicts"]
)
def test_importing_it_loads_no_torch(module: str) -> None:
    script = f"import sys, robustglimpse{module}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
