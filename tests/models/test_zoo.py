"""Checkpoints: what fits is loaded as it is, what does not is refused in one line, and none of it runs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from robustglimpse import cost, recipes
from robustglimpse import models as table
from robustglimpse.data import load_data
from robustglimpse.models import ModelRow, bundled, load_model, models, zoo
from robustglimpse.models.mgnet import Architecture, MGNet
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
    ],
    ids=[
        "wrong-backbone", "unknown-backbone", "missing-key", "extra-key", "wrong-shape", "other-network",
        "no-weights", "no-tensors", "no-glimpses", "upsampling", "no-number", "no-std",
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
