"""The cases of a glimpse sheet: images found, attacked, and what the network saw in them before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustglimpse import evaluate
from robustglimpse.data import Dataset
from robustglimpse.models.exits import confidence
from robustglimpse.models.mgnet import look
from robustglimpse.notes import tell
from robustglimpse.records import Batch, Classifier, Norm, UserError
from robustglimpse.registry import unknown
from robustglimpse.report.glimpses import Case, Look, choose, quotas
from robustglimpse.request import check_asked, understood
from robustglimpse.runner import Bench, Work, choose_device, plan_work
from robustglimpse.surroundings import own_surroundings

# What became of a clean image: whether the answer after its first and its last glimpse is right.
PICKS: dict[str, tuple[bool | None, bool]] = {
    "correct": (None, True),
    "wrong": (None, False),
    "saved": (False, True),
    "lost": (True, False),
}


@understood
@dataclass(frozen=True)
class Sheet:
    """What `robustglimpse glimpses` is asked for; every field is also a flag, most of them those of Bench.

    indices: the images shown, by their places in the data set; () to choose count of the first limit ones.
    pick: a word of PICKS to choose by the clean answers, whatever the attack does then: "correct" or "wrong"
        at the end, "saved" (wrong after the first glimpse, right at the end) or "lost" (the opposite); "" for
        some that were fooled, stand, and were wrong before.
    """

    model: str | Classifier
    indices: tuple[int, ...] = ()
    count: int = 8
    pick: str = ""
    attack: str = "pgd"
    steps: tuple[int, ...] = (16,)
    eps: str = "4/255"
    step_size: str = "1/255"
    norm: Norm = "linf"
    restarts: int = 1
    protocol: str = "standard"
    data: str | Dataset | None = None
    split: str | None = None
    data_dir: Path | None = None
    size_px: int | None = None
    download: bool = False
    limit: int | None = 256
    batch_size: int = 32
    seed: int = 0
    device: str = "auto"
    classes_of_data: bool = False


@own_surroundings()
def find_cases(asked: Sheet) -> tuple[str, list[Case]]:
    """Return what was done to which model, and the images asked for before and after it.

    Else those of its pick, or some that were fooled, some that stand and some that were wrong before: the
    first of their kind in the data set's order, so that the same request shows the same.
    Raises UserError for what cannot be asked, and where no image is of its pick.
    """
    check_asked(asked, Sheet, "find_cases(Sheet('mgnet-r18'))")
    if asked.count < 1:
        raise UserError(f"count must be at least 1, got {asked.count}; for example --count 8")
    if any(index < 0 for index in asked.indices):
        raise UserError(f"an image's index must be from 0 up, got {min(asked.indices)}")
    if asked.pick and asked.pick not in PICKS:
        raise unknown(asked.pick, PICKS, kind="pick")
    if asked.pick and asked.indices:
        raise UserError("images are chosen by --index or by --pick; leave one of them out")
    device = choose_device(asked.device)
    shared = {field.name: getattr(asked, field.name) for field in fields(Bench) if hasattr(asked, field.name)}
    shared |= {"models": (asked.model,), "attacks": (asked.attack,), "protocols": (asked.protocol,)}
    if asked.indices:
        shared["limit"] = max(asked.indices) + 1
    _, work = plan_work(Bench(**shared), device)
    title = _title(work, asked)
    if work.classifier.meta.get("architecture") is None and work.classifier.meta.get("exits", 1) == 1:
        tell(f"{work.cell.model}: it has no glimpses, so the sheet shows the whole image")
    if asked.indices:
        return title, [case for batch in _named(work.dataset, asked) for case in _cases(work, batch, device)]
    if asked.pick:
        return f"{title}; {asked.pick}", _picked(work, asked, device)
    found: list[Case] = []
    wanted = quotas(asked.count)
    for batch in work.dataset.batches(asked.batch_size):
        found += _cases(work, batch, device)
        if all(sum(case.kind == kind for case in found) >= quota for kind, quota in wanted.items()):
            break
    return title, choose(found, asked.count)


def _title(w: Work, asked: Sheet) -> str:
    """Return "mgnet-r18 on glimpse-digits, PGD linf 4/255, 16 steps, standard"."""
    assert w.plan is not None
    steps = w.plan.steps[-1]
    parts = [f"{w.cell.model} on {w.cell.data}", f"{w.plan.attack.name.upper()} {asked.norm} {asked.eps}"]
    if steps > 1 and steps != evaluate.TO_THE_END:
        parts.append(f"{steps} steps")
    return ", ".join([*parts, asked.protocol])


def _picked(w: Work, asked: Sheet, device: str) -> list[Case]:
    """Return the first images whose clean answers are those of the pick; no others are attacked."""
    if w.classifier.meta.get("exits", 1) == 1 and PICKS[asked.pick][0] is not None:
        raise UserError(
            f"{w.cell.model} answers once, so that no image is {asked.pick} between its first glimpse and "
            "its last; pick correct or wrong"
        )
    found: list[Case] = []
    for batch in w.dataset.batches(asked.batch_size):
        is_picked = _is_picked(w.classifier, batch, asked.pick, device)
        rows = is_picked.nonzero()[: asked.count - len(found), 0]
        if len(rows):
            chosen = replace(
                batch, images=batch.images[rows], labels=batch.labels[rows], index=batch.index[rows]
            )
            found += _cases(w, chosen, device)
        if len(found) == asked.count:
            return found
    seen = f"the first {len(w.dataset.labels)} images"
    if not found:
        raise UserError(f"none of {seen} is {asked.pick}; look at more of them with --limit")
    tell(f"{len(found)} of {seen} are {asked.pick}, fewer than the {asked.count} asked for")
    return found


def _is_picked(classifier: Classifier, batch: Batch, pick: str, device: str) -> Tensor:
    """Return which clean images of a batch are of the pick, bool [B]."""
    with torch.no_grad():
        exits = classifier.exits(batch.images.to(device).float() / 255).cpu()
    is_right = exits.argmax(2) == batch.labels
    first, last = PICKS[pick]
    return (is_right[-1] == last) & (True if first is None else is_right[0] == first)


def _named(dataset: Dataset, asked: Sheet) -> Iterator[Batch]:
    """Yield the images asked for, in the order asked."""
    last = len(dataset.labels) - 1
    if max(asked.indices) > last:
        raise UserError(f"{dataset.name} has images 0 to {last}, not {max(asked.indices)}")
    for start in range(0, len(asked.indices), asked.batch_size):
        index = np.array(asked.indices[start : start + asked.batch_size])
        images, labels = torch.from_numpy(dataset.images[index]), torch.from_numpy(dataset.labels[index])
        yield Batch(images, labels, torch.from_numpy(index))


def _cases(w: Work, batch: Batch, device: str) -> Iterator[Case]:
    """Yield every image of a batch, before and after the attack."""
    assert w.plan is not None
    _, shown = evaluate.attack_images(w.classifier, batch, w.plan, device=device, key=w.cell.key)
    before = looks(w.classifier, batch.images.to(device).float() / 255)
    after = looks(w.classifier, shown)
    labels = [w.classifier.classes[label] for label in batch.labels.tolist()]
    for case in zip(batch.index.tolist(), labels, before, after, strict=True):
        yield Case(*case)


def looks(classifier: Classifier, x: Tensor) -> Sequence[Look]:
    """Return what the network saw in each image, x f32 [B,3,H,W] in [0,1], and what it answered."""
    with torch.no_grad():
        exits, regions = classifier.exits(x), classifier.trace(x)
    if regions.shape != (len(exits), len(x), 3):
        raise UserError(
            f"{classifier.name}: expected a region for each of {len(exits)} exits from trace, "
            f"[{len(exits)},{len(x)},3], got {list(regions.shape)}; of the whole image it is (1, 0, 0)"
        )
    architecture = classifier.meta.get("architecture")
    side = min(x.shape[2:])
    side = side if architecture is None else architecture.glimpse_px(side)
    whole = regions.new_tensor([1.0, 0.0, 0.0])
    glimpses = [
        # A model without glimpses sees the image as it is, also where that is no square.
        _picture(x if architecture is None and bool((region == whole).all()) else look(x, region, side))
        for region in regions
    ]
    answers, sure = exits.argmax(2).T.tolist(), confidence(exits).T.tolist()
    return [
        Look(
            image, regions[:, i].double().cpu().numpy(), np.stack([glimpse[i] for glimpse in glimpses]),
            tuple(classifier.classes[k] for k in answers[i]), tuple(sure[i]),
        )
        for i, image in enumerate(_picture(x))
    ]  # fmt: skip


def _picture(x: Tensor) -> NDArray[np.uint8]:
    """Return images f32 [B,3,H,W] as u8 [B,H,W,3], cut to [0,1]."""
    levels: NDArray[np.uint8] = (x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return levels
