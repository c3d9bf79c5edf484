"""What a trained network says of pictures: their classes, or the objects in them."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from visgraft.data import DataError
from visgraft.data.pictures import PictureFile, find_pictures
from visgraft.tasks.detection.finding import FoundObjects, find_objects
from visgraft.tasks.devices import pick_device
from visgraft.tasks.evaluation import Trained, load_trained
from visgraft.tasks.files import write_atomically
from visgraft.tasks.json_lists import write_json_list
from visgraft.tasks.picture_inputs import PictureInputs, plan_pictures
from visgraft.tasks.progress import Bar, counting_bar

__all__ = ["PredictedClasses", "predict"]

_TOP = 5
_SCORE = 0.5


@dataclass(frozen=True)
class PredictedClasses:
    """What a classifier says of one picture.

    Attributes:
        path: Of the picture, as the caller wrote it.
        name: The picture's path below the folder that the caller named.
        classes: The likeliest ones, best first.
        probabilities: Of these classes, 0 to 1.
    """

    path: Path
    name: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict(
    checkpoint: str | Path,
    images: str | Path | Iterable[str | Path],
    *,
    top: int | None = None,
    output: str | Path | None = None,
    pictures: str | Path | None = None,
    score: float | None = None,
    batch_size: int | None = None,
    on_bad_image: Literal["error", "skip"] = "error",
    device: str = "auto",
    workers: int = 0,
    progress: bool = True,
) -> Sequence[PredictedClasses] | Sequence[FoundObjects]:
    """Applies the network of a checkpoint to pictures, prepared as for its evaluation.

    Pictures are taken as a viewer shows them, EXIF rotation applied, in RGB or, where the network
    takes one channel, in gray.

    Args:
        checkpoint: What `train` wrote; of a classifier or of a detector.
        images: Files and folders; all files in a folder and in its folders are read.
        top: Classifiers: how many classes are named (default: 5, or as many as there are).
        output: File to write: json or csv for a classifier, COCO results json for a detector. A
            picture's ``image_id`` there is its file's name where all names are numbers, as COCO's
            are, and else its place in the list, counted from 1; ``file_name`` stands beside it.
        pictures: Detectors: folder for pictures with boxes, masks, names and scores.
        score: Detectors: what has a lower score is not drawn (default: 0.5).
        batch_size: Images at a time; None takes that of training for a classifier, and 1 for a
            detector, in which images of a batch are padded to one size and change each other a bit.
        on_bad_image: ``error`` names all files that cannot be read and stops before anything is
            computed; ``skip`` leaves them out, each with a line in the log.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: Processes that load images.
        progress: Show a progress bar on standard error.

    Returns:
        One result per picture, in order: `PredictedClasses`, or
        `visgraft.tasks.detection.finding.FoundObjects` of a detector.

    Raises:
        CheckpointError: The checkpoint cannot be read, or visgraft did not write it.
        DataError: A picture cannot be read, or an argument does not suit the task.
        OSError: A file cannot be written.
    """
    trained = load_trained(checkpoint)
    recipe, finds = trained.recipe, trained.recipe.task != "classification"
    _check_numbers(top=top, batch_size=batch_size)
    _check_arguments(finds, top, output, pictures, score)
    sources = [images] if isinstance(images, str | Path) else list(images)
    with counting_bar("reading images") as count:
        files = find_pictures(
            sources, on_bad_image=on_bad_image, progress=count if progress else None
        )
    where = pick_device(device)
    size = batch_size or (1 if finds else recipe.batch_size)
    half = torch.autocast(where.type, torch.bfloat16, enabled=recipe.precision == "bf16")
    trained.model.to(where)
    if finds:
        drawn = plan_pictures(pictures, files, owner="predict")
        with torch.inference_mode(), half:
            found = find_objects(
                trained.model,
                trained.record,
                files,
                drawn=drawn,
                score=_SCORE if score is None else score,
                batch_size=size,
                workers=workers,
                progress=progress,
            )
        if output is not None:
            entries = (entry for one in found for entry in one.coco(trained.record.category_ids))
            write_json_list(output, entries)
        return found
    loader = DataLoader(PictureInputs(trained.record, files), batch_size=size, num_workers=workers)
    with torch.inference_mode(), half:
        results = _classify(trained, files, loader, where, top or _TOP, progress)
    if output is not None:
        _save(results, Path(output))
    return results


def _classify(
    trained: Trained,
    files: Sequence[PictureFile],
    loader: DataLoader[Tensor],
    where: torch.device,
    top: int,
    progress: bool,
) -> list[PredictedClasses]:
    classes = trained.record.classes
    results: list[PredictedClasses] = []
    with Bar("predicting", len(loader), shown=progress) as bar:
        for batch in loader:
            chances = trained.model(batch.to(where)).float().softmax(-1)
            best = chances.topk(min(top, len(classes)))
            for values, labels in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                file = files[len(results)]
                names = tuple(classes[label] for label in labels)
                results.append(PredictedClasses(file.path, file.name, names, tuple(values)))
            bar.advance()
    return results


def _save(results: Sequence[PredictedClasses], path: Path) -> None:
    """Writes json, one picture per line, or csv, one class per line."""
    if path.suffix.lower() == ".json":
        write_json_list(
            path,
            (
                {
                    "image": one.name,
                    "predictions": [
                        {"class": name, "probability": value}
                        for name, value in zip(one.classes, one.probabilities, strict=True)
                    ],
                }
                for one in results
            ),
        )
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("image", "rank", "class", "probability"))
    for one in results:
        for rank, pair in enumerate(zip(one.classes, one.probabilities, strict=True), 1):
            writer.writerow((one.name, rank, *pair))
    write_atomically(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _check_numbers(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise DataError(f"predict: {name} must be at least 1, got {value}")


def _check_arguments(
    finds: bool,
    top: int | None,
    output: str | Path | None,
    pictures: str | Path | None,
    score: float | None,
) -> None:
    """Raises before anything is computed if an argument does not suit the network."""
    kind, unfit = "classifier", {"pictures": pictures, "score": score}
    if finds:
        kind, unfit = "detector", {"top": top}
    for name, value in unfit.items():
        if value is not None:
            raise DataError(
                f"predict: the checkpoint is of a {kind}, which has no {name}; leave it out"
            )
    if score is not None and not 0 <= score <= 1:
        raise DataError(f"predict: score must be 0 to 1, got {score}")
    if output is None:
        return
    endings = (".json",) if finds else (".json", ".csv")
    if Path(output).suffix.lower() not in endings:
        raise DataError(
            f"predict: the output of a {kind} must end with {' or '.join(endings)}, got {output}"
        )
    if Path(output).is_dir():
        raise DataError(f"predict: {output} is a folder; name a file for the output")
    if not (folder := Path(output).absolute().parent).is_dir():
        raise DataError(f"predict: there is no folder {folder} for the output; make it")
