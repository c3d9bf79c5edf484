"""Coordinate attention: channel attention that keeps the row and the column of a response.

Paper: Hou, Zhou and Feng, "Coordinate Attention for Efficient Mobile Network Design", CVPR 2021,
    https://arxiv.org/abs/2103.02907, section 3.2 and figure 2c.
Layout and weights: https://github.com/houqb/CoordAttention (coordatt.py at 7619bea, MIT).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visgraft.blocks._checks import check_feature_map, check_positive
from visgraft.blocks._published import Layout, register_layouts
from visgraft.blocks._registry import Paper, Source, register_block
from visgraft.ops.strip_gate import strip_gate, strip_means

__all__ = ["CoordAttention"]


@register_block(
    "coord_attention",
    role="gate",
    aliases={"CoordAtt": {}, "CA": {}},
    paper=Paper(
        title="Coordinate Attention for Efficient Mobile Network Design",
        authors="Hou, Zhou and Feng",
        venue="CVPR 2021",
        url="https://arxiv.org/abs/2103.02907",
    ),
    source=Source("https://github.com/houqb/CoordAttention", "coordatt.py", "7619bea", "MIT"),
)
class CoordAttention(nn.Module):
    """Multiplies each position by a gate for its row and a gate for its column.

    The map is averaged along each axis, the two strips share one bottleneck, and a 1 x 1
    convolution per axis turns them back into gates in (0, 1). Cost, with ``hidden`` the
    bottleneck's channels: 3 * C * hidden weights and 2 * C * hidden * (H + W) multiplications.

    Args:
        channels: C, of input and output.
        reduction: The bottleneck has ``max(min_hidden, channels // reduction)`` channels.
        min_hidden: Lower bound of the bottleneck's channels.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        - Input: ``(B, C, H, W)``, H and W at least 1 and free to change between calls.
        - Output: ``(B, C, H, W)``, each value between 0 and the input's.

    Raises:
        ValueError: ``channels``, ``reduction`` or ``min_hidden`` is not an integer of at least 1,
            or the input is not ``(B, channels, H, W)``.

    Example:
        >>> CoordAttention(64, reduction=16)(torch.zeros(2, 64, 20, 30)).shape
        torch.Size([2, 64, 20, 30])
    """

    starts_as_identity = False

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 32,
        min_hidden: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(
            "CoordAttention", channels=channels, reduction=reduction, min_hidden=min_hidden
        )
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = max(min_hidden, channels // reduction)
        self.channels = channels
        self.reduce = nn.Conv2d(channels, hidden, 1, **dd)
        self.norm = nn.BatchNorm2d(hidden, **dd)
        self.expand_h = nn.Conv2d(hidden, channels, 1, **dd)
        self.expand_w = nn.Conv2d(hidden, channels, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Gates ``x``."""
        check_feature_map("CoordAttention", x, self.channels)
        h, w = x.shape[2:]
        means, x = strip_means(x)
        return strip_gate(x, *self._logits(means, h, w))

    def attention_weights(self, x: Tensor) -> Tensor:
        """Returns what each value is multiplied by, the gate of its row times that of its column.

        Shape:
            ``(B, C, H, W)`` -> ``(B, C, H, W)``, in (0, 1).
        """
        check_feature_map("CoordAttention", x, self.channels)
        rows, columns = self._logits(strip_means(x)[0], *x.shape[2:])
        return rows.sigmoid() * columns.sigmoid()

    def _logits(self, means: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
        """Returns those of the rows ``(B, C, H, 1)`` and of the columns ``(B, C, 1, W)``."""
        strips = functional.hardswish(self.norm(self.reduce(means)))  # (B, hidden, H + W, 1)
        rows, columns = strips.split([h, w], 2)
        return self.expand_h(rows), self.expand_w(columns).transpose(2, 3)


_STEM = {"conv1": "reduce", "bn1": "norm"}
register_layouts(
    CoordAttention,
    Layout("houqb/CoordAttention", {**_STEM, "conv_h": "expand_h", "conv_w": "expand_w"}),
    Layout("houqb/CoordAttention mbv2_ca.py", {**_STEM, "conv2": "expand_h", "conv3": "expand_w"}),
)
