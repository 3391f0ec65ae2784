"""Models x corruptions x severities: the cells of Table 2, planned, run and read back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustglimpse.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    check_choices,
    names,
    preset_for,
    takes_textures,
)
from robustglimpse.corruptions.weather import frost_source
from robustglimpse.data import DATASETS, Dataset, check_download, load_data
from robustglimpse.data.precomputed import AS_SAVED, check_alike, find_cell, held_corruptions, load_cell
from robustglimpse.notes import tell
from robustglimpse.pairs import check_counts, checked, data_name, each_model, has_sizes, load_pairs
from robustglimpse.records import Cell, Classifier, Threat, UserError
from robustglimpse.registry import Call
from robustglimpse.report import paired
from robustglimpse.report.table2 import Baseline, alexnet, baseline_from, is_extra
from robustglimpse.request import check_asked, understood
from robustglimpse.runner import CLEAN, Corruption, Work, choose_device, run_all, run_info
from robustglimpse.store import Provenance, Store, read_results
from robustglimpse.surroundings import own_surroundings

UNTOUCHED = Threat("linf", 0.0)


@understood
@dataclass(frozen=True)
class Sweep:
    """What `robustglimpse corruptions` is asked for; every field is also a flag.

    corruptions: names; () for the 15 of the paper.  extras: add the 4 others to those.
    preset: whose constants, 32, 64 or 224; by the images' size when None.
    store: "jpeg85" adds the JPEG that the published sets were saved in.
    models: names, .safetensors files, calls of models.SOURCES, or Classifiers (models.sources.wrap makes one
        of any nn.Module).
    data: a data set to corrupt (its name, or a Dataset), or one that is saved corrupted ("imagenet-c");
        None takes the one that the models were trained on.
    """

    models: tuple[str | Classifier, ...]
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = SEVERITIES
    extras: bool = False
    preset: int | None = None
    store: str = "exact"
    frost_dir: Path | None = None
    data: str | Dataset | None = None
    split: str | None = None
    data_dir: Path | None = None
    size_px: int | None = None
    download: bool = False
    limit: int | None = None
    batch_size: int = 64
    seed: int = 0
    device: str = "auto"
    classes_of_data: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The corruptions of ours that are asked for, in the paper's order."""
        chosen = {
            *(self.corruptions or names()),
            *(names(extras=True)[len(names()) :] if self.extras else ()),
        }
        return tuple(name for name in CORRUPTIONS if name in chosen)


@own_surroundings()
def sweep_corruptions(asked: Sweep, out: Path, *, command: str = "") -> pd.DataFrame:
    """Run every cell that out does not hold yet; return the rows asked for, as in out/results.csv.

    Each model is judged on the clean images and on every corruption at every severity, at every exit
    from one pass.  Images are decoded once and corrupted once for all models.  Raises UserError for what
    cannot be asked, before anything is run.
    """
    check_asked(asked, Sweep, "sweep_corruptions(Sweep(models='mgnet-r18'), 'runs/mine')")
    _check(asked)
    device = choose_device(asked.device)
    groups = list(_saved_groups(asked, device) if _is_saved(asked) else _own_groups(asked, device))
    work = [w for group in groups for w in group]
    store = Store(out)
    store.add_run(run_info(asked, work, device, command))
    run_all(groups, store, device, title="corruptions")
    return store.results({w.cell.key for w in work})


def _is_saved(asked: Sweep) -> bool:
    """Return whether the data are saved corrupted, by others or by `robustglimpse corrupt`."""
    return isinstance(asked.data, str) and asked.data in DATASETS and DATASETS[asked.data].is_corrupted


def _check(asked: Sweep) -> None:
    """Raise UserError for what cannot be asked."""
    check_counts(asked)
    is_saved = _is_saved(asked)  # such a set has corruptions of its own
    check_choices(corruptions=() if is_saved else asked.corruptions, preset=asked.preset, store=asked.store)
    for severity in asked.severities:
        check_choices(severity=severity)
    if not is_saved and any(map(takes_textures, asked.names)):
        frost_source(asked.frost_dir)


def _own_groups(asked: Sweep, device: str) -> Iterator[list[Work]]:
    """Yield the clean cells, then for every corruption and severity the cells that see the same images."""
    clean = [_clean_work(asked, *pair) for pair in load_pairs(asked, device)]
    alike: dict[str, list[Work]] = {}
    for w in clean:
        alike.setdefault(w.provenance.data_sha256, []).append(w)
    yield from alike.values()
    for name in asked.names:
        for severity in sorted(set(asked.severities)):
            for group in alike.values():
                preset = asked.preset or preset_for(*group[0].dataset.images.shape[2:])
                texture = frost_source(asked.frost_dir) if takes_textures(name) else ""
                corruption = Corruption(name, severity, preset, asked.store, texture, asked.frost_dir)
                yield [_corrupted(w, corruption, asked.seed) for w in group]


def _clean_work(
    asked: Sweep, name: str, classifier: Classifier, dataset: Dataset, provenance: Provenance
) -> Work:
    cell = Cell(
        model=name, data=data_name(asked, classifier), split=dataset.split,
        perturb=CLEAN, threat=UNTOUCHED, protocol="", restarts=1, limit=asked.limit,
        batch_size=asked.batch_size, seed=0, exits="all", classes_of_data=asked.classes_of_data,
    )  # fmt: skip
    return Work(cell, classifier, dataset, provenance)


def _corrupted(clean: Work, corruption: Corruption, seed: int) -> Work:
    options: dict[str, Any] = {"severity": corruption.severity, "preset": corruption.preset}
    options["store"] = corruption.store
    if corruption.texture:
        options["texture"] = corruption.texture
    call = Call(corruption.name, tuple(sorted(options.items())))
    cell = replace(clean.cell, perturb=str(call), seed=seed)
    return replace(clean, cell=cell, corruption=corruption, clean=clean.cell)


def _saved_groups(asked: Sweep, device: str) -> Iterator[list[Work]]:
    """Yield a group per cell of a set that is saved corrupted; all must be there, with the same images."""
    data = str(asked.data)
    if asked.download:
        check_download(data, DATASETS[data])
    _tell_of_flags(asked, data)
    cells = [(name, severity) for name in _saved_names(asked) for severity in sorted(set(asked.severities))]
    for name, severity in cells:
        find_cell(data, asked.data_dir, name, severity)
    classifiers = dict(each_model(asked.models, device))
    known = {model: c.classes if c.has_names else None for model, c in classifiers.items()}
    check_alike(data, asked.data_dir, cells, known.values())
    first: dict[Any, Dataset] = {}
    for name, severity in cells:
        loaded: dict[Any, tuple[Dataset, tuple[str, ...]]] = {}  # models of one kind share the images
        for model, classifier in classifiers.items():
            size_px = classifier.size_px if asked.size_px is None else asked.size_px or None
            kind = known[model], size_px
            if kind not in loaded:
                loaded[kind] = load_cell(
                    data, corruption=name, severity=severity, data_dir=asked.data_dir, limit=asked.limit,
                    known=known[model], size_px=size_px,
                )  # fmt: skip
                _check_prepared_alike(first.setdefault(kind, loaded[kind][0]), loaded[kind][0])
            corruption = Corruption(name, severity, store=AS_SAVED)
            yield [_saved_work(asked, model, classifier, corruption, *loaded[kind], device)]


def _check_prepared_alike(first: Dataset, cell: Dataset) -> None:
    """Raise UserError where a cell's images have another size than the first's.

    Tells where they have the same and were brought to it in another way.
    """
    if first.images.shape[2:] != cell.images.shape[2:]:
        ours, theirs = ("{1} x {0}".format(*each.images.shape[2:]) for each in (first, cell))
        raise UserError(
            f"{cell.name}: images of {cell.split} are {theirs} px, those of {first.split} {ours} px; cells "
            "of one mean must have one size: leave --size 0 out, or run them one by one"
        )
    if first.preparation != cell.preparation:
        tell(
            f"{cell.name}: images of {cell.split} are prepared otherwise than those of {first.split} "
            f"({cell.preparation}; {first.preparation}), and one mean holds both"
        )


def _saved_names(asked: Sweep) -> tuple[str, ...]:
    """Return which corruptions of a saved set are meant: those asked for, else the 15, else all it holds.

    Names that are not ours are fine (ImageNet-C-bar, 3DCC); what was taken without being asked for is told.
    """
    more = names(extras=True)[len(names()) :] if asked.extras else ()
    if asked.corruptions:
        return _ordered((*asked.corruptions, *more))
    held = held_corruptions(str(asked.data), asked.data_dir)
    own = [name for name in _ordered(held) if name not in CORRUPTIONS]
    if set(names()) <= set(held):
        if own:
            tell(
                f"{asked.data}: the 15 corruptions of the paper are taken; {', '.join(own)} are left out, "
                "name them with --corruption"
            )
        return _ordered((*names(), *more))
    ours = len(set(held) & set(names()))
    tell(
        f"{asked.data}: it holds {ours} of the 15 corruptions of the paper, so all that is there is taken: "
        f"{', '.join(_ordered(held))}"
    )
    return _ordered((*held, *more))


def _ordered(chosen: Iterable[str]) -> tuple[str, ...]:
    """Return names once each: ours in the paper's order, then others."""
    ranks = {name: rank for rank, name in enumerate(CORRUPTIONS)}
    return tuple(sorted(set(chosen), key=lambda name: (ranks.get(name, len(ranks)), name)))


def _tell_of_flags(asked: Sweep, data: str) -> None:
    """Tell of what was asked for and has no effect on a set that is saved corrupted."""
    for flag, is_given in (
        ("--preset", asked.preset is not None),
        ("--store", asked.store != "exact"),
        ("--frost-dir", asked.frost_dir is not None),
        ("--seed", asked.seed != 0),
        ("--split", asked.split is not None),
        ("--size", asked.size_px is not None and not has_sizes(data)),
    ):
        if is_given:
            tell(f"{data} is saved corrupted; {flag} has no effect on it")


def _saved_work(
    asked: Sweep,
    model: str,
    classifier: Classifier,
    corruption: Corruption,
    dataset: Dataset,
    left_out: tuple[str, ...],
    device: str,
) -> Work:
    """Return the work of a model on a saved cell. left_out: its classes that the model does not have."""
    if left_out:
        tell(
            f"{dataset.name} {dataset.split}: {len(left_out)} of its classes are not {model}'s "
            f"({left_out[0]}, ...); their images are left out"
        )
    pair = checked(classifier, dataset, device, classes_of_data=asked.classes_of_data)
    work = _clean_work(asked, model, *pair)
    call = Call(corruption.name, (("severity", corruption.severity),))
    return replace(work, cell=replace(work.cell, perturb=str(call)), corruption=corruption)


def correctness(results: pd.DataFrame, store: Store) -> pd.DataFrame:
    """Return what each exit left right, f64: a row per model, exit and corruption, a column per image.

    The value is the image's mean over the severities in results: what paired comparisons need.  Empty
    where the models saw different images.
    """
    rows = results[(results["status"] == "ok") & (results["kind"] == "corruption")]
    images = {key: store.images(key) for key in rows["cell"].unique()}
    by_cell = rows.assign(images=rows["cell"].map(images)).groupby(["corruption", "severity"])["images"]
    if (by_cell.nunique() > 1).any():
        rows = rows[:0]
    outcomes = {key: store.outcomes(key) for key in rows["cell"].unique()}
    return paired.correctness(
        (
            (str(row["model"]), int(row["exit"]), str(row["corruption"])),
            paired.still_right(
                outcomes[row["cell"]], exit_number=int(row["exit"]), judge="", steps=0, most=0
            ),
        )
        for row in rows.to_dict("records")
    )


def read_baseline(asked: str | None) -> Baseline | None:
    """Return what mCE is to divide by: None, "alexnet", or the one model of a results.csv."""
    if asked is None or asked == "alexnet":
        return alexnet() if asked else None
    return baseline_from(read_results(Path(asked)), where=asked)


def misfit(baseline: Baseline, results: pd.DataFrame) -> str:
    """Return why results cannot be divided by the baseline, or "" where they can."""
    rows = results[(results["status"] == "ok") & (results["kind"] == "corruption")]
    is_imagenet = (rows["dataset"] == "imagenet-c") & (rows["classes"] == 1000) & (rows["size_px"] == 224)
    if baseline == alexnet() and not is_imagenet.all():
        return (
            "AlexNet's errors are those of 1000-class ImageNet-C at 224 px, not of "
            f"{', '.join(sorted(set(rows['dataset'])))} with {rows['classes'].min()} classes at "
            f"{rows['size_px'].min()} px; give the results.csv of a model on the same set"
        )
    asked = set(results[results["kind"] == "corruption"]["corruption"])
    severities = tuple(sorted(int(s) for s in rows["severity"].unique()))
    if baseline.severities != severities:
        return f"{baseline.name} has the severities {baseline.severities}, not {severities}"
    lacking = sorted({name for name in asked if not is_extra(name)} - set(baseline.errors))
    return f"{baseline.name} lacks {', '.join(lacking)}" if lacking else ""


def sheet(asked: Sweep, index: int) -> tuple[dict[tuple[str, int], NDArray[np.uint8]], NDArray[np.uint8]]:
    """Return an image of the data set under all its corruptions and severities, and the image, u8 [H,W,3].

    index: its place in the set's fixed order; it is corrupted there as a sweep corrupts it.
    """
    import torch

    from robustglimpse.corruptions import corrupt
    from robustglimpse.rng import KeyedDraws

    _check(asked)
    if _is_saved(asked):
        raise UserError(f"a sheet shows one clean image corrupted, and {asked.data} is saved corrupted")
    if index < 0:
        raise UserError(f"the sheet's index must be from 0 up, got {index}")
    dataset = asked.data if isinstance(asked.data, Dataset) else load_data(
        asked.data or "glimpse-digits", split=asked.split, data_dir=asked.data_dir, limit=index + 1,
        size_px=asked.size_px, download=asked.download,
    )  # fmt: skip
    if not 0 <= index < len(dataset.labels):
        raise UserError(f"{dataset.name} has images 0 to {dataset.total - 1}, not {index}")
    for note in dataset.notes:
        tell(note)
    image = torch.from_numpy(np.array(dataset.images[index]))[None]
    draws = KeyedDraws(asked.seed, torch.tensor([index]))
    pictures = {
        (name, severity): corrupt(
            image, name, severity, draws=draws, preset=asked.preset, store=asked.store,
            frost_dir=asked.frost_dir,
        )[0].permute(1, 2, 0).numpy()
        for name in asked.names
        for severity in sorted(set(asked.severities))
    }  # fmt: skip
    return pictures, image[0].permute(1, 2, 0).numpy()
