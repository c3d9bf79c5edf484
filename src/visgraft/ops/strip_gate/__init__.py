"""Gates for the rows and the columns of a map, and the means of both, from which they are made."""

from importlib.util import find_spec

from torch import Tensor

from visgraft.ops._dispatch import Op, missing
from visgraft.ops.strip_gate import native, native_means
from visgraft.ops.strip_gate.reference import strip_gate_reference, strip_means_reference

if find_spec("triton"):
    from visgraft.ops.strip_gate.triton_means import TRITON as TRITON_MEANS
    from visgraft.ops.strip_gate.triton_operator import TRITON
else:
    TRITON = TRITON_MEANS = missing("triton")

__all__ = ["STRIP_GATE", "STRIP_MEANS", "strip_gate", "strip_means"]

STRIP_GATE = Op("strip_gate", strip_gate_reference, native.NATIVE, TRITON)
STRIP_MEANS = Op("strip_means", strip_means_reference, native_means.NATIVE, TRITON_MEANS)


def strip_gate(x: Tensor, rows: Tensor, columns: Tensor, *, backend: str | None = None) -> Tensor:
    """Returns ``x * rows.sigmoid() * columns.sigmoid()``.

    Args:
        x: A map, ``(B, C, H, W)``.
        rows: What is behind the gate of each row, ``(B, C, H, 1)``.
        columns: What is behind the gate of each column, ``(B, C, 1, W)``.
        backend: ``'native'``, ``'triton'``, ``'reference'``, or None for the fastest that takes
            this call.

    Returns:
        ``(B, C, H, W)``.

    Raises:
        ValueError: The shapes do not belong together, or the named backend cannot take these
            arguments.

    Example:
        >>> import torch
        >>> rows, columns = torch.zeros(1, 1, 1, 1), torch.tensor([0.0, 100.0]).view(1, 1, 1, 2)
        >>> strip_gate(torch.ones(1, 1, 1, 2), rows, columns)
        tensor([[[[0.2500, 0.5000]]]])
    """
    b, c, h, w = x.shape if x.ndim == 4 else (0,) * 4
    if x.ndim != 4 or rows.shape != (b, c, h, 1) or columns.shape != (b, c, 1, w):
        raise ValueError(
            "strip_gate: needs a map (B, C, H, W), rows (B, C, H, 1) and columns (B, C, 1, W), got "
            f"{tuple(x.shape)}, {tuple(rows.shape)} and {tuple(columns.shape)}"
        )
    return STRIP_GATE(x, rows, columns, backend=backend)


def strip_means(x: Tensor, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Averages each row and each column.

    Args:
        x: A map, ``(B, C, H, W)``, of at least one position.
        backend: ``'native'``, ``'triton'``, ``'reference'``, or None for the fastest that takes
            this call.

    Returns:
        The means of the rows and behind them those of the columns, ``(B, C, H + W, 1)``, and the
        map, to be used in place of ``x`` by one operation whose gradient is a tensor of its own,
        such as `strip_gate`: the gradient of the means is added to it where it lies.

    Raises:
        ValueError: ``x`` is not such a map, or the named backend cannot take it.

    Example:
        >>> import torch
        >>> means, x = strip_means(torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]]))
        >>> means.flatten()
        tensor([2., 6., 3., 5.])
    """
    if x.ndim != 4 or x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"strip_means: needs a map (B, C, H, W), got {tuple(x.shape)}")
    return STRIP_MEANS(x, backend=backend)
