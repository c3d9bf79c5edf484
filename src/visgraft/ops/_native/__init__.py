"""C code beside an operation, compiled at first use and called through ctypes.

Nothing here is needed: where there is no compiler, the operations use their forms in PyTorch, and
`visgraft.ops.explain` says why.
"""

from visgraft.ops._native._library import (
    NativeLibrary,
    tensor_refusal,
    threads_for,
    unwatched,
    with_whole_maps,
)

__all__ = ["NativeLibrary", "tensor_refusal", "threads_for", "unwatched", "with_whole_maps"]
