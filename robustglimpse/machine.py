"""What computed a number: the processor, its instruction set, the threads, and the code's commit."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path


def describe(device: str) -> dict[str, str]:
    """Return what run.json tells of the machine and the code. device: "cpu" or "cuda".

    commit: of this checkout, "+" behind it where files differ from it; "" for an installed package.
    """
    import torch

    told = {
        "processor": processor(), "instructions": _instructions(), "threads": str(torch.get_num_threads()),
        "commit": commit(),
    }  # fmt: skip
    return {**told, "gpu": torch.cuda.get_device_name()} if device.startswith("cuda") else told


def name_of(device: str) -> str:
    """Return the machine in a line: what may round as it does.  device: "cpu" or "cuda"."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"{processor()}, {_instructions()}, {torch.get_num_threads()} threads"


@cache
def processor() -> str:
    """Return the processor's name, as the system tells it."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        told = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines[:30]}
        if told.get("model name"):
            return f"{told['model name']} (family {told.get('cpu family')}, model {told.get('model')})"
    return platform.processor() or platform.machine() or "unknown"


def _instructions() -> str:
    """Return the widest instructions that torch takes here, and what the environment limits oneDNN to."""
    import torch

    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    found = torch.backends.cpu.get_cpu_capability()
    return f"{found}, oneDNN up to {limit}" if limit else found


@cache
def commit() -> str:
    """Return the commit of the checkout that this package runs from, "" where there is none, or no git."""
    folder = Path(__file__).parent
    if not (folder.parent / ".git").exists():
        return ""
    with suppress(OSError, subprocess.SubprocessError):
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", str(folder))
        return _git("rev-parse", "HEAD") + ("+" if changed else "")
    return ""


def _git(*arguments: str) -> str:
    """Return what git says of the checkout that holds this package."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
