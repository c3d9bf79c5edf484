"""Draws what the networks of a study look at: class-activation pictures of validation images.

The images are chosen by their place alone, before any network sees them. Each picture asks for the
true class, so that all networks are asked the same.
"""

import io
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from visgraft.data import ImageData
from visgraft.inspect.class_activation import class_activation
from visgraft.study.errors import StudyError
from visgraft.study.facts import open_images
from visgraft.study.reports.pictures import INDEX, PICTURES
from visgraft.study.store import Store
from visgraft.tasks.errors import CheckpointError
from visgraft.tasks.evaluation import load_trained
from visgraft.tasks.files import write_atomically
from visgraft.tasks.glow import as_pixels, colours, enlarge, glowing
from visgraft.tasks.images import RunData, evaluation_transform

__all__ = ["draw_pictures", "redraw_pictures"]

_IMAGES = 6
_NETWORKS = 24
_SIDE = 128  # pixels of a picture's shorter side
_COLOURS = 64  # of a PNG's palette: a third of the bytes, no difference to the eye
_CHECKPOINT = "last.ckpt"


def draw_pictures(store: Store, data: RunData) -> Path | None:
    """Draws the pictures of a study of classifiers into its folder, in the place of older ones.

    A network whose checkpoint is not there, or that has no feature map, is named in the index with
    the reason. A folder that cannot be written to is a warning: the trials are finished.

    Args:
        store: The study.
        data: Its images.

    Returns:
        The folder of the pictures; None for detectors and where no network can be shown.
    """
    if not isinstance(data, ImageData) or not len(data.val):
        return None
    study = store.study
    seed = study.seeds[0]
    status = {t.variant: t.status for t in store.trials() if t.seed == seed}
    names = (study.baseline, *study.variants, *study.controls)
    missing = dict.fromkeys(names[_NETWORKS:], f"only {_NETWORKS} networks are drawn")
    files: dict[str, bytes] = {}
    images, networks = _choose(data), []
    shown: Tensor | None = None
    for name in names[:_NETWORKS]:
        if status[name] != "finished":
            missing[name] = f"its trial of seed {seed} is {status[name]}"
            continue
        try:
            entry, inputs = _explain(store, name, seed, data, images, files)
        except (CheckpointError, ValueError, KeyError, RuntimeError) as error:
            missing[name] = str(error).strip().splitlines()[0] if str(error) else repr(error)
            continue
        networks.append(entry)
        shown = inputs if shown is None else shown
    if shown is None:
        return None
    chosen = []
    for number, index in enumerate(images):
        file = f"image-{number}.png"
        files[file] = _png(enlarge(colours(shown[number]), _SIDE))
        label = data.classes[data.val.labels[index]]
        chosen.append({"name": data.val.names[index], "label": label, "file": file})
    content = {"seed": seed, "images": chosen, "networks": networks, "missing": missing}
    return _write(store.folder / PICTURES, files, content)


def redraw_pictures(folder: str | Path) -> Path:
    """Draws the pictures of a study that has run, in the place of older ones.

    Args:
        folder: Of the study.

    Returns:
        The folder of the pictures.

    Raises:
        StudyError: There is no study, its images are not there, or no network can be shown.
        DataError: The images cannot be used.
    """
    store = Store.open(folder)
    drawn = draw_pictures(store, open_images(store, store.study.recipe))
    if drawn is None:
        raise StudyError(
            f"study: there is nothing to draw in {folder}; pictures need classifiers whose trials "
            f"of seed {store.study.seeds[0]} are finished, with a feature map before the head and "
            f"their {_CHECKPOINT}."
        )
    return drawn


def _choose(data: ImageData) -> list[int]:
    """Returns validation images at equal distances, of as many classes as there are."""
    labels = data.val.labels
    step = max(1, len(labels) // _IMAGES)
    chosen: list[int] = []
    seen: set[int] = set()
    for start in range(0, step * min(_IMAGES, len(labels)), step):
        places = range(start, min(start + step, len(labels)))
        place = next((i for i in places if labels[i] not in seen), start)
        chosen.append(place)
        seen.add(labels[place])
    return chosen


def _explain(
    store: Store,
    name: str,
    seed: int,
    data: ImageData,
    images: list[int],
    files: dict[str, bytes],
) -> tuple[dict[str, Any], Tensor]:
    """Adds the pictures of one network to the files; returns its entry and what it was shown."""
    checkpoint = store.trial_folder(name, seed) / _CHECKPOINT
    if not checkpoint.is_file():
        raise CheckpointError(f"there is no {checkpoint.relative_to(store.folder)}")
    trained = load_trained(checkpoint)
    transform = evaluation_transform(data, trained.record.input)
    inputs = torch.stack([transform(data.val[index][0]) for index in images])
    labels = [data.val.labels[index] for index in images]
    found = class_activation(trained.model, inputs, labels)
    chances, best = found.scores.float().softmax(-1).max(-1)
    pictures = []
    pixels = as_pixels(inputs, trained.record.input.mean, trained.record.input.std)
    for number, picture in enumerate(pixels):
        file = f"{name}-{number}.png"
        files[file] = _png(glowing(enlarge(colours(picture), _SIDE), found.maps[number]))
        says = {"says": data.classes[int(best[number])], "chance": round(float(chances[number]), 4)}
        pictures.append({"file": file, **says})
    entry = {"network": name, "grid": list(found.maps.shape[1:]), "pictures": pictures}
    return entry, pixels


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    small = picture.quantize(_COLOURS, dither=Image.Dither.NONE)
    small.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _write(folder: Path, files: Mapping[str, bytes], index: Mapping[str, Any]) -> Path | None:
    """Writes the pictures, then the index that names them; a reader never meets half of them."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        for name, content in files.items():
            write_atomically(folder / name, content)
        write_atomically(folder / INDEX, json.dumps(index, indent=1).encode())
    except OSError as error:
        warnings.warn(
            f"study: the pictures of the report could not be written ({error}); everything else of "
            "the study is there.",
            stacklevel=4,
        )
        return None
    return folder
