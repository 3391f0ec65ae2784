"""Which logit a label means: a data set's classes matched to a model's, by name wherever both have names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from robustglimpse.data import Dataset
from robustglimpse.records import Classifier, UserError

Order = Literal["sorted", "natural"]
WNID = re.compile(r"n\d{8}")
SORTED_HINT = "classes='sorted' as torchvision's ImageFolder numbers folders, classes='natural' as timm does"


def match_classes(dataset: Dataset, classifier: Classifier) -> Dataset:
    """Return the data set with its labels renumbered to the classifier's classes.

    Both name their classes: by name.  Only the data does: by the numbers that are the names, or in the data's
    own order where there is but one.  Only the model does, or neither: labels are places among its logits.
    What was taken stands in `numbering`, and in `notes` where only one side has names.
    Raises UserError where a class has no logit, and where two numberings are possible.
    """
    if not dataset.is_named:
        return _as_given(dataset, classifier)
    if classifier.has_names:
        return _by_name(dataset, classifier)
    return _numbered(dataset, classifier)


def _matched(
    dataset: Dataset, classifier: Classifier, places: Sequence[int], numbering: str, note: str = ""
) -> Dataset:
    """Return the data set renumbered: places[k] is the logit of its class k."""
    labels = np.asarray(places, np.int64)[dataset.labels]
    notes = (*dataset.notes, f"{classifier.name}: {note}") if note else dataset.notes
    return replace(
        dataset, labels=labels, classes=classifier.classes, original=dataset.fingerprint,
        numbering=numbering, notes=notes,
    )  # fmt: skip


def _as_given(dataset: Dataset, classifier: Classifier) -> Dataset:
    count, highest = len(classifier.classes), int(dataset.labels.max())
    if highest >= count:
        raise UserError(
            f"{dataset.name}: labels go up to {highest}, and {classifier.name} has {count} logits (labels "
            f"0 to {count - 1}); number the labels from 0, or choose a model with more classes"
        )
    note = ""
    if classifier.has_names:
        first, last = int(dataset.labels.min()), highest
        note = (
            f"{dataset.name} has numbers for labels, taken as places among the model's classes: "
            f"{first} = {classifier.classes[first]}, {last} = {classifier.classes[last]}; "
            "give the set's names (classes=[...]) to match by name"
        )
    return _matched(dataset, classifier, range(count), "as given", note)


def _by_name(dataset: Dataset, classifier: Classifier) -> Dataset:
    ours = {name: k for k, name in enumerate(classifier.classes)}
    missing = [name for name in dataset.classes if name not in ours]
    if missing:
        raise UserError(
            f"{classifier.name} has {len(ours)} classes, {dataset.name} has {len(dataset.classes)}, among "
            f"them {missing[0]!r} that the model lacks ({len(missing)} in all); {_cure(missing, classifier)}"
        )
    left = len(ours) - len(dataset.classes)
    note = ""
    if left:
        note = (
            f"{dataset.name} has {len(dataset.classes)} of its {len(ours)} classes; the other {left} stay "
            "possible answers (--classes-of-data leaves them out)"
        )
    return _matched(dataset, classifier, [ours[name] for name in dataset.classes], "by name", note)


def _cure(missing: Sequence[str], classifier: Classifier) -> str:
    """Return what to do about names that a model with names of its own lacks."""
    folded = {name.casefold().replace(" ", "_"): name for name in classifier.classes}
    alike = folded.get(missing[0].casefold().replace(" ", "_"))
    near = [alike] if alike else difflib.get_close_matches(missing[0], classifier.classes, n=1)
    if near:
        return f"the nearest of its own is {near[0]!r}; spell them alike, or say the model's: classes=[...]"
    return "choose a model trained on this data, or say the names of its logits with classes=[...]"


def _numbered(dataset: Dataset, classifier: Classifier) -> Dataset:
    """Match a set whose classes have names to a model that only numbers its logits."""
    names, count, order = dataset.classes, len(classifier.classes), classifier.meta.get("order")
    if len(names) > count:
        raise UserError(_too_few(dataset, classifier))
    if order:
        return _in_order(dataset, classifier, order)
    numbers = [_number(name) for name in names]
    if all(n is not None and n < count for n in numbers) and len(set(numbers)) == len(numbers):
        places = [int(n) for n in numbers if n is not None]
        note = "" if names == classifier.classes else _by_number(dataset, classifier, places)
        return _matched(dataset, classifier, places, "by number", note)
    if len(names) < count:
        raise UserError(_too_many(dataset, classifier))
    text, natural = sorted(names), sorted(names, key=_natural)
    if list(names) == text and text != natural:
        k = next(k for k in range(count) if text[k] != natural[k])
        raise UserError(
            f"{classifier.name} only numbers its classes, and {dataset.name}'s can be numbered in two ways: "
            f"{k} is {text[k]!r} as text and {natural[k]!r} in natural order; say {SORTED_HINT}, or list the "
            "names in the order of the logits: classes=[...]"
        )
    note = (
        f"it only numbers its classes, taken in the order of {dataset.name}: 0 = {names[0]}, {count - 1} = "
        f"{names[-1]}; where its logits have another, list their names: classes=[...]"
    )
    return _matched(dataset, classifier, range(count), "in the set's order", note)


def _in_order(dataset: Dataset, classifier: Classifier, order: Order) -> Dataset:
    names = dataset.classes
    if len(names) != len(classifier.classes):
        raise UserError(_too_many(dataset, classifier))
    ranked = sorted(names, key=_natural) if order == "natural" else sorted(names)
    place = {name: k for k, name in enumerate(ranked)}
    return _matched(dataset, classifier, [place[name] for name in names], f"in {order} order")


def _by_number(dataset: Dataset, classifier: Classifier, places: Sequence[int]) -> str:
    """Return the note on classes whose names are numbers."""
    k = len(places) - 1
    note = (
        f"it only numbers its classes, and those of {dataset.name} are numbers: {dataset.classes[k]!r} is "
        f"taken as logit {places[k]}"
    )
    if len(places) < len(classifier.classes) or list(places) == list(range(len(places))):
        return note
    k = next(k for k, place in enumerate(places) if place != k)
    return (
        f"{note}; torchvision's ImageFolder numbers folders as text, {dataset.classes[k]!r} as {k}: say "
        "classes='sorted' for a model trained that way"
    )


def _number(name: str) -> int | None:
    """Return the number that a name is, leading zeros or not, else None."""
    return int(name) if name.isascii() and name.isdigit() and len(name) < 10 else None


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Return the key that sorts as timm does: case aside, runs of digits as numbers."""
    parts = [part for part in re.split(r"(\d+)", name.lower()) if part]
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def _too_few(dataset: Dataset, classifier: Classifier) -> str:
    return (
        f"{classifier.name} has {len(classifier.classes)} logits and {dataset.name} "
        f"{len(dataset.classes)} classes; choose a model with as many, or leave the other folders out"
    )


def _too_many(dataset: Dataset, classifier: Classifier) -> str:
    """Return why fewer classes than logits cannot be matched, and the nearest cure."""
    count, names = len(classifier.classes), dataset.classes
    known = {1000: "classes='imagenet'", 100: "classes='imagenet100'"}
    is_wnids = all(WNID.fullmatch(name) for name in names)
    cure = known.get(count, "") if is_wnids else ""
    cure = f"{cure}, or " if cure else ""
    return (
        f"{classifier.name} has {count} logits without names, {dataset.name} {len(names)} classes (the first "
        f"is {names[0]!r}); name the logits in their order: {cure}classes=[...] or a file of names"
    )
