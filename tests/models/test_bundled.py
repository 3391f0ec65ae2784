"""What the manifest says of its checkpoints is what they do."""

from __future__ import annotations

import pytest
import torch

from robustglimpse.data import load_data
from robustglimpse.models import bundled, load_model
from robustglimpse.train import load_recipe

ROWS = bundled()


ARCHIVES = {"tiny-imagenet-20": "data/tiny-imagenet-20.zip"}  # below ../shared


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_clean_accuracy_is_the_manifests(name: str, request: pytest.FixtureRequest) -> None:
    row, model = ROWS[name], load_model(name)
    archive = ARCHIVES.get(row.dataset)
    data_dir = request.getfixturevalue("shared") / archive if archive else None
    data = load_data(row.dataset, data_dir=data_dir)
    assert data.classes == model.classes
    correct = torch.zeros(row.glimpses)
    for batch in data.batches(100):
        with torch.no_grad():
            pred = model.exits(batch.images.float() / 255).argmax(2)
        correct += (pred == batch.labels).sum(1)
    # Up to one image of a thousand: channels-last rounds differently on other processors.
    assert (correct / data.total).tolist() == pytest.approx(row.accuracy, abs=1.1 / data.total)


@pytest.mark.parametrize("name", ROWS)
def test_a_bundled_model_is_good_enough_to_be_worth_attacking(name: str) -> None:
    accuracy = ROWS[name].accuracy
    assert accuracy[-1] >= {"glimpse-digits": 0.9, "tiny-imagenet-20": 0.55}[ROWS[name].dataset]


@pytest.mark.parametrize(
    "name",
    [name for name, row in ROWS.items() if row.dataset == "glimpse-digits" and len(row.accuracy) > 1],
)
def test_a_bundled_model_gains_by_looking_again(name: str) -> None:
    assert list(ROWS[name].accuracy) == sorted(ROWS[name].accuracy)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_what_its_recipe_makes(name: str) -> None:
    row = ROWS[name]
    recipe = load_recipe(row.recipe)
    assert recipe.model == name
    for key in ("backbone", "glimpses", "downsample", "dataset"):
        assert getattr(recipe, key) == getattr(row, key)
