"""Which models look at which images: both loaded, labels matched, the model asked before anything is run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from robustglimpse.data import DATASETS, Dataset, load_data, resized
from robustglimpse.labels import match_classes
from robustglimpse.machine import name_of
from robustglimpse.models import is_from_outside, load_model
from robustglimpse.models.answers import answers
from robustglimpse.models.preflight import PROBES, check_model
from robustglimpse.models.restricted import restricted
from robustglimpse.notes import tell
from robustglimpse.records import Classifier, UserError
from robustglimpse.store import Provenance
from robustglimpse.texts import check_name


class Source(Protocol):
    """The parts of a request that say which models look at which images."""

    @property
    def models(self) -> tuple[str | Classifier, ...]: ...
    @property
    def data(self) -> str | Dataset | None: ...
    @property
    def split(self) -> str | None: ...
    @property
    def data_dir(self) -> Path | None: ...
    @property
    def size_px(self) -> int | None: ...
    @property
    def download(self) -> bool: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def classes_of_data(self) -> bool: ...


def load_pairs(asked: Source, device: str) -> Iterator[tuple[str, Classifier, Dataset, Provenance]]:
    """Yield every model's name, the model, its data, labels as it numbers them, and what its cells depend on.

    Each set is read once.
    """
    check_counts(asked)
    datasets: dict[tuple[str, int | None], Dataset] = {}
    for name, classifier in each_model(asked.models, device):
        if isinstance(asked.data, Dataset):
            dataset = asked.data.first(asked.limit)
            _tell_of_unused(asked, dataset)
        else:
            data = data_name(asked, classifier)
            size_px = asked.size_px
            if size_px is None and has_sizes(data):
                size_px = classifier.size_px
            if (data, size_px) not in datasets:
                datasets[data, size_px] = load_data(
                    data, split=asked.split, data_dir=asked.data_dir, limit=asked.limit, size_px=size_px,
                    download=asked.download,
                )  # fmt: skip
            dataset = datasets[data, size_px]
            if asked.size_px is None and _learned_resized(classifier, data, dataset):
                dataset = resized(dataset, classifier.size_px)
            _tell_of_flags(asked, data, dataset)
        yield name, *checked(classifier, dataset, device, classes_of_data=asked.classes_of_data)


def checked(
    classifier: Classifier, dataset: Dataset, device: str, *, classes_of_data: bool = False
) -> tuple[Classifier, Dataset, Provenance]:
    """Return the model, once it has answered the first images as a model should, its data and provenance.

    classes_of_data: let it answer with the data's classes alone.  What was decided on the way is told.
    """
    if classifier.renew is not None:  # its owner may have trained it on since it was wrapped
        classifier = replace(classifier, sha256=classifier.renew())
    if classes_of_data:
        classifier = restricted(classifier, [dataset.classes[k] for k in np.unique(dataset.labels)])
    matched = match_classes(dataset, classifier)
    images = next(matched.batches(PROBES)).images.to(device).float() / 255
    classifier = check_model(classifier, images)
    for note in (*matched.notes, *_size_notes(classifier, matched), *classifier.meta.get("notes", ())):
        tell(note)
    return classifier, matched, provenance_of(classifier, matched, answers(classifier, images), device)


def provenance_of(
    classifier: Classifier, dataset: Dataset, answered: tuple[tuple[float, ...], ...], device: str
) -> Provenance:
    """Return what the cells of a model on a set depend on."""
    labels = hashlib.sha256(f"{dataset.numbering} {len(classifier.classes)}\n".encode())
    labels.update(dataset.labels.tobytes())
    return Provenance(
        classifier.sha256, dataset.fingerprint, labels.hexdigest(), dataset.identity or dataset.fingerprint,
        dataset.listing, answered, name_of(device),
    )  # fmt: skip


def _size_notes(classifier: Classifier, dataset: Dataset) -> Iterator[str]:
    """Yield a line where a model gets images of another size than it was made for."""
    if "input_px" in classifier.meta:  # it resizes them itself
        return
    height, width = dataset.images.shape[2:]
    if (height, width) != (classifier.size_px, classifier.size_px):
        yield (
            f"{classifier.name}: made for images of {classifier.size_px} px, gets those of {dataset.name} as "
            f"they are, {width} x {height} px"
        )


def _tell_of_unused(asked: Source, dataset: Dataset) -> None:
    """Tell of what is for data sets by name, and was asked for with one that is read already."""
    given = {"split": asked.split, "data_dir": asked.data_dir, "size_px": asked.size_px}
    unused = [name for name, value in given.items() if value is not None] + ["download"] * asked.download
    if unused:
        tell(f"{dataset.name} is a Dataset, read already; {', '.join(unused)} have no effect on it")


def _tell_of_flags(asked: Source, data: str, dataset: Dataset) -> None:
    """Tell of what was asked for and has no effect on this set."""
    if asked.size_px is not None and not has_sizes(data):
        tell(f"{data}: its images stay {dataset.size_px} px; --size is for folders of images")
    row = DATASETS.get(data)
    if asked.data_dir is not None and row is not None and row.needs.startswith("nothing"):
        tell(f"{data} is embedded; --data-dir has no effect on it")
    if asked.data_dir is not None and data.startswith("imagefolder:"):
        tell(f"{data} names its folder; --data-dir has no effect on it")


def check_counts(asked: Source) -> None:
    """Raise UserError unless the batch size and limit are numbers from 1 up, the size from 0, where given."""
    for what, value, least in (
        ("batch size", asked.batch_size, 1),
        ("limit", asked.limit, 1),
        ("size", asked.size_px, 0),
    ):
        if value is not None and value < least:
            raise UserError(f"{what} must be at least {least}, got {value}")


def has_sizes(data: str) -> bool:
    """Return whether a data set is read at the size that a model asks for."""
    row = DATASETS.get(data.partition(":")[0])
    return row is not None and row.takes_size


def _learned_resized(classifier: Classifier, data: str, dataset: Dataset) -> bool:
    """Return whether a network of ours was trained on this very set, of one size, at another (size_px)."""
    of_ours = "architecture" in classifier.meta and "input_px" not in classifier.meta
    is_its_own = of_ours and classifier.meta.get("dataset") == data and not has_sizes(data)
    return is_its_own and classifier.size_px != dataset.size_px


def each_model(models: Sequence[str | Classifier], device: str) -> Iterator[tuple[str, Classifier]]:
    """Yield every model once, with what it is called in the tables; its notes are told.

    Raises UserError where there is none, or two have one name.
    """
    if not models:
        raise UserError("expected a model or more, got none; list them: robustglimpse list models")
    seen: set[str] = set()
    for model in models:
        if isinstance(model, str) and model in seen:
            continue
        classifier = load_model(model, device=device) if isinstance(model, str) else model
        name = model if isinstance(model, str) and not is_from_outside(model) else classifier.name
        check_name(name, kind="model")
        if name in seen:
            raise UserError(f"two models are called {name!r}; give them names of their own (name='...')")
        seen |= {name, model} if isinstance(model, str) else {name}
        for note in classifier.meta.get("notes", ()):
            tell(note)
        yield name, classifier


def data_name(asked: Source, classifier: Classifier) -> str:
    """Return the name of the data that a model is to be judged on. Raises UserError where there is none."""
    if isinstance(asked.data, Dataset):
        return asked.data.name
    data = asked.data or classifier.meta.get("dataset")
    if not data:
        raise UserError(f"{classifier.name} does not say what it was trained on; name a data set with --data")
    return str(data)
