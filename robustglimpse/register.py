"""What a developer runs to bundle a checkpoint: python -m robustglimpse.register model.safetensors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from robustglimpse.cost import gmacs_per_exit
from robustglimpse.files import write_file
from robustglimpse.models import MANIFEST, WEIGHTS, models, zoo
from robustglimpse.models.mgnet import MGNet
from robustglimpse.recipes import summaries
from robustglimpse.records import UserError


def register(path: Path) -> str:
    """Copy a checkpoint that `robustglimpse train` left to the bundled weights; return its new row's name.

    The manifest's row of that model is replaced, or a new one comes at its end.
    Raises UserError where no bundled recipe makes the model, or the file is none of ours.
    """
    state, card, sha256 = zoo.read_checkpoint(path)
    made = card.architecture
    network = MGNet(made)
    zoo.load_strictly(network, state, path)
    recipe = {f"{each.model}@{each.dataset}": each.name for each in summaries()}.get(card.recipe)
    if recipe is None or not card.accuracy:
        raise UserError(
            f"{path}: expected what robustglimpse train made of a bundled recipe, got a file of "
            f"{card.recipe or 'no recipe'}; put the recipe into robustglimpse/recipes and train it"
        )
    row = {
        "backbone": made.backbone, "glimpses": made.glimpses, "downsample": made.downsample,
        "dataset": card.dataset, "classes": made.classes, "size_px": card.size_px,
        "params": sum(p.numel() for p in network.parameters()),
        "gmacs": [float(f"{gmacs:.4g}") for gmacs in gmacs_per_exit(made, card.size_px)],
        "source": "bundled", "recipe": recipe, "file": f"{recipe}.safetensors", "sha256": sha256,
        "bytes": path.stat().st_size, "accuracy": [round(share, 4) for share in card.accuracy],
    }  # fmt: skip
    text = "\n".join([f'["{card.recipe}"]', *(f"{key} = {json.dumps(value)}" for key, value in row.items())])
    write_file(WEIGHTS / f"{recipe}.safetensors", path.read_bytes())
    write_file(MANIFEST, _with_row(MANIFEST.read_text(), f'["{card.recipe}"]', text).encode())
    models.cache_clear()
    return card.recipe


def _with_row(manifest: str, header: str, row: str) -> str:
    """Return the manifest with the row in the place of the one under its header, or at its end."""
    parts = manifest.rstrip("\n").split("\n\n")
    if any(part.startswith(header) for part in parts):
        parts = [row if part.startswith(header) else part for part in parts]
    else:
        parts.append(row)
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    try:
        if len(sys.argv) != 2:
            raise UserError("expected one file: python -m robustglimpse.register runs/mine/model.safetensors")
        sys.stdout.write(f"{register(Path(sys.argv[1]))}\n")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
