"""The doctor on hand-made installations: what is overwritten, missing, too old or fails, and what mends it.

`install` writes files and RECORD as pip does, so what another package overwrites is overwritten for real.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from robustglimpse import cli, doctor
from robustglimpse.doctor import Finding, diagnose
from robustglimpse.records import UserError

OWN = (
    "always>=1.5",
    "beta>=2; extra == 'bee'",
    "beta>=2; extra == 'all'",
    "gamma-ray>=1; extra == 'see'",
    "gamma-ray>=1; extra == 'all'",
    "tool; extra == 'dev'",
    "unreal>=1; python_version < '3'",
)
PIP = f"{shlex.quote(sys.executable)} -m pip install"


def install(
    site: Path,
    name: str,
    version: str = "2.0",
    files: Mapping[str, str] | None = None,
    *,
    requires: Sequence[str] = (),
    extras: Sequence[str] = (),
    installer: str = "pip",
) -> None:
    """Write a package as pip does. files: path -> text; without any, a module of its name."""
    files = {f"{name}/__init__.py": ""} if files is None else files
    stem = name.replace("-", "_")
    for old in site.glob(f"{stem}-*.dist-info"):
        shutil.rmtree(old)
    info = f"{stem}-{version}.dist-info"
    head = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    head += [f"Requires-Dist: {line}" for line in requires] + [f"Provides-Extra: {e}" for e in extras]
    written = {**files, f"{info}/METADATA": "\n".join(head) + "\n", f"{info}/INSTALLER": installer + "\n"}
    record = [f"{info}/RECORD,,"]
    for path, text in written.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record.append(f"{path},sha256={digest},{len(text)}")
    (site / info / "RECORD").write_text("\n".join(record) + "\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of what OWN always needs; `python` is another than this one."""
    monkeypatch.setenv("PATH", os.devnull)
    folder = tmp_path / "site"
    needs(folder, *OWN)
    install(folder, "always")
    return folder


def needs(site: Path, *requirements: str) -> None:
    """Make it a robustglimpse with these requirements, each extra named in one an extra."""
    extras = dict.fromkeys(line.split("'")[1] for line in requirements if "extra ==" in line)
    install(site, "robustglimpse", "9.1", {}, requires=requirements, extras=tuple(extras))


def examine(site: Path, *names: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in diagnose(names, folders=[str(site)]).packages}


def test_all_is_well_with_extras_absent(site: Path) -> None:
    install(site, "beta", "2.1")
    diagnosis = diagnose(folders=[str(site)])
    assert diagnosis.is_well
    assert diagnosis.robustglimpse == "9.1"
    assert diagnosis.packages == (
        Finding("always", "", ">=1.5", "2.0", "ok", is_asked=True),
        Finding("beta", "bee", ">=2", "2.1", "ok", is_asked=False),
        Finding(
            "gamma-ray", "see", ">=1", "", "absent", is_asked=False,
            problem="not installed", mend=f"{PIP} 'robustglimpse[see]'",
        ),
    )  # fmt: skip


def test_what_is_named_is_at_fault_where_it_is_absent(site: Path) -> None:
    for name in ("see", "gamma-ray", "Gamma_Ray"):
        assert [f.is_fault for f in examine(site, name).values()] == [True]
    assert list(examine(site, "dev", "always", "tool")) == ["tool", "always"]
    assert list(examine(site, "all")) == ["beta", "gamma-ray"]


def test_what_is_always_needed_is_at_fault_where_it_is_absent(site: Path) -> None:
    needs(site, "nowhere>=3")
    (finding,) = examine(site).values()
    assert finding.is_fault
    assert finding.mend == f"{PIP} 'nowhere>=3'"


def test_an_unknown_name_has_a_near_one(site: Path) -> None:
    with pytest.raises(UserError, match=r"unknown extra or package 'gama-ray'; did you mean 'gamma-ray'\?"):
        examine(site, "gama-ray")


def test_without_an_installation_of_ours_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected robustglimpse to be installed"):
        examine(tmp_path)


REAL = {
    "beta/__init__.py": "",
    "beta/data.py": "REAL = True",
    "beta/utils.py": "REAL = True",
    "beta/same.py": "",
    "tests/__init__.py": "",
}
STRAY = {
    "stray/__init__.py": "",
    "beta/__init__.py": "# 2022",
    "beta/data.py": "",
    "beta/same.py": "",
    "tests/__init__.py": "# 2022",
}


def test_files_overwritten_by_another_package_are_told_with_its_name(site: Path) -> None:
    install(site, "beta", "2.1", REAL)
    install(site, "stray", "3.5.1", STRAY)
    found = examine(site)["beta"]
    assert (found.status, found.is_fault) == ("broken", True)
    assert found.problem == "2 files overwritten by stray 3.5.1 (beta/__init__.py, beta/data.py)"
    assert found.clobbered == ("beta/__init__.py", "beta/data.py")
    assert found.mend == f"{PIP} --force-reinstall --no-deps beta==2.1"
    # Outside its own module it is anybody's guess whose file it is, and nothing to mend.
    assert found.notes == ("lists 1 file that stray 3.5.1 wrote after it; no harm",)

    install(site, "beta", "2.1", REAL)  # what the mend does
    assert examine(site)["beta"].status == "ok"


def test_who_lost_stray_files_to_their_owner_is_well(site: Path) -> None:
    needs(site, "stray; extra == 'bee'", "beta; extra == 'bee'")
    install(site, "stray", "3.5.1", STRAY)
    install(site, "beta", "2.1", REAL)
    found = examine(site, "bee")
    assert [f.status for f in found.values()] == ["ok", "ok"]
    assert found["stray"].notes == ("lists 3 files that beta 2.1 wrote after it; no harm",)
    assert found["beta"].notes == ()


def test_missing_and_changed_files_are_counted_apart(site: Path) -> None:
    install(site, "beta", "2.1", REAL)
    install(site, "stray", "3.5.1", STRAY)
    (site / "beta" / "same.py").unlink()  # as uninstalling stray would
    (site / "beta" / "utils.py").write_text("REAL = None")
    assert examine(site)["beta"].problem == (
        "2 files overwritten by stray 3.5.1, 1 file not as installed, 1 file missing "
        "(beta/__init__.py, beta/data.py, ...)"
    )


def test_large_files_are_compared_by_size(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "BIG_BYTES", 200)  # METADATA is smaller
    install(
        site, "beta", files={"beta/__init__.py": "", "beta/big.txt": "a" * 201, "beta/small.txt": "a" * 200}
    )
    (site / "beta" / "big.txt").write_text("b" * 201)
    assert examine(site, "beta")["beta"].clobbered == ()
    (site / "beta" / "big.txt").write_text("a" * 202)
    (site / "beta" / "small.txt").write_text("b" * 200)
    assert examine(site, "beta")["beta"].clobbered == ("beta/big.txt", "beta/small.txt")


def test_of_a_patching_packager_only_missing_files_count(site: Path) -> None:
    install(site, "beta", files={"beta/__init__.py": "", "beta/a.so": "whole"}, installer="conda")
    (site / "beta" / "a.so").write_text("stripped")
    assert examine(site, "beta")["beta"].status == "ok"
    (site / "beta" / "a.so").unlink()
    assert examine(site, "beta")["beta"].clobbered == ("beta/a.so",)


def test_a_package_without_a_record_says_so(site: Path) -> None:
    install(site, "beta")
    (site / "beta-2.0.dist-info" / "RECORD").unlink()
    found = examine(site, "beta")["beta"]
    assert (found.status, found.notes) == ("ok", ("has no RECORD, so its files were not compared",))


def test_an_interrupted_installation_is_broken(site: Path) -> None:
    install(site, "beta")
    (site / "beta-2.0.dist-info" / "METADATA").unlink()
    found = examine(site, "beta")["beta"]
    assert (found.status, found.problem) == ("broken", "its METADATA is gone")
    assert found.mend == f"{PIP} --force-reinstall --no-deps 'beta>=2'"


def test_a_version_that_is_too_old_is_broken(site: Path) -> None:
    install(site, "beta", "1.9")
    found = examine(site, "beta")["beta"]
    assert (found.problem, found.mend) == ("expected >=2, got 1.9", f"{PIP} 'beta>=2'")
    install(site, "always", "1.5rc1+local")
    assert examine(site, "always")["always"].status == "broken"


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("print('{}'); raise ValueError('one\\n  two')", "ValueError: one two"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("raise SystemExit", "SystemExit:"),
        ("import os; os._exit(3)", "importing it ends Python with exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "importing it ends Python: Killed"),
    ],
)
def test_an_import_that_fails_is_told(site: Path, code: str, problem: str) -> None:
    install(site, "beta", files={"beta.py": code})
    found = examine(site, "beta")["beta"]
    assert (found.status, found.problem) == ("broken", problem)
    assert found.mend == f"{PIP} --upgrade beta"


def test_an_import_has_its_time(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TIMEOUT_S", 0.01)
    assert examine(site)["always"].problem == "not imported within 0.01 s"


def test_the_module_need_not_have_the_distributions_name(site: Path) -> None:
    install(site, "gamma-ray", files={"gr/__init__.py": "", "gr/a.py": "1/0", "other.py": "1/0"})
    assert examine(site, "see")["gamma-ray"].status == "ok"
    install(site, "tool", files={"tool-stubs/__init__.pyi": ""})  # nothing to import
    assert examine(site, "dev")["tool"].status == "ok"


NEEDY = ("always>=3", "absent-one>=1.2", "python-dateutil; extra == 'x'", "not a requirement")


def test_unmet_requirements_are_a_note_where_it_works(site: Path) -> None:
    install(site, "beta", requires=NEEDY)
    found = examine(site, "beta")["beta"]
    assert found.status == "ok"
    assert found.notes == ("wants always>=3, found 2.0", "wants absent-one>=1.2, found none")


def test_unmet_requirements_are_the_mend_where_it_fails(site: Path) -> None:
    install(site, "beta", files={"beta.py": "import absent_one"}, requires=NEEDY)
    assert examine(site, "beta")["beta"].mend == f"{PIP} 'absent-one>=1.2'"
    install(site, "absent_one", files={"absent_one.py": "1/0"})
    assert examine(site, "beta")["beta"].mend == f"{PIP} 'always>=3'"


def test_a_missing_pkg_resources_needs_an_older_setuptools(site: Path) -> None:
    code = "raise ModuleNotFoundError(\"No module named 'pkg_resources'\")"
    install(site, "beta", files={"beta.py": code}, requires=NEEDY)
    assert examine(site, "beta")["beta"].mend == f"{PIP} 'setuptools<82'"


def test_what_needs_a_broken_package_has_its_mend(site: Path) -> None:
    install(site, "always", files={"always/__init__.py": "1/0", "always/data.py": ""})
    (site / "always" / "data.py").unlink()
    install(site, "beta", files={"beta.py": "import always"}, requires=["always"])
    found = examine(site)
    assert found["always"].mend == f"{PIP} --force-reinstall --no-deps always==2.0"
    assert found["beta"].mend == found["always"].mend
    assert found["beta"].problem == "ZeroDivisionError: division by zero; always is broken"


def test_a_stray_copy_of_what_is_absent_is_told(site: Path) -> None:
    install(site, "stray", "3.5.1", STRAY)
    found = examine(site, "beta")["beta"]
    assert found.status == "absent"
    assert found.notes == ("the beta/__init__.py that is here came with stray 3.5.1",)


ROBUSTBENCH = {"robustbench.py": "from autoattack import AutoAttack\nimport autoattack.state, pkg_resources"}


@pytest.mark.skipif(find_spec("pyautoattack") is not None, reason="pyautoattack is installed here")
def test_robustbench_works_where_what_it_imports_has_another_name_today(site: Path) -> None:
    needs(site, "robustbench; extra == 'robustbench'", "pyautoattack; extra == 'robustbench'")
    install(site, "robustbench", files=ROBUSTBENCH, requires=["pyautoattack>=0.2"])
    found = examine(site, "robustbench")
    assert [(f.name, f.status) for f in found.values()] == [
        ("robustbench", "broken"), ("pyautoattack", "absent"),
    ]  # fmt: skip
    assert found["robustbench"].mend == f"{PIP} 'pyautoattack>=0.2'"

    files = {"pyautoattack/__init__.py": "AutoAttack = None", "pyautoattack/state.py": ""}
    install(site, "pyautoattack", files=files)
    assert [f.status for f in examine(site, "robustbench").values()] == ["ok", "ok"]


def test_frost_textures_are_files_and_never_imported(site: Path) -> None:
    needs(site, "imagecorruptions>=1; extra == 'imagecorruptions'")
    (finding,) = examine(site, "imagecorruptions").values()
    assert finding.mend == f"{PIP} --no-deps 'imagecorruptions>=1'"
    files = {"imagecorruptions/__init__.py": "1/0", "imagecorruptions/frost/frost1.png": "ice"}
    install(site, "imagecorruptions", files=files, requires=["opencv-python"])
    (finding,) = examine(site, "imagecorruptions").values()
    assert (finding.status, finding.notes) == ("ok", ())
    (site / "imagecorruptions" / "frost" / "frost1.png").unlink()
    (finding,) = examine(site, "imagecorruptions").values()
    assert finding.problem == "1 file missing (imagecorruptions/frost/frost1.png)"


TORCH = """
def ones(*shape): return Some()
tensor = ones
class Some:
    def __matmul__(self, other): return self
class cuda:
    is_available = staticmethod(lambda: True)
    get_device_name = staticmethod(lambda: "H100")
"""


@pytest.mark.parametrize(
    ("build", "mend"),
    [
        ("+cpu", "--force-reinstall --no-deps torchvision --index-url https://download.pytorch.org/whl/cpu"),
        ("", "--force-reinstall torch==2.9.0 torchvision"),
    ],
)
def test_torchvision_is_tried_for_its_operators(site: Path, build: str, mend: str) -> None:
    needs(site, "torch", "torchvision")
    install(site, "torch", f"2.9.0{build}", {"torch.py": TORCH})
    install(site, "torchvision", files={"torchvision.py": "class ops: pass"}, requires=["torch==2.9.0"])
    diagnosis = diagnose(folders=[str(site)])
    torch, torchvision = diagnosis.packages
    assert diagnosis.device == "cuda (H100)"
    assert torch.status == "ok"
    assert torchvision.problem == "AttributeError: type object 'ops' has no attribute 'nms'"
    assert torchvision.mend == f"{PIP} {mend}"


def test_the_command_names_python_where_that_is_this_one(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert examine(site, "see")["gamma-ray"].mend == "python -m pip install 'robustglimpse[see]'"


# The command.


def command(site: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    """Return the exit code and the output of `robustglimpse doctor` where site comes first."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    result = CliRunner().invoke(cli.app, ["doctor", *arguments])
    return result.exit_code, result.stdout


def test_the_command_says_what_to_type(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "beta", "2.1", REAL, requires=["always>=3"])
    code, text = command(site, monkeypatch)
    assert code == 0
    assert "robustglimpse 9.1, Python 3." in text
    assert f"to add what is absent, where it is wanted:\n    {PIP} 'robustglimpse[see]'\n" in text
    assert "notes, no faults:\n    beta: wants always>=3, found 2.0\n" in text

    install(site, "stray", "3.5.1", STRAY)
    code, text = command(site, monkeypatch)
    assert code == 1
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert rows["beta"] == ["bee", "2.1", ">=2", "broken"]
    assert rows["gamma-ray"] == ["see", "-", ">=1", "absent"]
    assert (
        "\nbeta: 2 files overwritten by stray 3.5.1 (beta/__init__.py, beta/data.py)\n"
        f"    {PIP} --force-reinstall --no-deps beta==2.1\n"
    ) in text


@pytest.mark.parametrize(("names", "code"), [((), 0), (("bee",), 0), (("see",), 1), (("always", "see"), 1)])
def test_exit_code_1_where_what_was_asked_for_fails(
    site: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], code: int
) -> None:
    install(site, "beta")
    assert command(site, monkeypatch, *names)[0] == code


def test_json_is_one_object(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "beta", "1.0")
    code, text = command(site, monkeypatch, "bee", "--json")
    found = json.loads(text)
    assert (code, found["is_well"], found["robustglimpse"]) == (1, False, "9.1")
    assert found["packages"] == [
        {
            "name": "beta", "extra": "bee", "required": ">=2", "version": "1.0", "status": "broken",
            "is_asked": True, "problem": "expected >=2, got 1.0", "mend": f"{PIP} 'beta>=2'",
            "clobbered": [], "notes": [],
        }
    ]  # fmt: skip


def test_here_what_is_always_needed_works() -> None:
    names = ["torch", "torchvision", "pillow"]
    done = subprocess.run(
        [sys.executable, "-m", "robustglimpse", "doctor", "--json", *names],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert done.returncode == 0, found
    assert [(p["name"], p["status"]) for p in found["packages"]] == [(name, "ok") for name in names]
    assert found["device"].startswith(("cpu", "cuda"))


def test_an_unknown_name_is_refused_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "robustglimpse", "doctor", "torchatacks"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'torchattacks'?" in done.stderr
    assert len(done.stderr.splitlines()) == 1
