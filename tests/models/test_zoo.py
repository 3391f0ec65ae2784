"""Checkpoints: what fits is loaded as it is, what does not is refused in one line, and none of it runs."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from robustglimpse import cli, cost, recipes
from robustglimpse import models as table
from robustglimpse.data import load_data
from robustglimpse.models import ModelRow, bundled, load_model, models, zoo
from robustglimpse.models.mgnet import Architecture, MGNet
from robustglimpse.models.naming import imagenet_wnids
from robustglimpse.records import UserError
from robustglimpse.train import load_recipe

if TYPE_CHECKING:
    from conftest import Reference

State = dict[str, Tensor]
LOC = "model.loc_network.fc.weight"


@pytest.fixture(scope="module")
def authors_state(references: dict[str, Reference]) -> State:
    """The MGNet case's weights under the names of the authors' checkpoints."""
    return {f"model.{name}": tensor for name, tensor in references["r18_mg_64"].weights.items()}


def lightning(path: Path, state: State) -> Path:
    """Write a file as PyTorch Lightning leaves it and return its path."""
    torch.save(
        {
            "epoch": 399, "global_step": 156_400, "pytorch-lightning_version": "1.4.5",
            "state_dict": state, "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}],
            "hyper_parameters": {"arch": "resnet18", "alpha": 0.6, "milestones": [200, 300], "amp": None},
        },
        path,
    )  # fmt: skip
    return path


def imported(source: Path, **changes: Any) -> Path:
    """Import the checkpoint beside itself and return the new file."""
    options = {"backbone": "resnet18", "glimpses": 3, "downsample": "2", "size_px": 64, **changes}
    out = source.with_suffix(".safetensors")
    zoo.import_checkpoint(source, out, **options)
    return out


def refusal(call: Callable[[], object]) -> str:
    """Return the message of the UserError that the call raises, which must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_imported_checkpoint_gives_the_authors_numbers(
    references: dict[str, Reference], authors_state: State, tmp_path: Path
) -> None:
    case = references["r18_mg_64"]
    model = load_model(str(imported(lightning(tmp_path / "epoch=399.ckpt", authors_state))))
    assert (model.name, len(model.classes), model.size_px) == ("epoch=399", 200, 64)
    assert model.meta["architecture"] == case.architecture
    torch.testing.assert_close(model.exits(case.images), case.arrays["logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(model.trace(case.images), case.arrays["aff"], atol=1e-4, rtol=0)
    torch.testing.assert_close(model.logits(case.images), case.arrays["logits"][-1], atol=1e-4, rtol=0)


def test_an_imported_checkpoint_takes_no_gradient(authors_state: State, tmp_path: Path) -> None:
    model = load_model(str(imported(lightning(tmp_path / "a.ckpt", authors_state))))
    assert not model.logits(torch.rand(1, 3, 64, 64)).requires_grad
    assert model.logits(torch.rand(1, 3, 64, 64).requires_grad_()).requires_grad


@pytest.mark.parametrize("downsample", ["7/3", "2.33"])
def test_a_glimpse_of_224_px_is_96_px_however_7_3_is_spelled(
    authors_state: State, tmp_path: Path, downsample: str
) -> None:
    out = imported(
        lightning(tmp_path / "a.ckpt", authors_state), downsample=downsample, glimpses=4, size_px=224
    )
    model = load_model(str(out))
    assert (model.meta["exits"], model.meta["architecture"].glimpse_px(model.size_px)) == (4, 96)


def test_normalisation_and_gradient_scale_travel_with_the_weights(
    references: dict[str, Reference], authors_state: State, tmp_path: Path
) -> None:
    source = lightning(tmp_path / "a.ckpt", authors_state)
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    model = load_model(str(imported(source, mean=mean, std=std, gradient_scale=0.5, dataset="cifar10")))
    assert model.normalisation == (mean, std)
    assert (model.meta["architecture"].gradient_scale, model.meta["dataset"]) == (0.5, "cifar10")
    case = references["r18_mg_64"]
    shifted = case.images * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    plain = load_model(str(imported(source, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))))
    torch.testing.assert_close(model.exits(shifted), plain.exits(case.images), atol=1e-3, rtol=0)


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def plant(path: Path, bomb: Bomb, how: str) -> Path:
    """Write a checkpoint with the bomb among its hyperparameters and return its path."""
    content = {"state_dict": {LOC: torch.zeros(3, 515)}, "hyper_parameters": bomb}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    return path


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_a_pickle_bomb_is_refused_and_never_goes_off(tmp_path: Path, how: str) -> None:
    marker = tmp_path / "marker"
    path = plant(tmp_path / "bomb.ckpt", Bomb(marker), how)
    assert "refused, reading it would run code" in refusal(lambda: imported(path))
    disguised = path.rename(tmp_path / "bomb.safetensors")
    assert "bomb.safetensors: not a readable safetensors file" in refusal(lambda: load_model(str(disguised)))
    assert not marker.exists()


def test_the_bomb_is_live(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.load(plant(tmp_path / "bomb.ckpt", Bomb(marker), "zip"), weights_only=False)
    assert marker.exists()


def test_a_file_as_lightning_1_0_8_writes_it_is_imported(
    references: dict[str, Reference],
    authors_state: State,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its callbacks are keyed by class, its hyperparameters an AttributeDict; a metric lies beside."""
    case, names = references["r18_mg_64"], ("ModelCheckpoint", "AttributeDict")
    old = ModuleType("pytorch_lightning_1_0_8")
    for name in names:
        setattr(old, name, type(name, (dict,), {"__module__": old.__name__}))
    content = {
        "epoch": 399, "global_step": 156_400, "pytorch-lightning_version": "1.0.8",
        "callbacks": {old.ModelCheckpoint: {"best_model_score": torch.tensor(0.8), "best_model_path": ""}},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": []}],
        "lr_schedulers": [{"last_epoch": 400, "_last_lr": [0.1]}], "hparams_name": "hparams",
        "state_dict": {**authors_state, "train_acc.correct": torch.tensor(3)},
        "hyper_parameters": old.AttributeDict(arch="resnet18", milestones=[200, 300], gpus=None),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, old.__name__, old)
        torch.save(content, tmp_path / "epoch=399.ckpt")
    model = load_model(str(imported(tmp_path / "epoch=399.ckpt")))
    torch.testing.assert_close(model.exits(case.images), case.arrays["logits"], atol=1e-4, rtol=0)
    told = capsys.readouterr().err
    assert "left out, as no weights of the model: 'train_acc.correct'" in told
    assert "was not built: pytorch_lightning_1_0_8." in told


@pytest.mark.parametrize("prefix", ["model._orig_mod.", "module.model.", ""])
def test_wrappers_around_the_authors_network_are_taken_off(
    references: dict[str, Reference], tmp_path: Path, prefix: str
) -> None:
    case = references["r18_mg_64"]
    state = {f"{prefix}{name}": tensor for name, tensor in case.weights.items()}
    state[f"{prefix}glimpse_fc.fc.weight"] = torch.ones(200, 512)
    model = load_model(str(imported(lightning(tmp_path / "a.ckpt", state))))
    torch.testing.assert_close(model.logits(case.images), case.arrays["logits"][-1], atol=1e-4, rtol=0)


@pytest.fixture
def of_hundred(authors_state: State, tmp_path: Path) -> Path:
    """A checkpoint of 100 classes."""
    cut = {n: t[:100] if n.startswith("model.global_fc") else t for n, t in authors_state.items()}
    return lightning(tmp_path / "hundred.ckpt", cut)


def test_classes_of_an_import_are_named_as_they_are_said_to_be(of_hundred: Path, tmp_path: Path) -> None:
    plain = load_model(str(imported(of_hundred)))
    assert plain.classes == tuple(map(str, range(100)))
    assert not plain.is_named, "numbers that nobody gave"
    first = load_model(str(imported(of_hundred, classes=zoo.read_class_names("imagenet100"))))
    assert first.classes == imagenet_wnids()[:100]
    assert first.is_named
    names = [f"class {k}" for k in range(100)]
    (tmp_path / "names").write_text("\ufeff" + "\n".join(names) + "\n\n")
    own = load_model(str(imported(of_hundred, classes=zoo.read_class_names(str(tmp_path / "names")))))
    assert own.classes == tuple(names)
    assert zoo.read_class_names("imagenet") == imagenet_wnids()


def test_names_that_do_not_fit_are_refused(of_hundred: Path, tmp_path: Path) -> None:
    def read(text: str | bytes) -> tuple[str, ...]:
        path = tmp_path / "names.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return zoo.read_class_names(str(path))

    message = refusal(lambda: imported(of_hundred, classes=zoo.read_class_names("imagenet")))
    assert "the network in it has 100 classes, 1000 names were given" in message
    assert "'b' twice" in refusal(lambda: read("a\nb\nb\n"))
    assert "line 2 is empty" in refusal(lambda: read("a\n\nb\n"))
    assert "it is empty" in refusal(lambda: read("\n"))
    assert "it is no UTF-8 text" in refusal(lambda: read("é".encode("latin-1")))
    assert "imagenet100 or a file" in refusal(lambda: zoo.read_class_names("imagenet1000"))
    assert not of_hundred.with_suffix(".safetensors").exists()


def test_the_command_takes_names(of_hundred: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.safetensors"
    arguments = f"import-checkpoint {of_hundred} --backbone resnet18 --glimpses 4 --downsample 7/3"
    arguments += f" --classes imagenet100 --out {out}"
    done = CliRunner().invoke(cli.app, arguments.split(), catch_exceptions=False)
    assert done.exit_code == 0
    assert load_model(out).classes == imagenet_wnids()[:100]


def without_loc(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != LOC}


@pytest.mark.parametrize(
    "change, options, words",
    [
        (dict, {"backbone": "resnet34"}, ["lacks 'backbone.layer1.2.conv1.weight'", "really resnet34?"]),
        (dict, {"backbone": "resnet81"}, ["unknown backbone 'resnet81'", "resnet18"]),
        (without_loc, {}, ["lacks 'loc_network.fc.weight'"]),
        (lambda s: {**s, "model.head.weight": torch.ones(2)}, {}, ["unexpected 'head.weight'"]),
        (
            lambda s: {**s, "model.global_fc.fc.bias": torch.ones(7)},
            {},
            ["'global_fc.fc.bias' is [7], expected [200]", "200 classes"],
        ),
        (lambda s: {"fc.weight": torch.ones(2)}, {}, ["expected MGNet weights", "got fc.weight"]),
        (lambda s: {}, {}, ["expected MGNet weights", "got none"]),
        (lambda s: {"model.x": "text"}, {}, ["'state_dict' of tensors"]),
        (dict, {"glimpses": 0}, ["glimpses and downsample must be at least 1"]),
        (dict, {"downsample": "1/2"}, ["glimpses and downsample must be at least 1"]),
        (dict, {"downsample": "two"}, ["downsample must be a number", "'two'"]),
        (dict, {"std": (0.2, 0.0, 0.2)}, ["std must be above 0"]),
        (dict, {"glimpses": 1_000_000}, ["glimpses must be from 1 to 100, got 1000000"]),
        (dict, {"downsample": "65"}, ["downsample must be from 1 to the size, 64, got 65"]),
        (dict, {"size_px": 0}, ["size_px must be from 1 to"]),
    ],
    ids=[
        "wrong-backbone", "unknown-backbone", "missing-key", "extra-key", "wrong-shape", "other-network",
        "no-weights", "no-tensors", "no-glimpses", "upsampling", "no-number", "no-std", "too-many-glimpses",
        "too-small-glimpses", "no-size",
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_by_name(
    authors_state: State, tmp_path: Path, change: Callable[[State], Any], options: Any, words: list[str]
) -> None:
    path = lightning(tmp_path / "a.ckpt", change(authors_state))
    message = refusal(lambda: imported(path, **options))
    assert all(word in message for word in words), message
    assert not path.with_suffix(".safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"no checkpoint at all"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    assert str(path) in refusal(lambda: imported(path))


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    assert refusal(lambda: imported(path)) == f"{path}: no such checkpoint"
    assert f"{path.with_suffix('.safetensors')}: no such" in refusal(
        lambda: load_model(str(path.with_suffix(".safetensors")))
    )


# The manifest


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelRow]:
    """A folder of weights with one untrained network, and the manifest row that fits it."""
    folder = tmp_path_factory.mktemp("weights")
    card = zoo.Card(Architecture("resnet18", 2, "2", 3, 0.02), ("a", "b", "c"), 32)
    torch.manual_seed(0)
    file = folder / "tiny.safetensors"
    sha256 = zoo.save_checkpoint(file, MGNet(card.architecture).state_dict(), card)
    row = ModelRow(
        "tiny@nothing", "resnet18", 2, "2", "nothing", 3, 32, 12_000_000, (0.04, 0.08), "bundled",
        "tiny-recipe", file.name, sha256, file.stat().st_size, (0.3, 0.4),
    )  # fmt: skip
    return folder, row


@pytest.fixture
def row(stored: tuple[Path, ModelRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelRow:
    """The row of a network whose file lies, this once, where bundled weights are looked for."""
    folder, row = stored
    (tmp_path / row.file).write_bytes((folder / row.file).read_bytes())
    monkeypatch.setattr(table, "WEIGHTS", tmp_path)
    return row


def test_a_row_whose_file_is_whole_loads(row: ModelRow) -> None:
    model = zoo.load_row(row)
    assert (model.name, model.sha256, model.classes) == (row.name, row.sha256, ("a", "b", "c"))
    assert model.logits(torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_weights_are_kept_in_half_precision_and_used_in_single(row: ModelRow) -> None:
    state, _, _ = zoo.read_checkpoint(table.WEIGHTS / row.file)
    torch.manual_seed(0)
    made = MGNet(Architecture("resnet18", 2, "2", 3, 0.02)).state_dict()
    assert state.keys() == made.keys()
    for name, tensor in made.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor.half().float() if tensor.is_floating_point() else tensor)


def test_the_same_weights_make_the_same_file(tmp_path: Path) -> None:
    card = zoo.Card(Architecture("resnet18", 2, "2", 3, 0.02), ("a", "b", "c"), 32)
    state = {name: torch.zeros(2) for name in "abc"}
    assert len({zoo.save_checkpoint(tmp_path / "a.safetensors", state, card) for _ in range(16)}) == 1


def test_one_changed_byte_is_refused_with_both_hashes(row: ModelRow) -> None:
    path = table.WEIGHTS / row.file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    message = refusal(lambda: zoo.load_row(row))
    assert all(word in message for word in (str(path), row.sha256, zoo.hash_file(path)))


def test_a_file_that_is_not_there_is_asked_of_its_recipe(row: ModelRow) -> None:
    message = refusal(lambda: zoo.load_row(replace(row, file="absent.safetensors")))
    assert "absent.safetensors" in message
    assert "robustglimpse train tiny-recipe" in message


@pytest.mark.parametrize("kept", [0, 4, 200, 100_000])
def test_a_truncated_file_is_refused(row: ModelRow, kept: int) -> None:
    path = table.WEIGHTS / row.file
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path}: not a readable safetensors file" in refusal(lambda: load_model(str(path)))


def test_safetensors_of_another_project_are_sent_to_the_importer(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    assert "import-checkpoint" in refusal(lambda: load_model(str(tmp_path / "other.safetensors")))


def test_an_unknown_model_is_refused_with_where_to_look() -> None:
    assert "robustglimpse list models" in refusal(lambda: load_model("mgnet-r19"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet18", "unknown model 'resnet18'; did you mean torchvision:resnet18?"),
        ("ResNet50", "did you mean torchvision:resnet50?"),
        ("resnt18", "did you mean torchvision:resnet18?"),
        ("vit_b_16(weights=None)", "did you mean torchvision:vit_b_16(weights=None)?"),
        ("mgnet-r81", "did you mean 'mgnet-r18'?"),
        ("mine.models.make(width=2)", "is called mine.models:make"),
        ("", "robustglimpse list models"),
    ],
)
def test_a_name_without_its_source_teaches_the_call(name: str, words: str) -> None:
    assert words in refusal(lambda: load_model(name))


def test_weights_alone_teach_the_call_that_names_their_network(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save({"a": torch.ones(2)}, path)
    call = f"--model \"torchvision:resnet18(weights='{path}')\""
    message = f"{path} holds weights without an architecture: name it: {call}"
    assert refusal(lambda: load_model(str(path))) == message
    assert "import-checkpoint" in refusal(lambda: load_model(path.rename(tmp_path / "mine.ckpt")))
    assert "no such file of weights" in refusal(lambda: load_model(path))
    assert "torchvision:resnet18(weights=" in refusal(lambda: load_model(path))
    path.write_text("<!DOCTYPE html>")
    assert "an HTML or XML page" in refusal(lambda: load_model(path))
    assert "is a folder; give the file of weights in it: mine.ckpt" in refusal(lambda: load_model(tmp_path))
    pointer = tmp_path / "mine.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "a Git LFS pointer" in refusal(lambda: load_model(pointer))
    module = torch.nn.Linear(1, 1)
    assert "robustglimpse.wrap(module" in refusal(lambda: load_model(module))  # type: ignore[arg-type]


def test_loading_leaves_the_random_state_and_the_caller_as_they_were(row: ModelRow) -> None:
    path, x = table.WEIGHTS / row.file, torch.rand(2, 3, 32, 32)
    expected = load_model(path).logits(x)
    state = torch.random.get_rng_state()
    with torch.inference_mode(), torch.device("meta"):
        model = load_model(path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(model.logits(x), expected)
    (gradient,) = torch.autograd.grad(model.logits(x.requires_grad_()).sum(), x)
    assert gradient.abs().sum() > 0
    torch.set_default_dtype(torch.float64)
    try:
        model = load_model(path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(model.logits(x.detach()), expected)


def changed(card: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Return a card with other values; those of the architecture have "made_" before their names."""
    made = {k.removeprefix("made_"): v for k, v in values.items() if k.startswith("made_")}
    rest = {k: v for k, v in values.items() if not k.startswith("made_")}
    return {**card, **rest, "architecture": {**card["architecture"], **made}}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"made_glimpses": 1_000_000}, "glimpses must be from 1 to 100, got 1000000"),
        ({"made_glimpses": "two"}, "glimpses must be from 1 to 100, got 'two'"),
        ({"made_glimpses": True}, "glimpses must be from 1 to 100, got True"),
        ({"made_glimpses": 2.0}, "got 2.0"),
        ({"made_backbone": "resnet81"}, "unknown backbone 'resnet81'"),
        ({"made_backbone": 18}, "backbone must be a name, got 18"),
        ({"made_downsample": "1e999999999"}, "downsample must be like '2' or '7/3', got '1e999999999'"),
        ({"made_downsample": "1/0"}, "downsample must be like"),
        ({"made_downsample": "1/2"}, "downsample must be from 1"),
        ({"made_downsample": 2}, "downsample must be like"),
        ({"made_classes": -3}, "classes must be from 1"),
        ({"made_classes": 4}, "expected 4 class names that differ, got 3"),
        ({"made_gradient_scale": None}, "gradient_scale must be a number, got None"),
        ({"made_gradient_scale": float("nan")}, "gradient_scale must be a number, got nan"),
        ({"made_other": 1}, "unexpected keyword argument 'other'"),
        ({"size_px": 10**9}, "size_px must be from 1 to 8192, got 1000000000"),
        ({"size_px": "32"}, "size_px must be from 1 to 8192, got '32'"),
        ({"size_px": 10**400}, "size_px must be from 1 to 8192"),
        ({"classes": ["a", "b", "b"]}, "expected 3 class names that differ, got 2"),
        ({"classes": ["a", "b", 3]}, "classes must be names"),
        ({"classes": ["a", "b", ["c"]]}, "classes must be names"),
        ({"classes": "abc"}, "must be lists"),
        ({"mean": [0.5, 0.5]}, "mean must be three numbers"),
        ({"mean": [0.5, 0.5, 10**400]}, "mean must be three numbers"),
        ({"std": [0.5, 0.5, 0]}, "std must be three above 0"),
        ({"std": 0.5}, "must be lists"),
        ({"dataset": None}, "dataset must be a name"),
        ({"recipe": ["x"]}, "recipe must be a name"),
        ({"accuracy": [0.1, 1.5]}, "accuracy must be fractions"),
        ({"accuracy": [0.1]}, "an accuracy for each of 2 exits, got 1"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
    ],
)
def test_a_card_that_no_network_can_have_is_refused(
    stored: tuple[Path, ModelRow], tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    whole = (stored[0] / stored[1].file).read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    card = changed(json.loads(header["__metadata__"]["card"]), **values)
    message = refused_card(whole[8 + size :], header, json.dumps(card), tmp_path / "a.safetensors")
    assert words in message, message


def refused_card(tensors: bytes, header: dict[str, Any], card: str, path: Path) -> str:
    """Return why a file with that card is refused."""
    header = {**header, "__metadata__": {**header["__metadata__"], "card": card}}
    written = json.dumps(header).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + tensors)
    message = refusal(lambda: load_model(path))
    assert message.startswith(f"{path}: its card is wrong (")
    return message


@pytest.mark.parametrize(
    "card", ["", "[]", "3", "null", '"abc"', "{}", "[" * 100_000, '{"classes": []}', "nan"]
)  # fmt: skip
def test_a_card_that_is_none_is_refused(stored: tuple[Path, ModelRow], tmp_path: Path, card: str) -> None:
    whole = (stored[0] / stored[1].file).read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    assert "cannot be read" in refused_card(whole[8 + size :], header, card, tmp_path / "a.safetensors")


@pytest.fixture
def unmade(row: ModelRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelRow:
    """A row that the manifest knows no file of, with an empty cache."""
    monkeypatch.setenv("ROBUSTGLIMPSE_CACHE", str(tmp_path / "cache"))
    return replace(row, file="made.safetensors", sha256="", bytes=0, accuracy=(), source="trainable")


def test_a_model_without_weights_says_how_to_get_them(unmade: ModelRow, tmp_path: Path) -> None:
    place = str(tmp_path / "cache" / "weights" / "made.safetensors")
    assert table.whereabouts(unmade) == "trainable"
    assert table.whereabouts(replace(unmade, source="bundled")) == "bundled, not here"
    message = refusal(lambda: zoo.load_row(unmade))
    assert "robustglimpse train tiny-recipe" in message
    assert place in message
    assert "import-checkpoint" not in message
    message = refusal(lambda: zoo.load_row(replace(unmade, source="importable")))
    assert (
        f"--backbone resnet18 --glimpses 2 --downsample 2 --size 32 --data nothing --out {place}" in message
    )


def test_a_model_that_somebody_made_is_found_in_the_cache(
    unmade: ModelRow, stored: tuple[Path, ModelRow]
) -> None:
    place = table.cached_file(unmade)
    place.parent.mkdir(parents=True)
    place.write_bytes((stored[0] / stored[1].file).read_bytes())
    assert zoo.load_row(unmade).sha256 == stored[1].sha256
    assert table.whereabouts(unmade) == "trainable, at hand"
    message = refusal(lambda: zoo.load_row(replace(unmade, classes=4)))
    assert "has classes 4, and the network in this file 3" in message


@pytest.mark.parametrize("name", models())
def test_a_row_says_what_its_architecture_costs(name: str) -> None:
    row = models()[name]
    architecture = Architecture(row.backbone, row.glimpses, row.downsample, row.classes, 0.02)
    with torch.device("meta"):
        network = MGNet(architecture)
    assert row.params == sum(p.numel() for p in network.parameters())
    assert row.gmacs == pytest.approx(cost.gmacs_per_exit(architecture, row.size_px), rel=1e-3)


@pytest.mark.parametrize("name", models())
def test_every_row_is_complete_for_where_it_comes_from(name: str) -> None:
    row = models()[name]
    assert name == load_recipe(row.recipe).model
    assert row.file == f"{row.recipe}.safetensors"
    is_bundled = row.source == "bundled"
    assert (bool(row.sha256), row.bytes > 0, len(row.accuracy)) == (
        is_bundled, is_bundled, is_bundled * row.glimpses
    )  # fmt: skip


def test_every_recipe_that_makes_a_model_has_its_row() -> None:
    made = {load_recipe(name).model for name in recipes.names()} - {"r50-base@glimpse-digits"}
    assert made == set(models())


@pytest.mark.parametrize("name", bundled())
def test_every_bundled_model_is_what_the_manifest_says(name: str) -> None:
    row = models()[name]
    path = table.WEIGHTS / row.file
    if not path.is_file():
        pytest.skip(f"{row.file} is not in this install; a checkout has it")
    assert path.stat().st_size == row.bytes
    model = load_model(name)
    assert (model.sha256, model.size_px, len(model.classes)) == (row.sha256, row.size_px, row.classes)
    architecture = model.meta["architecture"]
    assert (architecture.backbone, architecture.glimpses, architecture.downsample) == (
        row.backbone, row.glimpses, row.downsample
    )  # fmt: skip
    if row.dataset != "glimpse-digits":
        return
    data = load_data(row.dataset, limit=100)
    exits = model.exits(torch.from_numpy(data.images) / 255).argmax(2)
    found = (exits == torch.from_numpy(data.labels)).float().mean(1)
    # 100 of the 1 000 test images: four standard errors
    for share, claimed in zip(found.tolist(), row.accuracy, strict=True):
        assert share == pytest.approx(claimed, abs=4 * (claimed * (1 - claimed) / 100) ** 0.5 + 0.01)
