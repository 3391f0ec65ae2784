"""What is installed here and whether it works: versions, overwritten files, failing imports, what to type.

Nothing is imported in this process: a damaged package may take its process with it.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from importlib.metadata import Distribution
from pathlib import Path
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion

from robustglimpse.progress import progress
from robustglimpse.records import UserError
from robustglimpse.registry import unknown

SELF = "robustglimpse"
USUAL = "all"  # the extra of what a user may want; what is not in it (dev) is looked at when named
BIG_BYTES = 8_000_000  # larger files are compared by size alone: torch has a gigabyte of them
TIMEOUT_S = 180
# These strip and patch binaries after RECORD was written: their files differ from it and are well.
PACKAGERS = {"conda", "rpm", "debian"}
# Packages whose files are read and that nobody imports: imagecorruptions fails on numpy 2.
FILES_ONLY = {"imagecorruptions": "imagecorruptions/frost"}
# What to run where `import MODULE` tells too little.
PROBES = {
    "torch": """
import torch
torch.ones(2, 2) @ torch.ones(2, 2)
answer["device"] = f"cuda ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else "cpu"
""",
    # Built for another torch, it may be imported all the same and lack its operators.
    "torchvision": """
import torch, torchvision
torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
""",
    # It imports names that today's PyPI lacks (autoattack, pkg_resources); that alone is no fault.
    "robustbench": """
from robustglimpse.models.sources import importable_robustbench
with importable_robustbench():
    import robustbench
""",
}
# The code comes as an argument; the answer is the last line, whatever the package prints before it.
CHILD = """
import json, os, sys
answer = {}
try:
    exec(sys.argv[1], {"answer": answer})
except BaseException as error:
    answer["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
print("\\n" + json.dumps(answer), flush=True)
os._exit(0)
"""

Status = Literal["ok", "absent", "broken"]


@dataclass(frozen=True)
class Finding:
    """How one package fares.

    extra: the extra that asks for it, "" for what is always needed.  version: "" where absent.
    is_asked: named by the user, or always needed.  clobbered: its files that are missing or not as installed.
    mend: the command to type, "" where it is ok.  notes: odd, but no fault.
    """

    name: str
    extra: str
    required: str
    version: str
    status: Status
    is_asked: bool
    problem: str = ""
    mend: str = ""
    clobbered: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_fault(self) -> bool:
        """Whether it is broken, or absent though asked for."""
        return self.status == "broken" or (self.status == "absent" and self.is_asked)


@dataclass(frozen=True)
class Diagnosis:
    """An installation and its packages. device: "cpu" or "cuda (NAME)"; "" where torch wasn't looked at."""

    robustglimpse: str
    python: str
    executable: str
    platform: str
    device: str
    packages: tuple[Finding, ...]

    @property
    def is_well(self) -> bool:
        """Whether nothing is broken, and nothing that was asked for is absent."""
        return not any(finding.is_fault for finding in self.packages)

    def to_json(self) -> str:
        """Return one JSON object: the fields, and is_well."""
        return json.dumps({"is_well": self.is_well, **asdict(self)}, indent=2)


@dataclass(frozen=True)
class _Wanted:
    """A package to look at."""

    requirement: Requirement
    extra: str
    is_asked: bool

    @property
    def name(self) -> str:
        return _canonical(self.requirement.name)


def diagnose(names: Sequence[str] = (), *, folders: Sequence[str] | None = None) -> Diagnosis:
    """Return what is installed and whether it works.

    names: extras or packages; () for what is always needed and the packages of the extra "all".
    folders: where packages are installed, which come first for imports too; None for those of this Python.
    Raises UserError for a name that is neither, and where robustglimpse itself is not installed.
    """
    path = list(sys.path if folders is None else folders)
    environment = os.environ | ({} if folders is None else {"PYTHONPATH": os.pathsep.join(folders)})
    own = _find(SELF, path)
    if own is None or not _version(own):
        raise UserError(
            f"expected {SELF} to be installed, since its metadata tells what to look for; it is not: "
            f"{_pip(SELF)} (in a checkout: {_pip('-e', '.')})"
        )
    wanted = _choose(own, names)
    seen: list[tuple[Finding, dict[str, str]]] = []
    with ThreadPoolExecutor(2) as pool, progress(len(wanted), "doctor") as report:
        answers = pool.map(lambda one: _probe(one.name, path, environment), wanted)
        for one, answer in zip(wanted, answers, strict=True):
            seen.append((_examine(one, path, answer.get("error", "")), answer))
            report(len(seen), one.name)
    broken = [finding for finding, _ in seen if finding.status == "broken"]
    return Diagnosis(
        own.version, platform.python_version(), sys.executable, platform.platform(),
        device="".join(answer.get("device", "") for _, answer in seen),
        packages=tuple(_blame(finding, answer.get("error", ""), broken, path) for finding, answer in seen),
    )  # fmt: skip


def _choose(own: Distribution, names: Sequence[str]) -> list[_Wanted]:
    """Return the packages to look at, each once, with the extra that it belongs to."""
    extras = {_canonical(e): _needs(own, e) for e in own.metadata.get_all("Provides-Extra") or ()}
    members = {extra: [_canonical(r.name) for r in needed] for extra, needed in extras.items()}
    known = {_canonical(r.name): _Wanted(r, "", True) for r in _needs(own)}
    usual = dict.fromkeys([*known, *members.get(USUAL, ())])
    for extra in sorted(extras, key=USUAL.__eq__):  # last: a package's own extra is the one to name
        for requirement in extras[extra]:
            known.setdefault(_canonical(requirement.name), _Wanted(requirement, extra, False))
    if not names:
        return [known[name] for name in usual]
    chosen: dict[str, _Wanted] = {}
    for name in names:
        if _canonical(name) not in {*members, *known}:
            raise unknown(name, dict.fromkeys([*members, *known]), kind="extra or package")
        for package in members.get(_canonical(name), [_canonical(name)]):
            chosen[package] = replace(known[package], is_asked=True)
    return list(chosen.values())


def _examine(wanted: _Wanted, path: list[str], error: str) -> Finding:
    """Return how a package fares. error: why it cannot be imported, "" where it can or is absent."""
    name, required = wanted.name, str(wanted.requirement.specifier)
    finding = Finding(name, wanted.extra, required, "", "absent", wanted.is_asked)
    own = _find(name, path)
    if own is None:
        return replace(finding, problem="not installed", mend=_install(wanted), notes=_strays(name, path))
    version, again = _version(own), ("--force-reinstall", "--no-deps")
    if not version:
        mend = _pip(*again, _plain(wanted.requirement))
        return replace(finding, status="broken", problem="its METADATA is gone", mend=mend)
    damaged, contested = _compare(own, path)
    unmet = [] if name in FILES_ONLY else _unmet(own, path)
    faults = []  # (problem, mend); what is typed for the first may well mend the others
    if not _fits(wanted.requirement, version):
        faults.append((f"expected {required}, got {version}", _pip(_plain(wanted.requirement))))
    if damaged:
        faults.append((_tell(damaged), _pip(*again, f"{name}=={version}")))
    if error:
        faults.append((error, _mend_import(name, path, error, unmet)))
    return replace(
        finding,
        version=version,
        status="broken" if faults else "ok",
        problem="; ".join(problem for problem, _ in faults),
        mend=faults[0][1] if faults else "",
        clobbered=tuple(damaged),
        notes=(*contested, *(f"wants {_plain(r)}, found {v or 'none'}" for r, v in unmet)),
    )


def _blame(finding: Finding, error: str, broken: Iterable[Finding], path: list[str]) -> Finding:
    """Return the finding; where nothing but its import fails and what it needs is broken, with that mend."""
    own = _find(finding.name, path)
    if own is None or not error or finding.problem != error:
        return finding
    needed = {_canonical(r.name) for r in _needs(own)}
    for cause in broken:
        if cause.name in needed:
            return replace(finding, problem=f"{error}; {cause.name} is broken", mend=cause.mend)
    return finding


# What was installed, as its metadata tells.


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _plain(requirement: Requirement) -> str:
    """Return a requirement without its marker: "timm==1.0.9"."""
    return f"{requirement.name}{requirement.specifier}"


def _fits(requirement: Requirement, version: str) -> bool:
    """Return whether a version is one that is required; one of no known form is not."""
    try:
        return requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return False


def _find(name: str, path: list[str]) -> Distribution | None:
    """Return the distribution that Python sees under a name."""
    return next(iter(metadata.distributions(name=name, path=path)), None)


def _version(own: Distribution) -> str:
    """Return the version, "" where an interrupted installation left no metadata."""
    return own.version if own.read_text("METADATA") or own.read_text("PKG-INFO") else ""


def _needs(own: Distribution, extra: str = "") -> list[Requirement]:
    """Return what a distribution always needs, or what an extra of it adds; lines of no known form aside."""
    found = []
    for line in own.requires or ():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        marker = requirement.marker
        is_always = marker is None or marker.evaluate({"extra": ""})
        if extra and marker is not None and not is_always:
            if marker.evaluate({"extra": extra}):
                found.append(requirement)
        elif is_always and not extra:
            found.append(requirement)
    return found


def _unmet(own: Distribution, path: list[str]) -> list[tuple[Requirement, str]]:
    """Return the requirements of a distribution that are not met, with the version found ("" for none)."""
    unmet = []
    for requirement in _needs(own):
        found = _find(requirement.name, path)
        version = _version(found) if found else ""
        if not version or not _fits(requirement, version):
            unmet.append((requirement, version))
    return unmet


def _record(own: Distribution) -> dict[str, tuple[str, str]]:
    """Return path -> (hash, size) as installed, {} without a RECORD.

    Read here since Distribution.files leaves out, from Python 3.12 on, the files that are missing.
    """
    lines = csv.reader((own.read_text("RECORD") or "").splitlines())
    return {line[0]: (line[1], line[2]) for line in lines if len(line) >= 3}


def _module(own: Distribution) -> str:
    """Return what to import: the module named as the distribution, else the one with the most files.

    "" where there is none, as for stubs.
    """
    guess = own.name.replace("-", "_")
    record = _record(own)
    if not record or any(path.endswith(".pth") for path in record):  # editable: its files are elsewhere
        return guess
    code = [path for path in record if path.endswith((".py", ".so", ".pyd")) and path[0] not in "./"]
    tops = Counter(path.partition("/")[0].removesuffix(".py") for path in code)
    same = [top for top in tops if _canonical(top) == _canonical(own.name)]
    return next((top for top in [*same, *(t for t, _ in tops.most_common())] if top.isidentifier()), "")


# What is there now.


def _compare(own: Distribution, path: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return file -> what befell it, and notes on files that befell no harm.

    A file outside the distribution's own module that another lists too is contested ground: torchattacks
    ships a stray robustbench/, and where the real one has overwritten that, all is well.
    """
    record = _record(own)
    if not record:
        return {}, ["has no RECORD, so its files were not compared"]
    changed = _changed(own, record)
    listed = _others(own, changed, path) if changed else {}
    module = _module(own)
    befell, contested = {}, Counter[str]()
    for file, now in changed.items():
        others = listed.get(file, {})
        if others and file.partition("/")[0] != module:
            contested[next(iter(others))] += 1
            continue
        taker = next((other for other, then in others.items() if now and then == now), "")
        befell[file] = f"overwritten by {taker}" if taker else "not as installed" if now else "missing"
    notes = [f"lists {_files(n)} that {other} wrote after it; no harm" for other, n in contested.items()]
    return befell, notes


def _changed(own: Distribution, record: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Return the files that are not as recorded, with their hash now, "" for those missing."""
    is_patched = (own.read_text("INSTALLER") or "").strip() in PACKAGERS
    changed = {}
    for file, (then, size) in record.items():
        if not then:
            continue
        place = Path(str(own.locate_file(file)))
        try:
            bytes_now = place.stat().st_size
            is_same = is_patched or (bytes_now > BIG_BYTES and str(bytes_now) == size)
            now = then if is_same else _hash(place, then.partition("=")[0])
        except OSError:
            now = ""
        if now != then:
            changed[file] = now
    return changed


def _hash(place: Path, kind: str) -> str:
    """Return a file's hash as RECORD writes it: "sha256=...", url-safe base64 without padding."""
    with place.open("rb") as file:
        digest = hashlib.file_digest(file, kind).digest()
    return f"{kind}={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def _others(own: Distribution, files: Iterable[str], path: list[str]) -> dict[str, dict[str, str]]:
    """Return who else lists a file, with what hash: file -> {"torchattacks 3.5.1": "sha256=..."}."""
    listed: dict[str, dict[str, str]] = {}
    for other in metadata.distributions(path=path):
        if not _version(other) or str(other.locate_file("")) != str(own.locate_file("")):
            continue
        if _canonical(other.name) == _canonical(own.name):
            continue
        record = _record(other)
        for file in files:
            if file in record:
                listed.setdefault(file, {})[f"{other.name} {other.version}"] = record[file][0]
    return listed


def _strays(name: str, path: list[str]) -> tuple[str, ...]:
    """Return notes on who left a folder of that name here, though no such distribution is installed."""
    file = f"{name.replace('-', '_')}/__init__.py"
    return tuple(
        f"the {file} that is here came with {other.name} {other.version}"
        for other in metadata.distributions(path=path)
        if _version(other) and file in _record(other) and Path(str(other.locate_file(file))).is_file()
    )


def _probe(name: str, path: list[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return {"error": why a package cannot be used}, found out in another process; {} where it can be."""
    own = _find(name, path)
    if own is None or not _version(own):
        return {}
    if name in FILES_ONLY:
        place = Path(str(own.locate_file(FILES_ONLY[name])))
        return {} if place.is_dir() else {"error": f"no folder {place}"}
    module = _module(own)
    code = PROBES.get(name, f"import {module}" if module else "")
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", "-c", CHILD, code],
            check=False, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_S, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"not imported within {TIMEOUT_S} s"}
    if done.returncode < 0:
        return {"error": f"importing it ends Python: {signal.strsignal(-done.returncode)}"}
    try:
        answer: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {"error": f"importing it ends Python with exit code {done.returncode}"}
    return answer


# What to say and to type.


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _tell(befell: Mapping[str, str]) -> str:
    """Return "11 files overwritten by torchattacks 3.5.1 (robustbench/data.py, ...)"."""
    counts = ", ".join(f"{_files(n)} {what}" for what, n in Counter(befell.values()).most_common())
    return f"{counts} ({', '.join(list(befell)[:2])}{', ...' if len(befell) > 2 else ''})"


def _pip(*arguments: str) -> str:
    """Return the pip command of this very Python, to paste into a shell."""
    on_path = shutil.which("python")
    is_this = on_path and Path(on_path).parent == Path(sys.executable).parent
    return shlex.join(["python" if is_this else sys.executable, "-m", "pip", "install", *arguments])


def _install(wanted: _Wanted) -> str:
    """Return the command for what is absent."""
    if wanted.name in FILES_ONLY:
        return _pip("--no-deps", _plain(wanted.requirement))
    return _pip(f"{SELF}[{wanted.extra}]" if wanted.extra else _plain(wanted.requirement))


def _mend_import(name: str, path: list[str], error: str, unmet: Sequence[tuple[Requirement, str]]) -> str:
    """Return the command for a package whose files are as installed and that cannot be imported."""
    if "'pkg_resources'" in error:  # setuptools 82 dropped it
        return _pip("setuptools<82")
    if unmet:
        absent = [r for r, version in unmet if not version]
        return _pip(*(_plain(r) for r in absent or [r for r, _ in unmet]))
    torch = _find("torch", path)
    if name == "torchvision" and torch is not None:
        public, _, build = torch.version.partition("+")  # "2.14.1+cpu" comes from an index of its own
        if build:
            index = f"https://download.pytorch.org/whl/{build}"
            return _pip("--force-reinstall", "--no-deps", name, "--index-url", index)
        return _pip("--force-reinstall", f"torch=={public}", name)
    return _pip("--upgrade", name)
