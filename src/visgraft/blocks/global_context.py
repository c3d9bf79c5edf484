"""Global context: one attention-pooled vector per image, added to or multiplied into each position.

Paper: Cao, Xu, Lin, Wei and Hu, "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and
    Beyond", ICCV Workshops 2019, https://arxiv.org/abs/1904.11492, section 3.3 and figure 4d.
Layout and weights: https://github.com/xvjiarui/GCNet (mmdet/ops/gcb/context_block.py at 029db54,
    Apache-2.0); mmcv.cnn.ContextBlock is the same.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from visgraft.blocks._checks import check_choice, check_feature_map, check_positive
from visgraft.blocks._hooks import is_hooked
from visgraft.blocks._published import Layout, register_layouts
from visgraft.blocks._registry import Paper, Source, register_block
from visgraft.ops._mean import mean_over
from visgraft.ops.attention_pooling import attention_pooling

__all__ = ["GlobalContext"]

_WAYS = (["add"], ["mul"], ["add", "mul"])


class _Transform(nn.Module):
    """Bottleneck of two 1 x 1 convolutions whose last one starts at zero."""

    def __init__(self, channels: int, hidden: int, **dd: Any) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1, **dd)
        self.norm = nn.LayerNorm([hidden, 1, 1], **dd)
        self.expand = nn.Conv2d(hidden, channels, 1, **dd)
        nn.init.zeros_(self.expand.weight)
        if self.expand.bias is not None:
            nn.init.zeros_(self.expand.bias)

    def forward(self, context: Tensor) -> Tensor:
        return self.expand(functional.relu(self.norm(self.reduce(context))))


@register_block(
    "global_context",
    role="gate",
    aliases={"ContextBlock": {}, "CB2d": {"reduction": 4, "fuse": ("add", "mul")}},
    paper=Paper(
        title="GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond",
        authors="Cao, Xu, Lin, Wei and Hu",
        venue="ICCV Workshops 2019",
        url="https://arxiv.org/abs/1904.11492",
    ),
    source=Source(
        "https://github.com/xvjiarui/GCNet",
        "mmdet/ops/gcb/context_block.py",
        "029db54",
        "Apache-2.0",
    ),
)
class GlobalContext(nn.Module):
    """Adds to each position, or multiplies it by, a function of one pooled vector per image.

    One softmax over all positions pools the map; a bottleneck turns the vector into one number
    per channel. Cost, with ``hidden = channels // reduction``: ``2 * C * hidden`` weights per way
    of fusing, and ``2 * C`` multiplications per position.

    Args:
        channels: C, of input and output.
        reduction: The bottleneck has ``channels // reduction`` channels, at least 2.
        pool: ``'attention'``, or ``'average'`` for the plain mean.
        fuse: ``'add'``, ``'mul'`` or both; multiplication, by a sigmoid, comes first.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        - Input: ``(B, C, H, W)``, H and W at least 1 and free to change between calls.
        - Output: ``(B, C, H, W)``. A new block returns its input with ``fuse=("add",)``, and half
          of it when ``'mul'`` is among them, because the last convolutions start at zero.

    Raises:
        ValueError: ``channels`` or ``reduction`` is not a positive integer, the bottleneck would
            have fewer than 2 channels, ``pool`` or ``fuse`` is unknown, or the input is not
            ``(B, channels, H, W)``.

    Example:
        >>> x = torch.randn(2, 64, 20, 30)
        >>> torch.equal(GlobalContext(64)(x), x)
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        pool: Literal["attention", "average"] = "attention",
        fuse: Sequence[str] = ("add",),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner = "GlobalContext"
        check_positive(owner, channels=channels, reduction=reduction)
        check_choice(owner, ("attention", "average"), pool=pool)
        ways = (fuse,) if isinstance(fuse, str) else fuse
        if not isinstance(ways, Sequence) or sorted(map(str, ways)) not in _WAYS:
            raise ValueError(f"{owner}: fuse must name 'add', 'mul' or both, got {fuse!r}")
        hidden = channels // reduction
        if hidden < 2:
            raise ValueError(
                f"{owner}: channels // reduction must be at least 2 (its layer norm makes a single "
                f"channel constant), got {channels} // {reduction} = {hidden}; lower reduction"
            )
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channels = channels
        self.fuse = tuple(ways)
        self.attend = nn.Conv2d(channels, 1, 1, **dd) if pool == "attention" else None
        if self.attend is not None:
            nn.init.kaiming_normal_(self.attend.weight, nonlinearity="relu")
            if self.attend.bias is not None:
                nn.init.zeros_(self.attend.bias)
        self.add = _Transform(channels, hidden, **dd) if "add" in ways else None
        self.mul = _Transform(channels, hidden, **dd) if "mul" in ways else None

    @property
    def starts_as_identity(self) -> bool:
        """Whether a new block returns its input."""
        return self.mul is None

    def forward(self, x: Tensor) -> Tensor:
        """Fuses the pooled context of ``x`` into it."""
        check_feature_map("GlobalContext", x, self.channels)
        context, x = self._pool(x)  # (B, C, 1, 1)
        if self.mul is None:
            return x if self.add is None else x + self.add(context)
        scale = self.mul(context).sigmoid()
        return x * scale if self.add is None else (x * scale).add_(self.add(context))

    def attention_weights(self, x: Tensor) -> Tensor | None:
        """Returns the share of each position in the context; None where it is the plain mean.

        Shape:
            ``(B, C, H, W)`` -> ``(B, 1, H, W)``, which sums to 1 over the positions.
        """
        check_feature_map("GlobalContext", x, self.channels)
        if self.attend is None:
            return None
        return self.attend(x).flatten(2).softmax(2).unflatten(2, x.shape[2:])

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the context, and the map to use from there on."""
        if self.attend is None:
            return mean_over(x, 2, 3, keepdim=True), x
        if _is_usual(self.attend):
            return attention_pooling(x, self.attend.weight, self.attend.bias)
        attention = self.attend(x).flatten(2).softmax(2)  # (B, 1, H * W)
        return (x.flatten(2) @ attention.transpose(1, 2)).unsqueeze(3), x


def _is_usual(attend: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether this is still the convolution of the block, and nothing watches its calls."""
    return (
        type(attend) is nn.Conv2d
        and attend.kernel_size == attend.stride == (1, 1)
        and attend.groups == attend.out_channels == 1
        and attend.padding in (0, (0, 0))
        and not is_hooked(attend)
    )


register_layouts(
    GlobalContext,
    Layout(
        "xvjiarui/GCNet",
        {
            "conv_mask": "attend",
            "channel_add_conv.0": "add.reduce",
            "channel_add_conv.1": "add.norm",
            "channel_add_conv.3": "add.expand",
            "channel_mul_conv.0": "mul.reduce",
            "channel_mul_conv.1": "mul.norm",
            "channel_mul_conv.3": "mul.expand",
        },
    ),
)
