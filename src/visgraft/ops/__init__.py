"""Tensor operations with one readable reference each and optional faster implementations."""

from visgraft.ops._explain import explain
from visgraft.ops.deformable_convolution import deformable_convolution
from visgraft.ops.local_aggregation import local_aggregation
from visgraft.ops.relative_attention import relative_attention
from visgraft.ops.space_to_depth import space_to_depth
from visgraft.ops.window_attention import window_attention

__all__ = [
    "deformable_convolution",
    "explain",
    "local_aggregation",
    "relative_attention",
    "space_to_depth",
    "window_attention",
]
