"""Attention of each position to all, with a learned logit for the offset between the two."""

from importlib.util import find_spec

from torch import Tensor

from visgraft.ops._dispatch import Op, missing
from visgraft.ops.relative_attention.chunked import CHUNKED
from visgraft.ops.relative_attention.direct import DIRECT
from visgraft.ops.relative_attention.native import NATIVE
from visgraft.ops.relative_attention.reference import relative_attention_reference

if find_spec("triton"):
    from visgraft.ops.relative_attention.triton_operator import TRITON
else:
    TRITON = missing("triton")

__all__ = ["RELATIVE_ATTENTION", "relative_attention"]

RELATIVE_ATTENTION = Op(
    "relative_attention", relative_attention_reference, NATIVE, DIRECT, TRITON, CHUNKED
)


def relative_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """Mixes the values of all positions, by a softmax over content and relative position.

    The logit of the key at ``p, q`` for the query at ``y, x`` is ``D**-0.5 * query . (key +
    rows[p - y + H - 1] + columns[q - x + W - 1])``.

    ``direct`` takes maps of up to 400 positions and holds all their logits. ``chunked`` takes any
    map, holds the logits of a few queries at a time and computes them again for the backward pass:
    its memory grows with the positions, not with their square. On a CPU it costs up to a fifth
    more time than ``direct`` in training and nothing in inference. ``triton`` is one kernel on
    CUDA that never stores a logit; ``native`` is C code that holds those of 16 queries, on a CPU,
    for maps of more than 200 positions in float32 and bfloat16. While exporting, ``direct`` serves
    every size.

    Args:
        query: ``(B, M, D, H, W)``, M heads of D channels.
        key: ``(B, M, D, H, W)``.
        value: ``(B, M, Dv, H, W)``.
        rows: ``(2 * H - 1, D)``, by the row of the key minus that of the query, from ``1 - H``.
        columns: ``(2 * W - 1, D)``, likewise.
        backend: ``'native'``, ``'direct'``, ``'triton'``, ``'chunked'``, ``'reference'``, or None
            for the first of them that takes this call.

    Returns:
        ``(B, M, Dv, H, W)``, dtype of ``value``.

    Raises:
        ValueError: The tensors do not belong together, or the named backend cannot take them.

    Example:
        >>> import torch
        >>> query, value = torch.zeros(1, 1, 4, 1, 2), torch.tensor([1.0, 3.0]).view(1, 1, 1, 1, 2)
        >>> rows, columns = torch.zeros(1, 4), torch.zeros(3, 4)
        >>> relative_attention(query, query, value, rows, columns).squeeze()
        tensor([2., 2.])
    """
    _check(query, key, value, rows, columns)
    return RELATIVE_ATTENTION(query, key, value, rows, columns, backend=backend)


def _check(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Raises ValueError unless the tensors belong together."""
    for name, x in {"query": query, "key": key, "value": value}.items():
        if x.ndim != 5 or not x.is_floating_point():
            raise ValueError(
                f"relative_attention: {name} must be floating point and (B, M, D, H, W), got "
                f"{x.dtype} {tuple(x.shape)}"
            )
    b, m, d, h, w = query.shape
    if h < 1 or w < 1:
        raise ValueError(
            f"relative_attention: the map has no positions, query is {tuple(query.shape)}"
        )
    if key.shape != query.shape:
        raise ValueError(
            f"relative_attention: key must be {tuple(query.shape)} like query, got "
            f"{tuple(key.shape)}"
        )
    if (*value.shape[:2], *value.shape[3:]) != (b, m, h, w):
        raise ValueError(
            f"relative_attention: value must be ({b}, {m}, D, {h}, {w}), got {tuple(value.shape)}"
        )
    for name, table, length in (("rows", rows, h), ("columns", columns, w)):
        if tuple(table.shape) != (2 * length - 1, d):
            raise ValueError(
                f"relative_attention: {name} must be {(2 * length - 1, d)} for this map, got "
                f"{tuple(table.shape)}"
            )
