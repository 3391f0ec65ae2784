"""Commands: each parses, makes one library call and prints. The only exit codes.

Data goes to stdout, notes to stderr.
Nothing here imports torch at the top: --help and list start without it.
"""

from __future__ import annotations

import logging
import shlex
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from robustglimpse.notes import LOG
from robustglimpse.records import PROTOCOLS, UserError
from robustglimpse.texts import safe

app = typer.Typer(
    help="Adversarial and corruption robustness of image classifiers, in numbers that hold.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)


# Options that several commands share.
FACTORY_HELP = "`package.module:factory` imports and runs that code with your rights."
MODEL_HELP = (
    "A name from `list models`, a .safetensors file, or a call: torchvision:resnet50. "
    f"{FACTORY_HELP} Repeatable."
)
Eps = Annotated[str, typer.Option(help="Radius of the ball, in [0,1] pixel units.")]
StepSize = Annotated[str, typer.Option(help="Size of a step, in the units of eps.")]
Data = Annotated[str | None, typer.Option(help="See `bench`.  [default: the model's own]")]
AttackSeed = Annotated[int, typer.Option(help="Seed of what is random in an attack.")]
DataDir = Annotated[Path | None, typer.Option(help="The data set's archive or folder.")]
Split = Annotated[str | None, typer.Option(help="Which split.  [default: the data set's test split]")]
Size = Annotated[
    int | None,
    typer.Option(
        help="Side of the images of an image folder, px; 0 for as stored.  [default: the model's own]"
    ),
]
Download = Annotated[bool, typer.Option("--download", help="Fetch the public archive of --data, if any.")]
ClassesOfData = Annotated[
    bool,
    typer.Option(
        "--classes-of-data",
        help="Let a model answer with the data's classes alone, by name: for ImageNet-A, -R and the like.",
    ),
]
Limit = Annotated[int | None, typer.Option(help="Use so many images, of all classes.  [default: all]")]
BatchSize = Annotated[
    int, typer.Option(help="Images at a time; results do not depend on it, but for a library's attacks.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
FrostDir = Annotated[
    Path | None,
    typer.Option(
        help="Frost textures; `procedural:` for our own.  "
        "[default: those of an installed imagecorruptions, else our own]"
    ),
]
Corruptions = Annotated[
    list[str] | None,
    typer.Option(
        help="A name from `list corruptions`, or of a saved set. Repeatable.  [default: the 15 of the paper]"
    ),
]


class NormChoice(StrEnum):
    """Norms of the ball."""

    linf = "linf"
    l2 = "l2"


Norm = Annotated[NormChoice, typer.Option(help="Norm of the ball.")]


class PickChoice(StrEnum):
    """What became of the clean images of a glimpse sheet."""

    correct = "correct"
    wrong = "wrong"
    saved = "saved"
    lost = "lost"


class StoreChoice(StrEnum):
    """How corrupted images are kept."""

    exact = "exact"
    jpeg85 = "jpeg85"


class PrecisionChoice(StrEnum):
    """What training computes in."""

    f32 = "f32"
    bf16 = "bf16"


class ProfileFormat(StrEnum):
    """How costs are printed."""

    table = "table"
    json = "json"


class Verified(StrEnum):
    """What can be verified."""

    corruptions = "corruptions"


class Listing(StrEnum):
    """What can be listed."""

    models = "models"
    attacks = "attacks"
    corruptions = "corruptions"
    data = "data"
    protocols = "protocols"
    recipes = "recipes"


INTERRUPTED = 130


def main() -> None:
    """Run the command line. A UserError is one line on stderr and exit code 2."""
    try:
        app(prog_name="robustglimpse")
    except UserError as error:
        LOG.debug("%s", traceback.format_exc())
        print(f"robustglimpse: {safe(error, 'terminal')}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:
        # Typer turns Ctrl-C into this exit code, without a word.
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:
            raise
        print("robustglimpse: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _version(wanted: bool) -> None:
    if wanted:
        import robustglimpse

        print(robustglimpse.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print where it failed, before the command: --debug bench ...")
    ] = False,
) -> None:
    if debug:
        LOG.setLevel(logging.DEBUG)


@app.command()
def bench(
    model: Annotated[list[str], typer.Option(help=MODEL_HELP)],
    attack: Annotated[
        list[str], typer.Option(help='A name from `list attacks`, or a call: "pgd(steps=40)". Repeatable.')
    ] = ["pgd"],  # noqa: B006 - typer copies it
    steps: Annotated[
        str, typer.Option(help="Step counts to report; one run of the largest gives all.")
    ] = "1,2,4,8,16",
    eps: Eps = "4/255",
    curve: Annotated[
        str, typer.Option(help="`eps`: accuracy against eps, for --eps 1/255,2/255,4/255 or 8 parts of one.")
    ] = "",
    step_size: StepSize = "1/255",
    norm: Norm = NormChoice.linf,
    restarts: Annotated[int, typer.Option(help="Random starts; the worst counts.")] = 1,
    protocol: Annotated[list[str], typer.Option(help=f"{', '.join(PROTOCOLS)}. Repeatable.")] = ["standard"],  # noqa: B006
    data: Annotated[
        str | None,
        typer.Option(help="A name from `list data`, or imagefolder:PATH.  [default: the model's own]"),
    ] = None,
    data_dir: DataDir = None,
    split: Split = None,
    size: Size = None,
    download: Download = False,
    classes_of_data: ClassesOfData = False,
    limit: Limit = None,
    batch_size: BatchSize = 64,
    seed: Annotated[int, typer.Option(help="Seed of the random starts.")] = 0,
    device: Device = "auto",
    exits: Annotated[
        bool, typer.Option("--exits", help="Judge every exit of MGNet, not only the last.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Results directory; what is already in it is not run again.")
    ] = Path("runs/bench"),
) -> None:
    """Attack models and write a tidy table and Figure 4 (accuracy against steps).

    Examples:

        robustglimpse bench --model mgnet-r18 --attack pgd

        robustglimpse bench --model ffnet-r18 --model mgnet-r18 --protocol paper --protocol adaptive

        robustglimpse bench --model mgnet-r18 --attack fgsm --attack "pgd(steps=40)" --eps 2/255 --limit 200

        robustglimpse bench --model mgnet-r18 --curve eps --eps 2/255,4/255,8/255 --limit 64

        robustglimpse bench --model "torchvision:resnet18(weights='mine.pth', classes=2)"
        --data imagefolder:photos
    """
    from robustglimpse.report import figures, tables
    from robustglimpse.runner import Bench, steps_unused
    from robustglimpse.runner import bench as run
    from robustglimpse.store import Store

    asked = Bench(
        models=tuple(model), attacks=tuple(attack), steps=_steps(steps), eps=eps, step_size=step_size,
        curve=curve, norm=norm.value, restarts=restarts, protocols=tuple(protocol), data=data, split=split,
        data_dir=data_dir, size_px=size, download=download, limit=limit, batch_size=batch_size, seed=seed,
        device=device, all_exits=exits, classes_of_data=classes_of_data,
    )  # fmt: skip
    for line in steps_unused(asked):
        print(line, file=sys.stderr)
    results = run(asked, out, command=shlex.join(["robustglimpse", *sys.argv[1:]]))
    is_attacked = (results["status"] == "ok") & (results["kind"] == "attack")
    if is_attacked.any():
        print(tables.eps_table(results) if curve else tables.steps_table(results))
        stem, draw = ("eps_curve", figures.eps_figure) if curve else ("figure4", figures.figure4)
        figure, store = draw(results), Store(out)
        for name in ("png", "svg"):
            store.write_figure(f"{stem}.{name}", figures.render(figure, name))
        print(f"\n{out / 'results.csv'}\n{out / f'{stem}.png'}")
    if (results["status"] != "ok").any():
        raise typer.Exit(1)


def _steps(text: str, what: str = "steps", example: str = "--steps 1,2,4,8,16") -> tuple[int, ...]:
    """Return the whole numbers in "1,2,4"."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"{what} must be whole numbers with commas between, got {text!r}; try {example}"
        ) from None


@app.command()
def corruptions(
    model: Annotated[list[str] | None, typer.Option(help=MODEL_HELP)] = None,
    corruption: Corruptions = None,
    severity: Annotated[str, typer.Option(help="Severities, from 1 to 5.")] = "1,2,3,4,5",
    extras: Annotated[bool, typer.Option("--extras", help="The 4 extra corruptions as well.")] = False,
    preset: Annotated[
        int | None,
        typer.Option(help="Whose constants: 32 (CIFAR), 64 (Tiny ImageNet), 224.  [default: by size]"),
    ] = None,
    store: Annotated[
        StoreChoice, typer.Option(help="jpeg85 adds the JPEG that the published sets were saved in.")
    ] = StoreChoice.exact,
    frost_dir: FrostDir = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="A set to corrupt, or one saved corrupted: imagenet-c, tiny-imagenet-c, cifar10-c, "
            "cifar100-c.  [default: the model's own]"
        ),
    ] = None,
    data_dir: DataDir = None,
    split: Split = None,
    size: Size = None,
    download: Download = False,
    classes_of_data: ClassesOfData = False,
    limit: Limit = None,
    batch_size: BatchSize = 64,
    seed: Annotated[int, typer.Option(help="Seed of the random corruptions.")] = 0,
    device: Device = "auto",
    baseline: Annotated[
        str | None,
        typer.Option(help="For mCE: alexnet (1000-class ImageNet at 224 px only), or a results.csv."),
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="The published rows below ours.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="Draw one image under every corruption into this file, and stop.")
    ] = None,
    sheet_index: Annotated[int, typer.Option(help="Which image of the data set the sheet shows.")] = 0,
    out: Annotated[
        Path, typer.Option(help="Results directory; what is already in it is not run again.")
    ] = Path("runs/corruptions"),
) -> None:
    """Judge models under 15 corruptions x 5 severities and write Table 2.

    Examples:

        robustglimpse corruptions --model mgnet-r18 --model ffnet-r18

        robustglimpse corruptions --model mgnet-r18 --corruption fog --corruption snow --severity 3,5

        robustglimpse corruptions --model mine.safetensors --data imagenet-c --data-dir ImageNet-C

        robustglimpse corruptions --sheet sheet.png
    """
    from robustglimpse.sweep import Sweep

    asked = Sweep(
        models=tuple(model or ()), corruptions=tuple(corruption or ()),
        severities=_steps(severity, "severity", "--severity 1,2,3,4,5"), extras=extras, preset=preset,
        store=store.value, frost_dir=frost_dir, data=data, split=split, data_dir=data_dir, size_px=size,
        download=download, limit=limit, batch_size=batch_size, seed=seed, device=device,
        classes_of_data=classes_of_data,
    )  # fmt: skip
    if sheet is not None:
        _draw_sheet(asked, sheet, sheet_index)
        return
    if not model:
        raise UserError("name a model with --model (list them: robustglimpse list models), or a --sheet")
    _run_sweep(asked, out, baseline, paper)


def _draw_sheet(asked: Any, path: Path, index: int) -> None:
    from robustglimpse.files import write_file
    from robustglimpse.report import figures
    from robustglimpse.sweep import sheet

    if path.suffix not in (".png", ".svg"):
        raise UserError(f"--sheet must end in .png or .svg, got {str(path)!r}")
    figure = figures.corruption_sheet(*sheet(asked, index))
    write_file(path, figures.render(figure, path.suffix[1:]))
    print(path)


def _run_sweep(asked: Any, out: Path, baseline: str | None, paper: bool) -> None:
    from robustglimpse.report import figures, table2
    from robustglimpse.store import Store, csv_text
    from robustglimpse.sweep import correctness, misfit, read_baseline, sweep_corruptions

    divisor = read_baseline(baseline)
    results = sweep_corruptions(asked, out, command=shlex.join(["robustglimpse", *sys.argv[1:]]))
    if ((results["status"] == "ok") & (results["kind"] == "corruption")).any():
        reason = misfit(divisor, results) if divisor else ""
        store = Store(out)
        table = table2.table2(results, correctness(results, store))
        summary = table2.summary(results, None if reason else divisor)
        for name, text in (
            ("table2.md", table2.to_markdown(table, paper=paper)),
            ("table2.tex", table2.to_latex(table, paper=paper)),
            ("table2.csv", table2.to_csv(table, paper=paper)),
            ("summary.csv", csv_text(summary, float_format="%.6g")),
        ):
            store.write_text(name, text)
        figure = figures.table2_heatmap(table)
        for name in ("png", "svg"):
            store.write_figure(f"table2.{name}", figures.render(figure, name))
        print(table2.to_markdown(table, paper=paper), table2.summary_markdown(summary), sep="\n\n")
        if reason:
            print(f"mCE: {reason}", file=sys.stderr)
    print("", *(out / name for name in ("results.csv", "table2.md", "table2.png")), sep="\n")
    if (results["status"] != "ok").any():
        raise typer.Exit(1)


@app.command("exits")
def exits_(
    model: Annotated[list[str], typer.Option(help=MODEL_HELP)],
    sizes: Annotated[
        str, typer.Option(help="Inputs, px, at which networks with one exit are run.  [default: their own]")
    ] = "",
    thresholds: Annotated[
        str, typer.Option(help="Confidences at which an image leaves.")
    ] = "0.5,0.6,0.7,0.8,0.9,0.95,0.98,0.99,0.995,0.999",
    attack: Annotated[
        list[str] | None, typer.Option(help="Attack the last exit too: see `bench`. Repeatable.")
    ] = None,
    against_rule: Annotated[
        bool, typer.Option("--against-rule", help="Attack exit by confidence itself too, at every threshold.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Steps of every attack that takes them.")] = 16,
    eps: Eps = "4/255",
    step_size: StepSize = "1/255",
    norm: Norm = NormChoice.linf,
    restarts: Annotated[int, typer.Option(help="Random starts; the worst counts.")] = 1,
    protocol: Annotated[list[str], typer.Option(help=f"{', '.join(PROTOCOLS)}. Repeatable.")] = ["standard"],  # noqa: B006
    data: Data = None,
    data_dir: DataDir = None,
    split: Split = None,
    size: Size = None,
    download: Download = False,
    classes_of_data: ClassesOfData = False,
    limit: Limit = None,
    batch_size: BatchSize = 64,
    seed: Annotated[int, typer.Option(help="Seed of the random starts.")] = 0,
    device: Device = "auto",
    out: Annotated[
        Path, typer.Option(help="Results directory; what is already in it is not run again.")
    ] = Path("runs/exits"),
) -> None:
    """Tell what early exits cost and keep: Figure 3 (accuracy against GMACs), and exit by confidence.

    An image leaves at the first exit whose confidence reaches the threshold. Under attack every exit is
    judged on the image made against the last one: does it also make the model spend more? The protocols
    standard and adaptive take the first image that fools, where exits are least sure; plain takes the last.

    Examples:

        robustglimpse exits --model mgnet-r18 --model ffnet-r18 --sizes 32,48,64

        robustglimpse exits --model mgnet-r18 --attack pgd --protocol standard --protocol plain --limit 200

        robustglimpse exits --model mgnet-r18 --attack pgd --against-rule --thresholds 0.8,0.95 --limit 64
    """
    from robustglimpse.exits import ExitStudy, exit_points, study_exits, threshold_table
    from robustglimpse.report import figures, tables
    from robustglimpse.store import Store, csv_text

    asked = ExitStudy(
        models=tuple(model), sizes=_steps(sizes, "sizes", "--sizes 32,48,64") if sizes else (),
        thresholds=_confidences(thresholds), against_rule=against_rule, attacks=tuple(attack or ()),
        steps=(steps,), eps=eps, step_size=step_size, norm=norm.value, restarts=restarts,
        protocols=tuple(protocol), data=data, split=split, data_dir=data_dir, size_px=size,
        download=download, limit=limit, batch_size=batch_size, seed=seed, device=device,
        classes_of_data=classes_of_data,
    )  # fmt: skip
    results = study_exits(asked, out, command=shlex.join(["robustglimpse", *sys.argv[1:]]))
    store = Store(out)
    points, rules = exit_points(results), threshold_table(results, store, asked.thresholds)
    written = [store.write_text("figure3.csv", csv_text(points))]
    drawn = {"figure3": figures.figure3(points, rules)} if points["gmacs"].notna().any() else {}
    if len(points):
        print(tables.markdown(*tables.points_grid(points)))
    if len(rules):
        print("", tables.markdown(*tables.rules_grid(rules)), sep="\n")
        written.append(store.write_text("thresholds.csv", csv_text(rules)))
        drawn["thresholds"] = figures.thresholds_figure(rules)
    for stem, figure in drawn.items():
        for name in ("png", "svg"):
            written.append(store.write_figure(f"{stem}.{name}", figures.render(figure, name)))
    print("", *(path for path in written if path.suffix != ".svg"), sep="\n")
    if (results["status"] != "ok").any():
        raise typer.Exit(1)


def _confidences(text: str) -> tuple[float, ...]:
    """Return the numbers in "0.8,0.95"."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"thresholds must be confidences with commas between, got {text!r}; try --thresholds 0.8,0.95"
        ) from None


@app.command("glimpses")
def glimpses_(
    model: Annotated[str, typer.Option(help="See `bench`.")],
    index: Annotated[
        list[int] | None, typer.Option(help="An image, by its place in the data set. Repeatable.")
    ] = None,
    count: Annotated[int, typer.Option(help="How many images, where none is named.")] = 8,
    pick: Annotated[
        PickChoice | None,
        typer.Option(
            help="Choose by the clean answers: correct or wrong at the end, saved (wrong after the first "
            "glimpse, right at the end) or lost (the opposite)."
        ),
    ] = None,
    attack: Annotated[str, typer.Option(help="A name or a call: see `bench`.")] = "pgd",
    steps: Annotated[int, typer.Option(help="Its steps, where it takes them.")] = 16,
    eps: Eps = "4/255",
    step_size: StepSize = "1/255",
    norm: Norm = NormChoice.linf,
    restarts: Annotated[int, typer.Option(help="Random starts; the worst counts.")] = 1,
    protocol: Annotated[str, typer.Option(help=f"{', '.join(PROTOCOLS)}.")] = "standard",
    data: Data = None,
    data_dir: DataDir = None,
    split: Split = None,
    size: Size = None,
    download: Download = False,
    classes_of_data: ClassesOfData = False,
    limit: Annotated[int, typer.Option(help="Look for cases among so many images.")] = 256,
    batch_size: BatchSize = 32,
    seed: Annotated[int, typer.Option(help="Seed of the random start.")] = 0,
    device: Device = "auto",
    out: Annotated[Path, typer.Option(help="The .png or .svg file to draw.")] = Path("glimpses.png"),
) -> None:
    """Draw where a model looks and what it answers after each glimpse, clean and attacked side by side.

    Unless images are named, half of them are some that the attack fooled, the others some that stand and
    some that were wrong before: the first of each kind in the data set's order.

    Examples:

        robustglimpse glimpses --model mgnet-r18 --out sheet.png

        robustglimpse glimpses --model mgnet-r18 --pick saved --out saved.png

        robustglimpse glimpses --model mgnet-r18 --index 3 --index 14 --attack "pgd(steps=40)" --eps 8/255
    """
    from robustglimpse.files import write_file
    from robustglimpse.glimpses import Sheet, find_cases
    from robustglimpse.report import figures
    from robustglimpse.report.glimpses import glimpse_sheet, to_markdown

    if out.suffix not in (".png", ".svg"):
        raise UserError(f"--out must end in .png or .svg, got {str(out)!r}")
    title, cases = find_cases(
        Sheet(
            model=model, indices=tuple(index or ()), count=count, pick=pick.value if pick else "",
            attack=attack, steps=(steps,), eps=eps, step_size=step_size, norm=norm.value,
            restarts=restarts, protocol=protocol, data=data, split=split, data_dir=data_dir, size_px=size,
            download=download, limit=limit, batch_size=batch_size, seed=seed, device=device,
            classes_of_data=classes_of_data,
        )
    )  # fmt: skip
    write_file(out, figures.render(glimpse_sheet(cases, title=title), out.suffix[1:]))
    print(to_markdown(cases), "", out, sep="\n")


@app.command()
def report(
    results: Annotated[
        list[Path],
        typer.Argument(help="Results directories; several make a leaderboard.", show_default=False),
    ],
    format_: Annotated[
        str, typer.Option("--format", help="html, md, tex, csv; several with commas between.")
    ] = "html",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file, or a folder; each format has its own ending.  "
            "[default: report.html in the results directory, or here where there are several]"
        ),
    ] = None,
) -> None:
    """Write what runs found as one offline page: headline, figures, tables, and the command of every number.

    Examples:

        robustglimpse report results/run

        robustglimpse report results/run --format md,tex,csv --out tables/run

        robustglimpse report results/*/ --out leaderboard.html
    """
    from robustglimpse.files import write_file
    from robustglimpse.report.board import make_board
    from robustglimpse.report.page import FORMATS
    from robustglimpse.store import read_run

    formats = list(dict.fromkeys(part.strip() for part in format_.split(",")))
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UserError(f"unknown format {unknown[0]!r}; choose from {', '.join(FORMATS)}")
    folders = list({path.resolve(): path for path in results}.values())
    board = make_board([read_run(folder) for folder in folders])
    stem = out or (results[0] / "report" if len(folders) == 1 else Path("report"))
    if stem.is_dir():
        stem /= "report"
    stem = stem.with_suffix("") if stem.suffix[1:] in FORMATS else stem
    for name in formats:
        path = stem.with_name(f"{stem.name}.{name}")
        write_file(path, FORMATS[name](board).rstrip("\n").encode() + b"\n")
        print(path)


@app.command()
def corrupt(
    source: Annotated[Path, typer.Argument(help="A folder of class folders of images.")],
    target: Annotated[Path, typer.Argument(help="Where CORRUPTION/SEVERITY/CLASS/NAME is written.")],
    corruption: Corruptions = None,
    severity: Annotated[str, typer.Option(help="Severities, from 1 to 5.")] = "1,2,3,4,5",
    size: Annotated[
        int, typer.Option(help="Resize to 8/7 of it and crop its centre, px; 0 leaves images as they are.")
    ] = 224,
    preset: Annotated[
        int | None, typer.Option(help="Whose constants: 32, 64 or 224.  [default: by size]")
    ] = None,
    store: Annotated[
        StoreChoice, typer.Option(help="jpeg85 as the published sets were saved, exact for lossless PNG.")
    ] = StoreChoice.jpeg85,
    frost_dir: FrostDir = None,
    seed: Annotated[int, typer.Option(help="Seed of the random corruptions.")] = 0,
) -> None:
    """Write a corrupted copy of an image folder, in the layout of ImageNet-C, for any tool to read.

    The same command goes on after a stop, other corruptions and severities are added.  A folder that was
    made with another source, seed, size, preset or store is refused: robustglimpse.json in it says what with.

    Example:

        robustglimpse corrupt photos photos-c --corruption fog --severity 3
    """
    from robustglimpse.export import Export, corrupt_folder

    asked = Export(
        corruptions=tuple(corruption or ()), severities=_steps(severity, "severity", "--severity 1,2,3,4,5"),
        size_px=size or None, preset=preset, store=store.value, frost_dir=frost_dir, seed=seed,
    )  # fmt: skip
    print(f"{corrupt_folder(source, target, asked)} images written to {target}")


@app.command()
def verify(what: Annotated[Verified, typer.Argument(help="What to verify.")]) -> None:
    """Compare what this machine computes with bundled answers; exit code 1 where they differ.

    Example:

        robustglimpse verify corruptions
    """
    from robustglimpse.golden import verify_corruptions

    failed = False
    print(f"{'corruption':<18} largest difference  share of values  allowed")
    for check in verify_corruptions():
        failed |= not check.is_equal
        verdict = "" if check.is_equal else "  DIFFERS"
        print(
            f"{check.corruption:<18} {check.worst_levels:>11} levels {check.worst_share:>15.3%}"
            f"  {check.allowed_levels} levels, {check.allowed_share:.1%}{verdict}"
        )
    if failed:
        raise typer.Exit(1)


@app.command("compare")
def compare_(
    attack: Annotated[
        list[str],
        typer.Option(help="native:NAME, torchattacks:NAME, foolbox:NAME, pyautoattack:NAME. Repeatable."),
    ],
    model: Annotated[list[str], typer.Option(help="See `bench`. Repeatable.")] = ["mgnet-r18"],  # noqa: B006
    steps: Annotated[int, typer.Option(help="Steps of every attack that takes them.")] = 40,
    eps: Eps = "4/255",
    step_size: StepSize = "1/255",
    norm: Norm = NormChoice.linf,
    data: Data = None,
    data_dir: DataDir = None,
    split: Split = None,
    size: Size = None,
    limit: Limit = 100,
    batch_size: BatchSize = 50,
    seed: AttackSeed = 0,
    device: Device = "auto",
    out: Annotated[
        Path, typer.Option(help="Results directory; what is already in it is not run again.")
    ] = Path("runs/compare"),
) -> None:
    """Set attacks of other libraries beside the first: the same images, start, steps and ball.

    Counts the samples whose verdict or class differs, and names the first argument whose default does.

    Examples:

        robustglimpse compare --attack native:pgd --attack torchattacks:PGD --attack foolbox:LinfPGD

        robustglimpse compare --attack apgd --attack "pyautoattack:apgd-ce(n_restarts=1)" --eps 8/255
    """
    from robustglimpse.compare import compare
    from robustglimpse.report import tables
    from robustglimpse.runner import Bench
    from robustglimpse.store import Store, csv_text

    asked = Bench(
        models=tuple(model), attacks=tuple(attack), steps=(steps,), eps=eps, step_size=step_size,
        norm=norm.value, data=data, data_dir=data_dir, split=split, size_px=size, limit=limit,
        batch_size=batch_size, seed=seed, device=device,
    )  # fmt: skip
    compared = compare(asked, out, command=shlex.join(["robustglimpse", *sys.argv[1:]]))
    print(tables.compare_table(compared))
    Store(out).write_text("compare.csv", csv_text(compared))
    print(f"\n{out / 'compare.csv'}")
    if (compared["status"] != "ok").any():
        raise typer.Exit(1)


@app.command("isolate")
def isolate_(
    model: Annotated[list[str], typer.Option(help="See `bench`. Repeatable.")] = ["mgnet-r18"],  # noqa: B006
    attack: Annotated[str, typer.Option(help="pgd or mifgsm, with options or not.")] = "pgd",
    steps: Annotated[int, typer.Option(help="Steps of the attack.")] = 16,
    eps: Annotated[str, typer.Option(help="Radius of the ball, as each protocol reads it.")] = "4/255",
    step_size: StepSize = "1/255",
    norm: Norm = NormChoice.linf,
    data: Data = None,
    data_dir: DataDir = None,
    split: Split = None,
    size: Size = None,
    limit: Limit = None,
    batch_size: BatchSize = 64,
    seed: AttackSeed = 0,
    device: Device = "auto",
    out: Annotated[
        Path, typer.Option(help="Results directory; what is already in it is not run again.")
    ] = Path("runs/isolate"),
) -> None:
    """Tell what each difference between the protocols is worth: paper to adaptive, a change at a time.

    Ball, verdict, start, tries and gradients change in turn, on the same images, with paired intervals.
    `adaptive` makes three tries: it stands beside `standard` with three, so that only gradients differ.
    A model with one exit has one gradient: that row then compares other random starts.

    Examples:

        robustglimpse isolate --model ffnet-r18 --model mgnet-r18
    """
    from robustglimpse.isolate import isolate, to_markdown
    from robustglimpse.runner import Bench
    from robustglimpse.store import Store, csv_text

    asked = Bench(
        models=tuple(model), attacks=(attack,), steps=(steps,), eps=eps, step_size=step_size, norm=norm.value,
        data=data, data_dir=data_dir, split=split, size_px=size, limit=limit, batch_size=batch_size,
        seed=seed, device=device,
    )  # fmt: skip
    found = isolate(asked, out, command=shlex.join(["robustglimpse", *sys.argv[1:]]))
    print(to_markdown(found))
    Store(out).write_text("isolate.csv", csv_text(found))
    print(f"\n{out / 'isolate.csv'}")


@app.command()
def doctor(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Extras or packages.  [default: all but `dev`]", show_default=False),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell which packages work here, whose files another has overwritten, and what to type to mend it.

    Every package is imported in a process of its own, and its files are compared with those installed
    (above 8 MB by size alone). Exit code 1 where one is broken, or is needed or named and absent.

    Examples:

        robustglimpse doctor

        robustglimpse doctor torch numpy

        robustglimpse doctor torchvision --json
    """
    from robustglimpse.doctor import diagnose

    diagnosis = diagnose(names or ())
    if json_:
        print(diagnosis.to_json())
    else:
        _show_diagnosis(diagnosis)
    if not diagnosis.is_well:
        raise typer.Exit(1)


def _show_diagnosis(diagnosis: Any) -> None:
    """Print the versions, a line per package, and below them what to know and to type."""
    print(f"robustglimpse {diagnosis.robustglimpse}, Python {diagnosis.python} ({diagnosis.executable})")
    print(diagnosis.platform + (f", device {diagnosis.device}" if diagnosis.device else ""), end="\n\n")
    _print_table(
        ["package", "extra", "version", "required", "status"],
        [(p.name, p.extra, p.version or "-", p.required, p.status) for p in diagnosis.packages],
    )
    faults = [p for p in diagnosis.packages if p.is_fault]
    for mend in dict.fromkeys(p.mend for p in faults):
        print("", *(f"{p.name}: {p.problem}" for p in faults if p.mend == mend), f"    {mend}", sep="\n")
    absent = dict.fromkeys(p.mend for p in diagnosis.packages if p.status == "absent" and not p.is_fault)
    if absent:
        print("\nto add what is absent, where it is wanted:", *absent, sep="\n    ")
    notes = [f"{p.name}: {note}" for p in diagnosis.packages for note in p.notes]
    if notes:
        print("\nnotes, no faults:", *notes, sep="\n    ")


@app.command()
def regress(
    baseline: Annotated[Path, typer.Argument(help="A baseline made with --update, or a results directory.")],
    run: Annotated[Path | None, typer.Argument(help="The results directory to judge.")] = None,
    policy: Annotated[Path | None, typer.Option(help="A TOML file: see docs/gate.md.")] = None,
    margin: Annotated[
        float | None, typer.Option(help="A drop proven smaller passes, as a fraction.  [default: 0.025]")
    ] = None,
    min_effect: Annotated[
        float | None, typer.Option(help="A smaller drop is no regression, as a fraction.  [default: 0.005]")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="An observed drop of so much always fails.  [default: none]")
    ] = None,
    allow_inconclusive: Annotated[
        bool, typer.Option("--allow-inconclusive", help="Pass where the samples are too few to tell.")
    ] = False,
    model: Annotated[list[str] | None, typer.Option(help="Only these models, a glob. Repeatable.")] = None,
    attack: Annotated[
        list[str] | None, typer.Option(help="Only these attacks (or clean), a glob. Repeatable.")
    ] = None,
    corruption: Annotated[
        list[str] | None, typer.Option(help="Only these corruptions, a glob. Repeatable.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what the gate passes and what each cell can show, and stop.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Rewrite the baseline from the run; needs --reason.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why the baseline changes; kept in its log.")] = "",
    markdown: Annotated[Path | None, typer.Option(help="Write the verdict's table there too.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML there.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write JSON there.")] = None,
    github: Annotated[
        bool,
        typer.Option(
            "--github", envvar="GITHUB_ACTIONS", help="Annotations, and the job summary in GitHub Actions."
        ),
    ] = False,
) -> None:
    """Judge a run against a baseline, sample by sample: the gate for CI.

    Exit codes: 0 pass, 1 regressed, 2 usage, 3 incomplete, 4 not comparable, 5 nothing selected.

    Examples:

        robustglimpse regress results/baseline results/run

        robustglimpse regress results/baseline --plan

        robustglimpse regress results/baseline results/run --update --reason "trained for 5 epochs more"
    """
    from robustglimpse import regress as gate
    from robustglimpse.policy import load_policy

    overrides = {"margin": margin, "min_effect": min_effect, "max_drop": max_drop}
    overrides |= {"allow_inconclusive": True} if allow_inconclusive else {}
    decided = load_policy(policy, {key: value for key, value in overrides.items() if value is not None})
    chosen = gate.Selection(tuple(model or ()), tuple(attack or ()), tuple(corruption or ()))
    if plan:
        from robustglimpse.report.verdicts import plan_markdown

        rows = gate.plan(baseline, decided, chosen=chosen)
        print(plan_markdown(rows, gate.power(baseline, decided, chosen=chosen)))
        raise typer.Exit(0 if rows else gate.NOTHING_SELECTED)
    if run is None:
        raise UserError("expected a results directory to judge behind the baseline; for --plan alone, none")
    if reason and not update:
        raise UserError("--reason belongs to --update, which rewrites the baseline; give both or neither")
    if update:
        changes = gate.update(baseline, run, reason=reason, chosen=chosen)
        print("\n".join(changes) or "nothing changed but the log", baseline / "baseline.json", sep="\n")
        return
    judgement = gate.compare(baseline, run, decided, chosen=chosen)
    _tell(judgement, markdown, junit, json_, github)
    raise typer.Exit(judgement.exit_code)


def _tell(
    judgement: Any, markdown: Path | None, junit: Path | None, json_: Path | None, github: bool
) -> None:
    """Print the gate's judgement, and write it where that was asked for."""
    import os

    from robustglimpse.files import append_text, write_file
    from robustglimpse.report import verdicts

    table = verdicts.to_markdown(judgement)
    for path, text in (
        (markdown, table + "\n"),
        (junit, verdicts.to_junit(judgement)),
        (json_, verdicts.to_json(judgement)),
    ):
        if path is not None:
            write_file(path, text.encode())
    print(table)
    if github:
        print(verdicts.to_github(judgement))
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if summary:
            append_text(Path(summary), table + "\n")


@app.command("profile")
def profile_(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A name from `list models`, a .safetensors file, a call (torchvision:resnet50), or, with "
            "any of the next four options, an architecture on random weights: ffnet-wrn50, "
            f"mgnet-r34-nopool. {FACTORY_HELP} Repeatable.  [default: the paper's eight]"
        ),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images, px.  [default: 224]")] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes.  [default: 100]")] = None,
    glimpses: Annotated[int | None, typer.Option(help="T of an mgnet; an ffnet has 1.  [default: 4]")] = None,
    downsample: Annotated[
        str | None, typer.Option(help="M of an mgnet; an ffnet has 1.  [default: 7/3]")
    ] = None,
    batch_size: Annotated[str, typer.Option(help="Batch sizes to time.")] = "1,32",
    repeats: Annotated[
        int, typer.Option(help="Timed runs each; fewer, but at least 5, where they take above 10 s.")
    ] = 30,
    fast: Annotated[
        bool, typer.Option("--fast", help="Time the networks rewritten for answers alone (CPU).")
    ] = False,
    device: Device = "auto",
    format_: Annotated[ProfileFormat, typer.Option("--format", help="How to print.")] = ProfileFormat.table,
) -> None:
    """Tell what every exit costs: parameters, GMACs, latency and peak memory, beside the paper's Table 1.

    GMACs twice: ours, which keep what earlier glimpses gave the attention, and as the paper counted. A model
    from outside has one exit, and its GMACs are those that torch's counter finds; "-" where it cannot.

    Examples:

        robustglimpse profile --model mgnet-r18 --model ffnet-r18

        robustglimpse profile --model mgnet-r18 --size 224 --classes 100 --glimpses 4 --downsample 7/3

        robustglimpse profile --model mgnet-r50 --batch-size 1,8 --format json

        robustglimpse profile --model mgnet-r18 --model "torchvision:resnet18(weights=None)" --size 64
    """
    from robustglimpse import cost
    from robustglimpse.report import table1
    from robustglimpse.runner import choose_device

    size = cost.PAPER_SIZE_PX if not model and size is None else size
    where = choose_device(device)
    subjects = [
        cost.subject(
            name, size_px=size, classes=classes, glimpses=glimpses, downsample=downsample, device=where
        )
        for name in model or table1.NETWORKS
    ]
    costs = cost.profile(
        subjects,
        batch_sizes=_steps(batch_size, "batch-size", "--batch-size 1,32"),
        repeats=repeats,
        is_fast=fast,
    )
    if format_ is ProfileFormat.json:
        print(table1.to_json(costs))
        return
    print(table1.to_markdown(costs))
    print(f"\n{table1.conditions(costs)}", file=sys.stderr)


@app.command("card")
def card_(
    model: Annotated[str, typer.Argument(help="A name from `list models`.")],
    results: Annotated[
        list[Path] | None,
        typer.Argument(help="Results directories to tell of; runs of other weights are left out."),
    ] = None,
) -> None:
    """Print a model's card: what it is, how it was trained, what was measured of it, its limits.

    Examples:

        robustglimpse card ffnet-r18-robust

        robustglimpse card mgnet-r18 results/glimpse-digits results/glimpse-digits-c
    """
    from robustglimpse.models import model_row
    from robustglimpse.recipes import read
    from robustglimpse.report.card import card
    from robustglimpse.store import read_results

    row = model_row(model)
    print(card(row, read(row.recipe), read_results(*results) if results else None), end="")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A name from `list recipes`, or a .toml file.")],
    out: Annotated[Path | None, typer.Option(help="Where it is kept.  [default: runs/train/RECIPE]")] = None,
    data_dir: DataDir = None,
    epochs: Annotated[int | None, typer.Option(help="Another budget than the recipe's.")] = None,
    precision: Annotated[
        PrecisionChoice | None, typer.Option(help="Another than the recipe's; bf16 is mixed precision.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Another than the recipe's; give --out with it.")] = None,
    device: Device = "auto",
) -> None:
    """Train a model from a recipe; the same command goes on after a stop, to the same weights.

    Examples:

        robustglimpse train mgnet-r18-glimpse-digits

        robustglimpse train mgnet-r18-tiny-imagenet-20 --data-dir tiny-imagenet-200.zip --epochs 5

    On every GPU of a machine: torchrun --nproc-per-node gpu -m robustglimpse train mgnet-r18-imagenet100
    --data-dir ImageNet100
    """
    import os

    from robustglimpse.runner import choose_device
    from robustglimpse.train import load_recipe
    from robustglimpse.train import train as run

    loaded = load_recipe(recipe)
    folder = out or Path("runs/train") / Path(recipe).stem
    path = run(
        loaded, folder, data_dir=data_dir, device=choose_device(device), epochs=epochs,
        precision=precision.value if precision else None, seed=seed,
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":  # torchrun starts several of this process
        print(f"{path}\n{folder / 'log.csv'}")


@app.command("import-checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="A Lightning checkpoint of the authors' code (.ckpt).")],
    backbone: Annotated[
        str, typer.Option(help="resnet18, resnet34, resnet50, resnext50 or wrn50; '-nopool' behind it.")
    ],
    glimpses: Annotated[int, typer.Option(help="T, the number of glimpses.")],
    downsample: Annotated[str, typer.Option(help="M, as a number or a fraction: 7/3.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    size: Annotated[int, typer.Option(help="Side of the images it was trained on, px.")] = 224,
    rescale: Annotated[
        float | None,
        typer.Option(help="s, the gradient re-scaling.  [default: 0.02 for resnet18, else 0.01]"),
    ] = None,
    mean: Annotated[str, typer.Option(help="Channel means of its normalisation.")] = "0.485,0.456,0.406",
    std: Annotated[
        str, typer.Option(help="Channel standard deviations of its normalisation.")
    ] = "0.229,0.224,0.225",
    data: Annotated[str, typer.Option(help="Name of the data set it was trained on.")] = "",
    classes: Annotated[
        str | None,
        typer.Option(
            help="Names of its classes: imagenet, imagenet100, or a file with a name a line, in the order of "
            "the logits.  [default: numbers]"
        ),
    ] = None,
) -> None:
    """Turn a checkpoint of the MGNet authors' code into a .safetensors file that `--model` takes.

    No code inside the checkpoint is run: its weights are read, and what else it holds is passed over.

    Example:

        robustglimpse import-checkpoint FILE.ckpt --backbone resnet18 --glimpses 4 --downsample 7/3
        --classes imagenet100 --out mine.safetensors
    """
    from robustglimpse.models.zoo import import_checkpoint as run
    from robustglimpse.models.zoo import read_class_names

    if out.suffix != ".safetensors":
        raise UserError(f"--out must end in .safetensors, got {str(out)!r}")
    sha256 = run(
        file, out, backbone=backbone, glimpses=glimpses, downsample=downsample, size_px=size,
        gradient_scale=rescale, mean=_channels(mean, "mean"), std=_channels(std, "std"), dataset=data,
        classes=None if classes is None else read_class_names(classes),
    )  # fmt: skip
    print(f"{out}\nsha256 {sha256}")


def _channels(text: str, what: str) -> tuple[float, float, float]:
    """Return the three numbers in "0.485,0.456,0.406"."""
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--{what} must be three numbers with commas between, got {text!r}") from None
    return red, green, blue


@app.command("list")
def list_(what: Annotated[Listing, typer.Argument(help="Which table.")]) -> None:
    """Print the tables of names: models, attacks, corruptions, data, protocols, recipes.

    Example:

        robustglimpse list models
    """
    _print_table(*_listing(what))
    if what is Listing.models:
        from robustglimpse.models import SOURCES

        print(
            "\ntrainable: by robustglimpse train RECIPE (robustglimpse list recipes);\n"
            "importable: also from a checkpoint of the authors' code (robustglimpse import-checkpoint).\n"
            "Naming one without weights at hand says where to put them.\n\n"
            "And from outside, with options in brackets:\n"
        )
        _print_table(
            ["for example", "needs", "what"], [(s.example, s.needs, s.summary) for s in SOURCES.values()]
        )


def _print_table(header: list[str], rows: list[tuple[Any, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 200, soft_wrap=True).print(table)


def _listing(what: Listing) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return a table's header and rows."""
    if what is Listing.models:
        from robustglimpse.models import models, whereabouts

        header = ["model", "backbone", "T", "M", "data", "px"]
        header += ["params M", "GMACs", "clean accuracy per exit", "source"]
        return header, [
            (m.name, m.backbone, m.glimpses, m.downsample, m.dataset, m.size_px, f"{m.params / 1e6:.1f}",
             f"{m.gmacs[-1]:.3g}", " ".join(f"{100 * a:.1f}" for a in m.accuracy), whereabouts(m))
            for m in models().values()
        ]  # fmt: skip
    if what is Listing.attacks:
        from robustglimpse.attacks import table

        return ["attack", "norms", "needs", "forwards + backwards per image", "source"], [
            (name, ", ".join(row.norms), row.needs, row.cost, row.source) for name, row in table().items()
        ]
    if what is Listing.corruptions:
        from robustglimpse.corruptions import CORRUPTIONS

        return ["corruption", "family", "random", "extra", "what"], [
            (name, row.family, "yes" if row.is_random else "no", "yes" if row.extra else "", row.summary)
            for name, row in CORRUPTIONS.items()
        ]
    if what is Listing.data:
        from robustglimpse.data import DATASETS

        return ["data", "classes", "px", "needs", "what"], [
            (name, row.classes, row.size_px, row.needs, row.summary) for name, row in DATASETS.items()
        ]
    if what is Listing.protocols:
        return ["protocol", "what", "verdicts"], [
            (name, row.summary, ", ".join(row.judges)) for name, row in PROTOCOLS.items()
        ]
    from robustglimpse.recipes import summaries

    header = ["recipe", "model", "data", "epochs", "MACs", "GPU-hours at 4 TMAC/s", "core-hours at 40 GMAC/s"]
    return header, [
        (row.name, row.model, row.dataset, row.epochs, f"{row.macs:.1e}", f"{row.gpu_hours:g}",
         f"{row.core_hours:g}")
        for row in summaries()
    ]  # fmt: skip
