"""Pictures with what was found in them: boxes, masks, class names and scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from visgraft.data import DataError
from visgraft.data.detection import AnnotatedImage
from visgraft.data.detection.masks import decode_mask
from visgraft.tasks.detection.palette import class_color, ink_on
from visgraft.tasks.detection.predictions import Detections, Prediction

__all__ = ["Drawable", "draw_beside", "draw_detections"]

Drawable = AnnotatedImage | Detections | Prediction
Rectangle = tuple[float, float, float, float]

_FILL = 0.4  # opacity of a mask
_SMALLEST_FONT = 11  # pixels
_SMALL = 4  # names: a box that has less area than so many of them is kept free
_NAME_COST = 4  # covering a name is so many times as bad as covering a small box
_PAPER, _INK = (255, 255, 255), (0, 0, 0)


def draw_detections(
    image: Image.Image | Tensor,
    found: Drawable,
    classes: Sequence[str],
    *,
    score: float = 0.0,
    masks: bool = True,
    min_side: int = 480,
) -> Image.Image:
    """Returns a new picture with boxes, masks, class names and scores.

    Lines and letters grow with the picture. The class names are written in Pillow's own font, which
    has the letters of European languages.

    Args:
        image: The picture, or a tensor ``(3, H, W)`` of uint8.
        found: ``boxes``, ``labels`` from 0 up and, where there are, ``scores`` and ``masks``: what
            a detector gave, the target of a `DetectionDataset`, or an `AnnotatedImage`.
        classes: Name of each label.
        score: What has a lower score is left out.
        masks: False draws boxes alone.
        min_side: A picture is enlarged by the whole number that brings its shorter side nearest to
            this, so that names can be read in it; 0 keeps its size, and so does a larger picture.

    Raises:
        DataError: Boxes, labels, masks or the picture have a wrong shape.
    """
    picture = _to_picture(image)
    objects = _collect(found, classes, picture.size, score, masks)
    factor = max(1, round(min_side / min(picture.size)))
    if factor > 1:
        size = (picture.width * factor, picture.height * factor)
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    style = _Style.of(picture)
    objects = [item.enlarged(factor) for item in objects]
    by_area = sorted(objects, key=lambda item: -_area(item.box))
    picture = _paint_masks(picture, by_area, style)
    canvas = ImageDraw.Draw(picture)
    for item in by_area:
        _outline(canvas, item, style)
    boxes, names = [item.box for item in objects], []
    for item in sorted(objects, key=lambda item: -item.score):
        names.append(_write(canvas, item, style, picture.size, boxes, names))
    return picture


def draw_beside(
    image: Image.Image | Tensor,
    truth: Drawable,
    found: Drawable,
    classes: Sequence[str],
    *,
    score: float = 0.5,
    masks: bool = True,
    min_side: int = 480,
) -> Image.Image:
    """Returns a new picture: on the left what was annotated, on the right what was found.

    Args:
        image: As in `draw_detections`, and so are the other arguments.
        truth: What was annotated; ``score`` does not matter for it.
        found: What was found.
        classes: Name of each label.
        score: What has a lower score is left out on the right.
        masks: False draws boxes alone.
        min_side: Pictures are enlarged up to it.

    Raises:
        DataError: Boxes, labels, masks or the picture have a wrong shape.
    """
    left = draw_detections(image, truth, classes, masks=masks, min_side=min_side)
    right = draw_detections(image, found, classes, score=score, masks=masks, min_side=min_side)
    style = _Style.of(left)
    strip, gap = round(2 * style.font_size), style.font_size
    both = Image.new("RGB", (2 * left.width + gap, left.height + strip), _PAPER)
    canvas = ImageDraw.Draw(both)
    for x, side, title in ((0, left, "annotated"), (left.width + gap, right, "found")):
        both.paste(side, (x, strip))
        place = (x + side.width / 2, strip / 2)
        canvas.text(place, title, _INK, ImageFont.load_default(style.font_size), anchor="mm")
    return both


@dataclass(frozen=True)
class _Style:
    """Sizes in pixels."""

    line: int
    font_size: int

    @classmethod
    def of(cls, picture: Image.Image) -> "_Style":
        side = math.sqrt(picture.width * picture.height)
        return cls(max(2, round(side / 300)), max(_SMALLEST_FONT, round(side / 42)))


@dataclass(frozen=True, eq=False)
class _Object:
    """What is drawn of one object, in pixels of the picture."""

    box: Rectangle
    label: int
    text: str
    score: float
    mask: np.ndarray | None = None

    def enlarged(self, factor: int) -> "_Object":
        if factor == 1:
            return self
        mask = self.mask
        if mask is not None:
            small = Image.fromarray(mask.astype(np.uint8) * 255)
            size = (small.width * factor, small.height * factor)
            mask = np.asarray(small.resize(size, Image.Resampling.BILINEAR)) > 127
        x1, y1, x2, y2 = (side * factor for side in self.box)
        return _Object((x1, y1, x2, y2), self.label, self.text, self.score, mask)


def _to_picture(image: Image.Image | Tensor) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if image.ndim != 3 or image.shape[0] != 3 or image.element_size() != 1:
        raise DataError(
            "draw_detections: a tensor must be a picture (3, H, W) of uint8, got "
            f"{tuple(image.shape)} of {image.dtype}"
        )
    return Image.fromarray(image.detach().cpu().permute(1, 2, 0).contiguous().numpy())


def _collect(
    found: Drawable, classes: Sequence[str], size: tuple[int, int], least: float, masks: bool
) -> list[_Object]:
    """Returns what is to be drawn, in the order given."""
    width, height = size
    columns = _columns(found)
    boxes = _array(columns["boxes"], np.float64).reshape(-1, 4)
    labels = _array(columns["labels"], np.int64)
    given = columns.get("scores")
    scores = np.ones(len(boxes)) if given is None else _array(given, np.float64)
    crowds = _array(columns.get("iscrowd", np.zeros(len(boxes))), bool)
    bitmaps = columns.get("masks") if masks else None
    counts = (len(labels), len(scores), len(boxes if bitmaps is None else bitmaps))
    if counts != (len(boxes),) * 3:
        raise DataError(
            f"draw_detections: {len(boxes)} boxes need as many labels, scores and masks, "
            f"got {counts}"
        )
    objects: list[_Object] = []
    for place, box in enumerate(boxes):
        if scores[place] < least:
            continue
        label = int(labels[place])
        if not 0 <= label < len(classes):
            raise DataError(f"draw_detections: labels must be 0 to {len(classes) - 1}, got {label}")
        text = classes[label] + (" (crowd)" if crowds[place] else "")
        text += "" if given is None else f" {scores[place]:.2f}"
        mask = None if bitmaps is None else _bitmap(bitmaps[place], height, width)
        x1, x2 = np.clip(box[::2], 0, width)
        y1, y2 = np.clip(box[1::2], 0, height)
        corners = (float(x1), float(y1), float(x2), float(y2))
        objects.append(_Object(corners, label, text, float(scores[place]), mask))
    return objects


def _columns(found: Drawable) -> Mapping[str, Any]:
    if isinstance(found, AnnotatedImage):
        items = found.objects
        with_masks = bool(items) and all(item.mask is not None for item in items)
        return {
            "boxes": [item.box for item in items],
            "labels": [item.label for item in items],
            "iscrowd": [item.is_crowd for item in items],
            "masks": [item.mask for item in items] if with_masks else None,
        }
    if isinstance(found, Detections):
        names = ("boxes", "labels", "scores", "masks")
        return {name: getattr(found, name) for name in names}
    return found


def _array(values: Any, kind: type) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values).astype(kind)


def _bitmap(mask: Any, height: int, width: int) -> np.ndarray:
    if isinstance(mask, Mapping):
        from faster_coco_eval.core import mask as coco

        bitmap = coco.decode([dict(mask)])[:, :, 0] != 0
    elif isinstance(mask, Tensor):
        bitmap = mask.detach().cpu().numpy() != 0
    else:
        bitmap = decode_mask(mask, height, width) != 0
    if bitmap.shape != (height, width):
        raise DataError(
            f"draw_detections: masks must have the size {(height, width)} of the picture, got "
            f"{bitmap.shape}"
        )
    return bitmap


def _paint_masks(picture: Image.Image, objects: list[_Object], style: _Style) -> Image.Image:
    """Returns the picture with the masks half transparent and their edges opaque."""
    pixels = np.asarray(picture).copy()
    for item in objects:
        if item.mask is None or not item.mask.any():
            continue
        rows, columns = np.flatnonzero(item.mask.any(1)), np.flatnonzero(item.mask.any(0))
        window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        mask, part = item.mask[window], pixels[window]
        color = np.array(class_color(item.label), np.float32)
        part[mask] = ((1 - _FILL) * part[mask] + _FILL * color + 0.5).astype(np.uint8)
        part[_edge(mask, max(1, style.line // 2))] = color
    return Image.fromarray(pixels)


def _edge(mask: np.ndarray, thickness: int) -> np.ndarray:
    """Returns the pixels of a mask that are at most so far from what is outside of it."""
    inside = np.pad(mask, 1)
    for _ in range(thickness):
        core = inside.copy()
        core[1:] &= inside[:-1]
        core[:-1] &= inside[1:]
        core[:, 1:] &= inside[:, :-1]
        core[:, :-1] &= inside[:, 1:]
        inside = core
    return mask & ~inside[1:-1, 1:-1]


def _outline(canvas: ImageDraw.ImageDraw, item: _Object, style: _Style) -> None:
    """Draws a box, in its colour with a thin dark line on both sides."""
    x1, y1, x2, y2 = (round(side) for side in item.box)
    corners = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
    canvas.rectangle(corners, outline=_INK, width=style.line + 2)
    inner = (corners[0] + 1, corners[1] + 1, corners[2] - 1, corners[3] - 1)
    if inner[0] <= inner[2] and inner[1] <= inner[3]:
        canvas.rectangle(inner, outline=class_color(item.label), width=style.line)


def _write(
    canvas: ImageDraw.ImageDraw,
    item: _Object,
    style: _Style,
    size: tuple[int, int],
    boxes: list[Rectangle],
    names: list[Rectangle],
) -> Rectangle:
    """Writes the name where it covers least; returns the place."""
    font = ImageFont.load_default(style.font_size)
    pad = max(3, style.font_size // 4)
    left, _, right, _ = font.getbbox(item.text, anchor="ls")
    _, top, _, bottom = font.getbbox("Äg", anchor="ls")
    needed = (round(right - left) + 2 * pad, round(bottom - top) + pad)
    place = _best_place(item.box, needed, size, boxes, names)
    color = class_color(item.label)
    corners = (place[0], place[1], place[2] - 1, place[3] - 1)
    canvas.rectangle(corners, fill=color, outline=_INK, width=max(1, style.line // 3))
    baseline = (place[0] + pad - left, place[1] + pad / 2 - top)
    canvas.text(baseline, item.text, ink_on(color), font, anchor="ls")
    return place


def _best_place(
    box: Rectangle,
    needed: tuple[int, int],
    size: tuple[int, int],
    boxes: list[Rectangle],
    names: list[Rectangle],
) -> Rectangle:
    """Returns the place at a box's corners that covers least of names and of small boxes."""
    x1, y1, x2, y2 = box
    width, height = needed
    small = [other for other in boxes if _area(other) < _SMALL * width * height]
    least, best = math.inf, (0.0, 0.0, float(width), float(height))
    for x, y in (
        (x1, y1 - height),
        (x1, y1),
        (x1, y2),
        (x2 - width, y1 - height),
        (x2 - width, y1),
        (x2 - width, y2),
        (x1, y2 - height),
        (x2 - width, y2 - height),
        (x2, y1),
        (x1 - width, y1),
    ):
        left = round(min(max(x, 0), max(0, size[0] - width)))
        top = round(min(max(y, 0), max(0, size[1] - height)))
        place = (left, top, left + width, top + height)
        cost = sum(_NAME_COST * _overlap(place, other) for other in names)
        cost += sum(_overlap(place, other) for other in small)
        if cost < least:
            least, best = cost, place
        if not cost:
            break
    return best


def _area(rectangle: Rectangle) -> float:
    return (rectangle[2] - rectangle[0]) * (rectangle[3] - rectangle[1])


def _overlap(one: Rectangle, other: Rectangle) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
