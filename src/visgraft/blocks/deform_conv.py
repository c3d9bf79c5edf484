"""Deformable convolution: a convolution that learns where each of its taps looks.

Paper: Zhu, Hu, Lin and Dai, "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019,
    https://arxiv.org/abs/1811.11168, section 3.2. Version 1: Dai et al., "Deformable Convolutional
    Networks", ICCV 2017, https://arxiv.org/abs/1703.06211, section 2.1.
Layout and weights: mmdetection, as carried by https://github.com/xvjiarui/GCNet
    (mmdet/models/backbones/resnet.py at 029db54, Apache-2.0).
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from visgraft.blocks._checks import check_divides, check_feature_map, check_positive
from visgraft.blocks._published import Layout, register_layouts
from visgraft.blocks._registry import Paper, Source, register_block
from visgraft.blocks._transplant import Geometry, geometry_of, give_values
from visgraft.ops import deformable_convolution

__all__ = ["DeformConv"]

Pair = int | tuple[int, int]


@register_block(
    "deform_conv",
    role="mixer",
    aliases={"DCNv2": {}, "DCN": {"modulated": False}},
    paper=Paper(
        title="Deformable ConvNets v2: More Deformable, Better Results",
        authors="Zhu, Hu, Lin and Dai",
        venue="CVPR 2019",
        url="https://arxiv.org/abs/1811.11168",
    ),
    source=Source(
        "https://github.com/xvjiarui/GCNet",
        "mmdet/models/backbones/resnet.py",
        "029db54",
        "Apache-2.0",
    ),
)
class DeformConv(nn.Module):
    """Convolves with taps that a second convolution moves, and scales, at every position.

    The second convolution, of the same kernel, starts at zero: no tap is moved, and each is scaled
    by half of ``mask_scale``. Cost, with K taps and G offset groups: ``3 * G * K`` filters besides
    the convolution's own (``2 * G * K`` without modulation), and a bilinear sample per channel, tap
    and position.

    On a CPU the library's own operator runs; on a GPU, and in exported graphs, torchvision's. Taps
    are placed in float32 or wider, whatever the dtype of the map and under autocast.

    Differs from the source: ``mask_scale`` is an option; the source has 1.

    Args:
        channels: C, of the input.
        out_channels: Of the output; None for ``channels``.
        kernel_size: Of both convolutions, one number or (vertical, horizontal), like the next
            three.
        stride: Of both convolutions.
        padding: Of both convolutions; None for ``dilation * (kernel_size // 2)``.
        dilation: Of both convolutions.
        groups: Of the convolution.
        offset_groups: Parts of the channels with offsets of their own.
        modulated: Scale the taps as well as moving them (version 2).
        mask_scale: Upper bound of the scales, which are ``mask_scale * sigmoid``. With 2 a fresh
            block is a plain convolution.
        bias: Whether the convolution has one; the second always has.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        - Input: ``(B, C, H, W)``, H and W free to change between calls, and with the padding at
          least as large as the kernel.
        - Output: ``(B, out_channels, Ho, Wo)`` as of ``nn.Conv2d``; with the default padding ``(H -
          1) // stride + 1`` rows.

    Raises:
        ValueError: A number is not an integer in its range, ``groups`` or ``offset_groups`` does
            not divide the channels, ``padding`` is None with an even kernel, ``mask_scale`` is not
            positive, or the input does not have the documented shape.
        ImportError: torchvision is not installed, and the block is exported or runs on a GPU.

    Example:
        >>> DeformConv(16, stride=2)(torch.zeros(2, 16, 9, 14)).shape
        torch.Size([2, 16, 5, 7])
    """

    starts_as_identity = False

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        kernel_size: Pair = 3,
        stride: Pair = 1,
        padding: Pair | None = None,
        dilation: Pair = 1,
        groups: int = 1,
        offset_groups: int = 1,
        modulated: bool = True,
        mask_scale: float = 1.0,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out_channels = channels if out_channels is None else out_channels
        numbers = {"channels": channels, "out_channels": out_channels}
        check_positive("DeformConv", **numbers, groups=groups, offset_groups=offset_groups)
        check_divides("DeformConv", groups, "the groups of the convolution", **numbers)
        check_divides("DeformConv", offset_groups, "the offset groups", channels=channels)
        is_number = isinstance(mask_scale, int | float) and not isinstance(mask_scale, bool)
        if not is_number or not 0 < mask_scale < float("inf"):
            raise ValueError(f"DeformConv: mask_scale must be a number > 0, got {mask_scale!r}")
        self.channels = channels
        self.groups = groups
        self.offset_groups = offset_groups
        self.modulated = modulated
        self.mask_scale = mask_scale
        self.geometry = _geometry(kernel_size, stride, padding, dilation)
        kernel = self.geometry.kernel_size
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(out_channels, channels // groups, *kernel, **dd))
        self.bias = nn.Parameter(torch.empty(out_channels, **dd)) if bias else None
        self.offset = nn.Conv2d(
            channels,
            (3 if modulated else 2) * offset_groups * kernel[0] * kernel[1],
            **self.geometry._asdict(),
            **dd,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights as ``nn.Conv2d`` does; offsets, logits of the mask and bias are 0."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        for zero in (self.bias, self.offset.weight, self.offset.bias):
            if zero is not None:
                nn.init.zeros_(zero)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, *, offset_groups: int = 1, modulated: bool = True) -> Self:
        """Builds the block that computes what a convolution computes, until it is trained.

        Weight and bias keep their names and values. The scales of a modulated block reach up to 2,
        and start at exactly 1.

        Args:
            conv: Any kernel, stride, padding with zeros, dilation and groups.
            offset_groups: As of the class.
            modulated: As of the class.

        Raises:
            ValueError: ``conv`` does not compute as ``nn.Conv2d``, or pads with something else
                than zeros.
            ImportError: torchvision is not installed, and the block is exported or runs on a GPU.

        Example:
            >>> conv = nn.Conv2d(8, 16, 3, stride=2, padding=1)
            >>> x = torch.randn(1, 8, 13, 10)
            >>> torch.allclose(DeformConv.from_conv(conv)(x), conv(x), atol=1e-5)
            True
        """
        geometry = geometry_of("DeformConv.from_conv", conv)
        if conv.padding_mode != "zeros":
            raise ValueError(
                "DeformConv.from_conv: outside the map the block reads zeros, but the convolution "
                f"has padding_mode={conv.padding_mode!r}; keep it beside the block instead"
            )
        block = cls(
            conv.in_channels,
            out_channels=conv.out_channels,
            **geometry._asdict(),
            groups=conv.groups,
            offset_groups=offset_groups,
            modulated=modulated,
            mask_scale=2.0,
            bias=conv.bias is not None,
            device="meta",
            dtype=conv.weight.dtype,
        )
        give_values(block, conv, weight=conv.weight.detach().clone())
        for name, parameter in block.offset.named_parameters():
            zeros = torch.zeros_like(parameter, device=conv.weight.device)
            setattr(block.offset, name, nn.Parameter(zeros))
        return block.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the convolution with its taps in their places."""
        check_feature_map("DeformConv", x, self.channels)
        self.geometry.check_size("DeformConv", x)
        offset, mask = self._moves(x)
        dtype = offset.dtype  # what a convolution gives here: that of autocast, if any
        _, stride, padding, dilation = self.geometry
        if not (x.is_cuda or torch.compiler.is_exporting() or torch.jit.is_tracing()):  # pyright: ignore[reportPrivateImportUsage]
            out = deformable_convolution(
                x.to(dtype),
                offset,
                self.weight.to(dtype),
                mask,
                stride=stride,
                padding=padding,
                dilation=dilation,
            )
            return out if self.bias is None else out + self.bias.to(dtype)[:, None, None]
        wide = torch.promote_types(dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(wide)
        mask = None if mask is None else mask.to(wide)
        x, offset, weight = (t.to(wide) for t in (x, offset, self.weight))
        out = _torchvision()(x, offset, weight, bias, stride, padding, dilation, mask)
        return out.to(dtype)

    def attention_weights(self, x: Tensor) -> Tensor | None:
        """Returns what the taps of each position are scaled by; None without modulation.

        Shape:
            ``(B, C, H, W)`` -> ``(B, offset_groups, Ho, Wo, kh, kw)``, in (0, ``mask_scale``).
        """
        check_feature_map("DeformConv", x, self.channels)
        self.geometry.check_size("DeformConv", x)
        mask = self._moves(x)[1]
        if mask is None:
            return None
        taps = (self.offset_groups, *self.geometry.kernel_size)
        return mask.unflatten(1, taps).permute(0, 1, 4, 5, 2, 3)

    def _moves(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns how far each tap is moved, and what it is scaled by."""
        offset = self.offset(x)
        if not self.modulated:
            return offset, None
        moves = 2 * offset.shape[1] // 3
        offset, logits = offset.split([moves, offset.shape[1] - moves], 1)
        return offset, self.mask_scale * logits.sigmoid()

    def extra_repr(self) -> str:
        """Returns what the second convolution does not show."""
        out_channels, modulated = self.weight.shape[0], self.modulated
        return (
            f"{self.channels}, {out_channels}, groups={self.groups}, "
            f"offset_groups={self.offset_groups}, {modulated=}, mask_scale={self.mask_scale}, "
            f"bias={self.bias is not None}"
        )


def _geometry(kernel_size: Pair, stride: Pair, padding: Pair | None, dilation: Pair) -> Geometry:
    """Checks the numbers and makes pairs of them."""
    kernel = _pair("kernel_size", kernel_size)
    dilations = _pair("dilation", dilation)
    if padding is not None:
        paddings = _pair("padding", padding, least=0)
    elif any(k % 2 == 0 for k in kernel):
        raise ValueError(
            f"DeformConv: kernel_size must be odd where padding is None, got {kernel_size!r}; give "
            "the padding"
        )
    else:
        paddings = dilations[0] * (kernel[0] // 2), dilations[1] * (kernel[1] // 2)
    return Geometry(kernel, _pair("stride", stride), paddings, dilations)


def _pair(name: str, value: Pair, least: int = 1) -> tuple[int, int]:
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2 or any(
        not isinstance(n, int) or isinstance(n, bool) or n < least for n in pair
    ):
        raise ValueError(
            f"DeformConv: {name} must be an integer >= {least}, or two of them, got {value!r}"
        )
    return pair


def _torchvision() -> Callable[..., Tensor]:
    """Returns torchvision's operator, which is not imported before a block needs it."""
    try:
        from torchvision.ops import deform_conv2d
    except ImportError as error:
        raise ImportError(
            "DeformConv: exporting it and running it on a GPU need torchvision, which is not "
            "installed; pip install 'visgraft[models]'"
        ) from error
    return deform_conv2d


register_layouts(
    DeformConv,
    Layout(
        "mmdetection",
        {"conv2_offset": "offset", "conv2.weight": "weight", "conv2.bias": "bias"},
    ),
    Layout("mmcv", {"conv_offset": "offset", "conv_offset_mask": "offset"}),
    Layout(
        "circulating copy",
        {"torchvision_dcn2d.weight": "weight", "torchvision_dcn2d.bias": "bias"},
    ),
)
