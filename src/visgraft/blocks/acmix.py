"""ACmix: a window attention and a convolution that share their 1 x 1 projections.

Paper: Pan, Ge, Lu, Song, Chen, Huang and Huang, "On the Integration of Self-Attention and
    Convolution", CVPR 2022, https://arxiv.org/abs/2111.14556, section 4 and figure 2.
Layout and weights: https://github.com/LeapLabTHU/ACmix (ResNet/test_bottleneck.py at 81dddb6,
    no licence stated: nothing of it is copied).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visgraft.blocks._checks import check_divides, check_feature_map, check_odd, check_positive
from visgraft.blocks._published import Layout, register_layouts
from visgraft.blocks._registry import Paper, Source, register_block
from visgraft.ops import window_attention
from visgraft.ops._exporting import exporting
from visgraft.ops.window_attention.reference import window_attention_weights

__all__ = ["ACmix"]

_SMALL = 64  # positions up to which one product of matrices is faster than a convolution


@register_block(
    "acmix",
    role="mixer",
    aliases={"ACmix": {}},
    paper=Paper(
        title="On the Integration of Self-Attention and Convolution",
        authors="Pan et al.",
        venue="CVPR 2022",
        url="https://arxiv.org/abs/2111.14556",
    ),
    source=Source(
        "https://github.com/LeapLabTHU/ACmix", "ResNet/test_bottleneck.py", "81dddb6", None
    ),
)
class ACmix(nn.Module):
    """Adds attention within a window and a k x k convolution, both of one query, key and value.

    Attention: each position attends to the window around it, under logits of content and of a
    learned linear function of the position. Convolution: a matrix mixes the heads of query, key
    and value into one map per tap, and the taps are shifted (by kernels that are learned, and
    start as shifts) and added. Two learned numbers weigh the two. Cost, with ``Co = out_channels``,
    ``A = attention_size`` and ``K = kernel_size``: ``3 C Co + 2 A^2 Co + K^2 (3 + K^2) Co``
    multiplications per position, ``3 C Co + K^4 Co`` weights and a few.

    The windows are never unfolded: the position enters as a change of the keys (that of the query
    is the same for its whole window, which a softmax does not see; for the same reason the bias of
    ``position`` does nothing), and ``ops.window_attention`` computes the rest. The matrix and the
    shifts are one grouped convolution wherever that takes no more multiplications.

    Differs from the source: nothing in values or gradients where its code runs. Also any map (the
    attention reflects the map at its edge along an axis longer than ``dilation *
    (attention_size // 2)``, and repeats the edge along a shorter one), odd maps with a stride,
    ``dilation`` (of the attention's window alone; the authors' code fails), any odd
    ``kernel_size``, and half precision.

    Args:
        channels: C, of the input.
        out_channels: Co, of the output; None for ``channels``.
        num_heads: M, a divisor of ``out_channels``.
        attention_size: Odd size of the attention's window.
        kernel_size: Odd size of the convolution.
        stride: Of both.
        dilation: Distance of the positions in the attention's window.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        - Input: ``(B, C, H, W)``, H and W at least 1 and free to change between calls.
        - Output: ``(B, Co, ceil(H / stride), ceil(W / stride))``.

    Raises:
        ValueError: A number is not a positive integer, a size is even, ``out_channels`` is not a
            multiple of ``num_heads``, or the input is not ``(B, channels, H, W)``.

    Example:
        >>> ACmix(64, stride=2)(torch.zeros(2, 64, 7, 2)).shape
        torch.Size([2, 64, 4, 1])
    """

    starts_as_identity = False

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        num_heads: int = 4,
        attention_size: int = 7,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out_channels = channels if out_channels is None else out_channels
        check_positive("ACmix", channels=channels, out_channels=out_channels, num_heads=num_heads)
        check_divides("ACmix", num_heads, "the heads", out_channels=out_channels)
        check_odd("ACmix", attention_size=attention_size, kernel_size=kernel_size)
        check_positive("ACmix", stride=stride, dilation=dilation)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        depth, taps = out_channels // num_heads, kernel_size**2
        self.channels = channels
        self.num_heads = num_heads
        self.attention_size = attention_size
        self.stride = stride
        self.dilation = dilation
        self.query = nn.Conv2d(channels, out_channels, 1, **dd)
        self.key = nn.Conv2d(channels, out_channels, 1, **dd)
        self.value = nn.Conv2d(channels, out_channels, 1, **dd)
        self.position = nn.Conv2d(2, depth, 1, **dd)
        self.mix = nn.Conv2d(3 * num_heads, taps, 1, bias=False, **dd)
        self.shift = nn.Conv2d(
            taps * depth,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            groups=depth,
            bias=False,
            **dd,
        )
        shifts = torch.eye(taps, **dd).view(taps, kernel_size, kernel_size)
        with torch.no_grad():
            self.shift.weight.copy_(shifts.expand_as(self.shift.weight))
        self.attention_scale = nn.Parameter(torch.full((1,), 0.5, **dd))
        self.convolution_scale = nn.Parameter(torch.full((1,), 0.5, **dd))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the weighted sum of attention and convolution."""
        check_feature_map("ACmix", x, self.channels)
        joined = self._project(x)
        attended = window_attention(*self._heads(x, joined), *self._window()).flatten(1, 2)
        convolved = self._convolve(joined)
        return convolved * self.convolution_scale + attended * self.attention_scale

    def attention_weights(self, x: Tensor) -> Tensor:
        """Returns the share of each position of the window around a position, of the attention.

        Shape:
            ``(B, C, H, W)`` -> ``(B, M, Ho, Wo, A, A)``, which sums to 1 over the window.
        """
        check_feature_map("ACmix", x, self.channels)
        query, key, _ = self._heads(x, self._project(x))
        weights = window_attention_weights(query, key, *self._window())
        size = (self.attention_size, self.attention_size)
        return weights.squeeze(2).unflatten(2, size).permute(0, 1, 4, 5, 2, 3)

    def _project(self, x: Tensor) -> Tensor:
        """Returns ``(B, D, 3 * M, H, W)``, the heads of query, key and value side by side.

        On small maps the three projections are one product of matrices, whose results lie as
        ``window_attention`` reads them there.
        """
        layers = (self.query, self.key, self.value)
        (b, _, h, w), maps, depth = x.shape, self.num_heads, self.shift.groups
        small = not exporting() and h * w <= _SMALL and x.device.type == "cpu"
        if small and all(map(_is_bare, layers)):
            weight = torch.cat([layer.weight for layer in layers]).flatten(1)
            bias = torch.cat([layer.bias for layer in layers if layer.bias is not None])
            heads = functional.linear(x.flatten(2).transpose(1, 2), weight, bias)
            return heads.view(b, h, w, 3 * maps, depth).permute(0, 4, 3, 1, 2)
        parts = [layer(x).reshape(b, maps, depth, h, w).transpose(1, 2) for layer in layers]
        return torch.cat(parts, 2)

    def _encode(self, x: Tensor) -> Tensor:
        """Returns ``(1, D, H, W)``, linear in the column and the row, each from -1 to 1."""
        h, w = x.shape[2:]
        wide = torch.promote_types(x.dtype, torch.float32)

        def from_minus_one(size: int) -> Tensor:
            place = torch.arange(size, dtype=wide, device=x.device)
            return 2 * place / place[-1].clamp(min=1) - 1

        row = from_minus_one(h)[:, None].expand(h, w)
        column = from_minus_one(w).expand(h, w)
        return self.position(torch.stack([column, row]).unsqueeze(0).to(x.dtype))

    def _heads(self, x: Tensor, joined: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns ``(B, M, D, Ho, Wo)`` queries, and keys and values ``(B, M, D, H, W)``."""
        query, key, value = joined.split(self.num_heads, 2)
        key = key - self._encode(x).unsqueeze(2)
        query = query[..., :: self.stride, :: self.stride]
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def _window(self) -> tuple[int, int, int]:
        return self.attention_size, self.stride, self.dilation

    def _convolve(self, joined: Tensor) -> Tensor:
        """Returns ``(B, D * M, Ho, Wo)``: the channels of a head are M apart, as published."""
        depth, maps = joined.shape[1:3]
        taps, shift = self.mix.out_channels, self.shift
        if maps > taps + 3:
            mixed = self.mix(joined.transpose(1, 2).flatten(2, 3))  # (B, K * K, D * H, W)
            mixed = mixed.unflatten(2, (depth, -1)).transpose(1, 2)
            return shift(mixed.flatten(1, 2))
        weight = torch.einsum("opuv,pn->onuv", shift.weight, self.mix.weight.flatten(1))
        return functional.conv2d(
            joined.flatten(1, 2), weight, None, shift.stride, shift.padding, shift.dilation, depth
        )


def _is_bare(layer: nn.Module) -> bool:
    """Whether calling a layer does no more than its weight and bias say."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks)
    hooked = any(hooks) or bool(layer._backward_pre_hooks)
    return type(layer) is nn.Conv2d and layer.bias is not None and not hooked


register_layouts(
    ACmix,
    Layout(
        "LeapLabTHU/ACmix",
        {
            "conv1": "query",
            "conv2": "key",
            "conv3": "value",
            "conv_p": "position",
            "fc": "mix",
            "dep_conv": "shift",
            "rate1": "attention_scale",
            "rate2": "convolution_scale",
        },
    ),
)
