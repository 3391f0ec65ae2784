"""Training: the paper's loss, and the same weights whether or not the run was killed on its way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustglimpse import recipes
from robustglimpse import train as module
from robustglimpse.cost import gmacs_per_exit
from robustglimpse.data import Dataset, decode, resized
from robustglimpse.models import load_model, zoo
from robustglimpse.models.backbones import default_gradient_scale
from robustglimpse.models.mgnet import Architecture, Glimpses, MGNet
from robustglimpse.pairs import load_pairs
from robustglimpse.records import UserError
from robustglimpse.registry import parse_call
from robustglimpse.report.table1 import published
from robustglimpse.rng import KeyedDraws
from robustglimpse.runner import Bench
from robustglimpse.team import Team
from robustglimpse.train import Recipe, load_recipe, train, training_loss

TINY = Recipe(
    model="tiny@glimpse-digits", backbone="resnet18", glimpses=2, downsample="2", gradient_scale=0.02,
    start_from="", dataset="glimpse-digits", train_split="train", test_split="test", epochs=3,
    batch_size=32,
    optimizer="adamw", lr=1e-3, weight_decay=0.05, clip_norm=1.0, warmup=0.3, alpha=0.6,
    label_smoothing=0.0, augment=("shift(pixels=2)", "flip"), attack="", precision="f32", seed=5,
)  # fmt: skip


SMALL = replace(TINY, backbone="cnn", epochs=1)


# Eq. 6 to 8

LOG3 = log(3)
# Two glimpses (T), two images (B), two classes (K); the true classes are 0 and 1.
GLOBAL = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[LOG3, 0.0], [LOG3, 0.0]]])
GLIMPSE = torch.tensor([[[0.0, LOG3], [0.0, LOG3]], [[0.0, 0.0], [0.0, LOG3]]])
Y = torch.tensor([0, 1])
GLOBAL_LOSS = (log(2) + log(2) + log(4 / 3) + log(4)) / 4
GLIMPSE_LOSS = (log(4) + log(4 / 3) + log(2) + log(4 / 3)) / 4


def loss(own: torch.Tensor | None, **options: Any) -> float:
    """Return the training loss of the two glimpses."""
    nothing = torch.zeros(2, 2, 3)
    return float(training_loss(Glimpses(GLOBAL, nothing, nothing), own, Y, **options))


def test_the_loss_weighs_both_classifiers_over_all_glimpses() -> None:
    own = GLIMPSE.flatten(0, 1)  # glimpse 1 is in it, as eq. 8 has it
    assert loss(own, alpha=0.6) == pytest.approx(0.4 * GLOBAL_LOSS + 0.6 * GLIMPSE_LOSS)
    assert loss(own, alpha=1.0) == pytest.approx(GLIMPSE_LOSS)
    assert loss(own, alpha=0.0) == pytest.approx(GLOBAL_LOSS)


def test_the_glimpse_loss_may_leave_the_first_glimpse_out() -> None:
    later = (log(2) + log(4 / 3)) / 2  # of glimpse 2 alone
    own = GLIMPSE[1:].flatten(0, 1)
    assert loss(own, alpha=0.6) == pytest.approx(0.4 * GLOBAL_LOSS + 0.6 * later)


@pytest.mark.parametrize("which, images", [("all", 2 * 32), ("later", 32)])
@pytest.mark.usefixtures("tiny_data")
def test_a_recipe_says_which_glimpses_the_glimpse_classifier_learns_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: Any, images: int
) -> None:
    seen: list[int] = []

    def watched(
        glimpses: Glimpses, own: torch.Tensor | None, y: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        assert own is not None
        seen.append(len(own))
        return training_loss(glimpses, own, y, **options)

    monkeypatch.setattr(module, "training_loss", watched)
    train(replace(SMALL, glimpse_loss=which), tmp_path)
    assert seen == [images] * 2


def test_without_a_glimpse_classifier_the_loss_is_the_global_one() -> None:
    assert loss(None, alpha=0.6) == pytest.approx(GLOBAL_LOSS)


def test_label_smoothing_spreads_the_target() -> None:
    # Smoothed by s, a target of two classes is 1 - s/2 and s/2.
    flipped = (log(2) + log(2) + log(4) + log(4 / 3)) / 4
    assert loss(None, alpha=0.0, label_smoothing=0.2) == pytest.approx(0.9 * GLOBAL_LOSS + 0.1 * flipped)


# The loop


class Killed(BaseException):
    """Stands for a signal: nothing in the loop catches it."""


@pytest.fixture
def tiny_data(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let both splits be 64 digits of 32 px."""
    small = replace(digits, images=digits.images[:, :, ::2, ::2].copy())
    monkeypatch.setattr(module, "load_data", lambda *_, **__: small)


def killed_after(steps: int) -> Callable[..., Any]:
    """Return a progress bar that kills the run when it has done that many steps."""

    @contextmanager
    def progress(total: float, title: str) -> Iterator[Callable[..., None]]:
        def report(done: float, note: str = "") -> None:
            if done == steps:
                raise Killed

        yield report

    return progress


@pytest.mark.usefixtures("tiny_data")
def test_a_killed_and_resumed_run_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train(TINY, tmp_path / "straight")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, "progress", killed_after(3))  # 64 images are two steps: amid epoch 2
        train(TINY, tmp_path / "killed")
    out = tmp_path / "killed"
    assert not (out / "model.safetensors").exists()
    assert len((out / "log.csv").read_text().splitlines()) == 2  # the header and epoch 1
    torch.rand(7)  # whatever happens between the two must not matter
    resumed = train(TINY, out)

    expected, card, sha256 = zoo.read_checkpoint(straight)
    found, found_card, found_sha256 = zoo.read_checkpoint(resumed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (found_card, found_sha256) == (card, sha256)

    # What it ended with is a model that says where it comes from, without the training head.
    assert not any(name.startswith("glimpse_fc") for name in found)
    assert (card.recipe, card.dataset, card.size_px) == (TINY.model, "glimpse-digits", 32)
    assert len(card.accuracy) == 2
    assert load_model(str(resumed)).classes == card.classes
    header, *epochs = (out / "log.csv").read_text().splitlines()
    assert header == "epoch,loss,accuracy_exit_1,accuracy_exit_2,seconds"
    assert [line.split(",")[0] for line in epochs] == ["1", "2", "3"]

    # A finished run has nothing left to do, and its folder takes no other recipe.
    with monkeypatch.context() as patch:
        patch.setattr(module, "progress", killed_after(1))
        patch.setattr(module._Run, "epoch", None)
        assert zoo.hash_file(train(TINY, out)) == found_sha256
    with pytest.raises(UserError, match=r"of another recipe \(lr, seed differ\)"):
        train(replace(TINY, seed=6, lr=2e-3), out)


@pytest.mark.usefixtures("tiny_data")
def test_another_seed_ends_with_other_weights(tmp_path: Path) -> None:
    short = replace(TINY, glimpses=1, epochs=1)
    weights = [
        zoo.read_checkpoint(train(replace(short, seed=seed), tmp_path / str(seed)))[0][
            "backbone.conv1.weight"
        ]
        for seed in (1, 2)
    ]
    assert not torch.equal(*weights)
    asked = zoo.read_checkpoint(train(short, tmp_path / "asked", seed=2))[0]["backbone.conv1.weight"]
    assert torch.equal(asked, weights[1])


@pytest.mark.usefixtures("tiny_data")
def test_a_run_from_before_the_optional_keys_goes_on(tmp_path: Path) -> None:
    straight = train(SMALL, tmp_path)
    state = zoo.read_training_state(tmp_path / "last.pt")
    for key in ("initialisation", "glimpse_loss", "size_px"):
        del state["recipe"][key]
    zoo.save_training_state(tmp_path / "last.pt", state)
    before = zoo.hash_file(straight)
    assert zoo.hash_file(train(SMALL, tmp_path)) == before
    with pytest.raises(UserError, match=r"of another recipe \(glimpse_loss differ\)"):
        train(replace(SMALL, glimpse_loss="later"), tmp_path)


@pytest.mark.parametrize("initialisation", ["torch", "authors"])
@pytest.mark.usefixtures("tiny_data")
def test_a_recipe_says_how_the_heads_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, initialisation: Any
) -> None:
    begun: list[MGNet] = []
    monkeypatch.setattr(module, "_Learner", lambda network, _: begun.append(network))
    with pytest.raises(TypeError):  # there is nothing to train
        train(replace(SMALL, initialisation=initialisation), tmp_path)
    (network,) = begun
    for head in (network.loc_network, network.global_fc, network.glimpse_fc):
        assert head is not None
        assert bool(head.fc.bias.any()) == (initialisation == "torch")


@pytest.mark.usefixtures("tiny_data")
def test_a_recipe_of_another_size_learns_and_is_tested_on_resized_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Dataset
) -> None:
    seen: set[torch.Size] = set()
    normalised = module._Run._normalised

    def watched(run: Any, x: torch.Tensor) -> torch.Tensor:
        seen.add(x.shape[1:])
        return normalised(run, x)

    monkeypatch.setattr(module._Run, "_normalised", watched)
    made = load_model(str(train(replace(SMALL, size_px=24), tmp_path)))
    assert seen == {torch.Size([3, 24, 24])}
    assert made.size_px == 24
    # An evaluation shows it the same images: those of 64 px, resized.
    ((_, _, shown, _),) = load_pairs(Bench((made,), limit=4), "cpu")
    assert np.array_equal(shown.images, resized(digits.first(4), 24).images)
    assert shown.notes == ("glimpse-digits: images of 64 px are resized to 24 px",)
    # Asked for by name as they are stored, they are not.
    ((_, _, stored, _),) = load_pairs(Bench((made,), limit=4, size_px=0), "cpu")
    assert stored.size_px == 64


@pytest.mark.parametrize("split, crop, side", [("train", 32, 256), ("train", None, 37), ("val", 32, 32)])
def test_a_crop_is_cut_from_images_of_the_sets_own_size(
    layouts: dict[str, Path], split: str, crop: int | None, side: int
) -> None:
    # ImageNet100's training images are squares of 8/7 of a size: 256 px of its own 224, 37 of 32.
    augment = ("flip",) if crop is None else (f"crop(area=0.08, size_px={crop})",)
    recipe = replace(TINY, dataset="imagenet100", size_px=32, augment=augment)
    is_cropped = split == "train" and module._crop_px(recipe) is not None
    data = module._images(recipe, split, layouts["imagenet100"], is_cropped=is_cropped)
    assert data.images.shape[2:] == (side, side)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"initialisation": "kaiming"}, "initialisation must be torch or authors, got 'kaiming'"),
        ({"glimpse_loss": "last"}, "glimpse_loss must be all or later, got 'last'"),
        ({"precision": "f16"}, "precision must be f32 or bf16, got 'f16'"),
        (
            {"size_px": -1},
            "size_px must be 0 or the side of the images, and that of a crop in augment, got -1",
        ),
        ({"size_px": 24, "augment": ("crop(area=0.3, size_px=32)",)}, "got 24 and a crop to 32"),
        ({"glimpse_loss": "later", "glimpses": 1}, "a network of one has no other; take 'all', or alpha = 0"),
        ({"augment": ("shift(pixel=2)",)}, "shift has no option 'pixel'; it takes pixels"),
    ],
)
@pytest.mark.usefixtures("tiny_data")
def test_words_that_a_recipe_does_not_know_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as refused:
        train(replace(TINY, **change), tmp_path)
    assert message in str(refused.value)
    assert not list(tmp_path.iterdir())


HARD = replace(TINY, glimpses=1, alpha=0.0, epochs=1, attack="pgd(eps=0.03, step_size=0.02, steps=2)")


@pytest.mark.usefixtures("tiny_data")
def test_adversarial_training_learns_from_attacked_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor, bool]] = []
    attacked = module._Run._attacked

    def watched(run: Any, x: torch.Tensor, y: torch.Tensor, draws: KeyedDraws) -> torch.Tensor:
        x_adv = attacked(run, x, y, draws)
        with torch.no_grad():
            worse = [
                torch.nn.functional.cross_entropy(run.network.eval()(run._normalised(v)).logits[-1], y)
                for v in (x, x_adv)
            ]
        run.network.train()
        seen.append((x_adv - x, x_adv, bool(worse[1] > worse[0])))
        return x_adv

    monkeypatch.setattr(module._Run, "_attacked", watched)
    train(HARD, tmp_path)
    assert len(seen) == 2
    for delta, x_adv, is_worse in seen:
        assert 0.029 < delta.abs().max() <= 0.03 + 1e-6
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        assert is_worse


@pytest.mark.usefixtures("tiny_data")
def test_adversarial_training_ends_in_other_weights_the_same_every_time(tmp_path: Path) -> None:
    hard, again, plain = (
        zoo.read_checkpoint(train(recipe, tmp_path / str(k)))[0]["backbone.conv1.weight"]
        for k, recipe in enumerate((HARD, HARD, replace(HARD, attack="")))
    )
    assert torch.equal(hard, again)
    assert not torch.equal(hard, plain)


@pytest.mark.parametrize("attack", ["pgd(steps=2, step_size=0.02)", "pgd(eps=0.03)", "apgd(eps=0.03)"])
@pytest.mark.usefixtures("tiny_data")
def test_an_attack_that_training_cannot_run_is_refused(tmp_path: Path, attack: str) -> None:
    with pytest.raises(UserError, match=r"a recipe's attack is one of fgsm, pgd, mifgsm.* with eps"):
        train(replace(HARD, attack=attack), tmp_path)


@pytest.mark.usefixtures("tiny_data")
def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size 65 is more than the 64 images"):
        train(replace(TINY, batch_size=65), tmp_path)


@pytest.mark.usefixtures("tiny_data")
def test_an_unknown_optimizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sgd or adamw, got 'adam'"):
        train(replace(TINY, optimizer="adam"), tmp_path)  # type: ignore[arg-type]


@pytest.mark.usefixtures("tiny_data")
def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    for epochs, batch_size in ((0, 32), (1, 1)):
        with pytest.raises(UserError, match=f"at least 1 and batch_size 2, got {epochs} and {batch_size}"):
            train(replace(TINY, batch_size=batch_size), tmp_path, epochs=epochs)


@pytest.mark.usefixtures("tiny_data")
@pytest.mark.parametrize("has_units", [True, False])
def test_bf16_that_would_be_imitated_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], has_units: bool
) -> None:
    monkeypatch.setattr(module, "_has_bf16_units", lambda: has_units)
    monkeypatch.setattr(module, "_Run", None)  # what comes after the note
    with pytest.raises(TypeError):
        train(replace(TINY, precision="bf16"), tmp_path)
    assert ("no units for bf16" in capsys.readouterr().err) is not has_units
    with pytest.raises(TypeError):
        train(replace(TINY, precision="bf16"), tmp_path, precision="f32")
    assert capsys.readouterr().err == ""


def test_the_papers_optimizer_decays_every_weight() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    sgd = module._optimizer(network, replace(TINY, optimizer="sgd", lr=0.1, weight_decay=1e-4))
    (group,) = sgd.param_groups
    assert len(group["params"]) == 4
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, False, 1e-4)
    adamw = module._optimizer(network, TINY)
    assert [(len(g["params"]), g["weight_decay"]) for g in adamw.param_groups] == [(1, 0.05), (3, 0.0)]


# Recipes


PAPERS = [name for name in recipes.names() if name.endswith(("-imagenet100", "-tiny-imagenet"))]
# Figure 3's are at other sizes than the tables' networks.
FIGURE3 = [name for name in recipes.names() if load_recipe(name).size_px]


def save_images(folder: Path, count: int, size_px: tuple[int, int]) -> list[str]:
    """Write noise as JPEG files and return their names."""
    folder.mkdir(parents=True)
    names = [f"{folder.parent.name}_{k}.JPEG" for k in range(count)]
    for k, name in enumerate(names):
        pixels = np.random.default_rng(k).integers(0, 256, (*size_px, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return names


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ImageNet100 and Tiny ImageNet in their layouts, with two classes of one image, by name."""
    root = tmp_path_factory.mktemp("layouts")
    annotations = []
    for k, wnid in enumerate(("n01443537", "n01629819")):
        for split, size in (("train", (260, 300)), ("val", (300, 240))):
            save_images(root / "imagenet100" / split / wnid, 1, size)
        save_images(root / "tiny-imagenet" / "train" / wnid / "images", 1, (64, 64))
        (name,) = save_images(root / "tiny-imagenet" / "val" / f"part{k}", 1, (64, 64))
        (root / "tiny-imagenet" / "val" / "images").mkdir(exist_ok=True)
        (root / "tiny-imagenet" / "val" / f"part{k}" / name).rename(
            root / "tiny-imagenet" / "val" / "images" / f"val_{k}.JPEG"
        )
        annotations.append(f"val_{k}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (root / "tiny-imagenet" / "val" / "val_annotations.txt").write_text("".join(annotations))
    return {name: root / name for name in ("imagenet100", "tiny-imagenet")}


def test_the_papers_networks_have_recipes() -> None:
    made = {(r.backbone, "mgnet" if r.glimpses > 1 else "ffnet", r.dataset) for r in map(load_recipe, PAPERS)}
    tables = {"table1": "imagenet100", "table3": "tiny-imagenet"}
    assert made == {
        (row.backbone, row.network, tables[row.table]) for row in published() if row.table in tables
    }
    for recipe in map(load_recipe, PAPERS):
        glimpses = {"imagenet100": (4, "7/3"), "tiny-imagenet": (3, "2")}[recipe.dataset]
        assert (recipe.glimpses, recipe.downsample) == ((1, "1") if recipe.alpha == 0 else glimpses)
        assert (recipe.epochs, recipe.batch_size, recipe.lr) == (400, 256, 0.1)
        # What the authors' code does where ours would do otherwise.
        assert (recipe.initialisation, recipe.glimpse_loss) == ("authors", "later")
        assert recipe.augment[1:] == ("flip", "autoaugment(like='authors')")


def test_our_own_recipes_are_what_they_were() -> None:
    for recipe in map(load_recipe, set(recipes.names()) - set(PAPERS)):
        assert (recipe.initialisation, recipe.glimpse_loss) == ("torch", "all")
        assert not any("like" in text for text in recipe.augment)


def test_figure_3_has_recipes_per_input_size() -> None:
    made: set[tuple[str, str, int]] = set()
    for name in FIGURE3:
        recipe = load_recipe(name)
        made.add((recipe.backbone, recipe.dataset, recipe.size_px))
        # But for the size it is the recipe of the same network at the set's own.
        own = load_recipe(name.replace(f"-{recipe.size_px}-", "-"))
        augment = tuple(text.replace("size_px=224", f"size_px={recipe.size_px}") for text in own.augment)
        assert recipe == replace(own, model=recipe.model, size_px=recipe.size_px, augment=augment)
    assert made == {
        *(("resnet18", "glimpse-digits", size_px) for size_px in (24, 32, 48)),
        *(
            (f"resnet{depth}", "imagenet100", size_px)
            for depth in (18, 50)
            for size_px in (96, 128, 160, 192)
        ),
    }


@pytest.mark.parametrize("name", [*(n for n in PAPERS if n not in FIGURE3), "ffnet-r18-96-imagenet100"])
def test_a_paper_recipe_learns_from_its_layout(
    name: str, layouts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "HELD_BYTES", 0)  # as of a set that is too large to be held
    recipe = replace(load_recipe(name), epochs=2, batch_size=2)
    data = module.load_data(recipe.dataset, split=recipe.train_split, data_dir=layouts[recipe.dataset])
    assert (
        data.images.shape[1:] == {"imagenet100": (3, 256, 256), "tiny-imagenet": (3, 64, 64)}[recipe.dataset]
    )
    assert isinstance(data.images, np.memmap)
    run = module._Run(recipe, data, Team(0, 1, torch.device("cpu")))
    seen: list[torch.Size] = []
    run.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    before = run.network.backbone.conv1.weight.detach().clone()
    loss = run.epoch(0, lambda done, note="": None)
    assert loss == pytest.approx(log(2), abs=1.5)
    assert not torch.equal(run.network.backbone.conv1.weight, before)
    side = recipe.size_px or {"imagenet100": 224, "tiny-imagenet": 64}[recipe.dataset]
    assert seen == [(2, 3, side, side)]


@pytest.mark.parametrize(
    "name", ["mgnet-r18-imagenet100", "ffnet-r18-96-imagenet100", "mgnet-r18-nopool-tiny-imagenet"]
)
def test_a_paper_recipe_ends_in_a_model(name: str, layouts: dict[str, Path], tmp_path: Path) -> None:
    recipe = replace(load_recipe(name), batch_size=2)
    made = load_model(str(train(recipe, tmp_path, data_dir=layouts[recipe.dataset], epochs=2)))
    assert made.classes == ("n01443537", "n01629819")
    assert made.size_px == (recipe.size_px or {"imagenet100": 224, "tiny-imagenet": 64}[recipe.dataset])


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipes_comment_says_what_it_costs(name: str) -> None:
    recipe, said = load_recipe(name), recipes.summary(name, recipes.read(name))
    size = recipe.size_px or {"imagenet100": 224, "cluttered-digits": 112}.get(recipe.dataset, 64)
    classes, images = {
        "glimpse-digits": (10, 10_000), "cluttered-digits": (10, 10_000), "tiny-imagenet-20": (20, 10_000),
        "tiny-imagenet": (200, 100_000), "imagenet100": (100, 127_000),
    }[said.dataset]  # fmt: skip
    architecture = Architecture(recipe.backbone, recipe.glimpses, recipe.downsample, classes, 0.01)
    assert said.gmacs == pytest.approx(gmacs_per_exit(architecture, size)[-1], rel=0.005)
    steps = parse_call(recipe.attack).get("steps", 0) if recipe.attack else 0
    assert (said.images, said.epochs, said.passes) == (images, recipe.epochs, 3 + 2 * steps)
    macs = said.gmacs * 1e9 * images * recipe.epochs * said.passes
    assert said.macs == pytest.approx(macs, rel=0.06)
    assert said.gpu_hours == pytest.approx(macs / recipes.GPU_RATE / 3600, rel=0.06)
    assert said.core_hours == pytest.approx(macs / recipes.CORE_RATE / 3600, rel=0.06)


def test_a_recipe_that_says_nothing_of_its_cost_is_named() -> None:
    with pytest.raises(UserError, match="mine: its comment has no line '# Cost"):
        recipes.summary("mine", "epochs = 3")


def written(path: Path, **changes: Any) -> Path:
    """Write TINY as a recipe file, with keys changed, added, or (None) left out."""
    table = {**asdict(TINY), "augment": list(TINY.augment), **changes}
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if value is not None]
    path.write_text("\n".join(lines))
    return path


def test_a_recipe_file_says_everything(tmp_path: Path) -> None:
    assert load_recipe(str(written(tmp_path / "a.toml"))) == TINY
    optional = dict.fromkeys(("initialisation", "glimpse_loss", "size_px"))
    assert load_recipe(str(written(tmp_path / "b.toml", **optional))) == TINY
    assert load_recipe(str(written(tmp_path / "c.toml", size_px=48))) == replace(TINY, size_px=48)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"momentum": 0.9}, "unknown key 'momentum'"),
        ({"seed": None}, "missing key 'seed'"),
        ({"size_px": 48.0}, "size_px must be of type int, got 48.0"),
        ({"seed": True}, "seed must be of type int, got True"),
    ],
)
def test_a_recipe_with_another_key_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "a.toml", **changes)
    with pytest.raises(UserError) as caught:
        load_recipe(str(path))
    assert f"{path}: {message}" in str(caught.value)


def test_a_recipe_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("seed = [")
    with pytest.raises(UserError, match="not valid TOML"):
        load_recipe(str(path))


def test_an_unknown_recipe_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'mgnet-r18-glimpse-digits'"):
        load_recipe("mgnet-r18-glimpse-digit")


@pytest.mark.parametrize("name", recipes.names())
def test_a_bundled_recipe_loads_and_is_named_for_what_it_makes(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.model.replace("@", "-") == name
    assert recipe.gradient_scale == default_gradient_scale(recipe.backbone)
    module.pipeline(recipe.augment)


@pytest.mark.parametrize("name", [name for name in recipes.names() if name.startswith("mgnet-")])
def test_both_families_have_the_same_budget(name: str) -> None:
    ours, theirs = (asdict(load_recipe(twin)) for twin in (name, name.replace("mgnet-", "ffnet-")))
    different = {key for key in ours if ours[key] != theirs[key]}
    assert different <= {"model", "glimpses", "downsample", "alpha"}


@pytest.mark.usefixtures("tiny_data")
def test_the_backbone_of_another_checkpoint_is_the_start(tmp_path: Path) -> None:
    base = train(replace(TINY, glimpses=1, epochs=1), tmp_path / "base")
    torch.manual_seed(0)
    network = MGNet(Architecture("resnet18", 2, "2", 10, 0.02))
    zoo.start_backbone_(network, str(base))
    weights = zoo.read_checkpoint(base)[0]
    for name, tensor in network.backbone.state_dict().items():
        assert torch.equal(tensor, weights[f"backbone.{name}"])
    with pytest.raises(UserError, match="its backbone is resnet18, not resnet34"):
        zoo.start_backbone_(MGNet(Architecture("resnet34", 2, "2", 10, 0.01)), str(base))
    with pytest.raises(UserError, match="train it first"):
        zoo.start_backbone_(network, str(tmp_path / "none.safetensors"))
