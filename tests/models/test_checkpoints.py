"""Files of weights as people have them: what fits a module exactly is read, the rest refused in a line."""

from __future__ import annotations

import argparse
import io
import pickle
import struct
import sys
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import resnet18

from robustglimpse.models import load_model
from robustglimpse.models.checkpoints import read_contents, read_tensor
from robustglimpse.models.fitting import fill_
from robustglimpse.records import UserError

State = dict[str, Tensor]
WAYS = ("zip", "legacy", "pickle")  # of torch since 2019, of torch before, and of pickle.dump


def network(classes: int = 3) -> nn.Sequential:
    """Return a network of every kind of entry: weights, statistics of a batch norm and its counter."""
    layers = {
        "conv1": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(), "fc": nn.Linear(4, classes),
    }  # fmt: skip
    return nn.Sequential(OrderedDict(layers))


@pytest.fixture
def state() -> State:
    """Weights of the network that are not those it starts with."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(t.shape, generator=generator) if t.is_floating_point() else torch.tensor(7)
        for name, t in network().state_dict().items()
    }


def below(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor.clone() for name, tensor in state.items()}


def write(content: Any, path: Path, how: str = "zip") -> Path:
    """Write a file as torch.save or pickle.dump does."""
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    return path


def filled(path: Path, key: str | None = None) -> tuple[State, tuple[str, ...]]:
    """Return what the network's state is after the file was put into it, and the notes."""
    module = network()
    notes = fill_(module, path, key=key, hint="look there")
    return module.state_dict(), notes


def assert_same(found: State, expected: State, **tolerance: float) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor.to(found[name].dtype), **tolerance)


def refusal(call: Callable[[], object]) -> str:
    """Return the message of the UserError that the call raises, which must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@contextmanager
def elsewhere(name: str, **classes: type) -> Iterator[None]:
    """Give classes a module that can be imported inside, and is gone behind."""
    module = ModuleType(name)
    for each, kind in classes.items():
        kind.__module__, kind.__qualname__ = name, each
        setattr(module, each, kind)
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]


# What is understood


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("key", ["", "state_dict", "model_state_dict", "model", "net", "my_weights", "a.b"])
def test_weights_are_found_wherever_they_lie(state: State, tmp_path: Path, how: str, key: str) -> None:
    content: Any = state
    for part in reversed(key.split(".") if key else []):
        content = {part: content, "epoch": 3, "best": torch.tensor(0.5)}
    found, notes = filled(write(content, tmp_path / "a.pth", how))
    assert_same(found, state)
    assert not notes


@pytest.mark.parametrize(
    "prefix",
    ["model.", "net.", "module.", "_orig_mod.", "model._orig_mod.", "_orig_mod.module.", "module.net.model."],
)
@pytest.mark.parametrize("nested", [True, False])
def test_what_wrappers_leave_before_names_is_taken_off(
    state: State, tmp_path: Path, prefix: str, nested: bool
) -> None:
    content = {"state_dict": below(prefix, state)} if nested else below(prefix, state)
    found, notes = filled(write(content, tmp_path / "a.pth"))
    assert_same(found, state)
    assert not notes


@pytest.mark.parametrize("prefix", ["backbone.", "encoder.", "teacher.", "resnet.", "module.student."])
def test_a_prefix_that_says_something_is_told(state: State, tmp_path: Path, prefix: str) -> None:
    found, notes = filled(write(below(prefix, state), tmp_path / "a.pth"))
    assert_same(found, state)
    assert notes == (f"a.pth: its weights lie below {prefix!r}",)


def test_a_module_whose_own_names_begin_like_a_wrapper_keeps_them(state: State, tmp_path: Path) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = network()

    module = Outer()
    for content in (below("model.", state), below("module.model.", state)):
        assert not fill_(module, write(content, tmp_path / "a.pth"), hint="")
        assert_same(module.model.state_dict(), state)
    message = refusal(lambda: fill_(Outer(), write(state, tmp_path / "b.pth"), hint=""))
    assert "lacks 'model.conv1.weight'" in message
    assert "the file has 'conv1.weight'" in message


@pytest.mark.parametrize("how", WAYS)
def test_settings_of_all_kinds_beside_the_weights_are_passed_over(
    state: State, tmp_path: Path, how: str
) -> None:
    content = {
        "state_dict": state, "args": argparse.Namespace(lr=0.1, out=Path("runs/a")), "best": np.float64(0.9),
        "path": PurePosixPath("/a"), "counts": defaultdict(list, {"a": [1]}), "seen": {1, 2}, "at": 1 + 2j,
        "generator": np.random.default_generator if hasattr(np.random, "default_generator") else None,
        "numpy_state": np.random.get_state(), "torch_state": torch.get_rng_state(), "raw": bytearray(b"x"),
        "optimizer": torch.optim.Adam(network().parameters()).state_dict(), "size": torch.Size([1, 2]),
        "dtype": torch.float16, "device": torch.device("cpu"), "array": np.ones(3),
    }  # fmt: skip
    found, notes = filled(write(content, tmp_path / "a.pth", how))
    assert_same(found, state)
    assert not notes


@pytest.mark.parametrize("how", WAYS)
def test_classes_that_are_not_installed_are_passed_over_and_told(
    state: State, tmp_path: Path, how: str
) -> None:
    """Lightning 1.0.8 keys its callbacks by class, and its hyperparameters are an AttributeDict."""

    class Checkpoint:
        pass

    class AttributeDict(dict):  # type: ignore[type-arg]
        pass

    content = {
        "epoch": 399, "global_step": 156_400, "pytorch-lightning_version": "1.0.8",
        "callbacks": {Checkpoint: {"best_model_score": torch.tensor(0.8), "best_model_path": "a.ckpt"}},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}], "lr_schedulers": [{}],
        "state_dict": below("model.", state), "hparams_name": "hparams",
        "hyper_parameters": AttributeDict(arch="resnet18", alpha=0.6),
    }  # fmt: skip
    with elsewhere("pytorch_lightning_of_old", Checkpoint=Checkpoint, AttributeDict=AttributeDict):
        path = write(content, tmp_path / "a.ckpt", how)
        assert "pytorch_lightning_of_old" in sys.modules
    found, notes = filled(path)
    assert_same(found, state)
    assert notes == (
        "a.ckpt: only tensors are read; what else it holds was not built: "
        "pytorch_lightning_of_old.AttributeDict and 1 more",
    )
    assert "pytorch_lightning_of_old" not in sys.modules


def test_a_dict_of_an_unknown_class_holds_weights_too(state: State, tmp_path: Path) -> None:
    class Config(dict):  # type: ignore[type-arg]
        pass

    with elsewhere("config_of_old", Config=Config):
        path = write({"model": Config(state)}, tmp_path / "a.pth")
    assert_same(filled(path)[0], state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_cast(state: State, tmp_path: Path, dtype: torch.dtype) -> None:
    cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    found, notes = filled(write(cast, tmp_path / "a.pth"))
    assert_same(found, cast)
    assert not notes


@pytest.mark.parametrize("how", WAYS)
def test_parameters_views_and_shared_weights_are_what_they_were(
    state: State, tmp_path: Path, how: str
) -> None:
    whole = torch.arange(24.0)
    made: dict[str, Any] = {name: nn.Parameter(t) if t.ndim else t for name, t in state.items()}
    made["fc.weight"] = whole[3:15].view(4, 3).T  # neither contiguous nor at the start
    made["fc.bias"] = whole[:1].expand(3)
    found, _ = filled(write(made, tmp_path / "a.pth", how))
    assert_same(found, {**state, "fc.weight": torch.arange(3.0, 15).view(4, 3).T, "fc.bias": torch.zeros(3)})


def test_a_missing_counter_of_a_batch_norm_is_no_lack(state: State, tmp_path: Path) -> None:
    del state["bn.num_batches_tracked"]
    found, notes = filled(write(state, tmp_path / "a.pth"))
    assert_same(found, state)
    assert not notes


def test_what_a_profiler_left_is_left_out_and_told(state: State, tmp_path: Path) -> None:
    counts = {
        "total_ops": torch.zeros(1),
        "conv1.total_ops": torch.zeros(1),
        "fc.total_params": torch.zeros(1),
    }
    found, notes = filled(write({"model": {**state, **counts}}, tmp_path / "a.pth"))
    assert_same(found, state)
    assert notes == ("a.pth: left out, as no weights of the model: 'total_ops' and 2 more",)


def test_a_loss_with_weights_of_its_own_is_left_out_and_told(state: State, tmp_path: Path) -> None:
    content = {"state_dict": {**below("model.", state), "criterion.weight": torch.ones(3)}}
    found, notes = filled(write(content, tmp_path / "a.ckpt"))
    assert_same(found, state)
    assert "'criterion.weight'" in notes[0]


def test_numbers_among_the_weights_are_left_out_and_told(state: State, tmp_path: Path) -> None:
    found, notes = filled(write({**state, "epoch": 3}, tmp_path / "a.pth"))
    assert_same(found, state)
    assert notes == ("a.pth: left out, as no tensors: 'epoch'",)


@pytest.mark.parametrize("ending", ["pth", "safetensors", "bin"])
def test_a_file_is_read_as_what_it_is_whatever_it_is_called(
    state: State, tmp_path: Path, ending: str
) -> None:
    save_file(state, tmp_path / f"a.{ending}")
    assert_same(filled(tmp_path / f"a.{ending}")[0], state)
    assert_same(filled(write(state, tmp_path / f"b.{ending}"))[0], state)


def test_every_tensor_is_the_one_that_torch_reads(tmp_path: Path) -> None:
    dtypes = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64]
    dtypes += [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex128]
    base = torch.arange(60).reshape(3, 4, 5)
    content = {str(d): base.to(d)[1:, ::2].transpose(0, 2) for d in dtypes}
    content |= {"empty": torch.empty(0, 3), "scalar": torch.tensor(3.0), "one": torch.ones(1).expand(2, 2)}
    for how in ("zip", "legacy"):
        path = write(content, tmp_path / f"{how}.pth", how)
        read, theirs = read_contents(path).content, torch.load(path, weights_only=True)
        assert read.keys() == theirs.keys()
        for name, expected in theirs.items():
            found = read_tensor(read[name], name, path)
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)
    eighth = write({"a": torch.ones(4).to(torch.float8_e4m3fn)}, tmp_path / "eighth.pth")
    assert torch.equal(read_tensor(read_contents(eighth).content["a"], "a", eighth).float(), torch.ones(4))


# Where there is a choice


@pytest.fixture
def averaged(state: State) -> State:
    """Other weights of the same shapes."""
    return {name: t * 2 if t.is_floating_point() else t for name, t in state.items()}


@pytest.mark.parametrize(
    ("plain", "average"),
    [
        ("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema"),
        ("state_dict", "ema_state_dict"), ("model", "swa"), ("model", "swa_model"), ("net", "model_EMA"),
    ],
)  # fmt: skip
def test_plain_weights_go_before_averaged_ones_and_a_key_chooses(
    state: State, averaged: State, tmp_path: Path, plain: str, average: str
) -> None:
    path = write({average: averaged, plain: state, "epoch": 1}, tmp_path / "a.pth")
    found, notes = filled(path)
    assert_same(found, state)
    assert notes == (f"a.pth: the weights taken are {plain!r}; averaged ones: key={average!r}",)
    found, notes = filled(path, average)
    assert_same(found, averaged)
    assert not notes
    assert_same(filled(path, plain)[0], state)
    message = refusal(lambda: filled(path, "emma"))
    assert f"no weights at key='emma'; its keys of weights: {average!r}, {plain!r}" in message


def test_averages_alone_are_taken_and_told(averaged: State, tmp_path: Path) -> None:
    found, notes = filled(write({"state_dict_ema": averaged}, tmp_path / "a.pth"))
    assert_same(found, averaged)
    assert "the weights taken are averaged ones ('state_dict_ema')" in notes[0]


def test_torchs_own_averaged_model_is_known_by_its_counter(state: State, tmp_path: Path) -> None:
    module = network()
    module.load_state_dict(state)
    swa = AveragedModel(module)
    found, notes = filled(write(swa.state_dict(), tmp_path / "new.pth"))
    assert_same(found, state)
    assert notes[1] == "new.pth: its n_averaged is 0: no weights of training were averaged yet"
    swa.update_parameters(module)
    for content in ({"model": state, "model_ema": swa.state_dict()}, {"a": swa.state_dict(), "b": state}):
        found, notes = filled(write(content, tmp_path / "a.pth"))
        assert "averaged ones: key=" in notes[0]
        assert len(notes) == 1
    flat = {**below("model.", state), **below("ema_model.", swa.state_dict())}
    found, notes = filled(write({"state_dict": flat}, tmp_path / "a.ckpt"))
    assert notes == ("a.ckpt: the weights taken are 'model'; averaged ones: key='ema_model.module'",)
    assert not filled(tmp_path / "a.ckpt", "ema_model.module")[1]


@pytest.mark.parametrize("how", WAYS)
def test_several_weights_that_fit_are_not_chosen_between(
    state: State, averaged: State, tmp_path: Path, how: str
) -> None:
    path = write({"last": state, "best": averaged}, tmp_path / "a.pth", how)
    assert "several sets of weights that fit, 'last', 'best'; choose one: key=" in refusal(
        lambda: filled(path)
    )
    assert_same(filled(path, "best")[0], averaged)
    flat = write({**below("student.", state), **below("teacher.", averaged)}, tmp_path / "b.pth", how)
    assert "'student', 'teacher'" in refusal(lambda: filled(flat))
    assert_same(filled(flat, "teacher")[0], averaged)
    twice = write({"model": state, "state_dict": state}, tmp_path / "c.pth", how)
    assert_same(filled(twice)[0], state)  # the same tensors under two keys are no choice


def test_what_lies_beside_the_model_may_change_its_answers_and_is_asked_about(
    state: State, tmp_path: Path
) -> None:
    content = {"state_dict": {**below("model.", state), "normalize.mean": torch.ones(3)}}
    path = write(content, tmp_path / "a.ckpt")
    assert "beside them is 'normalize.mean' (1 in all)" in refusal(lambda: filled(path))
    assert_same(filled(path, "model")[0], state)


def test_a_call_chooses_among_the_weights_of_a_file(tmp_path: Path) -> None:
    plain, average = resnet18(num_classes=3).eval(), resnet18(num_classes=3).eval()
    content = {"state_dict": below("module.", plain.state_dict()), "state_dict_ema": average.state_dict()}
    path = write({**content, "args": argparse.Namespace(model="resnet18")}, tmp_path / "mine.pth.tar")
    rest = "classes=3, size_px=32, mean=[0, 0, 0], std=[1, 1, 1])"
    x = torch.rand(2, 3, 32, 32)
    taken = load_model(f"torchvision:resnet18(weights='{path}', {rest}")
    chosen = load_model(f"torchvision:resnet18(weights='{path}', key='state_dict_ema', {rest}")
    with torch.no_grad():
        torch.testing.assert_close(taken.logits(x), plain(x))
        torch.testing.assert_close(chosen.logits(x), average(x))
    assert any("averaged ones: key='state_dict_ema'" in note for note in taken.meta["notes"])
    assert not any("averaged" in note for note in chosen.meta["notes"])
    assert taken.sha256 != chosen.sha256
    assert taken.name != chosen.name, "they stand in one table"
    for call in ("weights=None, key='a'", f"weights='{path}', key=3", "key='a'"):
        message = refusal(lambda call=call: load_model(f"torchvision:resnet18({call}, {rest}"))
        assert "key= names weights inside a file" in message


@pytest.mark.parametrize("ending", ["onnx", "npz", "h5", "zip", "keras", "PTH"])
def test_a_file_of_another_kind_is_named_in_a_call_too(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"\x08\x07\x12\x07pytorch\x1a\x051.9.0:")
    assert "an ONNX graph" in refusal(lambda: load_model(f"torchvision:resnet18(weights='{path}')"))


# What is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {**s, "head.weight": torch.ones(3)}, ["unexpected 'head.weight'", "'fc.weight'", "look"]),
        (
            lambda s: {("head" + n[2:] if n.startswith("fc") else n): t for n, t in s.items()},
            ["lacks 'fc.weight' (2 of 9 in all)", "the file has 'head.weight'"],
        ),
        (lambda s: {**s, "fc.weight": s["fc.weight"].numpy()}, ["lacks 'fc.weight'", "numpy.ndarray there"]),
        (lambda s: {n: t.numpy() for n, t in s.items()}, ["expected a state dict", "(numpy.ndarray)"]),
        (lambda s: {n: t.to(torch.int8) for n, t in s.items()}, ["torch.int8, expected torch.float32"]),
        (lambda s: network(7).state_dict(), ["'fc.weight' is [7, 4], expected [3, 4]", "classes=7"]),
        (lambda s: {**s, "conv1.weight": torch.ones(4, 1, 3, 3)}, ["'conv1.weight' is [4, 1, 3, 3]"]),
        (lambda s: list(s.values()), ["expected a state dict of tensors, got a list"]),
        (lambda s: torch.ones(3), ["expected a state dict of tensors, got a tensor"]),
        (lambda s: {"epoch": 3}, ["expected a state dict of tensors, got 'epoch' (int)"]),
        (lambda s: network(), ["a whole module (torch.nn.modules.container.Sequential)", "state_dict()"]),
        (lambda s: {"model": network(), "epoch": 3}, ["holds a whole module"]),
        (
            lambda s: {**s, "fc.weight": torch.quantize_per_tensor(s["fc.weight"], 1, 0, torch.qint8)},
            ["lacks 'fc.weight'", "it is a torch._utils._rebuild_qtensor there"],
        ),
    ],
    ids=[
        "extra", "renamed", "one-array", "arrays", "int8", "classes", "shape", "list", "tensor", "nothing",
        "module", "module-inside", "quantised",
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", ["zip", "legacy"])
@pytest.mark.filterwarnings("ignore")  # of quantised tensors
def test_weights_that_do_not_fit_are_refused_by_name(
    state: State, tmp_path: Path, how: str, change: Callable[[State], Any], words: list[str]
) -> None:
    path = write(change(state), tmp_path / "a.pth", how)
    module = network()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    message = refusal(lambda: fill_(module, path, hint="look there"))
    assert all(word in message for word in [str(path), *words]), message
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


class Bomb:
    """Pickled, it calls a function with arguments when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("where", ["beside", "inside", "key"])
def test_a_call_in_a_file_is_refused_and_never_made(
    state: State, tmp_path: Path, how: str, where: str
) -> None:
    import os
    import subprocess

    marker = tmp_path / "marker"
    for bomb in (
        Bomb(open, str(marker), "w"), Bomb(os.system, f"touch {marker}"), Bomb(os.mkdir, str(marker)),
        Bomb(eval, f"open({str(marker)!r}, 'w')"), Bomb(Path.touch, marker),
        Bomb(subprocess.Popen, ["touch", str(marker)]),
    ):  # fmt: skip
        content: dict[Any, Any] = {"state_dict": dict(state), "config": bomb}
        if where == "inside":
            content = {"state_dict": {**state, "fc.weight": bomb}}
        elif where == "key":
            content = {"state_dict": state, bomb: 1}
        path = write(content, tmp_path / "a.pth", how)
        assert "refused, reading it would run code inside it" in refusal(lambda path=path: filled(path))
        assert not marker.exists()


def op(*parts: bytes | str) -> bytes:
    return b"".join(part.encode() if isinstance(part, str) else part for part in parts)


@pytest.mark.parametrize(
    "program",
    [
        op("cposix\nsystem\n(Vtouch MARKER\ntR."),  # GLOBAL, REDUCE
        op("(iposix\nsystem\nVtouch MARKER\no."),  # INST
        op("(cposix\nsystem\nVtouch MARKER\no."),  # OBJ
        op(b"\x80\x04\x8c\x05posix\x8c\x06system\x93(Vtouch MARKER\ntR."),  # STACK_GLOBAL
        op("c__builtin__\ngetattr\n(cposix\nopen\nV__call__\ntR(VMARKER\nI66\ntR."),
        op("ctorch.hub\nload\n(VMARKER\ntR."),  # a name that is let pass: it builds nothing all the same
        op("c__main__\nKind\n)\x81}V__setstate__\ncposix\nsystem\nsbVtouch MARKER\nb."),  # BUILD
        op("cbuiltins\nMappingproxy\n)R."),
    ],
)
def test_no_opcode_calls_anything(tmp_path: Path, program: bytes) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "a.pth").write_bytes(program.replace(b"MARKER", str(marker).encode()))
    refusal(lambda: filled(tmp_path / "a.pth"))
    assert not marker.exists()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html>\n<html>Sign in</html>", "HTML or XML page"),
        (b"\n  <?xml version='1.0'?><Error>AccessDenied</Error>", "HTML or XML page"),
        (LFS, "Git LFS pointer"),
        (b'{"message": "Not Found", "status": 404}', "a text that begins with"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 50, "HDF5 file"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", "numpy array (.npy)"),
        (b"\x1f\x8b\x08\x00", "gzip archive; unpack it"),
        (b"PK\x03\x04 cut short", "cut short"),
        (zipped("a.npy", "b.npy"), "numpy arrays (.npz)"),
        (zipped("one/a.pth", "one/b.pth", "README"), "holds one/a.pth, one/b.pth; unpack it"),
        (zipped("config.json", "model.weights.h5"), "a Keras model"),
        (zipped("a/data.pkl", "a/constants.pkl", "a/code/x.py"), "a TorchScript archive"),
        (zipped("a.txt"), "a zip archive of 1 files, not torch's"),
        (b"a/b.pth".ljust(257, b"\0") + b"ustar" + b"\0" * 250, "a tar archive that begins with 'a/b.pth'"),
        (b"\x08\x07\x12\x07pytorch\x1a\x051.9.0:", "an ONNX graph"),
        (bytes(range(7, 200)), "not a readable checkpoint"),
        (struct.pack("<Q", 9_000) + b'{"a": 1', "not a readable safetensors file"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    message = refusal(lambda: filled(path))
    assert message.startswith(f"{path}: ")
    assert words in message


def test_a_scripted_and_an_exported_module_say_how_they_are_given(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated
        scripted = torch.jit.trace(network().eval(), torch.rand(2, 3, 8, 8))
        torch.jit.save(scripted, tmp_path / "scripted.pt")
        torch.export.save(
            torch.export.export(network().eval(), (torch.rand(2, 3, 8, 8),)), tmp_path / "exported.pt2"
        )
    assert "a program of torch.export" in refusal(lambda: filled(tmp_path / "exported.pt2"))
    message = refusal(lambda: filled(tmp_path / "scripted.pt"))
    assert "a TorchScript archive" in message
    assert "package.module:factory" in message


def test_a_folder_and_a_file_that_is_none_are_told_apart(state: State, tmp_path: Path) -> None:
    write(state, tmp_path / "pytorch_model.bin")
    assert "is a folder; give the file of weights in it: pytorch_model.bin" in refusal(
        lambda: filled(tmp_path)
    )
    assert "no such file of weights" in refusal(lambda: filled(tmp_path / "none.pth"))
    assert "is no ordinary file" in refusal(lambda: filled(Path("/dev/zero")))
    assert "cannot be looked at" in refusal(lambda: filled(tmp_path / ("x" * 300)))


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97])
def test_a_file_cut_short_is_refused(state: State, tmp_path: Path, how: str, share: float) -> None:
    path = write(state, tmp_path / "a.pth", how)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert str(path) in refusal(lambda: filled(path))


def test_a_changed_byte_of_a_weight_is_seen(state: State, tmp_path: Path) -> None:
    path = write(state, tmp_path / "a.pth")
    content = bytearray(path.read_bytes())
    place = content.index(state["fc.weight"].numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert "checksum differs" in refusal(lambda: filled(path))


def test_a_tensor_larger_than_its_bytes_is_refused(tmp_path: Path) -> None:
    """The pickle promises more than the storage holds, a terabyte by a stride of 0, or a size below 0."""
    for size, stride, words in (
        ("(K\x05K\x04t", "(K\x04K\x01t", "larger than its bytes"),
        ("(I1000000\nI1000000\nt", "(K\x00K\x00t", "'conv1.weight'"),
        ("(I-1\nt", "(I1\nt", "impossible size"),
        ("(I1\nt", "(I1\nI1\nt", "impossible size"),
    ):
        program = op(
            "\x80\x02}Vfc.weight\nctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI3\nt",
            "Q", "I0\n", size, stride, "I00\nN", "tRs.",
        )  # fmt: skip
        program = program.replace(b"\xc2\x80", b"\x80")
        with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
            archive.writestr("archive/data.pkl", program)
            archive.writestr("archive/data/0", torch.ones(3).numpy().tobytes())
        module = nn.Sequential(OrderedDict(fc=nn.Linear(4, 5, bias=False))) if "bytes" in words else network()
        message = refusal(lambda module=module: fill_(module, tmp_path / "a.pth", hint=""))
        assert words in message, message


def test_compressed_parts_are_not_unpacked(state: State, tmp_path: Path) -> None:
    """A zip bomb: small in the file, large once it is unpacked."""
    with (
        zipfile.ZipFile(write(state, tmp_path / "a.pth")) as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "compressed or encrypted" in refusal(lambda: filled(tmp_path / "b.pth"))


def test_keys_that_take_forever_to_hash_are_never_hashed(tmp_path: Path) -> None:
    nested = op(")", *["2\x86"] * 100)  # DUP, TUPLE2: a tuple of the last one, twice
    (tmp_path / "a.pth").write_bytes(op("}", nested, "K\x01s.").replace(b"\xc2\x86", b"\x86"))
    assert "expected a state dict" in refusal(lambda: filled(tmp_path / "a.pth"))


def test_dicts_full_of_each_other_have_an_end(state: State, tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    for _ in range(5):  # 1000 names of one dict, of which each has 1000 names of the next
        content = {f"n{k}": content for k in range(1000)}
    content["itself"] = content
    assert "expected a state dict" in refusal(lambda: filled(write(content, tmp_path / "a.pth")))
    assert_same(filled(write({**content, "model": state}, tmp_path / "b.pth"))[0], state)


@pytest.mark.parametrize("how", WAYS)
def test_a_damaged_file_is_read_or_refused_in_a_line(tmp_path: Path, state: State, how: str) -> None:
    """Bytes are changed, left out or put in at random places; most of the time among those of the pickle."""
    random = np.random.default_rng(WAYS.index(how))
    content = {"state_dict": state, "args": argparse.Namespace(a=Path("b")), "epoch": 3}
    whole = write(content, tmp_path / "whole.pth", how).read_bytes()
    path = tmp_path / "damaged.pth"
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(random.integers(1, 6)):
            place = int(random.integers(0, min(len(damaged), 1500)))
            damaged[place : place + int(random.integers(0, 3))] = random.bytes(int(random.integers(0, 3)))
        path.write_bytes(damaged)
        try:
            filled(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error)
            assert "\n" not in str(error)
    assert refused > 100
