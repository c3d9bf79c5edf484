"""The means of rows and columns, and their gates, in PyTorch's own operators."""

import torch
from torch import Tensor

from visgraft.ops._mean import mean_over

__all__ = ["strip_gate_reference", "strip_means_reference"]


def strip_means_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """Averages each row and each column; the map itself comes back too."""
    if not _has_channels_last(x):
        return torch.cat([mean_over(x, 3), mean_over(x, 2)], 2).unsqueeze(3), x
    last = x.permute(0, 2, 3, 1)  # sums and products are slow out of the order of memory
    strips = torch.cat([mean_over(last, 2), mean_over(last, 1)], 1)
    return strips.transpose(1, 2).unsqueeze(3), x


def strip_gate_reference(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Multiplies by the gates of the columns, then by those of the rows."""
    rows, columns = rows.sigmoid(), columns.sigmoid()
    if not _has_channels_last(x):
        return _product(x, columns, rows)
    rows, columns = rows.permute(0, 2, 3, 1).contiguous(), columns.permute(0, 2, 3, 1).contiguous()
    return _product(x.permute(0, 2, 3, 1), columns, rows).permute(0, 3, 1, 2)


def _has_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _product(x: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    gated = x * columns
    keeps = gated.requires_grad or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return gated * rows if keeps else gated.mul_(rows)
