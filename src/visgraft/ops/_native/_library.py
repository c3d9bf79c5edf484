"""A library of native functions that belongs to one operation."""

import ctypes
import os
import sys
import threading
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter

from visgraft.ops._dispatch import being_traced, being_transformed
from visgraft.ops._native._cache import UnsafeFolderError, cache_folder
from visgraft.ops._native._compiler import CompilerError, compiled

__all__ = ["NativeLibrary", "tensor_refusal", "threads_for", "unwatched", "with_whole_maps"]

_DTYPES = (torch.float32, torch.bfloat16)
_WORTH = 1 << 21  # multiplications that pay for one more thread
_dispatch_modes = torch._C._len_torch_dispatch_stack  # pyright: ignore[reportAttributeAccessIssue]


class NativeLibrary:
    """The functions of a C file, which is compiled when it is first asked for.

    Each function takes an array of tensors' addresses (null where there is none) and one of
    numbers, both of 64 bits, writes into tensors that it is given, and returns 0, or 1 where
    memory is short. Calls release the GIL and may run at the same time.

    Args:
        name: Of the operation, part of the name of the compiled file.
        source: The C file.
    """

    def __init__(self, name: str, source: Path) -> None:
        self.name = name
        self._source = source
        self._lock = threading.Lock()
        self._library: ctypes.CDLL | None = None
        self._reason: str | None = None

    def refusal(self) -> str | None:
        """Says why the functions cannot be called on this machine, or returns None.

        The first call compiles, for some seconds, unless an earlier process has; the answer is
        kept. ``VISGRAFT_NATIVE=0`` is read at each call.
        """
        if os.environ.get("VISGRAFT_NATIVE", "1") == "0":
            return "VISGRAFT_NATIVE=0 switches native forms off"
        if self._library is None and self._reason is None:
            with self._lock:
                if self._library is None and self._reason is None:
                    self._load()
        return self._reason

    # What `torch.compiler.assume_constant_result` does, which would import the compiler: a graph
    # holds the answer, and does not trace how it is found.
    refusal._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]

    def call(self, function: str, tensors: Sequence[Tensor | None], *numbers: int) -> None:
        """Calls a function, whose tensors must be laid out as it expects.

        Raises:
            RuntimeError: The library is not available; ``refusal`` says so beforehand.
            MemoryError: There is not enough memory for the intermediate results.
        """
        library = self._library
        if library is None:
            reason = self.refusal()
            library = self._library
            if library is None:
                raise RuntimeError(f"{self.name}: the native form cannot run here: {reason}")
        addresses = _addresses(len(tensors))(
            *[None if t is None else t.data_ptr() for t in tensors]
        )
        if getattr(library, function)(addresses, _numbers(numbers)):
            raise MemoryError(f"{self.name}: not enough memory for the native form")

    def _load(self) -> None:
        if os.name != "posix" or sys.byteorder != "little":
            self._reason = "native forms are made for Linux and macOS on little-endian machines"
            return
        try:
            path = compiled(self._source, self.name, cache_folder())
            self._library = ctypes.CDLL(str(path))
        except (CompilerError, UnsafeFolderError) as error:
            self._reason = str(error)
        except OSError as error:
            self._reason = f"the compiled library cannot be made or loaded: {error}"


@cache
def _addresses(count: int) -> type[ctypes.Array[ctypes.c_void_p]]:
    return ctypes.c_void_p * count


@lru_cache(1024)
def _numbers(numbers: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
    """Returns the numbers as C reads them; a network makes the same calls again and again."""
    return (ctypes.c_int64 * len(numbers))(*numbers)


def tensor_refusal(*tensors: Tensor) -> str | None:
    """Says why native code cannot read these tensors, by device and dtype, or returns None."""
    for tensor in tensors:
        if not tensor.is_cpu:
            return f"needs CPU tensors, got {tensor.device.type}"
        if tensor.dtype not in _DTYPES:
            return f"needs float32 or bfloat16, got {str(tensor.dtype).removeprefix('torch.')}"
    return None


def threads_for(multiplications: int) -> int:
    """Returns how many threads a call of this size should use."""
    return max(1, min(torch.get_num_threads(), multiplications // _WORTH))


def unwatched(*tensors: Tensor) -> bool:
    """Whether a call may skip PyTorch's dispatcher, which costs as much as a small map.

    Not where it is recorded, transformed, counted, or made with a subclass of tensors or with
    shapes alone: there the operator of the same name has to be seen.
    """
    if being_traced():  # first, for a compiler cannot read what follows
        return False
    for tensor in tensors:
        if (type(tensor) is not Tensor and type(tensor) is not Parameter) or tensor.is_meta:
            return False
    return not (
        _dispatch_modes()
        or torch.autograd._profiler_enabled()  # pyright: ignore[reportPrivateImportUsage]
        or being_transformed()
    )


def with_whole_maps(x: Tensor) -> Tensor:
    """Returns the tensor with each map in one piece; images, heads and channels may lie apart."""
    if x.stride(4) == 1 and x.stride(3) == x.shape[4]:
        return x
    return x.contiguous()
