"""Reading of weight files without executing anything in them."""

import argparse
import pickle
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

__all__ = ["read_weights"]

_ZIP, _PICKLE = b"PK", b"\x80"  # how the two formats of torch.save begin
_LENGTH = 8  # bytes; a safetensors file has the length of its header there, and then JSON


def read_weights(path: str | PathLike[str]) -> Mapping[str, Any]:
    """Returns what a safetensors or torch file holds, on the CPU.

    Raises:
        ValueError: The file is missing, damaged, of another kind, or would execute code.
    """
    try:
        path = Path(path)
    except TypeError:
        kind = type(path).__name__
        raise ValueError(f"load_published: expected a path or a state dict, got {kind}") from None
    try:
        with path.open("rb") as file:
            start = file.read(_LENGTH + 1)
    except OSError as error:
        raise ValueError(f"load_published: cannot read {path}: {error.strerror}") from error
    if path.suffix == ".caffemodel":
        raise ValueError(
            f"load_published: {path} is a Caffe model, which visgraft does not read; save its "
            "blobs with Caffe as safetensors, named LAYER.weight, LAYER.bias, LAYER.running_mean "
            "and LAYER.running_var"
        )
    is_torch = start.startswith((_ZIP, _PICKLE)) and start[_LENGTH:] != b"{"
    content = _read_torch(path) if is_torch else _read_safe(path)
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise ValueError(f"load_published: {path} holds a {kind}, not a state dict")
    return content


def _read_safe(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"load_published: {path} ({path.stat().st_size} bytes) is neither an intact "
            f"safetensors file nor one written by torch.save ({error}); fetch it again"
        ) from error


def _read_torch(path: Path) -> object:
    try:
        # Training checkpoints of timm's family carry their options in a Namespace: plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        LookupError,
        ValueError,
    ) as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code is not None:
            raise ValueError(
                f"load_published: {path} would execute code ({code[1]}) and is refused; save only "
                "its state dict, where you trust the file, and load that"
            ) from error
        raise ValueError(
            f"load_published: {path} ({path.stat().st_size} bytes) is damaged: "
            f"{type(error).__name__} while reading it; fetch it again"
        ) from error
