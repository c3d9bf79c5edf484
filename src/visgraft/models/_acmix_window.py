"""The attention of Swin-ACmix: windows and a convolution that share query, key and value.

Paper: Pan, Ge, Lu, Song, Chen, Huang and Huang, "On the Integration of Self-Attention and
    Convolution", CVPR 2022, https://arxiv.org/abs/2111.14556, section 4 and figure 2.
Layout and weights: https://github.com/LeapLabTHU/ACmix
    (Swin-Transformer/models/swin_transformer_acmix.py at 81dddb6, no licence stated: nothing of
    it is copied).
"""

import math
from typing import Any

import torch
from timm.models.swin_transformer import WindowAttention, get_relative_position_index
from torch import Tensor, nn
from torch.nn import functional

from visgraft.blocks import Layout, register_layouts
from visgraft.ops._exporting import exporting

__all__ = ["ACmixWindowAttention"]

_KERNEL = 3  # of the convolution
_TAPS = _KERNEL**2


class ACmixWindowAttention(WindowAttention):
    """Adds attention within windows and a convolution of the map, of one query, key and value.

    The attention is Swin's: windows that do not overlap, a learned bias for each relative position,
    a projection. The convolution is ACmix's: ``mix`` turns the heads of query, key and value into
    one map per tap, ``shift`` moves the taps and adds them. It sees the whole map, at whose edges
    it reads zeros. On a map that the caller has shifted cyclically, that edge is inside the image,
    and what was apart is neighbours: as in the authors' code.

    Differs from the source: nothing in values or gradients where its code runs, which is on
    multiples of the window. On other maps the last windows reach beyond the map; nothing attends
    to a position there, which is the same as a smaller window.

    Args:
        channels: C, of input and output.
        num_heads: M, a divisor of ``channels``.
        window_size: Size of a window in positions, or ``(rows, columns)``.
        bias: Whether query, key and value have one.
        attn_drop: Drop rate of the attention's weights.
        proj_drop: Drop rate of the output.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        - Input: ``(B, H, W, C)``, H and W at least 1 and free to change between calls.
        - Output: as the input.

    Raises:
        ValueError: ``channels`` is not a multiple of ``num_heads``.

    Example:
        >>> ACmixWindowAttention(12, num_heads=3, window_size=4)(torch.zeros(2, 9, 4, 12)).shape
        torch.Size([2, 9, 4, 12])
    """

    window_size: tuple[int, int]

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        window_size: int | tuple[int, int] = 7,
        bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if channels % num_heads:
            raise ValueError(
                f"ACmixWindowAttention: channels must be a multiple of num_heads, got {channels} "
                f"and {num_heads}"
            )
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            channels,
            num_heads,
            window_size=window_size,
            qkv_bias=bias,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            **dd,
        )
        depth = channels // num_heads
        self.mix = nn.Conv2d(3 * num_heads, _TAPS, 1, **dd)
        self.shift = nn.Conv2d(
            _TAPS * depth, channels, _KERNEL, padding=_KERNEL // 2, groups=depth, bias=False, **dd
        )
        self.attention_scale = nn.Parameter(torch.empty(1, **dd))
        self.convolution_scale = nn.Parameter(torch.empty(1, **dd))
        self._start_convolution()

    def reset_parameters(self) -> None:
        """Draws the relative biases; the taps start as shifts and both paths at one half."""
        super().reset_parameters()
        if hasattr(self, "convolution_scale"):  # else called by the constructor of timm's class
            self._start_convolution()

    def init_weights(self) -> None:
        """As ``reset_parameters``; timm calls it after it has drawn the layers inside."""
        self.reset_parameters()

    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Changes the size of the windows and resizes the table of relative biases to it."""
        if window_size == self.window_size:
            return
        old, self.window_size = self.window_size, window_size
        rows, columns = self.window_size
        self.window_area = rows * columns
        table = self.relative_position_bias_table
        self.relative_position_bias_table = nn.Parameter(
            _resized(table.detach(), old, self.window_size), requires_grad=table.requires_grad
        )
        index = get_relative_position_index(rows, columns, device=table.device)
        self.register_buffer("relative_position_index", index, persistent=False)

    def _start_convolution(self) -> None:
        with torch.no_grad():
            weight = self.shift.weight
            shifts = torch.eye(_TAPS, device=weight.device, dtype=weight.dtype)
            weight.copy_(shifts.view(_TAPS, _KERNEL, _KERNEL).expand_as(weight))
            self.attention_scale.fill_(0.5)
            self.convolution_scale.fill_(0.5)

    def forward(self, x: Tensor, shift: tuple[int, int] = (0, 0)) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns the weighted sum of attention and convolution.

        Args:
            x: ``(B, H, W, C)``.
            shift: Rows and columns by which the map was rolled up and left; no position attends to
                another from across that seam.
        """
        joined = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, H, W, 3, M, D)
        mixed = self.proj(self._attend(joined, shift)) * self.attention_scale
        return self.proj_drop(mixed + self._convolve(joined) * self.convolution_scale)

    def attention_weights(self, x: Tensor, shift: tuple[int, int] = (0, 0)) -> Tensor:
        """Returns the share of each position of its window in what a position gets.

        Shape:
            ``(B, H, W, C)`` -> ``(B, M, H, W, rows, columns)`` with the rows and columns of a
            window, which sums to 1 over these. A map that was rolled by ``shift`` is rolled back;
            its windows stay.
        """
        joined = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        b, h, w, _, m, d = joined.shape
        (query, key, _), bias, (tall, wide) = self._cut(joined, shift)
        logits = query * d**-0.5 @ key.transpose(2, 3) + bias
        weights = logits.softmax(3).reshape(b, tall, wide, m, *self.window_size, *self.window_size)
        weights = weights.permute(0, 3, 1, 4, 2, 5, 6, 7).flatten(4, 5).flatten(2, 3)
        return weights[:, :, :h, :w].roll(shift, (2, 3))

    def _attend(self, joined: Tensor, shift: tuple[int, int]) -> Tensor:
        """Returns ``(B, H, W, C)`` of query, key and value ``(B, H, W, 3, M, D)``."""
        b, h, w, _, m, d = joined.shape
        rows, columns = self.window_size
        (query, key, value), bias, (tall, wide) = self._cut(joined, shift)
        mixed = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            bias,
            dropout_p=self.attn_drop.p if self.training else 0.0,
        )
        mixed = mixed.reshape(b, tall, wide, m, rows, columns, d).permute(0, 1, 4, 2, 5, 3, 6)
        mixed = mixed.reshape(b, tall * rows, wide * columns, m * d)
        return mixed[:, :h, :w]

    def _cut(
        self, joined: Tensor, shift: tuple[int, int]
    ) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Cuts query, key and value ``(B, H, W, 3, M, D)`` into windows.

        A graph for all sizes has masks for each, and a window more than it needs along each axis:
        with a single one, the exporter would take the example for a special case.

        Returns:
            ``(3, B * windows, M, N, D)``, what is added to the logits, and how many windows there
            are one below and one beside the other; heads and windows may be joined instead.
        """
        b, h, w, _, m, d = joined.shape
        rows, columns = self.window_size
        every_size = exporting() and not (isinstance(h, int) and isinstance(w, int))
        tall, wide = (-(-n // size) + every_size for n, size in ((h, rows), (w, columns)))
        spare = (tall * rows - h, wide * columns - w)
        bias = self._get_rel_pos_bias()  # (1, M, N, N)
        batch, heads = b * tall * wide, m
        if every_size or any(spare) or any(shift):
            apart = self._windows_apart(h, w, spare, shift, joined.device)
            bias = bias.masked_fill(apart[:, None], float("-inf")).flatten(0, 1)[None]
            batch, heads = b, tall * wide * m
        if every_size or any(spare):
            joined = functional.pad(joined, (0, 0, 0, 0, 0, 0, 0, spare[1], 0, spare[0]))
        parts = joined.reshape(b, tall, rows, wide, columns, 3, m, d)
        parts = parts.permute(5, 0, 1, 3, 6, 2, 4, 7)  # the window's positions after its heads
        parts = parts.reshape(3, batch, heads, rows * columns, d)
        return parts, bias.to(parts.dtype), (tall, wide)

    def _windows_apart(
        self, h: int, w: int, spare: tuple[int, int], shift: tuple[int, int], device: torch.device
    ) -> Tensor:
        """Returns ``(windows, N, N)``, which pairs of a window's positions do not belong together.

        Each axis is in three parts: before the seam, behind it, and beyond the map.
        """

        def parts(size: int, spare: int, shift: int, window: int) -> Tensor:  # (windows, window)
            place = torch.arange(size + spare, device=device)
            part = (place >= size - shift).int() + (place >= size)
            return part.view((size + spare) // window, window)

        row = parts(h, spare[0], shift[0], self.window_size[0])[:, None, :, None]
        column = parts(w, spare[1], shift[1], self.window_size[1])[None, :, None, :]
        part = (3 * row + column).flatten(2).flatten(0, 1)  # (windows, N)
        return part[:, :, None] != part[:, None, :]

    def _convolve(self, joined: Tensor) -> Tensor:
        """Returns ``(B, H, W, D * M)``: the channels of a head are M apart, as published."""
        maps = joined.flatten(3, 4).transpose(3, 4)  # (B, H, W, D, 3 * M)
        mixed = functional.linear(maps, self.mix.weight.flatten(1), self.mix.bias)
        return self.shift(mixed.flatten(3).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _adapt_attention(attention: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drops the index, which is a constant, and resizes the table of windows of another size."""
    kept = {key: value for key, value in state.items() if key != "relative_position_index"}
    table = kept["relative_position_bias_table"]
    side = (math.isqrt(len(table)) + 1) // 2
    own = attention.relative_position_bias_table
    if len(table) == (2 * side - 1) ** 2 != len(own) and table.shape[1:] == own.shape[1:]:
        kept["relative_position_bias_table"] = _resized(table, (side, side), attention.window_size)
    return kept


def _resized(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Returns the biases of a window of another size: those of the largest offsets stay."""
    grid = table.T.reshape(1, -1, 2 * old[0] - 1, 2 * old[1] - 1)
    size = (2 * new[0] - 1, 2 * new[1] - 1)
    wide = torch.promote_types(table.dtype, torch.float32)
    resized = functional.interpolate(grid.to(wide), size, mode="bicubic", align_corners=True)
    return resized[0].flatten(1).T.to(table.dtype).contiguous()


register_layouts(
    ACmixWindowAttention,
    Layout(
        "LeapLabTHU/ACmix",
        {
            "fc": "mix",
            "dep_conv": "shift",
            "rate1": "attention_scale",
            "rate2": "convolution_scale",
        },
        _adapt_attention,
    ),
)
