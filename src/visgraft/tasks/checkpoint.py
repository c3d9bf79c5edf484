"""Checkpoints: tensors and plain values only, written whole or not at all, never executed.

A checkpoint of ours is Lightning's dictionary with one more entry, ``visgraft``: the `RunRecord`,
from which network, grafts and input can be rebuilt.
"""

import io
import pickle
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visgraft._version import __version__
from visgraft.tasks.errors import CheckpointError
from visgraft.tasks.files import write_atomically

__all__ = [
    "InputSpec",
    "RunRecord",
    "read_checkpoint",
    "read_record",
    "read_weights",
    "write_checkpoint",
]

FORMAT = 2  # 1 had no category_ids
_READABLE = (1, FORMAT)
_KEY = "visgraft"
_MODEL, _AVERAGE = "model.", "ema.module."  # the task's two networks in Lightning's state_dict
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class InputSpec:
    """How an image becomes the input of the network.

    Attributes:
        size: ``(H, W)`` of the input, in pixels.
        mean: Per channel, of pixels in 0-1.
        std: Per channel, of pixels in 0-1.
        crop_pct: Share of the shorter side that evaluation keeps; None leaves it to the data room.
        interpolation: Of resizing.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float | None = None
    interpolation: str = "bicubic"


@dataclass(frozen=True)
class RunRecord:
    """What a checkpoint says of the run that wrote it.

    Attributes:
        recipe: The fields of the recipe.
        classes: Names of the classes, in the order of the network's outputs.
        in_chans: Channels of an image.
        input: How an image becomes the network's input.
        plans: One plan per graft, in order.
        fingerprint: Of the data.
        initial_weights: Digest of the network's weights before grafting and before training.
        data_order: Digest of the order in which the images are seen.
        history: The metrics of each epoch so far.
        category_ids: For detection, the number of each class in the annotations' file.
    """

    recipe: dict[str, Any]
    classes: tuple[str, ...]
    in_chans: int
    input: InputSpec
    plans: tuple[dict[str, Any], ...]
    fingerprint: str
    initial_weights: str
    data_order: str
    history: tuple[dict[str, float], ...] = field(default=())
    category_ids: tuple[int, ...] = ()

    def with_history(self, history: list[dict[str, float]]) -> "RunRecord":
        """Returns the record after some epochs."""
        return replace(self, history=tuple(dict(row) for row in history))


def write_checkpoint(content: Mapping[str, Any], record: RunRecord, path: Path) -> None:
    """Writes a checkpoint with its record; the old one stays until the new one is complete.

    Raises:
        OSError: It cannot be written.
    """
    buffer = io.BytesIO()
    about = asdict(record) | {"format": FORMAT, "version": __version__}
    torch.save({**content, _KEY: about}, buffer)
    write_atomically(path, buffer.getvalue())


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a file of tensors and plain values, by torch or safetensors.

    Raises:
        CheckpointError: There is no such file, it is damaged, or it would execute code.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"checkpoint {path}: cannot be read ({reason})") from error
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked is None:
            raise CheckpointError(f"checkpoint {path}: is damaged, or is no checkpoint") from error
        raise CheckpointError(
            f"checkpoint {path}: refused, it would execute code when opened (it asks for "
            f"{asked[1]}); only tensors and plain values are read: have its author save the state "
            "dict alone, or as safetensors"
        ) from error
    except Exception as error:  # zip, struct and safetensors errors have no common base
        raise CheckpointError(f"checkpoint {path}: is damaged, or is no checkpoint") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"checkpoint {path}: must hold tensors by name, got {type(content).__name__}"
        )
    return content


def read_record(content: Mapping[str, Any], path: str | Path) -> RunRecord | None:
    """Returns the record of a checkpoint, None if visgraft did not write it.

    Raises:
        CheckpointError: It was written by a later visgraft.
    """
    about = content.get(_KEY)
    if not isinstance(about, dict):
        return None
    about = dict(about)
    form, version = about.pop("format", None), about.pop("version", "?")
    if form not in _READABLE:
        readable = " and ".join(map(str, _READABLE))
        raise CheckpointError(
            f"checkpoint {path}: was written by visgraft {version} in format {form}; "
            f"this is {__version__}, which reads formats {readable}"
        )
    try:
        return RunRecord(**{**about, "input": InputSpec(**about["input"])})
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path}: its record is damaged ({error})") from error


def read_weights(content: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """Returns the network's weights by name: the average where one was kept, without wrappers.

    Raises:
        CheckpointError: There are none.
    """
    weights: Any = content
    if _KEY in content:
        state = content["state_dict"]
        prefix = _AVERAGE if any(name.startswith(_AVERAGE) for name in state) else _MODEL
        weights = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    else:
        for wrapper in _WRAPPERS:
            if isinstance(content.get(wrapper), dict):
                weights = content[wrapper]
                break
    weights = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    if not weights:
        raise CheckpointError(f"checkpoint {path}: holds no weights")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights
