"""The objects that a trained detector finds in pictures."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional

from visgraft.data.pictures import PictureFile
from visgraft.tasks.checkpoint import RunRecord
from visgraft.tasks.detection.drawing import draw_detections
from visgraft.tasks.detection.predictions import Detections, check_prediction
from visgraft.tasks.detection.results import coco_results
from visgraft.tasks.detection.task import to_predictions
from visgraft.tasks.files import write_atomically
from visgraft.tasks.progress import Bar

__all__ = ["FoundObjects", "find_objects", "number_pictures"]

_QUALITY = 92  # of the JPEG files that are written


@dataclass(frozen=True, eq=False)
class FoundObjects:
    """What a detector found in one picture.

    Attributes:
        path: Of the picture, as the caller wrote it.
        name: The picture's path below the folder that the caller named.
        image_id: Its number in COCO results.
        classes: The class of each object, in the order of ``objects``, best score first.
        objects: Boxes, labels, scores and masks.
    """

    path: Path
    name: str
    image_id: int
    classes: tuple[str, ...]
    objects: Detections

    def coco(self, category_ids: tuple[int, ...]) -> list[dict[str, Any]]:
        """Returns the entries of COCO results, each with the file's name beside its number."""
        return [
            {"image_id": entry.pop("image_id"), "file_name": self.name, **entry}
            for entry in coco_results(self.objects, self.image_id, category_ids)
        ]


def find_objects(
    model: nn.Module,
    record: RunRecord,
    files: Sequence[PictureFile],
    *,
    drawn: Mapping[int, Path],
    score: float,
    batch_size: int,
    workers: int,
    progress: bool,
) -> list[FoundObjects]:
    """Applies a detector to pictures in their own sizes.

    Args:
        model: The detector, in evaluation mode.
        record: Says classes and channels.
        files: The pictures.
        drawn: Where a picture with its objects is written, by its place in ``files``.
        score: What has a lower score is not drawn.
        batch_size: Pictures at a time.
        workers: Processes that load pictures.
        progress: Show a bar.
    """
    where = next(model.parameters()).device
    loader = DataLoader(
        _Pictures(files, "L" if record.in_chans == 1 else "RGB"),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=list,
    )
    numbers = number_pictures(files)
    found: list[FoundObjects] = []
    with Bar("predicting", len(loader), shown=progress) as bar:
        for batch in loader:
            inputs = [functional.to_dtype(i.to(where), torch.float32, scale=True) for i in batch]
            for pixels, prediction in zip(batch, to_predictions(model(inputs)), strict=True):
                place = len(found)
                objects = check_prediction(
                    prediction,
                    f"predict: {files[place].path}",
                    num_classes=len(record.classes),
                    size=(files[place].height, files[place].width),
                    masks="masks" in prediction,
                )
                names = tuple(record.classes[label] for label in objects.labels)
                file = files[place]
                found.append(FoundObjects(file.path, file.name, numbers[place], names, objects))
                if place in drawn:
                    _draw(pixels, objects, record.classes, score, drawn[place])
            bar.advance()
    return found


def number_pictures(files: Sequence[PictureFile]) -> list[int]:
    """Returns the number of each picture in COCO results.

    COCO's own files are named by their numbers; where these are not, or not all different, the
    place in the list counts, from 1.
    """
    stems = [PurePosixPath(file.name).stem for file in files]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(files) + 1))


class _Pictures(Dataset[Tensor]):
    """Pictures as tensors ``(C, H, W)`` of uint8."""

    def __init__(self, files: Sequence[PictureFile], mode: str) -> None:
        self.files = files
        self.mode = mode

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return functional.pil_to_tensor(self.files[index].read().convert(self.mode))


def _draw(
    pixels: Tensor, objects: Detections, classes: Sequence[str], score: float, path: Path
) -> None:
    picture = draw_detections(pixels.expand(3, -1, -1), objects, classes, score=score)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=_QUALITY, subsampling=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
