"""Which logit a label means: names before places, one reading or none, and a line for what was decided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import save_level
from torch import Tensor, nn

from robustglimpse import Bench, UserError, bench, from_tensors, load_data, wrap
from robustglimpse.data import Dataset
from robustglimpse.labels import match_classes
from robustglimpse.models.restricted import restricted
from robustglimpse.records import Classifier


class Levels(nn.Module):
    """Answers class k where the mean red level of an image is nearest to 20 k."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("level", torch.arange(count) * 20.0)

    def forward(self, x: Tensor) -> Tensor:
        red = x[:, 0].mean((1, 2)) * 255
        return -((red[:, None] - self.level) ** 2) / 100


def named(*classes: str) -> Dataset:
    """A set with one image of each class, class k of level 20 k, classes in the order given."""
    images = np.zeros((len(classes), 3, 16, 16), np.uint8)
    images[:, 0] = (np.arange(len(classes)) * 20)[:, None, None]
    return Dataset("some", "all", images, np.arange(len(classes)), classes, len(classes))


def model(count: int, *classes: str, order: str = "") -> Classifier:
    """A model of so many logits, named or not."""
    found = wrap(Levels(count), name="m", classes=list(classes) or None, size_px=16)
    return replace(found, meta={**found.meta, "order": order}) if order else found


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def text_sorted(count: int) -> tuple[str, ...]:
    return tuple(sorted(str(k) for k in range(count)))


def test_the_same_names_in_the_same_order_change_nothing_and_need_no_word() -> None:
    matched = match_classes(named("cat", "dog"), model(2, "cat", "dog"))
    assert (matched.labels.tolist(), matched.numbering, matched.notes) == ([0, 1], "by name", ())


def test_names_are_matched_whatever_their_order_on_either_side() -> None:
    matched = match_classes(named("cat", "dog"), model(3, "ant", "dog", "cat"))
    assert (matched.labels.tolist(), matched.classes) == ([2, 1], ("ant", "dog", "cat"))


@pytest.mark.parametrize("typed", [tuple(map(str, range(12))), ()], ids=["typed", "counted"])
def test_folders_that_are_numbers_are_those_logits(typed: tuple[str, ...]) -> None:
    matched = match_classes(named(*text_sorted(12)), model(12, *typed))
    assert matched.labels.tolist() == [int(name) for name in text_sorted(12)]
    assert matched.numbering == "by number"


def test_numbers_that_torchvision_would_sort_otherwise_are_told_with_the_way_to_say_so() -> None:
    (note,) = match_classes(named(*text_sorted(12)), model(12)).notes
    assert "classes='sorted'" in note


def test_typed_numbers_in_another_order_are_names_like_any_others() -> None:
    matched = match_classes(named(*text_sorted(11)), model(11, *(str(k) for k in reversed(range(11)))))
    assert matched.labels.tolist() == [10 - int(name) for name in text_sorted(11)]


def test_leading_zeros_do_not_matter_to_a_number() -> None:
    matched = match_classes(named(*(f"{k:02}" for k in range(12))), model(12))
    assert (matched.labels.tolist(), matched.numbering) == (list(range(12)), "by number")


def test_a_few_numbered_folders_of_a_larger_model_are_by_number() -> None:
    assert match_classes(named("1", "10", "3"), model(12)).labels.tolist() == [1, 10, 3]


@pytest.mark.parametrize(
    "folders",
    [
        tuple(sorted(str(k + 1) for k in range(12))),
        tuple(sorted(f"class{k}" for k in range(11))),
        ("Bee", "ant"),
    ],
    ids=["from 1", "class10 before class2", "capitals"],
)
def test_two_possible_orders_are_refused_with_both_ways_out(folders: tuple[str, ...]) -> None:
    message = refusal(lambda: match_classes(named(*folders), model(len(folders))))
    assert "classes='sorted'" in message and "classes='natural'" in message


def test_either_order_can_be_said() -> None:
    folders = tuple(sorted(str(k + 1) for k in range(12)))
    as_text = match_classes(named(*folders), model(12, order="sorted"))
    natural = match_classes(named(*folders), model(12, order="natural"))
    assert (as_text.labels.tolist(), as_text.numbering) == (list(range(12)), "in sorted order")
    assert (natural.labels.tolist(), natural.numbering) == ([int(n) - 1 for n in folders], "in natural order")


def test_a_model_without_names_takes_the_sets_own_order_and_says_so() -> None:
    matched = match_classes(named("cat", "dog"), model(2))
    assert (matched.labels.tolist(), matched.numbering) == ([0, 1], "in the set's order")
    (note,) = matched.notes
    assert "0 = cat, 1 = dog" in note and "classes=[...]" in note


def test_own_labels_are_places_of_logits_and_need_not_reach_the_last() -> None:
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    images[:, 0] = (torch.arange(4) * 20)[:, None, None].byte()
    for classes in (None, 4, 10):
        data = from_tensors(images, torch.arange(4), name="d", classes=classes)
        matched = match_classes(data, model(10))
        assert (matched.labels.tolist(), matched.numbering, matched.notes) == ([0, 1, 2, 3], "as given", ())
    assert "0 = a, 3 = d" in match_classes(data, model(10, *"abcdefghij")).notes[0]


def test_a_label_without_a_logit_is_refused() -> None:
    data = from_tensors(np.zeros((2, 3, 16, 16), np.uint8), [0, 10], name="d")
    assert "labels go up to 10, and m has 10 logits" in refusal(lambda: match_classes(data, model(10)))


@pytest.mark.parametrize(
    "theirs, ours, words",
    [
        (("cat", "emu"), (3, "ant", "cat", "dog"), ["3 classes", "has 2", "'emu'"]),
        (("cat", "Dog"), (2, "cat", "dog"), ["'Dog'", "nearest of its own is 'dog'"]),
        (("cat", "dog"), (3,), ["3 logits without names", "2 classes", "'cat'", "classes=[...]"]),
        (("cat", "dog", "emu"), (2,), ["2 logits", "3 classes"]),
        (("n01440764", "n01443537"), (1000,), ["classes='imagenet'"]),
        (("n01440764", "n01443537"), (100,), ["classes='imagenet100'"]),
    ],
)
def test_what_cannot_be_matched_is_refused_with_the_cure(
    theirs: tuple[str, ...], ours: tuple[int, *tuple[str, ...]], words: list[str]
) -> None:
    message = refusal(lambda: match_classes(named(*theirs), model(*ours)))
    assert all(word in message for word in ["m", *words]), message


def test_the_fingerprint_of_the_images_is_the_sets_own_whatever_the_model_numbers() -> None:
    data = named("cat", "dog")
    prints = {match_classes(data, each).fingerprint for each in (model(2), model(3, "ant", "dog", "cat"))}
    assert prints == {data.fingerprint}


def test_a_class_subset_is_told_and_can_be_all_that_a_model_may_answer(tmp_path: Path) -> None:
    data = named("b", "d")  # of levels 0 and 20, which the whole model calls a and b
    whole = model(4, "a", "b", "c", "d")
    assert "2 of its 4 classes" in match_classes(data, whole).notes[0]
    cut = restricted(whole, data.classes)
    x = torch.from_numpy(data.images).float() / 255
    assert cut.classes == ("b", "d")
    torch.testing.assert_close(cut(x), whole(x)[:, [1, 3]])
    torch.testing.assert_close(cut.surrogates["mean-exits"](x), cut(x))
    rows = {
        only: bench(Bench(models=(whole,), data=data, steps=(1,), classes_of_data=only), tmp_path / "run")
        for only in (False, True)
    }
    clean = {only: frame[frame["kind"] == "clean"].iloc[0] for only, frame in rows.items()}
    assert clean[False]["accuracy"] == 0.0  # it says a and b
    assert clean[True]["accuracy"] == 0.5  # 0 and 20 are both nearest to b
    assert clean[True]["labels"] == "by name, of 2 of the model's 4 classes alone"
    assert clean[True]["cell"] != clean[False]["cell"]


def test_a_model_without_names_cannot_be_cut_to_names() -> None:
    assert "classes='imagenet'" in refusal(lambda: restricted(model(4), ("b", "d")))


def test_numbered_folders_are_read_right_from_the_disk_to_the_row(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for k in range(12):
        save_level(tmp_path / "numeric" / str(k) / "0.png", 20 * k)
    data = load_data(f"imagefolder:{tmp_path / 'numeric'}", size_px=16)
    rows = bench(Bench(models=(model(12),), data=data, steps=(1,)), tmp_path / "run")
    clean = rows[rows["kind"] == "clean"].iloc[0]
    assert (clean["accuracy"], clean["labels"], clean["preparation"]) == (1.0, "by number", "as stored")
    assert capfd.readouterr().err.count("it only numbers its classes") == 1
