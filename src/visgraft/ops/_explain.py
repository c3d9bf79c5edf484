"""Which implementation of each operation a device uses, and why not the others."""

import torch

from visgraft.ops.attention_pooling import ATTENTION_POOLING
from visgraft.ops.batch_norm_activation import BATCH_NORM_ACTIVATION
from visgraft.ops.deformable_convolution import DEFORMABLE_CONVOLUTION
from visgraft.ops.local_aggregation import LOCAL_AGGREGATION
from visgraft.ops.relative_attention import RELATIVE_ATTENTION
from visgraft.ops.selection import SELECTION
from visgraft.ops.strip_gate import STRIP_GATE, STRIP_MEANS
from visgraft.ops.window_attention import WINDOW_ATTENTION

__all__ = ["explain"]


def explain(device: torch.device | str = "cpu", size: int = 14) -> dict[str, dict[str, str]]:
    """Returns for each operation the answer of its implementations to a usual call, in order.

    Args:
        device: Of the tensors.
        size: Height and width of the map, in positions.

    Returns:
        Name of the operation to name of the implementation to ``'ok'`` or why it refuses; the
        first that says ``'ok'`` is used.

    Example:
        >>> explain()["local_aggregation"]["reference"]
        'ok'
    """
    x = torch.empty(1, 64, size, size, device=device)
    weight = torch.empty(1, 1, 8, 9, size, size, device=device)
    query = x.unflatten(1, (4, 16))
    table = torch.empty(2 * size - 1, 16, device=device)
    offset, filters = x.new_empty(1, 18, size, size), x.new_empty(64, 64, 3, 3)
    scale, share = x.new_empty(64), x.new_empty(1, 64, 1, 1)
    return {
        ATTENTION_POOLING.name: ATTENTION_POOLING.explain(x, x[:, :, :1, :1], None),
        BATCH_NORM_ACTIVATION.name: BATCH_NORM_ACTIVATION.explain(x, scale, scale, 1e-5, "relu"),
        DEFORMABLE_CONVOLUTION.name: DEFORMABLE_CONVOLUTION.explain(x, offset, filters, None, ()),
        LOCAL_AGGREGATION.name: LOCAL_AGGREGATION.explain(x, weight, 3, 1, 1, 1),
        RELATIVE_ATTENTION.name: RELATIVE_ATTENTION.explain(query, query, query, table, table),
        SELECTION.name: SELECTION.explain(x, x, share),
        STRIP_GATE.name: STRIP_GATE.explain(x, x[..., :1], x[..., :1, :]),
        STRIP_MEANS.name: STRIP_MEANS.explain(x),
        WINDOW_ATTENTION.name: WINDOW_ATTENTION.explain(query, query, query, 7, 1, 1),
    }
