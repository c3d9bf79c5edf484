"""Why a kernel that is written for CUDA cannot take some tensors."""

import os

import torch
from torch import Tensor

from visgraft.ops._exporting import exporting

__all__ = ["refuse_unless_on_gpu"]

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # kernels run on the CPU, for tests
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def refuse_unless_on_gpu(*tensors: Tensor) -> str | None:
    """Returns the reason, or None."""
    if exporting():
        return "an exported graph has to run where this form is not installed"
    if torch.version.hip is not None:
        return "this PyTorch is built for ROCm; this form is for CUDA"
    device = tensors[0].device
    for t in tensors:
        if t.device.type != "cuda" and not _INTERPRETED:
            return f"tensors are on {t.device.type}; this form is for CUDA"
        if t.device != device:
            return f"tensors are on {device} and {t.device}, not on one device"
        if t.dtype not in _DTYPES:
            name = str(t.dtype).removeprefix("torch.")
            return f"tensors are {name}; this form is for float32, bfloat16 and float16"
    return None
