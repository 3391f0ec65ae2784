"""What classes= may say: names in any form, their number, or how data's folders are numbered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustglimpse.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES
from robustglimpse.models.naming import Naming, imagenet_wnids, numbers, read_naming
from robustglimpse.records import UserError


@pytest.mark.parametrize(
    "value",
    [
        ["cat", "dog"],
        ("cat", "dog"),
        np.array(["cat", "dog"]),
        {"cat": 0, "dog": 1}.keys(),
        {"dog": 1, "cat": 0},  # class_to_idx of torchvision's ImageFolder
        {1: "dog", 0: "cat"},  # id2label
    ],
)
def test_names_in_any_form_are_those_names(value: Any) -> None:
    assert read_naming(value, "it") == Naming(("cat", "dog"))


@pytest.mark.parametrize("value", [3, np.int64(3), np.array(3), torch.tensor(3)])
def test_a_number_of_any_library_counts_classes_that_have_no_names(value: Any) -> None:
    assert read_naming(value, "it") == Naming(count=3)
    assert read_naming(value, "it").size == 3


def test_numbers_in_a_list_are_names() -> None:
    assert read_naming([10, np.int64(2)], "it").names == ("10", "2")


def test_nothing_and_an_order_leave_the_number_to_the_model() -> None:
    assert read_naming(None, "it") == Naming()
    for order in ("sorted", "natural"):
        said = read_naming(order, "it")
        assert (said.names, said.size, said.order) == (None, None, order)


def test_well_known_sets_are_their_classes_in_the_order_of_their_logits() -> None:
    assert read_naming("imagenet", "it").names == imagenet_wnids()
    assert read_naming("imagenet100", "it").names == imagenet_wnids()[:100]
    assert read_naming("cifar10", "it").names == CIFAR10_CLASSES
    assert read_naming("cifar100", "it").names == CIFAR100_CLASSES
    assert len(CIFAR100_CLASSES) == 100


@pytest.mark.parametrize("how", [str, Path])
def test_a_file_has_a_name_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffgrey wolf \r\nkäfer\r\n\r\n".encode())
    assert read_naming(how(file), "it").names == ("grey wolf", "käfer")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_naming(how("~/names.txt"), "it").names == ("grey wolf", "käfer")


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "cannot be read (No such file or directory)"),
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"cat\n\ndog\n", "has no name on line 2"),
        (b"cat\ndog\ncat\n", "names 'cat' twice, as logits 0 and 2"),
        (b"k\xe4fer\n", "it is not UTF-8"),
    ],
)
def test_a_file_of_names_that_is_none_is_refused_in_one_line(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_naming(tmp_path / "names.txt", "it")
    assert words in str(caught.value)
    assert str(caught.value).startswith("it: ")
    assert "\n" not in str(caught.value)


def test_imagenets_names_of_which_two_are_alike_are_sent_to_its_ids() -> None:
    names = [*numbers(998), "crane", "crane"]
    with pytest.raises(UserError, match=r"'crane' twice.*classes='imagenet'"):
        read_naming(names, "it")


@pytest.mark.parametrize(
    "value",
    [0, -1, True, 2.0, [], ["a", 1.5], {"a", "b"}, b"ab", "digits", "names.csv", [["a"]], object(), ""],
)
def test_what_says_nothing_of_classes_is_refused_with_what_may_be_said(value: Any) -> None:
    with pytest.raises(UserError, match="classes must be a number, a list of names, a file") as caught:
        read_naming(value, "it")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value, words",
    [
        (["a", "a"], "'a' twice"),
        ([1, "1"], "'1' twice"),
        (["a", " "], "class 1 has no name"),
        ({"a": 0, "b": 2}, "a number of its own, 0 to 1"),
        ({"a": 0, "b": 0}, "a number of its own, 0 to 1"),
        (Path("names.csv"), r"ends in .txt"),
    ],
)
def test_names_that_are_not_one_for_each_logit_are_refused(value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_naming(value, "it")
