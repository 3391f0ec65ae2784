"""A user's own code: the files that a model's code lies in, with what they import, nothing installed."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from robustglimpse.records import UserError

INSTALLED = {"site-packages", "dist-packages"}
# Module -> the spec that it was imported by, and the SHA-256 of its file when that was first looked at.
_READ: dict[str, tuple[Any, str]] = {}


def is_own(name: str) -> bool:
    """Return whether a module's code was written by the user: neither installed, nor Python's, nor ours."""
    top = name.partition(".")[0]
    if top == "robustglimpse" or (top in sys.stdlib_module_names and top != "__main__"):
        return False
    path = _file(sys.modules.get(name))
    return path is not None and not INSTALLED & set(path.parts)


def own_modules(names: Iterable[str]) -> dict[str, Path]:
    """Return the user's modules among `names`, and those that these import, directly or not, with files."""
    found: dict[str, Path] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found or not is_own(name):
            continue
        module = sys.modules[name]
        path = _file(module)
        assert path is not None
        found[name] = path
        parts = name.split(".")
        waiting += [".".join(parts[:k]) for k in range(1, len(parts))]  # a package's __init__ runs first
        waiting += _imports(module, path)
    return found


def own_code(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the SHA-256 of the code that Python has read for these modules, sorted; and which files changed.

    For a file that has changed since the SHA-256 of what it was stands: that is what runs.  One that is
    imported again (importlib.reload) is looked at anew.
    Raises UserError where Python runs an older compiled copy of a file.
    """
    digests, changed = set(), []
    for name, path in sorted(own_modules(names).items()):
        content = path.read_bytes()
        now, spec = hashlib.sha256(content).hexdigest(), getattr(sys.modules[name], "__spec__", None)
        seen, then = _READ.get(name, (None, ""))
        if not then or seen is not spec:
            _check_compiled(spec, content, path)
            then = now
            _READ[name] = spec, now
        digests.add(then)
        if then != now:
            changed.append(path.name)
    return sorted(digests), changed


def _file(module: ModuleType | None) -> Path | None:
    path = getattr(module, "__file__", None)
    if not isinstance(path, str) or not Path(path).is_file():
        return None  # of a shell, a notebook, or in an archive
    return Path(path).resolve()


def _check_compiled(spec: Any, content: bytes, path: Path) -> None:
    """Raise UserError where a compiled copy of the same size and second is run instead of the file."""
    loader = getattr(spec, "loader", None)
    if type(loader) is not SourceFileLoader:  # others may compile in their own way
        return
    try:
        is_same = loader.get_code(spec.name) == loader.source_to_code(content, str(path))
    except (SyntaxError, ValueError, ImportError, OSError):
        return  # it has changed since it was imported
    if not is_same:
        raise UserError(
            f"{path.name}: Python runs an older compiled copy of it, of the same size and second; delete "
            f"{path.parent / '__pycache__'} and start again"
        )


def _imports(module: ModuleType, path: Path) -> Iterator[str]:
    """Yield the names of modules that a module's file imports anywhere in it, or that it holds."""
    if path.suffix == ".py":
        for level, name, inside in _import_lines(path.read_bytes()):
            whole = _absolute(module, level, name)
            yield whole
            yield from (f"{whole}.{part}" if whole else part for part in inside)
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            yield value.__name__
        elif isinstance(value, type | FunctionType) and isinstance(value.__module__, str):
            yield value.__module__


@lru_cache(maxsize=1024)
def _import_lines(content: bytes) -> list[tuple[int, str, tuple[str, ...]]]:
    """Return the imports in a file: how many dots, the module, and what is taken from it."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return []
    found: list[tuple[int, str, tuple[str, ...]]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))
    return found


def _absolute(module: ModuleType, level: int, name: str) -> str:
    """Return the whole name of a module that one imports by `level` dots and a name."""
    if not level:
        return name
    package = getattr(module, "__package__", None) or ""
    parts = package.split(".")
    base = ".".join(parts[: len(parts) - level + 1])
    return f"{base}.{name}" if name and base else base or name
