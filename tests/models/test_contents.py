"""A model's hash changes with all that decides its answers, and with nothing else."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustglimpse.models import load_model
from robustglimpse.models.contents import hash_model, hash_tensor
from robustglimpse.models.sources import wrap
from robustglimpse.records import UserError


class Scaled(nn.Module):
    """Means of the channels times what it holds in places that a state dict leaves out."""

    def __init__(self, factor: Any = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.register_buffer("kept", torch.ones(3), persistent=False)
        self.names = {"b", "a", "c"}
        self.calls = 0
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x
        return x.mean((2, 3)) * self.kept


def hashed(model: Any) -> str:
    return hash_model(model, settings="")[0]


def wrapped(model: Any, **options: Any) -> str:
    return wrap(model, name="it", size_px=8, **options).sha256


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, from which modules are imported and forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "factor", 2.0),
        lambda m: setattr(m, "factor", 1),  # another type may answer otherwise
        lambda m: setattr(m, "factor", (1.0, [2.0])),
        lambda m: setattr(m, "factor", torch.ones(2)),
        lambda m: setattr(m, "factor", {"a": 1.0}),
        lambda m: setattr(m, "factor", functools.partial(torch.mul, other=2)),
        lambda m: setattr(m, "factor", [nn.Linear(1, 1)]),  # not registered
        lambda m: m.kept.mul_(2),
        lambda m: m.names.add("d"),
        lambda m: m.register_forward_hook(lambda module, x, out: -out),
        lambda m: m.register_forward_pre_hook(lambda module, x: x),
        lambda m: setattr(m, "forward", lambda x: x.mean((2, 3)) * 2),
    ],
)
def test_what_a_state_dict_leaves_out_is_hashed(change: Callable[[Scaled], object]) -> None:
    plain, changed = Scaled(), Scaled()
    change(changed)
    assert hashed(Scaled()) == hashed(plain) != hashed(changed)
    assert hashed(changed) == hashed(changed)


def test_settings_of_librarys_layers_are_hashed() -> None:
    norms = [nn.BatchNorm2d(3, eps=eps) for eps in (1e-5, 1e-5, 1e-3)]
    assert hashed(norms[0]) == hashed(norms[1]) != hashed(norms[2])


def test_counters_and_caches_that_passes_change_are_no_part_of_a_model() -> None:
    model = Scaled()
    first = wrap(model, name="it", size_px=8)
    first.logits(torch.rand(3, 3, 8, 8))
    assert model.calls > 0
    assert first.renew is not None
    assert first.renew() == first.sha256 == wrapped(Scaled())
    model.factor = 2.0
    assert first.renew() != first.sha256


def test_a_module_that_is_trained_on_is_frozen_again_and_has_another_hash() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = wrap(model, name="it", size_px=8)
    assert classifier.renew is not None
    assert classifier.renew() == classifier.sha256
    model.train().requires_grad_(True)
    assert classifier.renew() == classifier.sha256, "the same weights"
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] += 1
    assert classifier.renew() != classifier.sha256


def test_a_functions_code_and_what_it_closes_over_is_hashed() -> None:
    def of(net: nn.Module, sign: float) -> Callable[[Tensor], Tensor]:
        return lambda x: net(x) * sign

    nets = [nn.Sequential(nn.Flatten(), nn.Linear(192, 2)) for _ in range(2)]
    assert wrapped(of(nets[0], 1.0)) == wrapped(of(nets[0], 1.0))
    assert len({wrapped(of(net, sign)) for net in nets for sign in (1.0, -1.0)}) == 4
    assert wrapped(lambda x: nets[0](x) + 0) != wrapped(lambda x: nets[0](1 - x) + 0)
    assert wrapped(nets[0].forward) != wrapped(nets[1].forward)


def test_tensors_of_any_type_are_hashed() -> None:
    plain = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert hash_tensor(plain) == hash_tensor(plain.t().contiguous().t()) == hash_tensor(plain.clone())
    kinds = [
        plain, plain.half(), plain.bfloat16(), plain.double(), plain.to(torch.complex64), plain.bool(),
        plain.reshape(-1), -plain,
    ]  # fmt: skip
    assert len({hash_tensor(each) for each in kinds}) == len(kinds)
    assert hash_tensor(plain.to_sparse()) == hash_tensor(plain)
    assert hash_tensor(torch.empty(2, device="meta")) == "torch.float32 without values"


def test_a_hash_is_the_same_in_every_process(folder: Path) -> None:
    (folder / "mine_alike.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.names, self.table = {'b', 'a', 'c'}, {'z': 1, 'y': {'x', 'w'}}\n"
        "        self.layer = nn.Linear(3, 2)\n\n"
        "    def forward(self, x):\n        return self.layer(x.mean((2, 3))) if x is not None else {1, 2}\n"
    )
    code = "from robustglimpse import load_model; print(load_model('mine_alike:Net(size_px=8)').sha256)"
    env = {**os.environ, "PYTHONHASHSEED": "1"}  # by which sets are ordered; here it is another
    other = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, check=True, capture_output=True, text=True
    )
    assert other.stdout.strip() == load_model("mine_alike:Net(size_px=8)").sha256


# Code


NET = "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten())\n"


def forget(*names: str) -> None:
    """Let the next import of these modules, and of what is in them, read their files."""
    for name in [n for n in sys.modules if n.partition(".")[0] in names]:
        del sys.modules[name]
    importlib.invalidate_caches()


def loaded(name: str, *others: str) -> str:
    forget(name, *others)
    return load_model(f"{name}:make(size_px=8)").sha256


def test_a_factorys_file_is_hashed_where_no_class_of_its_own_is_left(folder: Path) -> None:
    file = folder / "rg_plain.py"
    file.write_text(NET)
    first = loaded("rg_plain")
    assert loaded("rg_plain") == first
    file.write_text(NET.replace("def make():", "def make():\n    nn.init = nn.init"))
    assert loaded("rg_plain") != first


@pytest.mark.parametrize(
    "line",
    [
        "from rg_helper import SCALE",
        "import rg_helper",
        "from rg_helper import *",
        "def later():\n    from rg_helper import SCALE\nlater()",
        "import importlib\nhelper = importlib.import_module('rg_helper')",
    ],
)
def test_what_a_factory_imports_from_beside_it_is_hashed(folder: Path, line: str) -> None:
    (folder / "rg_user.py").write_text(f"{line}\n{NET}")
    (folder / "rg_helper.py").write_text("import rg_deeper\nSCALE = 1\n")
    (folder / "rg_deeper.py").write_text("DEPTH = 1\n")
    (folder / "rg_other.py").write_text("OTHER = 1\n")
    names = ("rg_user", "rg_helper", "rg_deeper", "rg_other")
    first = loaded(*names)
    (folder / "rg_other.py").write_text("OTHER = 2\n")
    assert loaded(*names) == first, "nobody imports it"
    (folder / "rg_deeper.py").write_text("DEPTH = 2\n")
    second = loaded(*names)
    assert second != first
    (folder / "rg_helper.py").write_text("import rg_deeper\nSCALE = 2\n")
    assert loaded(*names) != second


def test_relative_imports_of_a_package_are_hashed(folder: Path) -> None:
    inside = folder / "rg_package" / "nets"
    inside.mkdir(parents=True)
    (folder / "rg_package" / "__init__.py").write_text("")
    (folder / "rg_package" / "layers.py").write_text("SIGN = 1\n")
    (inside / "__init__.py").write_text("from .model import make\n")
    (inside / "model.py").write_text(f"from ..layers import SIGN\nfrom . import parts\n{NET}")
    (inside / "parts.py").write_text("PARTS = 1\n")
    hashes = []
    for file, text in [
        (inside / "parts.py", "PARTS = 1\n"),
        (inside / "parts.py", "PARTS = 2\n"),
        (folder / "rg_package" / "layers.py", "SIGN = -1\n"),
        (folder / "rg_package" / "__init__.py", "VERSION = 2\n"),
    ]:
        file.write_text(text)
        forget("rg_package")
        hashes.append(load_model("rg_package.nets:make(size_px=8)").sha256)
    assert len(set(hashes)) == 4


def test_code_that_changed_since_its_import_is_refused_until_it_is_read_again(folder: Path) -> None:
    file = folder / "rg_stale.py"
    file.write_text(NET)
    first = loaded("rg_stale")
    assert load_model("rg_stale:make(size_px=8)").sha256 == first
    file.write_text(NET.replace("Flatten()", "Flatten(), nn.Identity()"))
    with pytest.raises(UserError, match=r"rg_stale.py has changed since .* restart Python") as caught:
        load_model("rg_stale:make(size_px=8)")
    assert "\n" not in str(caught.value)
    importlib.reload(sys.modules["rg_stale"])
    assert load_model("rg_stale:make(size_px=8)").sha256 != first


def test_a_wrapped_module_whose_file_changed_keeps_its_hash_and_says_so(folder: Path) -> None:
    code = "from torch import nn\n\n\nclass Net(nn.Module):\n    def forward(self, x):\n        return {}\n"
    file = folder / "rg_edited.py"
    file.write_text(code.format("x.mean((2, 3))"))
    sys.path.append(str(folder))
    forget("rg_edited")
    net = importlib.import_module("rg_edited").Net()
    first = wrap(net, name="it", size_px=8)
    file.write_text(code.format("-x.mean((2, 3))"))
    second = wrap(net, name="it", size_px=8)
    assert second.sha256 == first.sha256, "what runs has not changed"
    assert "rg_edited.py has changed since it was imported" in second.meta["notes"][-1]


def test_an_older_compiled_copy_of_the_same_size_and_second_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = folder / "rg_compiled.py"
    file.write_text(f"SIGN = 1\n{NET}")
    os.utime(file, (1_000_000_000, 1_000_000_000))
    loaded("rg_compiled")
    file.write_text(f"SIGN = 2\n{NET}")
    os.utime(file, (1_000_000_000, 1_000_000_000))
    with pytest.raises(UserError, match="older compiled copy"):
        loaded("rg_compiled")


def test_a_factorys_own_classifier_is_hashed_with_its_code(folder: Path) -> None:
    file = folder / "rg_own.py"
    code = (
        "from robustglimpse.records import Classifier\n\n\ndef make():\n"
        "    f = lambda x: {}x.mean((2, 3))\n"
        "    return Classifier('mine', f, lambda x: f(x)[None], {{}}, f, ('a', 'b', 'c'), 8, 'fixed',\n"
        "                      ((0.0,) * 3, (1.0,) * 3))\n"
    )
    hashes = []
    for sign in ("", "", "-"):
        file.write_text(code.format(sign))
        hashes.append(loaded("rg_own"))
    assert hashes[0] == hashes[1] != hashes[2]
