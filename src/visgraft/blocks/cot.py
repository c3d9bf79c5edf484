"""Contextual transformer: a local attention whose weights come from the static context of a key.

Paper: Li, Yao, Pan and Mei, "Contextual Transformer Networks for Visual Recognition", TPAMI 2022,
    https://arxiv.org/abs/2107.12292, section 3.2 and figure 2b.
Layout and weights: https://github.com/JDAI-CV/CoTNet (models/cotnet.py at 895e024, Apache-2.0).
The simplified form: https://github.com/xmu-xiaoma666/External-Attention-pytorch
    (attention/CoTAttention.py at f0b5dfc, MIT).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visgraft.blocks._checks import (
    check_choice,
    check_divides,
    check_feature_map,
    check_odd,
    check_positive,
    check_statistics,
)
from visgraft.blocks._norm_activation import normalised, normalised_and_pooled
from visgraft.blocks._published import Layout, register_layouts
from visgraft.blocks._registry import Paper, Source, register_block
from visgraft.ops import local_aggregation
from visgraft.ops.selection import selection

__all__ = ["CoTAttention", "ContextualTransformer"]

_PAPER = Paper(
    title="Contextual Transformer Networks for Visual Recognition",
    authors="Li, Yao, Pan and Mei",
    venue="TPAMI 2022",
    url="https://arxiv.org/abs/2107.12292",
)
_SHARE = 8  # channels that share one k x k kernel


@register_block(
    "cot",
    role="mixer",
    aliases={"CotLayer": {}, "CoXtLayer": {"groups": 2}},
    paper=_PAPER,
    source=Source("https://github.com/JDAI-CV/CoTNet", "models/cotnet.py", "895e024", "Apache-2.0"),
)
class ContextualTransformer(nn.Module):
    """Adds to a grouped convolution of the map a local attention that this convolution steers.

    A k x k convolution gives each key its static context. The context and the map together give,
    through two 1 x 1 convolutions, a k x k kernel per position and share group (``channels / 8``
    kernels, each used by 8 channels); the value map is summed under them. A softmax over the two
    results, from their pooled sum, selects between static and dynamic context. Cost, with
    ``C = channels`` and ``K = kernel_size``: about ``C^2 (K^2 / 4 + 2 + K^2 / 16)`` multiplications
    per position, against ``K^2 C^2`` of the convolution it stands for.

    Args:
        channels: C, of input and output, a multiple of ``8 * groups``.
        kernel_size: Odd size of the neighbourhood.
        groups: 1, or 2 for the layer of CoTNeXt: two halves that mix only in the selection.
        stride: 2 or more puts the network's 3 x 3 average pooling of this stride in front.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        - Input: ``(B, C, H, W)``, H and W at least 1 and free to change between calls; B at least
          2 in training, because the selection normalises one value per image and channel.
        - Output: ``(B, C, ceil(H / stride), ceil(W / stride))``.

    Raises:
        ValueError: ``channels`` is not a positive multiple of ``8 * groups``, ``kernel_size`` is
            not odd, ``groups`` is neither 1 nor 2, ``stride`` is not at least 1, or the input does
            not have the documented shape.

    Example:
        >>> ContextualTransformer(64).eval()(torch.zeros(2, 64, 14, 9)).shape
        torch.Size([2, 64, 14, 9])
    """

    starts_as_identity = False

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 3,
        groups: int = 1,
        stride: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner = "ContextualTransformer"
        check_positive(owner, channels=channels, stride=stride)
        check_odd(owner, kernel_size=kernel_size)
        check_choice(owner, (1, 2), groups=groups)
        why = f"{_SHARE} channels share a kernel" + ", in 2 groups" * (groups == 2)
        check_divides(owner, _SHARE * groups, why, channels=channels)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        kernels, taps = channels // _SHARE, kernel_size**2
        hidden, select_hidden = channels // 2, max(channels // 2, 32)
        self.channels = channels
        self.kernel_size = kernel_size
        self.groups = groups
        self.stride = stride
        self.pool = nn.AvgPool2d(3, stride, padding=1) if stride > 1 else nn.Identity()
        self.key = nn.Conv2d(
            channels,
            channels,
            kernel_size,
            padding=kernel_size // 2,
            groups=4 * groups,
            bias=False,
            **dd,
        )
        self.key_norm = nn.BatchNorm2d(channels, **dd)
        self.kernel_reduce = nn.Conv2d(2 * channels, hidden, 1, groups=groups, bias=False, **dd)
        self.kernel_reduce_norm = nn.BatchNorm2d(hidden, **dd)
        self.kernel_expand = nn.Conv2d(hidden, kernels * taps, 1, groups=groups, **dd)
        self.kernel_norm = nn.GroupNorm(kernels, kernels * taps, **dd)
        self.value = nn.Conv2d(channels, channels, 1, groups=groups, bias=False, **dd)
        self.value_norm = nn.BatchNorm2d(channels, **dd)
        self.norm = nn.BatchNorm2d(channels, **dd)
        self.select_reduce = nn.Conv2d(channels, select_hidden, 1, **dd)
        self.select_norm = nn.BatchNorm2d(select_hidden, **dd)
        self.select_expand = nn.Conv2d(select_hidden, 2 * channels, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the selection between static and dynamic context of ``x``."""
        check_feature_map("ContextualTransformer", x, self.channels)
        check_statistics("ContextualTransformer", self.select_norm, x.shape[0], "one per image")
        x = self.pool(x)
        static, mean_of_static = normalised_and_pooled(self.key_norm, self.key(x), "relu")
        mixed = self._aggregate(x, static)
        dynamic, mean_of_dynamic = normalised_and_pooled(self.norm, mixed, "silu")
        pooled = mean_of_dynamic + mean_of_static
        logits = self.select_expand(functional.relu(self.select_norm(self.select_reduce(pooled))))
        towards_dynamic, towards_static = logits.unflatten(1, (self.channels, 2)).unbind(2)
        share = (towards_dynamic - towards_static).sigmoid()  # softmax over two
        return selection(static, dynamic, share)

    def attention_weights(self, x: Tensor) -> Tensor:
        """Returns the kernels that the values around each position are summed under.

        Shape:
            ``(B, C, H, W)`` -> ``(B, C / 8, Ho, Wo, K, K)``: for the 8 channels of a kernel, as
            wide as the group normalisation leaves them, of either sign.
        """
        check_feature_map("ContextualTransformer", x, self.channels)
        x = self.pool(x)
        static = normalised(self.key_norm, self.key(x), "relu")
        kernels = self._kernels(x, static)
        taps = (self.kernel_size, self.kernel_size)
        return kernels.reshape(x.shape[0], -1, *taps, *x.shape[2:]).permute(0, 1, 4, 5, 2, 3)

    def _aggregate(self, x: Tensor, static: Tensor) -> Tensor:
        """Sums the values under the kernels of each position."""
        b, c, h, w = x.shape
        g = self.groups
        kernels = self._kernels(x, static)
        value = normalised(self.value_norm, self.value(x), "none").reshape(b * g, c // g, h, w)
        return local_aggregation(value, kernels, self.kernel_size).reshape(b, c, h, w)

    def _kernels(self, x: Tensor, static: Tensor) -> Tensor:
        """Returns ``(B * groups, 1, C / groups / 8, K * K, H, W)``."""
        b, c, h, w = x.shape
        g = self.groups
        # Each group reads one half of both: x0, static0, x1, static1, ...
        both = torch.cat([x, static], 1) if g == 1 else torch.stack([x, static], 2).flatten(1, 2)
        kernels = normalised(self.kernel_reduce_norm, self.kernel_reduce(both), "relu")
        kernels = self.kernel_norm(self.kernel_expand(kernels))
        return kernels.reshape(b * g, 1, c // g // _SHARE, self.kernel_size**2, h, w)


@register_block(
    "cot_attention",
    role="mixer",
    aliases={"CoTAttention": {}},
    paper=_PAPER,
    source=Source(
        "https://github.com/xmu-xiaoma666/External-Attention-pytorch",
        "attention/CoTAttention.py",
        "f0b5dfc",
        "MIT",
    ),
)
class CoTAttention(nn.Module):
    """Adds to a grouped convolution of the map a value map gated by a softmax over all positions.

    The simplified form of the contextual transformer that circulates under this name, kept because
    networks have been trained with it. For the published layer, use ``ContextualTransformer``.

    Differs from the source: nothing in values or gradients. The mean over the ``kernel_size**2``
    rows of each channel is taken of the weights of the last convolution, not of its output.
    Differs from the paper: the weights of the neighbourhood are averaged to one number per channel
    and position and normalised over the whole map, so no position reads its neighbours' values and
    the gate shrinks as the map grows; one kernel per channel, not per 8 channels; no normalisation
    of the kernels or of the result; static and dynamic context are added, not selected.

    Args:
        channels: C, of input and output, a multiple of 4.
        kernel_size: Odd size of the key's convolution.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        - Input: ``(B, C, H, W)``, H and W at least 1 and free to change between calls.
        - Output: ``(B, C, H, W)``.

    Raises:
        ValueError: ``channels`` is not a positive multiple of 4, ``kernel_size`` is not odd, or
            the input does not have the documented shape.

    Example:
        >>> CoTAttention(64)(torch.zeros(2, 64, 14, 9)).shape
        torch.Size([2, 64, 14, 9])
    """

    starts_as_identity = False

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("CoTAttention", channels=channels)
        check_odd("CoTAttention", kernel_size=kernel_size)
        check_divides("CoTAttention", 4, "the key's convolution has 4 groups", channels=channels)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = channels // 2
        self.channels = channels
        self.kernel_size = kernel_size
        self.key = nn.Conv2d(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=4, bias=False, **dd
        )
        self.key_norm = nn.BatchNorm2d(channels, **dd)
        self.value = nn.Conv2d(channels, channels, 1, bias=False, **dd)
        self.value_norm = nn.BatchNorm2d(channels, **dd)
        self.gate_reduce = nn.Conv2d(2 * channels, hidden, 1, bias=False, **dd)
        self.gate_norm = nn.BatchNorm2d(hidden, **dd)
        self.gate_expand = nn.Conv2d(hidden, kernel_size**2 * channels, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the static context of ``x`` plus its gated values."""
        check_feature_map("CoTAttention", x, self.channels)
        b, _, h, w = x.shape
        check_statistics("CoTAttention", self.key_norm, b * h * w, f"batch {b}, map {h} x {w}")
        static = functional.relu(self.key_norm(self.key(x)))
        value = self.value_norm(self.value(x))
        return (self._gate(x, static) * value).add_(static)

    def attention_weights(self, x: Tensor) -> Tensor:
        """Returns the gates of the values, which sum to 1 over the positions of each channel.

        Shape:
            ``(B, C, H, W)`` -> ``(B, C, H, W)``.
        """
        check_feature_map("CoTAttention", x, self.channels)
        return self._gate(x, functional.relu(self.key_norm(self.key(x))))

    def _gate(self, x: Tensor, static: Tensor) -> Tensor:
        b, c, h, w = x.shape
        gate = functional.relu(self.gate_norm(self.gate_reduce(torch.cat([static, x], 1))))
        weight, bias = (p.unflatten(0, (c, -1)).mean(1) for p in self.gate_expand.parameters())
        gate = functional.conv2d(gate, weight, bias)
        return gate.flatten(2).softmax(2).view(b, c, h, w)


register_layouts(
    ContextualTransformer,
    Layout(
        "JDAI-CV/CoTNet",
        {
            "key_embed.0": "key",
            "key_embed.1": "key_norm",
            "embed.0": "kernel_reduce",
            "embed.1": "kernel_reduce_norm",
            "embed.3": "kernel_expand",
            "embed.4": "kernel_norm",
            "conv1x1.0": "value",
            "conv1x1.1": "value_norm",
            "bn": "norm",
            "se.0": "select_reduce",
            "se.1": "select_norm",
            "se.3": "select_expand",
        },
    ),
)
register_layouts(
    CoTAttention,
    Layout(
        "External-Attention-pytorch",
        {
            "key_embed.0": "key",
            "key_embed.1": "key_norm",
            "value_embed.0": "value",
            "value_embed.1": "value_norm",
            "attention_embed.0": "gate_reduce",
            "attention_embed.1": "gate_norm",
            "attention_embed.3": "gate_expand",
        },
    ),
)
