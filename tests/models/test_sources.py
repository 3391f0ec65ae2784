"""Modules and tensors from outside go through the same loop as what is bundled."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet18

from robustglimpse.data import from_loader, from_tensors
from robustglimpse.data.cifar import CIFAR10_CLASSES
from robustglimpse.models import load_model
from robustglimpse.models.contents import contents
from robustglimpse.models.naming import imagenet_wnids
from robustglimpse.models.own_code import own_modules
from robustglimpse.models.preflight import PREPARATIONS
from robustglimpse.models.sources import importable_robustbench, wrap
from robustglimpse.records import UserError
from robustglimpse.runner import Bench, bench
from robustglimpse.sweep import Sweep, sweep_corruptions

EPS = 4 / 255
IMAGENET = "mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]"


def refusal(call: Callable[[], object]) -> str:
    """Return the message of the UserError that the call raises, which must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Brightness(nn.Module):
    """Tells dark from light: the boundary is a mean of 0.5, so every image's distance to it is known."""

    def __init__(self, gain: float = 10.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        score = self.dropout((x.mean((1, 2, 3)) - 0.5) * self.gain)
        return torch.stack([-score, score], 1)


@pytest.fixture
def images() -> Tensor:
    """Eight flat images: four nearer to the boundary than EPS, four farther."""
    means = torch.tensor([0.5 - 0.9 * EPS, 0.5 - 1.1 * EPS, 0.5 + 0.9 * EPS, 0.5 + 1.1 * EPS] * 2)
    return means[:, None, None, None].expand(8, 3, 8, 8).contiguous()


LABELS = torch.tensor([0, 0, 1, 1] * 2)


def test_a_module_is_attacked_on_tensors_up_to_its_exact_distance(images: Tensor, tmp_path: Path) -> None:
    model = wrap(Brightness(), name="brightness", classes=2, size_px=8)
    # The loop stores 256 levels: distances of 4.4 and 3.6 levels from 127.5 become 4.5 and 3.5.
    data = from_tensors(images, LABELS, name="flat")
    results = bench(Bench(models=(model,), data=data, steps=(1, 8), batch_size=3), tmp_path)
    accuracy = results[results["kind"] == "attack"].set_index("steps")["accuracy"]
    assert accuracy[8] == 0.5
    assert results["dataset"].unique().tolist() == ["flat"]
    assert results[results["kind"] == "clean"]["accuracy"].item() == 1
    before = (tmp_path / "results.csv").stat().st_mtime_ns
    outcomes = sorted((tmp_path / "outcomes").iterdir())
    stamps = [path.stat().st_mtime_ns for path in outcomes]
    bench(Bench(models=(model,), data=data, steps=(1, 8), batch_size=3), tmp_path)
    assert [path.stat().st_mtime_ns for path in outcomes] == stamps, "done cells are not run again"
    assert (tmp_path / "results.csv").stat().st_mtime_ns >= before


def test_a_module_is_swept_over_corruptions_of_tensors(images: Tensor, tmp_path: Path) -> None:
    model = wrap(Brightness(), name="brightness", classes=2, size_px=8)
    data = from_tensors(images, LABELS, name="flat")
    asked = Sweep(models=(model,), data=data, corruptions=("brightness",), severities=(5,))
    rows = sweep_corruptions(asked, tmp_path)
    # Brighter by 0.3 (the constants of 32 px): everything is light.
    assert rows[rows["kind"] == "corruption"]["accuracy"].item() == 0.5


def test_a_loader_is_the_tensors_it_yields(images: Tensor) -> None:
    whole = from_tensors(images, LABELS, name="flat")
    parts = from_loader([(images[:5], LABELS[:5]), (images[5:], LABELS[5:])], name="flat")
    assert whole.fingerprint == parts.fingerprint
    assert whole.images.dtype == np.uint8
    assert whole.images[0, 0, 0, 0] == round((0.5 - 0.9 * EPS) * 255)


def test_other_weights_are_another_hash() -> None:
    hashes = {wrap(Brightness(g), name="b", classes=2, size_px=8).sha256 for g in (10.0, 10.0, 11.0)}
    assert len(hashes) == 2


def test_the_hash_is_of_the_code_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import torch

class Signed(torch.nn.Module):
    def forward(self, x):
        means = x.flatten(2).mean(2)
        return means * SIGN

SIGN = {}
"""
    monkeypatch.syspath_prepend(tmp_path)
    hashes = []
    for name, sign in (("signed_a", 1), ("signed_b", 1), ("signed_c", -1)):
        (tmp_path / f"{name}.py").write_text(code.format(sign))
        hashes.append(load_model(f"{name}:Signed(size_px=8)").sha256)
    assert hashes[0] == hashes[1] != hashes[2]
    installed = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3))
    assert not own_modules(contents(installed).modules)


@pytest.mark.parametrize("victim", [0, -1])
def test_an_image_that_gets_anothers_logits_is_found_wherever_it_is(victim: int) -> None:
    class Crossed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = x.flatten(2).mean(2)
            logits[victim] = logits[1]
            return logits if len(x) > 1 else x.flatten(2).mean(2)

    with pytest.raises(UserError, match="depend on the other images of its batch"):
        wrap(Crossed(), name="crossed", classes=3, size_px=8)


def test_a_wrapped_module_normalises_and_is_frozen() -> None:
    module = Brightness()
    model = wrap(module, name="b", classes=["dark", "light"], size_px=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert not module.training
    assert not module.gain.requires_grad
    x = torch.full((1, 3, 8, 8), 0.6)
    torch.testing.assert_close(model.logits(x), torch.tensor([[1.0, -1.0]]))
    assert model.classes == ("dark", "light")


class Odd(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        score = x.mean((1, 2, 3))
        logits = torch.stack([score, -score], 1)
        if self.how == "batch":
            return logits - logits.mean(0) * 5
        if self.how == "nan":
            return logits * float("nan")
        if self.how == "channels":
            return logits @ torch.ones(3, 2)
        return (logits, logits)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "how, words",
    [
        ("batch", ["depend on the other images of its batch"]),
        ("nan", ["4 of 4 are NaN"]),
        ("channels", ["RuntimeError", "size_px=N"]),
        ("tuple", ["0 [2, 2], 1 [2, 2]", "output="]),
    ],
)
def test_a_module_that_gives_no_logits_of_its_own_is_refused(how: str, words: list[str]) -> None:
    message = refusal(lambda: wrap(Odd(how), name="odd", classes=2, size_px=8))
    assert message.startswith("odd: ")
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 8, 8), torch.zeros(3, dtype=torch.int64)),
        (torch.full((2, 3, 8, 8), 2.0), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int32), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 8, 8), torch.tensor([0, -1])),
    ],
)
def test_tensors_that_are_no_images_are_refused(images: Tensor, labels: Tensor) -> None:
    with pytest.raises(UserError, match=r"^mine: "):
        from_tensors(images, labels, name="mine")


def test_two_models_of_one_name_are_refused(images: Tensor, tmp_path: Path) -> None:
    models = tuple(wrap(Brightness(g), name="same", classes=2, size_px=8) for g in (1.0, 2.0))
    with pytest.raises(UserError, match="two models are called 'same'"):
        bench(Bench(models=models, data=from_tensors(images, LABELS, name="flat")), tmp_path)


# What a module may return, and what it may be told


class Parts(nn.Module):
    """Returns its logits inside something else."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Any:
        score = x.mean((1, 2, 3))
        logits = torch.stack([score, -score], 1)
        if self.how == "dict":
            return {"logits": logits, "features": x}
        return (x, logits) if self.how == "tuple" else (score.item(), [logits])


@pytest.mark.parametrize("how, output", [("dict", "logits"), ("tuple", 1)])
def test_the_named_part_of_what_a_module_returns_is_its_logits(how: str, output: int | str) -> None:
    model = wrap(Parts(how), name="parts", size_px=8, output=output)
    x = torch.full((1, 3, 8, 8), 0.6)
    torch.testing.assert_close(model.logits(x), torch.tensor([[0.6, -0.6]]))
    torch.testing.assert_close(model.exits(x), model.logits(x)[None])
    assert model.classes == ("0", "1")


@pytest.mark.parametrize(
    "how, output, words",
    [
        ("dict", None, ["got a dict", "'logits' [2, 2], 'features' [2, 3, 8, 8]"]),
        ("dict", "logit", ["output='logit' is not among 'logits' [2, 2]"]),
        ("tuple", None, ["got a tuple", "0 [2, 3, 8, 8], 1 [2, 2]"]),
        ("tuple", 2, ["output=2 is not among 0"]),
        ("tuple", 0, ["expected logits [2,K], got torch.float32 [2, 3, 8, 8]"]),
    ],
)
def test_an_unnamed_or_misnamed_part_is_asked_for_with_the_choices(
    how: str, output: int | str | None, words: list[str]
) -> None:
    message = refusal(lambda: wrap(Parts(how), name="parts", size_px=8, output=output))
    assert all(word in message for word in words), message


def test_another_normalisation_is_another_hash() -> None:
    hashes = {wrap(Brightness(), name="b", size_px=8, std=(s,) * 3).sha256 for s in (1.0, 0.5, 0.5)}
    assert len(hashes) == 2, "a result made with the wrong one must not pass for the right one"


# Chance


@pytest.fixture
def greys() -> Tensor:
    """Sixty-four flat images, in turn a little darker and a little lighter than ImageNet's mean."""
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    return (mean + torch.tensor([-0.2, 0.2] * 32)[:, None, None, None]).expand(64, 3, 8, 8).contiguous()


class Centred(Brightness):
    """Brightness of images whose mean is 0."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.5)


@pytest.mark.parametrize("is_normalised", [True, False])
def test_a_model_fed_unnormalised_images_is_told_what_it_lacks(
    greys: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_normalised: bool
) -> None:
    normalisation = dict(zip(("mean", "std"), PREPARATIONS[IMAGENET], strict=True)) if is_normalised else {}
    model = wrap(Centred(), name="centred", size_px=8, **normalisation)
    data = from_tensors(greys, torch.tensor([0, 1] * 32), name="greys")
    results = bench(Bench(models=(model,), data=data, steps=(1,)), tmp_path)
    assert results[results["kind"] == "clean"]["accuracy"].item() == (1 if is_normalised else 0.5)
    lines = [line for line in capsys.readouterr().err.splitlines() if "chance" in line]
    assert len(lines) == (0 if is_normalised else 1)
    assert is_normalised or f"with {IMAGENET} it gets 64 of 64" in lines[0]
    bench(Bench(models=(model,), data=data, steps=(1,)), tmp_path)
    assert "chance" not in capsys.readouterr().err, "what is done already is not judged again"


def test_a_model_that_guesses_is_told_so_without_a_cause(
    greys: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = torch.tensor([0, 0, 1, 1] * 16)
    model = wrap(Brightness(), name="b", size_px=8)
    bench(Bench(models=(model,), data=from_tensors(greys, labels, name="greys"), steps=(1,)), tmp_path)
    error = capsys.readouterr().err
    assert "b: 32 of 64 clean images right, no better than chance (0.5); are its weights" in error


# torchvision


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A ResNet-18 of seven classes with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return resnet18(num_classes=7).eval()


def write(network: nn.Module, path: Path, how: str) -> Path:
    """Write its weights, as people do."""
    state = network.state_dict()
    if how == "nested":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    elif path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("how, ending", [("plain", "pth"), ("plain", "safetensors"), ("nested", "pt")])
def test_weights_of_a_local_file_give_torchvisions_own_logits(
    network: nn.Module, tmp_path: Path, how: str, ending: str
) -> None:
    path = write(network, tmp_path / f"mine.{ending}", how)
    model = load_model(f"torchvision:resnet18(weights='{path}', classes=7, size_px=32)")
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(c)[:, None, None] for c in PREPARATIONS[IMAGENET])
    with torch.no_grad():
        torch.testing.assert_close(model.logits(x), network((x - mean) / std))
    assert model.name == f"torchvision:resnet18(weights='mine.{ending}')"
    assert (model.size_px, model.classes) == (32, tuple("0123456"))
    assert (model.meta["backbone"], model.meta["family"]) == ("resnet18", "torchvision")
    assert "say mean= and std=" in model.meta["notes"][0]


def test_the_memory_layout_is_another_in_speed_alone(network: nn.Module, tmp_path: Path) -> None:
    path = write(network, tmp_path / "mine.pth", "plain")
    x = torch.rand(2, 3, 32, 32)
    ours, plain = (
        load_model(f"torchvision:resnet18(weights='{path}', classes=7, size_px=32, channels_last={last})")
        for last in (True, False)
    )
    torch.testing.assert_close(ours.logits(x), plain.logits(x))
    assert ours.sha256 == plain.sha256
    assert ours.name == plain.name


def test_what_a_call_says_of_a_model_goes_before_what_its_library_says(
    network: nn.Module, tmp_path: Path
) -> None:
    path = write(network, tmp_path / "mine.pth", "plain")
    names = ["a", "b", "c", "d", "e", "f", "g"]
    model = load_model(
        f"torchvision:resnet18(weights='{path}', classes={names}, size_px=32, mean=[0, 0, 0], "
        "std=[1/2, 1/2, 1/2], name='mine', data='cifar10')"
    )
    assert model.name == "mine"
    assert model.classes == tuple(names)
    assert model.normalisation == ((0, 0, 0), (0.5, 0.5, 0.5))
    assert model.meta["dataset"] == "cifar10"
    assert model.meta["notes"] == ()


def test_random_weights_are_the_same_each_time_and_take_no_draws_of_ours() -> None:
    before = torch.random.get_rng_state()
    text = "torchvision:resnet18(weights=None, size_px=32)"
    models = [load_model(text) for _ in range(2)]
    assert models[0].sha256 == models[1].sha256
    assert models[0].classes == imagenet_wnids()
    assert "random" in models[0].meta["notes"][0]
    assert torch.equal(before, torch.random.get_rng_state())


def test_imagenets_classes_are_its_wnids_in_order() -> None:
    wnids = imagenet_wnids()
    assert wnids == tuple(sorted(set(wnids)))
    assert (len(wnids), wnids[0], wnids[-1]) == (1000, "n01440764", "n15075141")  # tench, toilet tissue


def hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Return where torch looks for a fetched ResNet-18 now, in a machine without a network."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(folder))
    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    file = folder / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    return file


def test_without_a_network_one_line_says_what_was_tried_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = hub(monkeypatch, tmp_path)
    message = refusal(lambda: load_model("torchvision:resnet18"))
    for word in ("https://download.pytorch.org/models/resnet18-f37072fd.pth", str(file.parent), "weights="):
        assert word in message


def test_the_librarys_own_weights_are_read_without_running_what_is_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, marker = hub(monkeypatch, tmp_path), tmp_path / "marker"
    torch.save(resnet18().state_dict(), file)
    model = load_model("torchvision:resnet18(size_px=32)")
    assert model.classes == imagenet_wnids()
    assert model.meta["notes"] == ()
    assert model.name == "torchvision:resnet18"
    torch.save({"fc.weight": Bomb(marker)}, file)
    assert "UnpicklingError" in refusal(lambda: load_model("torchvision:resnet18"))
    assert not marker.exists()


class Bomb:
    """Pickled, it makes a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


@pytest.mark.parametrize(
    "text, words",
    [
        ("torchvision:resnt18", ["unknown torchvision model 'resnt18'", "resnet18"]),
        ("torchvision:resnet18(weights='IMAGENET1K_V3')", ["did you mean IMAGENET1K_V1", "None"]),
        ("torchvision:resnet18(weights='MINE')", ["no such file of weights"]),
        (
            "torchvision:resnet18(weights='SEVEN')",
            ["'fc.weight' is [7, 512], expected [1000, 512]", "classes="],
        ),
        ("torchvision:resnet34(weights='SEVEN', classes=7)", ["lacks 'layer1.2.conv1.weight'"]),
        ("torchvision:resnet18(weights='EMPTY')", ["empty.pth: not a readable checkpoint"]),
        ("torchvision:resnet18(weights='NOTHING')", ["expected a state dict"]),
        ("torchvision:resnet18(weights=None, widht=2)", ["'widht'", "it has no such option"]),
        ("torchvision:resnet18(weights=None, size_px='a')", ["size_px must not be 'a'"]),
        ("torchvision:resnet18(weights=None, size_px=0)", ["size_px must be at least 1"]),
        ("torchvision:resnet18(weights=None, mean=[1, 2])", ["mean must be three numbers"]),
        ("torchvision:resnet18(weights=None, std=[1, 0, 1])", ["std must be above 0"]),
        ("torchvision:resnet18(weights=None, classes='digits')", ["classes must be a number"]),
        ("torchvision:resnet18(weights=None, classes=0)", ["classes must be a number"]),
        ("torchvision:resnet18(weights=None, output='a', size_px=32)", ["output='a' is not among"]),
        ("torchvison:resnet18", ["no module 'torchvison'", "did you mean torchvision:"]),
        ("torchvision:resnet18(None)", ["expected a call"]),
    ],
)
def test_a_call_that_cannot_be_is_refused_in_one_line(
    network: nn.Module, tmp_path: Path, text: str, words: list[str]
) -> None:
    seven = write(network, tmp_path / "seven.pth", "plain")
    nothing, empty = tmp_path / "nothing.pth", tmp_path / "empty.pth"
    torch.save({"epoch": 3}, nothing)
    empty.touch()
    for name, path in {"SEVEN": seven, "NOTHING": nothing, "EMPTY": empty, "MINE": "mine.pth"}.items():
        text = text.replace(f"'{name}'", f"'{path}'")
    message = refusal(lambda: load_model(text))
    assert all(word in message for word in words), message


# A function or class of one's own

FACTORY = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=2, how=""):
        super().__init__()
        print("chatter")
        if width < 1:
            raise ValueError("width must be positive")
        self.how, self.convolution, self.norm = how, nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        features = self.norm(self.convolution(x)).mean((2, 3))
        if self.how == "training":
            features = nn.functional.batch_norm(features, None, None, training=True)
        if self.how == "dropout":
            features = nn.functional.dropout(features, 0.5, training=True)
        logits = self.head(features)
        return {"logits": logits / 0 if self.how == "nan" else logits} if self.how == "dict" else (
            logits / 0 if self.how == "nan" else logits)


def sized(size_px, classes=5):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size_px * size_px, classes))


def training(**options):
    return Net(**options).train()


def text():
    return "no module"


made = Net()
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder."""
    name = f"mine_{tmp_path.name}"  # imported once, never again
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


def test_a_factorys_options_are_its_own_and_ours_are_ours(
    mine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(f"{mine}:training(width=3, how='dict', size_px=16, output='logits')")
    assert model.name == f"{mine}:training(how='dict', width=3)"
    assert (model.classes, model.size_px) == (tuple("01234"), 16)
    assert model.logits(torch.rand(4, 3, 16, 16)).shape == (4, 5)
    assert model.meta["backbone"] == "Net"
    assert not model.meta["is_random"]
    captured = capsys.readouterr()
    assert "chatter" in captured.err
    assert not captured.out, "what others print is no data of ours"


def test_a_factory_that_asks_for_size_and_classes_gets_them(mine: str) -> None:
    model = load_model(f"{mine}:sized(size_px=8, classes=6)")
    assert model.logits(torch.rand(1, 3, 8, 8)).shape == (1, 6)


def test_a_module_that_is_made_already_and_weights_of_a_file(mine: str, tmp_path: Path) -> None:
    made = load_model(f"{mine}:made(size_px=16)")
    torch.save(sys.modules[mine].Net().state_dict(), tmp_path / "other.pth")
    other = load_model(f"{mine}:Net(size_px=16, weights='other.pth')")
    assert made.sha256 != other.sha256
    assert other.name == f"{mine}:Net(weights='other.pth')"


def test_an_option_that_leaves_no_trace_in_the_weights_is_another_hash(mine: str) -> None:
    hashes = {
        load_model(f"{mine}:Net(how='{how}', size_px=16, name='net')").sha256
        for how in ("", "dropout", "dropout")
    }
    assert len(hashes) == 2


def test_a_model_that_answers_at_random_is_marked_and_not_refused(mine: str) -> None:
    model = load_model(f"{mine}:Net(width=8, how='dropout', size_px=16)")
    assert model.meta["is_random"]
    assert load_model(f"{mine}:Net(size_px=16, random=True)").meta["is_random"], "as said"


@pytest.mark.parametrize(
    "text, words",
    [
        ("Net(widht=3, size_px=16)", ["unexpected keyword argument 'widht'", "it takes width, how"]),
        ("Net(width=0, size_px=16)", ["ValueError: width must be positive", "line 11"]),
        ("Net(width=3)", ["size_px=32"]),
        ("Nett(size_px=16)", ["has no 'Nett'"]),
        ("text(size_px=16)", ["expected an nn.Module, got a str"]),
        ("made(width=3, size_px=16)", ["made already", "'width'"]),
        ("sized(classes=3)", ["missing a required argument: 'size_px'"]),
        ("Net(how='nan', size_px=16)", ["10 of 10 are NaN or infinite"]),
        ("Net(how='dict', size_px=16)", ["'logits' [2, 5]", "output="]),
        ("Net(how='training', size_px=16)", ["depend on the other images"]),
        ("Net(classes=4, size_px=16)", ["each of 4 classes, got [2, 5]", "classes=5"]),
        ("Net(size_px=1)", ["RuntimeError", "size_px=N"]),
    ],
)
def test_a_factory_that_cannot_be_used_is_refused_in_one_line(mine: str, text: str, words: list[str]) -> None:
    message = refusal(lambda: load_model(f"{mine}:{text}"))
    assert all(word in message for word in [mine, *words]), message


def test_a_module_whose_own_imports_fail_is_not_called_missing(tmp_path: Path, mine: str) -> None:
    (tmp_path / f"{mine}_b.py").write_text("import surely_not_there\n")
    message = refusal(lambda: load_model(f"{mine}_b:Net"))
    assert "No module named 'surely_not_there'" in message
    assert f"{mine}_b.py, line 1" in message


def test_a_call_is_benched_under_its_short_name(mine: str, greys: Tensor, tmp_path: Path) -> None:
    data = from_tensors(greys, torch.arange(64) % 5, name="greys")
    text = f"{mine}:Net(width=3, size_px=8, mean=[0.5, 0.5, 0.5])"
    results = bench(Bench(models=(text, text), data=data, limit=8, steps=(1,)), tmp_path / "run")
    assert results["model"].unique().tolist() == [f"{mine}:Net(width=3)"]
    other = f"{mine}:Net(width=3, size_px=8)"
    message = refusal(lambda: bench(Bench(models=(text, other), data=data), tmp_path / "run"))
    assert "two models are called" in message
    assert "name='...'" in message


# Options that are ours and a factory's as well

CLASHING = """
import torch
from torch import nn


class Sum(nn.Module):
    def __init__(self, sign=1.0, classes=3):
        super().__init__()
        self.sign, self.classes = sign, classes

    def forward(self, x):
        means = (self.sign * x.mean((1, 2, 3)))[:, None]
        return means * torch.arange(1.0, self.classes + 1)


def shadowed(name="good", mean=0.0, std=1.0, data=None, output=None, random=None, channels_last=None):
    told = [name != "good", mean != 0, std != 1, data, output, random, channels_last]
    return Sum(-1.0 if any(told) else 1.0)


def anything(**options):
    return Sum(-1.0 if options else 1.0)


def counted(classes="three", size_px=8):
    return Sum(classes={"three": 3, "four": 4}.get(classes, classes))


def weighed(weights="none"):
    return Sum(2.0 if weights == "heavy.pth" else 1.0)


def predict(x):
    return x.mean((2, 3))


def function():
    return predict


def switching():
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    return Sum()


def leaving():
    raise SystemExit(2)


def seeded():
    import random

    import numpy

    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    net[1].weight.data.mul_(numpy.random.rand() + random.random())
    return net


def scripted():
    return torch.jit.script(Sum())


def judged():
    from robustglimpse import wrap

    return wrap(Sum(), name="own", size_px=8)


ready = judged()
made = predict
exported = torch.export.export(Sum().eval(), (torch.rand(2, 3, 8, 8),))
"""


@pytest.fixture
def clashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module whose factories take options of our names."""
    name = f"clashing_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(CLASHING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


X = torch.full((2, 3, 8, 8), 0.5)
PLAIN = [[0.5, 1.0, 1.5]] * 2


@pytest.mark.parametrize(
    "option",
    [
        "name='bad'", "mean=0.5", "std=2", "data='mine'", "output='logits'", "random=True",
        "channels_last=True",
    ],
)  # fmt: skip
def test_options_that_a_factory_has_are_its_own_and_that_is_told(clashing: str, option: str) -> None:
    plain = load_model(f"{clashing}:shadowed(size_px=8)")
    assert plain(X).tolist() == PLAIN
    model = load_model(f"{clashing}:shadowed({option}, size_px=8)")
    assert model(X).tolist() == [[-each for each in row] for row in PLAIN]
    key, value = option.split("=")
    assert model.name == f"{clashing}:shadowed({key}={value})", "it is part of what the model is called"
    assert any(f"{key}= goes to shadowed, which takes it" in note for note in model.meta["notes"])
    assert model.normalisation == ((0.0,) * 3, (1.0,) * 3)
    assert (model.meta["dataset"], model.meta["is_random"]) == ("", False)
    assert model.sha256 != plain.sha256


def test_a_factory_of_any_options_is_not_told_ours_and_that_is_told(clashing: str) -> None:
    model = load_model(f"{clashing}:anything(name='mine', mean=0.25, size_px=8)")
    assert model.name == "mine"
    assert model(X).tolist() == [[0.25, 0.5, 0.75]] * 2, "normalised by us"
    assert "takes options of any name; mean= and name= and size_px= is ours" in model.meta["notes"][0]
    assert load_model(f"{clashing}:anything(other=1, size_px=8)")(X).tolist() != PLAIN


def test_classes_and_size_are_told_to_a_factory_and_to_us(clashing: str) -> None:
    model = load_model(f"{clashing}:counted(classes=5, size_px=16)")
    assert (len(model.classes), model.is_named, model.size_px) == (5, False, 16)
    assert any("counted takes classes= and size_px= too, and is told" in n for n in model.meta["notes"])
    assert load_model(f"{clashing}:counted").size_px == 8, "the factory's own size"
    own = load_model(f"{clashing}:counted(classes='four')")
    assert (own.classes, own.is_named) == (tuple("0123"), False), "a word that only the factory knows"


def test_weights_are_a_factorys_own_where_it_takes_them(clashing: str) -> None:
    model = load_model(f"{clashing}:weighed(weights='heavy.pth', size_px=8)")
    assert model(X).tolist() == [[2 * each for each in row] for row in PLAIN]
    assert model.sha256 != load_model(f"{clashing}:weighed(weights='light.pth', size_px=8)").sha256


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", ["function", "made", "scripted", "exported"])
def test_a_factory_may_return_any_function_of_images(clashing: str, what: str) -> None:
    text = f"{clashing}:{what}(size_px=8)"
    if what == "made":  # a function that lies there is taken for a factory
        assert "def make(): return predict" in refusal(lambda: load_model(text))
        return
    model = load_model(text)
    assert model(X).tolist() == ([[0.5] * 3] * 2 if what == "function" else PLAIN)


def test_what_a_factory_switches_off_is_on_again(clashing: str, tmp_path: Path) -> None:
    model = load_model(f"{clashing}:switching(size_px=8)")
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() is torch.float32
    data = from_tensors(torch.rand(4, 3, 8, 8).mul(255).round() / 255, [2, 2, 2, 2], name="d")
    rows = bench(Bench(models=(model,), data=data, steps=(1,)), tmp_path / "o")
    assert (rows["status"] == "ok").all()


def test_a_factory_that_draws_from_any_library_makes_the_same_model_again(clashing: str) -> None:
    before = np.random.get_state()[1].tolist()
    hashes = {load_model(f"{clashing}:seeded(size_px=8)").sha256 for _ in range(2)}
    assert len(hashes) == 1
    assert np.random.get_state()[1].tolist() == before


def test_a_factory_that_ends_python_is_refused_in_one_line(clashing: str, tmp_path: Path) -> None:
    message = refusal(lambda: load_model(f"{clashing}:leaving(size_px=8)"))
    assert "it ends Python (it failed in" in message
    (tmp_path / f"{clashing}_b.py").write_text(
        "import argparse\nargparse.ArgumentParser().parse_args(['--lr', '1'])\n"
    )
    assert "__name__ == '__main__'" in refusal(lambda: load_model(f"{clashing}_b:make(size_px=8)"))


def test_a_module_that_another_of_its_name_hides_is_told(
    clashing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "first"
    first.mkdir()
    for folder in (first, tmp_path):
        (folder / f"{clashing}_c.py").write_text(CLASHING)
    monkeypatch.syspath_prepend(first)
    model = load_model(f"{clashing}_c:shadowed(size_px=8)")
    assert "which Python finds before the one in this folder" in model.meta["notes"][0]


def test_a_factorys_own_classifier_says_all_itself(clashing: str) -> None:
    model = load_model(f"{clashing}:judged(name='mine', mean=0.5, data='cifar10', size_px=16)")
    assert (model.name, model.meta["dataset"], model.size_px) == ("mine", "cifar10", 8)
    assert model(X).tolist() == PLAIN
    assert "mine: it is a Classifier already; mean= and size_px= say nothing more" in model.meta["notes"][-1]
    assert load_model(f"{clashing}:ready").name == f"{clashing}:ready"


def test_a_call_reads_names_sizes_and_orders_as_wrap_does(clashing: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    named = load_model(f"{clashing}:anything(size_px=8, classes='names.txt')")
    assert (named.classes, named.is_named) == (("a", "b", "c"), True)
    ordered = load_model(f"{clashing}:anything(size_px=[8, 16], classes='sorted')")
    assert (ordered.meta["order"], ordered.is_named, ordered.classes) == ("sorted", False, tuple("012"))
    assert (ordered.size_px, ordered.meta["input_px"]) == (16, (8, 16))
    grey = load_model(f"{clashing}:anything(size_px=8, mean=0.5, std=0.5)")
    assert grey.normalisation == ((0.5,) * 3, (0.5,) * 3)
    assert "divide it by 255" in refusal(lambda: load_model(f"{clashing}:anything(size_px=8, mean=128)"))


def test_a_files_thousand_logits_are_said_to_be_imagenets(tmp_path: Path) -> None:
    network = resnet18()
    path = write(network, tmp_path / "mine.pth", "plain")
    text = f"torchvision:resnet18(weights='{path}', size_px=32"
    taken = load_model(f"{text})")
    assert any("1000 logits are taken for ImageNet's classes" in note for note in taken.meta["notes"])
    assert taken.is_named
    said = load_model(f"{text}, classes=1000)")
    assert not any("taken for ImageNet" in note for note in said.meta["notes"])
    assert (said.is_named, said.classes[:2]) == (False, ("0", "1"))


# Libraries that may be missing, and are tested where they are not


@pytest.mark.parametrize("source", ["timm", "robustbench"])
def test_a_missing_library_is_named_with_what_to_type(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, source, None)  # type: ignore[arg-type]
    message = refusal(lambda: load_model(f"{source}:resnet18"))
    assert f"the package {source}, which is not installed" in message
    assert f"pip install 'robustglimpse[{source}]'" in message


def library(name: str) -> Any:
    """Return an optional library, imported as we import it; skip the test where it is not installed."""
    try:  # a folder of that name is not enough: torchattacks brings a robustbench of its own
        importlib.metadata.version(name.partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    with warnings.catch_warnings(), importable_robustbench() if "bench" in name else nullcontext():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def unreachable(*_: Any, **__: Any) -> None:
    raise OSError("Name or service not known")


def test_timms_models_come_with_their_own_preparation(tmp_path: Path) -> None:
    network = library("timm").create_model("resnet18", num_classes=7).eval()
    path = write(network, tmp_path / "mine.safetensors", "plain")
    model = load_model(f"timm:resnet18(weights='{path}', classes=7, size_px=32)")
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(c)[:, None, None] for c in PREPARATIONS[IMAGENET])
    with torch.no_grad():
        torch.testing.assert_close(model.logits(x), network((x - mean) / std))
    vit = load_model("timm:vit_tiny_patch16_224(weights=None)")
    assert vit.normalisation == ((0.5,) * 3, (0.5,) * 3)
    assert (vit.size_px, vit.classes) == (224, imagenet_wnids())
    assert "did you mean resnet18" in refusal(lambda: load_model("timm:resnt18"))
    assert "no such option" in refusal(lambda: load_model("timm:resnet18(weights=None, colour=1)"))
    assert "expected [1000, 512]" in refusal(lambda: load_model(f"timm:resnet18(weights='{path}')"))


def test_timm_without_a_network_says_how_to_give_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library("timm"), "create_model", unreachable)
    message = refusal(lambda: load_model("timm:resnet18"))
    assert "Name or service not known" in message
    assert "weights='FILE.safetensors'" in message


def test_robustbenchs_models_are_read_from_a_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = library("robustbench.utils")
    assert "autoattack" in sys.modules, "RobustBench's own name for pyautoattack"
    assert "pkg_resources" not in sys.modules or importlib.util.find_spec("pkg_resources")
    monkeypatch.setattr(zoo, "download_gdrive_new", unreachable)
    rows = zoo.all_models[zoo.BenchmarkDataset("cifar10")][zoo.ThreatModel("Linf")]
    network = rows["Addepalli2022Efficient_RN18"]["model"]().eval()
    folder = tmp_path / "models" / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    torch.save(network.state_dict(), folder / "Addepalli2022Efficient_RN18.pt")
    records = np.random.default_rng(0).integers(0, 256, (20, 3073), np.uint8)
    records[:, 0] = np.arange(20) % 10
    (tmp_path / "test_batch.bin").write_bytes(records.tobytes())
    text = f"robustbench:Addepalli2022Efficient_RN18(model_dir='{tmp_path / 'models'}')"
    model = load_model(text)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(x), network(x))
    assert model.name == "robustbench:Addepalli2022Efficient_RN18"
    assert (model.size_px, model.classes, model.meta["dataset"]) == (32, CIFAR10_CLASSES, "cifar10")
    results = bench(Bench(models=(text,), data_dir=tmp_path, limit=4, steps=(1,)), tmp_path / "run")
    assert (results["status"] == "ok").all()
    assert results["dataset"].unique().tolist() == ["cifar10"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("Carmon2019Unlabeled", ["Name or service", "put it at models/cifar10/Linf/Carmon2019Unlabeled.pt"]),
        ("Carmon2019Unlabelled", ["unknown RobustBench model", "Carmon2019Unlabeled"]),
        ("Carmon2019Unlabeled(threat_model='L7')", ["no models of dataset='cifar10', threat_model='L7'"]),
        ("Carmon2019Unlabeled(colour=1)", ["'colour'", "it takes model_name, model_dir"]),
    ],
)
def test_a_robustbench_model_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: list[str]
) -> None:
    zoo = library("robustbench.utils")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "download_gdrive_new", unreachable)
    message = refusal(lambda: load_model(f"robustbench:{text}"))
    assert all(word in message for word in words), message


def test_a_library_that_another_wrote_over_is_sent_to_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library("robustbench.utils")
    for name in [n for n in sys.modules if n.partition(".")[0] == "robustbench"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "robustbench").mkdir()
    (tmp_path / "robustbench" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    message = refusal(lambda: load_model("robustbench:Carmon2019Unlabeled"))
    assert "robustglimpse doctor" in message
