"""Learning curves of a pretrained network that is fine-tuned with a block grafted into it.

Five runs of one recipe, data order and seed: without a graft, and with a gate and a mixer that
start as the identity or as the paper's. The network is EfficientNet-Lite0 with ImageNet weights.

    python benchmarks/finetune_starts.py cifar10/ --folder runs/starts --picture starts.png

The folder of images has ``train/`` and ``test/`` with a folder per class each. Runs that are
complete are not repeated.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from safetensors.torch import save_file

mpl.use("Agg")

from graft_pretrained import DEPTHWISE, NETWORK, pretrained
from matplotlib import pyplot

from visgraft.tasks import load_recipe, train

RECIPE: dict[str, Any] = {
    "model": NETWORK,
    "image_size": 64,
    "train_limit": 2000,
    "val_limit": 1000,
    "epochs": 5,
    "batch_size": 50,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.05,
    "warmup_epochs": 0.5,
    "hflip": 0.5,
    "crop_padding": 4,
    "loggers": [],
}
GATE = {"block": "coord_attention", "at": "block_end"}
MIXER = {"block": "cot", "at": DEPTHWISE}
RUNS: dict[str, list[dict[str, Any]]] = {
    "no graft": [],
    "coord_attention, identity start": [GATE],
    "coord_attention, the paper's start": [{**GATE, "start": "paper"}],
    "cot, identity start": [MIXER],
    "cot, the paper's start": [{**MIXER, "start": "paper"}],
}
COLORS = {"no graft": "0.3", "coord_attention": "tab:blue", "cot": "tab:orange"}


def curve(folder: Path) -> dict[str, list[float]]:
    """Reads what a run measured after each epoch."""
    with (folder / "metrics.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return {name: [float(row[name]) for row in rows] for name in rows[0] if rows[0][name]}


def main() -> None:
    """Trains the networks and draws their curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--picture", type=Path, required=True)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    weights = args.folder / "imagenet.safetensors"
    save_file(pretrained().state_dict(), weights)
    figures = {}
    for label, grafts in RUNS.items():
        recipe = load_recipe(
            {"data": str(args.data), "checkpoint": str(weights), "grafts": grafts, **RECIPE}
        )
        folder = args.folder / label.replace(",", "").replace("'", "").replace(" ", "_")
        train(recipe, folder, progress=False)
        figures[label] = curve(folder)
        print(label, {k: [round(x, 3) for x in v] for k, v in figures[label].items()}, flush=True)
    (args.folder / "curves.json").write_text(json.dumps(figures, indent=1) + "\n")
    draw(figures, args.picture)


def draw(figures: dict[str, dict[str, list[float]]], picture: Path) -> None:
    """Draws loss and accuracy of all runs beside each other."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for label, found in figures.items():
        epochs = range(1, len(found["train_loss"]) + 1)
        style = {"marker": "o", "linestyle": "--" if "paper" in label else "-"}
        left.plot(epochs, found["train_loss"], color=COLORS[label.split(",")[0]], **style)
        right.plot(epochs, found["top1"], color=COLORS[label.split(",")[0]], label=label, **style)
    left.set(xlabel="epoch", ylabel="training loss", xticks=list(epochs))
    right.set(xlabel="epoch", ylabel="top-1 on unseen images (%)", xticks=list(epochs))
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(picture, dpi=130)


if __name__ == "__main__":
    main()
