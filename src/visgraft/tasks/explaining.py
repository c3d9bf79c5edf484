"""Where classifiers look, and their blocks: glowing places of a user's pictures, side by side."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from visgraft.data import DataError
from visgraft.data.pictures import PictureFile, find_pictures
from visgraft.inspect.attention import attention_places
from visgraft.inspect.class_activation import class_activation
from visgraft.tasks.devices import pick_device
from visgraft.tasks.errors import CheckpointError
from visgraft.tasks.evaluation import Trained, load_trained
from visgraft.tasks.files import write_atomically
from visgraft.tasks.glow import as_pixels, colours, enlarge, glowing
from visgraft.tasks.picture_inputs import PictureInputs, plan_pictures
from visgraft.tasks.progress import Bar, counting_bar

__all__ = ["ExplainedPicture", "explain"]

_QUALITY = 92  # of the JPEG files
_GAP, _LINE = 8, 18  # pixels between panels, and of a line of words
_MOST_IN_ROW = 8  # panels of blocks
_GRAFTED = ".graft.block"  # what a graft adds to the path of the layer
_PAPER, _INK = (255, 255, 255), (32, 32, 32)


@dataclass(frozen=True)
class ExplainedPicture:
    """What was drawn of one picture.

    Attributes:
        path: Of the picture, as the caller wrote it.
        drawn: The file with the panels.
        asked: The class whose places glow.
        says: Per network its likeliest class, and the probability of that, 0 to 1.
        probabilities: Per network that of the class that was asked for.
        grids: Per network height and width of its map: on few places a glow says little, on one
            nothing.
        blocks: Per network the paths of the blocks that were drawn, in the order of their panels.
    """

    path: Path
    drawn: Path
    asked: str
    says: tuple[tuple[str, float], ...]
    probabilities: tuple[float, ...]
    grids: tuple[tuple[int, int], ...]
    blocks: tuple[tuple[str, ...], ...]


def explain(
    checkpoints: str | Path | Sequence[str | Path],
    images: str | Path | Iterable[str | Path],
    folder: str | Path,
    *,
    label: str | None = None,
    attention: bool = False,
    side: int = 224,
    on_bad_image: Literal["error", "skip"] = "error",
    device: str = "auto",
    progress: bool = True,
) -> list[ExplainedPicture]:
    """Draws where classifiers see a class in pictures.

    A file for each picture has the picture as the first network gets it, and for each network a
    panel in gray that glows where its class-activation map (Grad-CAM on the last feature map) is
    large, by its own largest value. All networks are asked for the same class. With ``attention``,
    rows of panels follow for each network that has blocks which weigh places: they glow from the
    block's smallest weight to its largest.

    Args:
        checkpoints: Of classifiers that `train` wrote, with the same classes.
        images: Files and folders; all files in a folder and in its folders are read.
        folder: For the drawn pictures, JPEG.
        label: The class that is asked for; None asks for what the first network thinks likeliest.
        attention: Draw what `visgraft.inspect.attention_places` reads, too.
        side: Pixels of the shorter side of a panel.
        on_bad_image: ``error`` names all files that cannot be read; ``skip`` leaves them out.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: Show a progress bar on standard error.

    Returns:
        One result per picture, in order.

    Raises:
        CheckpointError: A checkpoint cannot be read, is a detector's, or has other classes.
        DataError: A picture cannot be read, there is no such class, or an argument is wrong.
        ValueError: A network has no feature map before its head.
        OSError: A file cannot be written.
    """
    given = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)
    if side < 16:
        raise DataError(f"explain: side must be at least 16 pixels, got {side}")
    networks = _load(given)
    classes = networks[0].record.classes
    if label is not None and label not in classes:
        shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
        raise DataError(f"explain: there is no class {label!r}; there are {shown}")
    sources = [images] if isinstance(images, str | Path) else list(images)
    with counting_bar("reading images") as count:
        files = find_pictures(
            sources, on_bad_image=on_bad_image, progress=count if progress else None
        )
    planned = plan_pictures(folder, files, owner="explain")
    where = pick_device(device)
    for network in networks:
        network.model.to(where)
    inputs = [PictureInputs(network.record, files) for network in networks]
    names = _names(given)
    results = []
    with Bar("explaining", len(files), shown=progress) as bar:
        for place, file in enumerate(files):
            prepared = [each[place][None].to(where) for each in inputs]
            results.append(
                _explain(networks, names, prepared, file, planned[place], label, attention, side)
            )
            bar.advance()
    return results


def _load(checkpoints: Sequence[str | Path]) -> list[Trained]:
    if not checkpoints:
        raise CheckpointError("explain: there must be at least one checkpoint")
    networks = [load_trained(checkpoint) for checkpoint in checkpoints]
    for checkpoint, network in zip(checkpoints, networks, strict=True):
        if network.recipe.task != "classification":
            raise CheckpointError(
                f"explain: {checkpoint} is a detector's; visgraft predict --pictures draws what a "
                "detector finds"
            )
        if network.record.classes != networks[0].record.classes:
            raise CheckpointError(
                f"explain: {checkpoint} has other classes than {checkpoints[0]}; compare networks "
                "that were trained on the same data"
            )
    return networks


def _names(checkpoints: Sequence[str | Path]) -> list[str]:
    """Returns the shortest ends of the paths' folders that tell the checkpoints apart."""
    parts = [Path(checkpoint).absolute().with_suffix("").parts for checkpoint in checkpoints]
    for start, stop in ((-2, -1), (-2, None), (-3, None)):
        names = ["/".join(each[start:stop]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(checkpoint) for checkpoint in checkpoints]


def _explain(
    networks: Sequence[Trained],
    names: Sequence[str],
    inputs: Sequence[Tensor],
    file: PictureFile,
    drawn: Path,
    label: str | None,
    attention: bool,
    side: int,
) -> ExplainedPicture:
    classes = networks[0].record.classes
    if label is None:
        with torch.inference_mode():
            asked = int(networks[0].model(inputs[0]).argmax())
    else:
        asked = classes.index(label)
    says, probabilities, grids, panels = [], [], [], []
    rows, blocks = [], []
    for network, name, x in zip(networks, names, inputs, strict=True):
        found = class_activation(network.model, x, [asked])
        chances = found.scores[0].float().softmax(-1)
        best = int(chances.argmax())
        says.append((classes[best], float(chances[best])))
        probabilities.append(float(chances[asked]))
        grids.append(tuple(found.maps.shape[1:]))
        spec = network.record.input
        picture = enlarge(colours(as_pixels(x.cpu(), spec.mean, spec.std)[0]), side)
        if not panels:
            panels.append((picture, f"asked for: {classes[asked]}", file.name))
        words = f"{classes[best]} {100 * says[-1][1]:.0f} %"
        if best != asked:
            words += f" ({classes[asked]} {100 * probabilities[-1]:.0f} %)"
        panels.append((glowing(picture, found.maps[0].cpu()), name, words))
        places = attention_places(network.model, x) if attention else {}
        blocks.append(tuple(places))
        rows += _rows_of_blocks(picture, name, places)
    drawn.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(drawn, _sheet([panels, *rows]))
    return ExplainedPicture(
        file.path,
        drawn,
        classes[asked],
        tuple(says),
        tuple(probabilities),
        tuple(grids),
        tuple(blocks),
    )


Panel = tuple[Image.Image, str, str]


def _rows_of_blocks(
    picture: Image.Image, name: str, places: dict[str, Tensor]
) -> list[list[Panel]]:
    """Returns a panel for each block, as many in a row as fit well."""
    panels = []
    for path, values in places.items():
        weights = values[0].float().cpu()
        height, width = weights.shape
        words = f"{path.removesuffix(_GRAFTED)}, {height} x {width}"
        panels.append((glowing(picture, weights - weights.min()), name, words))
    starts = range(0, len(panels), _MOST_IN_ROW)
    return [panels[start : start + _MOST_IN_ROW] for start in starts]


def _sheet(rows: Sequence[Sequence[Panel]]) -> bytes:
    """Returns rows of panels as JPEG, two lines of words below each."""
    font = ImageFont.load_default(13)
    widths = [sum(picture.width + _GAP for picture, *_ in row) + _GAP for row in rows]
    heights = [max(picture.height for picture, *_ in row) for row in rows]
    size = (max(widths), sum(heights) + len(rows) * (2 * _GAP + 2 * _LINE))
    sheet = Image.new("RGB", size, _PAPER)
    pen, top = ImageDraw.Draw(sheet), 0
    for row, height in zip(rows, heights, strict=True):
        left = _GAP
        for picture, *lines in row:
            sheet.paste(picture, (left, top + _GAP))
            for number, line in enumerate(lines):
                place = (left, top + _GAP + height + 2 + number * _LINE)
                pen.text(place, _fitting(line, font, picture.width), fill=_INK, font=font)
            left += picture.width + _GAP
        top += height + 2 * _GAP + 2 * _LINE
    stream = io.BytesIO()
    sheet.save(stream, format="JPEG", quality=_QUALITY)
    return stream.getvalue()


def _fitting(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Returns the end of a line that is not wider than so many pixels."""
    if font.getlength(line) <= width:
        return line
    while line and font.getlength("..." + line) > width:
        line = line[1:]
    return "..." + line
