"""The house's rules: imports go down only, outside packages have a room each, starting loads no torch."""

from __future__ import annotations

import ast
import re
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
        "isolate",
        "sweep",
        "exits",
        "glimpses",
        "export",
        "golden",
        "frames",
        "report",
        "regress",
        "testing",
        "train",
        "register",
        "doctor",
    ],
    [
        "evaluate",
        "watched",
        "labels",
        "pairs",
        "request",
        "surroundings",
        "store",
        "evidence",
        "baseline",
        "stats",
        "cost",
        "policy",
        "questions",
        "power",
    ],
    ["models", "data", "attacks", "corruptions", "recipes"],
    [
        "registry",
        "machine",
        "arguments",
        "rng",
        "progress",
        "team",
        "extras",
        "cache",
        "schema",
        "columns",
        "sheets",
        "files",
        "notes",
        "texts",
        "pickles",
    ],
    ["records", "__init__"],
]
ROOMS = {
    "torchvision": {"models/backbones.py", "models/sources.py", "data/images.py", "data/augment.py"},
    "matplotlib": {"report/figures.py", "report/glimpses.py"},
    "sklearn": {"data/digits.py"},
    "torchattacks": set(),
    "foolbox": set(),
    "timm": {"models/sources.py"},
    "robustbench": {"models/sources.py"},
}
# Who touches the disk, and with what. `files` writes whole files; the others only do what is their own.
WRITERS = {
    "files.py": {"mkdir", "open", "os.replace", "unlink"},
    "store.py": {"mkdir", "unlink", "shutil.rmtree"},  # a place for cells; crashes made good, batches done
    "data/decode.py": {"memmap", "unlink"},  # decoded images, mapped to be read; what earlier runs left
    "data/archives.py": {"pooch.retrieve", "open"},  # downloads
}
WRITING = {
    "write_text", "write_bytes", "mkdir", "touch", "unlink", "rmdir", "symlink_to", "hardlink_to", "rmtree",
    "makedirs", "open_memmap", "memmap", "tofile", "extractall", "retrieve", "urlretrieve",
    "NamedTemporaryFile", "mkdtemp", "save_file",
}  # fmt: skip
SAVING = {"save", "savez", "savez_compressed", "savefig", "to_csv", "dump"}
FILES = sorted(PACKAGE.rglob("*.py"))


def test_the_layers_are_those_of_the_package_and_of_contributing() -> None:
    there = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert sorted(name for names in LAYERS for name in names) == sorted(there)
    drawn = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text().partition("## Where things are")[2]
    drawn = drawn.partition("Imports go down only")[0]
    layers = [set(re.findall(r"\w+", layer)) for layer in drawn.split("->")]
    assert layers == [set(names) - {"__main__", "__init__"} for names in LAYERS]


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


def writes(path: Path) -> set[str]:
    """Return the calls in a file that change the disk: "mkdir", "os.replace", "open" for writing.

    Saving into a buffer is none, nor is making a text of a table: they are told by the names that are usual
    here, `content` and `file`, `table`.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        owner, _, name = ast.unparse(node.func).rpartition(".")
        said = [ast.unparse(argument).strip("'") for argument in node.args]
        if name == "open":
            is_writing = any(re.fullmatch("(?=.*[wax+])[rwaxbt+]{1,3}", word) for word in said)
        elif name in SAVING:
            is_writing = bool(owner and said) and not {"content", "file", "table"} & set(said)
        elif name in {"replace", "move", "copy", "copyfile"}:  # of texts and frames as well
            is_writing = owner in {"os", "shutil"}
        else:
            is_writing = name in WRITING and not owner.lower().startswith("store")
        if is_writing:
            found.add(f"{owner}.{name}" if owner in {"os", "shutil", "pooch"} else name)
    return found


@pytest.mark.parametrize(
    "code, found",
    [
        ("path.write_text('x')", {"write_text"}),
        ("open(path, 'w')", {"open"}),
        ("path.open('ab')", {"open"}),
        ("path.open(mode)", set()),
        ("frame.to_csv(path)", {"to_csv"}),
        ("np.savez(content, a=a)", set()),
        ("os.replace(a, b)", {"os.replace"}),
        ("text.replace(a, b)", set()),
    ],
)
def test_what_writes_is_found(code: str, found: set[str], tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text(code)
    assert writes(tmp_path / "some.py") == found


@pytest.mark.parametrize("path", FILES, ids=room)
def test_few_write_to_the_disk(path: Path) -> None:
    assert writes(path) == WRITERS.get(room(path), set())


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
