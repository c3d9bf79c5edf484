"""Selective kernels: a softmax, per channel, over convolutions of different reach.

Paper: Li, Wang, Hu and Yang, "Selective Kernel Networks", CVPR 2019,
    https://arxiv.org/abs/1903.06586, section 3.1 and figure 1.
Layout and weights: https://github.com/implus/SKNet (models/sknet50.prototxt at 5d319b2, Caffe).
The simplified form: https://github.com/xmu-xiaoma666/External-Attention-pytorch
    (model/attention/SKAttention.py at d75848e, MIT).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visgraft.blocks._checks import (
    check_divides,
    check_feature_map,
    check_odd,
    check_positive,
    check_statistics,
)
from visgraft.blocks._published import Layout, register_layouts
from visgraft.blocks._registry import Paper, Source, register_block
from visgraft.ops._mean import mean_over

__all__ = ["SKAttention", "SelectiveKernel"]

_PAPER = Paper(
    title="Selective Kernel Networks",
    authors="Li, Wang, Hu and Yang",
    venue="CVPR 2019",
    url="https://arxiv.org/abs/1903.06586",
)


@register_block(
    "selective_kernel",
    role="mixer",
    aliases={"SKUnit": {}, "SKConv": {}},
    paper=_PAPER,
    source=Source("https://github.com/implus/SKNet", "models/sknet50.prototxt", "5d319b2", None),
)
class SelectiveKernel(nn.Module):
    """Weighs the results of several grouped convolutions against each other, channel by channel.

    Each branch is convolution, batch normalisation and ReLU. The pooled sum of the branches goes
    through a bottleneck to one logit per branch and channel, and a softmax over the branches
    weighs them. Cost, with ``hidden`` the bottleneck's channels: ``K^2 * C / groups`` weights per
    output channel for each branch, and ``hidden * (1 + branches)`` per output channel.

    Args:
        channels: C, of the input.
        out_channels: Of the output; None for ``channels``.
        kernels: One branch for each ``(kernel_size, dilation)``; at least two.
        groups: Of the convolutions.
        reduction: The bottleneck has ``max(min_hidden, out_channels // reduction)`` channels.
        min_hidden: Lower bound of the bottleneck's channels.
        stride: Of the convolutions.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        - Input: ``(B, C, H, W)``, H and W at least 1 and free to change between calls; B at least
          2 in training, because the bottleneck normalises one value per image and channel.
        - Output: ``(B, out_channels, ceil(H / stride), ceil(W / stride))``.

    Raises:
        ValueError: ``kernels`` are not pairs of an odd size and a dilation, there are fewer than
            two, another number is not an integer of at least 1, ``groups`` does not divide the
            channels, or the input does not have the documented shape.

    Example:
        >>> SelectiveKernel(64, stride=2).eval()(torch.zeros(2, 64, 14, 9)).shape
        torch.Size([2, 64, 7, 5])
    """

    starts_as_identity = False

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        kernels: Sequence[tuple[int, int]] = ((3, 1), (3, 2)),
        groups: int = 32,
        reduction: int = 16,
        min_hidden: int = 32,
        stride: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner = "SelectiveKernel"
        out_channels = channels if out_channels is None else out_channels
        ends = {"channels": channels, "out_channels": out_channels}
        numbers = {"groups": groups, "reduction": reduction, "min_hidden": min_hidden}
        check_positive(owner, **ends, **numbers, stride=stride)
        check_divides(owner, groups, "the groups of the convolutions", **ends)
        _check_branches(owner, kernels, "(kernel_size, dilation) pairs, such as ((3, 1), (3, 2))")
        for pair in kernels:
            if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
                raise ValueError(
                    f"{owner}: each of kernels must be a (kernel_size, dilation) pair, got {pair!r}"
                )
            check_odd(owner, kernel_size=pair[0])
            check_positive(owner, dilation=pair[1])
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = max(min_hidden, out_channels // reduction)
        self.channels = channels
        self.branches = nn.ModuleList(
            _Branch(
                channels,
                out_channels,
                kernel_size,
                stride=stride,
                padding=dilation * (kernel_size // 2),
                dilation=dilation,
                groups=groups,
                bias=False,
                **dd,
            )
            for kernel_size, dilation in kernels
        )
        self.reduce = nn.Conv2d(out_channels, hidden, 1, bias=False, **dd)
        self.norm = nn.BatchNorm2d(hidden, **dd)
        self.expand = nn.Conv2d(hidden, len(kernels) * out_channels, 1, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the selection between the branches."""
        check_feature_map("SelectiveKernel", x, self.channels)
        check_statistics("SelectiveKernel", self.norm, x.shape[0], "one per image")
        maps = [branch(x) for branch in self.branches]
        return _select(maps, self._logits(maps))

    def attention_weights(self, x: Tensor) -> Tensor:
        """Returns the share of each branch in each channel.

        Shape:
            ``(B, C, H, W)`` -> ``(B, branches, out_channels)``, which sums to 1 over the branches.
        """
        check_feature_map("SelectiveKernel", x, self.channels)
        return _shares(self._logits([branch(x) for branch in self.branches]))

    def _logits(self, maps: Sequence[Tensor]) -> Sequence[Tensor]:
        hidden = functional.relu(self.norm(self.reduce(_pooled(maps))))
        return self.expand(hidden).chunk(len(maps), 1)


@register_block(
    "sk_attention",
    role="mixer",
    aliases={"SKAttention": {}},
    paper=_PAPER,
    source=Source(
        "https://github.com/xmu-xiaoma666/External-Attention-pytorch",
        "model/attention/SKAttention.py",
        "d75848e",
        "MIT",
    ),
)
class SKAttention(nn.Module):
    """Weighs the results of convolutions of different size against each other, per channel.

    The simplified form of the selective kernel that circulates under this name, kept because
    networks have been trained with it. For the published unit, use ``SelectiveKernel``.

    Differs from the source: each branch is evaluated once. Copies that evaluate each branch twice,
    the second time to print its shape, take twice the time and update the statistics of batch
    normalisation twice in a step. Differs from the paper: undilated convolutions of up to 7 x 7
    with a bias and without groups, about nine times the cost of a 3 x 3 convolution; nothing
    between the two layers of the bottleneck, which have biases; no stride.

    Args:
        channels: C, of input and output.
        kernels: Odd kernel sizes, one for each branch; at least two.
        reduction: The bottleneck has ``max(min_hidden, channels // reduction)`` features.
        groups: Of the convolutions.
        min_hidden: Lower bound of the bottleneck's features.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        - Input: ``(B, C, H, W)``, H and W at least 1 and free to change between calls.
        - Output: ``(B, C, H, W)``, not negative.

    Raises:
        ValueError: ``kernels`` are not at least two odd numbers, another number is not an integer
            of at least 1, ``groups`` does not divide ``channels``, or the input does not have the
            documented shape.

    Example:
        >>> SKAttention(16)(torch.zeros(2, 16, 14, 9)).shape
        torch.Size([2, 16, 14, 9])
    """

    starts_as_identity = False

    def __init__(
        self,
        channels: int,
        *,
        kernels: Sequence[int] = (1, 3, 5, 7),
        reduction: int = 16,
        groups: int = 1,
        min_hidden: int = 32,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner = "SKAttention"
        numbers = {"reduction": reduction, "groups": groups, "min_hidden": min_hidden}
        check_positive(owner, channels=channels, **numbers)
        check_divides(owner, groups, "the groups of the convolutions", channels=channels)
        _check_branches(owner, kernels, "odd sizes, such as (3, 5)")
        for kernel_size in kernels:
            check_odd(owner, kernel_size=kernel_size)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = max(min_hidden, channels // reduction)
        self.channels = channels
        self.branches = nn.ModuleList(
            _Branch(channels, channels, size, padding=size // 2, groups=groups, **dd)
            for size in kernels
        )
        self.reduce = nn.Linear(channels, hidden, **dd)
        self.expand = nn.ModuleList(nn.Linear(hidden, channels, **dd) for _ in kernels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the selection between the branches."""
        check_feature_map("SKAttention", x, self.channels)
        b, _, h, w = x.shape
        norm = self.get_submodule("branches.0.norm")
        check_statistics("SKAttention", norm, b * h * w, f"batch {b}, map {h} x {w}")
        maps = [branch(x) for branch in self.branches]
        return _select(maps, self._logits(maps))

    def attention_weights(self, x: Tensor) -> Tensor:
        """Returns the share of each branch in each channel.

        Shape:
            ``(B, C, H, W)`` -> ``(B, branches, C)``, which sums to 1 over the branches.
        """
        check_feature_map("SKAttention", x, self.channels)
        return _shares(self._logits([branch(x) for branch in self.branches]))

    def _logits(self, maps: Sequence[Tensor]) -> Sequence[Tensor]:
        hidden = self.reduce(_pooled(maps).flatten(1))
        return [layer(hidden)[:, :, None, None] for layer in self.expand]


class _Branch(nn.Module):
    """Convolution, batch normalisation, ReLU; the arguments are those of ``nn.Conv2d``."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel_size, **options)
        dd = {name: options[name] for name in ("device", "dtype")}
        self.norm = nn.BatchNorm2d(out_channels, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(x)), inplace=True)


def _check_branches(owner: str, kernels: Sequence[Any], what: str) -> None:
    if not isinstance(kernels, Sequence) or isinstance(kernels, str) or len(kernels) < 2:
        raise ValueError(f"{owner}: kernels must be at least two {what}, got {kernels!r}")


def _pooled(maps: Sequence[Tensor]) -> Tensor:
    """Returns the mean over the positions of the sum of the maps, which is not formed."""
    means = [mean_over(each, 2, 3, keepdim=True) for each in maps]
    return sum(means[1:], means[0])


def _shares(logits: Sequence[Tensor]) -> Tensor:
    """Returns ``(B, branches, C)`` of logits ``(B, C, 1, 1)``."""
    return torch.stack([each.flatten(1) for each in logits], 1).softmax(1)


def _select(maps: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
    """Returns the sum of the maps under a softmax over them; logits are ``(B, C, 1, 1)``."""
    dtype = maps[0].dtype
    if len(maps) == 2:  # a softmax over two is a sigmoid
        share = (logits[1] - logits[0]).sigmoid()
        return torch.lerp(maps[0], maps[1], share.to(dtype))
    shares = torch.stack(list(logits)).softmax(0).to(dtype).unbind(0)
    out = maps[0] * shares[0]
    for each, share in zip(maps[1:], shares[1:], strict=True):
        out = torch.addcmul(out, each, share)
    return out


register_layouts(
    SelectiveKernel,
    Layout(
        "implus/SKNet",
        {
            "*/3x3g32/bn": "branches.0.norm",
            "*/3x3g32": "branches.0.conv",
            "*/3x3g32d2/bn": "branches.1.norm",
            "*/3x3g32d2": "branches.1.conv",
            "*/B_fc1/bn": "norm",
            "*/B_fc1": "reduce",
            "*/B_fc2": "expand",
        },
    ),
    Layout(
        "timm",
        {
            "paths.*.conv": "branches.*.conv",
            "paths.*.bn": "branches.*.norm",
            "attn.fc_reduce": "reduce",
            "attn.bn": "norm",
            "attn.fc_select": "expand",
        },
    ),
)
register_layouts(
    SKAttention,
    Layout(
        "External-Attention-pytorch",
        {
            "convs.*.conv": "branches.*.conv",
            "convs.*.bn": "branches.*.norm",
            "fc": "reduce",
            "fcs.*": "expand.*",
        },
    ),
)
