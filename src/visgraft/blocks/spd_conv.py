"""SPD-Conv: space to depth and a convolution of stride 1, in place of a strided convolution.

Paper: Sunkara and Luo, "No More Strided Convolutions or Pooling: A New CNN Building Block for
    Low-Resolution Images and Small Objects", ECML PKDD 2022, https://arxiv.org/abs/2208.03641,
    section 3.
Order of the channels: https://github.com/LabSAINT/SPD-Conv
    (ResNet50-SPD/models/resnet50_spd.py at 5fbe302, MIT).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from visgraft.blocks._checks import check_divides, check_feature_map, check_odd, check_positive
from visgraft.blocks._published import Layout, register_layouts
from visgraft.blocks._registry import Paper, Source, register_block
from visgraft.blocks._transplant import Geometry, geometry_of, give_values
from visgraft.ops._dispatch import being_traced
from visgraft.ops.space_to_depth import space_to_depth, whole_squares_to_depth

__all__ = ["SPDConv", "SpaceToDepth"]

_EDGES = {
    "reflect": nn.ReflectionPad2d,
    "replicate": nn.ReplicationPad2d,
    "circular": nn.CircularPad2d,
}


class SpaceToDepth(nn.Module):
    """Moves each ``scale`` x ``scale`` square of pixels into the channels, losing none.

    Args:
        scale: Side of the square.

    Shape:
        - Input: ``(..., C, H, W)``; a size that is no multiple of ``scale`` is continued with
          zeros below and to the right.
        - Output: ``(..., scale**2 * C, ceil(H / scale), ceil(W / scale))``, channels in the order
          of ``visgraft.ops.space_to_depth``.

    Raises:
        ValueError: ``scale`` is not an integer of at least 1.

    Example:
        >>> SpaceToDepth()(torch.zeros(2, 3, 8, 5)).shape
        torch.Size([2, 12, 4, 3])
    """

    def __init__(self, scale: int = 2) -> None:
        super().__init__()
        check_positive("SpaceToDepth", scale=scale)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Returns the map with its pixels in the channels."""
        return space_to_depth(x, self.scale)

    def extra_repr(self) -> str:
        """Returns the argument."""
        return f"scale={self.scale}"


@register_block(
    "spd_conv",
    role="downsample",
    aliases={"SPDConv": {}, "space_to_depth": {}},
    paper=Paper(
        title="No More Strided Convolutions or Pooling: A New CNN Building Block for "
        "Low-Resolution Images and Small Objects",
        authors="Sunkara and Luo",
        venue="ECML PKDD 2022",
        url="https://arxiv.org/abs/2208.03641",
    ),
    source=Source(
        "https://github.com/LabSAINT/SPD-Conv",
        "ResNet50-SPD/models/resnet50_spd.py",
        "5fbe302",
        "MIT",
    ),
)
class SPDConv(nn.Module):
    """Moves each square of pixels into the channels, then convolves with stride 1.

    Nothing is skipped on the way down: every output sees all ``scale**2 * C`` values of each
    position of the smaller map under its kernel. Cost, with ``K = kernel_size``: ``(scale * K)**2
    / groups`` weights for each pair of channels.

    Differs from the source: a size that is no multiple of ``scale`` is continued with zeros below
    and to the right, where the source fails. The source puts the step between the convolutions of
    each of its networks, with normalisation and activation around it; here it is space to depth
    and the convolution alone, which is what takes the place of a strided convolution.

    Args:
        channels: C, of the input.
        out_channels: Of the output; None for ``channels``.
        kernel_size: Odd size of the kernel on the smaller map.
        scale: Side of the square, by which the map shrinks.
        groups: Of the convolution; each group sees all pixels of its own channels.
        bias: Whether the convolution has one.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        - Input: ``(B, C, H, W)``, H and W at least 1 and free to change between calls.
        - Output: ``(B, out_channels, ceil(H / scale), ceil(W / scale))``; from a block made by
          ``from_conv``, the size that the convolution it was made from would give.

    Raises:
        ValueError: A number is not an integer of at least 1, ``kernel_size`` is even, ``groups``
            does not divide the channels, or the input does not have the documented shape.

    Example:
        >>> SPDConv(16, out_channels=32)(torch.zeros(2, 16, 9, 14)).shape
        torch.Size([2, 32, 5, 7])
    """

    starts_as_identity = False

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        kernel_size: int = 3,
        scale: int = 2,
        groups: int = 1,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out_channels = channels if out_channels is None else out_channels
        numbers = {"channels": channels, "out_channels": out_channels}
        check_positive("SPDConv", **numbers, scale=scale, groups=groups)
        check_odd("SPDConv", kernel_size=kernel_size)
        check_divides("SPDConv", groups, "the groups of the convolution", **numbers)
        self.channels = channels
        self.scale = scale
        self.groups = groups
        self.edge: nn.Module = nn.Identity()
        self.margin = (0, scale - 1, 0, scale - 1)  # zeros on the left, right, top and bottom
        self.held: _Held | None = None
        self.conv = nn.Conv2d(
            channels * scale**2,
            out_channels,
            kernel_size,
            padding=kernel_size // 2,
            groups=groups,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.register_load_state_dict_pre_hook(_accept_strided)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, *, kernel_size: int | None = None) -> Self:
        """Builds the block that computes exactly what a strided convolution computes.

        A strided convolution is a special case: its kernel, continued with zeros to a multiple of
        the stride, moves from space to depth itself. The zeros are free to learn. The block also
        takes state dicts of the convolution.

        Args:
            conv: Any kernel, padding, padding mode, dilation and groups; the stride becomes
                ``scale``.
            kernel_size: Odd size of the new kernel, which then lies as in a new block; None for
                the smallest that holds the convolution's, ``ceil(k / stride)``.

        Raises:
            ValueError: ``conv`` does not compute as ``nn.Conv2d``, its stride is 1 or differs
                between the axes, or ``kernel_size`` is even or too small.

        Example:
            >>> conv = nn.Conv2d(8, 16, 3, stride=2, padding=1)
            >>> x = torch.randn(1, 8, 13, 10)
            >>> torch.allclose(SPDConv.from_conv(conv)(x), conv(x), atol=1e-5)
            True
        """
        owner = "SPDConv.from_conv"
        held = geometry_of(owner, conv)
        scale = held.stride[0]
        if held.stride != (scale, scale) or scale < 2:
            raise ValueError(f"{owner}: expected one stride >= 2 for both axes, got {held.stride}")
        block = cls(
            conv.in_channels,
            out_channels=conv.out_channels,
            kernel_size=1 if kernel_size is None else kernel_size,
            scale=scale,
            groups=conv.groups,
            bias=conv.bias is not None,
            device="meta",
        )
        rows, columns = _lay(owner, held, kernel_size)
        block.held = _Held(held, rows, columns)
        block.margin = (columns.before, columns.after, rows.before, rows.after)
        if conv.padding_mode != "zeros":
            pad_h, pad_w = held.padding
            edge = (pad_w, pad_w, pad_h, pad_h)
            block.edge = _EDGES[conv.padding_mode](edge)
            block.margin = tuple(m - e for m, e in zip(block.margin, edge, strict=True))
        block.conv = nn.Conv2d(
            conv.in_channels * scale**2,
            conv.out_channels,
            (rows.size, columns.size),
            groups=conv.groups,
            bias=conv.bias is not None,
            device="meta",
        )
        give_values(block.conv, conv, weight=block.held.rearranged(conv.weight.detach()))
        return block.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the convolution of the map whose pixels are in the channels."""
        check_feature_map("SPDConv", x, self.channels)
        if self.held is not None:
            self.held.geometry.check_size("SPDConv", x)
        x = self._continue(self.edge(x))
        if self.groups == 1:
            return self.conv(whole_squares_to_depth(x, self.scale))
        x = x.unflatten(1, (self.groups, -1))
        return self.conv(whole_squares_to_depth(x, self.scale).flatten(1, 2))

    def _continue(self, x: Tensor) -> Tensor:
        """Adds the margin of zeros, but not those that belong to no whole square."""
        left, right, top, bottom = self.margin
        if not being_traced():
            h, w = x.shape[2:]
            right -= min(right, (left + w + right) % self.scale)
            bottom -= min(bottom, (top + h + bottom) % self.scale)
        if any((left, right, top, bottom)):
            x = functional.pad(x, (left, right, top, bottom))
        return x

    def extra_repr(self) -> str:
        """Returns what the convolution does not show."""
        return f"scale={self.scale}, margin={self.margin}"


class _Axis(NamedTuple):
    """How the kernel of a strided convolution lies along one axis, in pixels."""

    size: int  # of the new kernel, in squares
    before: int  # from its start to the first pixel of the map
    after: int  # behind the last pixel; what fills no whole square is dropped


@dataclass(frozen=True)
class _Held:
    """The strided convolution that a block was made from."""

    geometry: Geometry
    rows: _Axis
    columns: _Axis

    def rearranged(self, weight: Tensor) -> Tensor:
        """Returns its kernel as that of the block."""
        (scale, _), (dh, dw) = self.geometry.stride, self.geometry.dilation
        shape = (scale * self.rows.size, scale * self.columns.size)
        kernel = weight.new_zeros(*weight.shape[:2], *shape)
        (pad_h, pad_w), (reach_h, reach_w) = self.geometry.padding, self.geometry.reach
        top, left = self.rows.before - pad_h, self.columns.before - pad_w
        kernel[:, :, top : top + reach_h : dh, left : left + reach_w : dw] = weight
        return space_to_depth(kernel, scale)


def _lay(owner: str, held: Geometry, kernel_size: int | None) -> list[_Axis]:
    """Lays the kernel, along both axes, in the smallest new one or in one of the given size."""
    scale, axes = held.stride[0], []
    for reach, padding in zip(held.reach, held.padding, strict=True):
        size, before = -(-reach // scale), padding
        if kernel_size is not None:
            size, before = kernel_size, scale * (kernel_size // 2)
        after = 2 * padding - reach + scale * size - before
        if min(before, after) < padding:
            raise ValueError(
                f"{owner}: kernel_size {kernel_size} does not hold a kernel of {reach} pixels with "
                f"padding {padding} at stride {scale}; take a larger one, or None for the smallest"
            )
        axes.append(_Axis(size, before, after))
    return axes


def _translated(block: nn.Module, state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Returns the tensors of the convolution that the block was made from under its own names."""
    held, weight = getattr(block, "held", None), state.get(f"{prefix}weight")
    if held is None or weight is None or weight.shape[2:] != held.geometry.kernel_size:
        return state
    state = {**state, f"{prefix}weight": held.rearranged(weight)}
    own = {f"{prefix}{name}": f"{prefix}conv.{name}" for name in ("weight", "bias")}
    return {own.get(key, key): value for key, value in state.items()}


def _accept_strided(block: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Lets ``load_state_dict`` take the tensors of the convolution."""
    translated = dict(_translated(block, state, prefix))
    state.clear()
    state.update(translated)


register_layouts(SPDConv, Layout("the strided convolution", adapt=_translated))
