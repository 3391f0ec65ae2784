"""What the manifest says of its checkpoints is what they do."""

from __future__ import annotations

import pytest
import torch

from robustglimpse.data import load_data
from robustglimpse.models import bundled, load_model
from robustglimpse.train import load_recipe

ROWS = bundled()


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_clean_accuracy_is_the_manifests(name: str) -> None:
    row, model = ROWS[name], load_model(name)
    data = load_data(row.dataset)
    correct = torch.zeros(row.glimpses)
    for batch in data.batches(100):
        with torch.no_grad():
            pred = model.exits(batch.images.float() / 255).argmax(2)
        correct += (pred == batch.labels).sum(1)
    # Up to one image of a thousand: channels-last rounds differently on other processors.
    assert (correct / data.total).tolist() == pytest.approx(row.accuracy, abs=1.1 / data.total)


@pytest.mark.parametrize("name", ROWS)
def test_a_bundled_model_reads_nine_digits_in_ten_and_gains_by_looking_again(name: str) -> None:
    accuracy = ROWS[name].accuracy
    assert accuracy[-1] >= 0.9
    assert list(accuracy) == sorted(accuracy)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_what_its_recipe_makes(name: str) -> None:
    row = ROWS[name]
    recipe = load_recipe(row.recipe)
    assert recipe.model == name
    for key in ("backbone", "glimpses", "downsample", "dataset"):
        assert getattr(recipe, key) == getattr(row, key)
