"""Multi-head self-attention over all positions of a map, as in bottleneck transformers.

Paper: Srinivas, Lin, Parmar, Shlens, Abbeel and Vaswani, "Bottleneck Transformers for Visual
    Recognition", CVPR 2021, https://arxiv.org/abs/2101.11605, section 3 and figure 4.
Layouts and weights: https://github.com/lucidrains/bottleneck-transformer-pytorch (at e311f89,
    MIT), which follows the authors' gist; timm.layers.BottleneckAttn (Apache-2.0);
    https://github.com/JDAI-CV/CoTNet (models/botnet.py at 70e0e27, Apache-2.0).
The circulating form: https://github.com/leaderj1001/BottleneckTransformers (model.py at f494b0e,
    MIT) and copies of it.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from visgraft.blocks._checks import (
    check_choice,
    check_divides,
    check_feature_map,
    check_positive,
)
from visgraft.blocks._position_tables import checked_size, resized
from visgraft.blocks._published import Layout, register_layouts
from visgraft.blocks._registry import Paper, Source, register_block
from visgraft.ops import relative_attention
from visgraft.ops._exporting import exporting
from visgraft.ops.relative_attention.direct import relative_attention_weights

__all__ = ["MHSA", "BottleneckAttention"]

_PAPER = Paper(
    title="Bottleneck Transformers for Visual Recognition",
    authors="Srinivas et al.",
    venue="CVPR 2021",
    url="https://arxiv.org/abs/2101.11605",
)
_MOST_DIRECT = 1600  # positions of a map up to which MHSA holds its logits


@register_block(
    "bottleneck_attention",
    role="mixer",
    aliases={"BottleneckAttn": {}, "BoTAttention": {}},
    paper=_PAPER,
    source=Source(
        "https://github.com/lucidrains/bottleneck-transformer-pytorch",
        "bottleneck_transformer_pytorch/bottleneck_transformer_pytorch.py",
        "e311f89",
        "MIT",
    ),
)
class BottleneckAttention(nn.Module):
    """Mixes all positions of the map by attention to content and relative position.

    The logit of a key for a query is the product of the query with the key, plus its products with
    one learned vector for the difference of their rows and one for that of their columns, all
    shared by the heads. Cost, with ``N = H * W``: ``C * (2 * M * D + Co)`` weights and as many
    multiplications per position in the projection, and ``N^2 * (M * D + Co)`` in the attention.

    The tables are built for maps of ``feature_size`` and used as they are on such maps. On others
    they are interpolated linearly, as if the map had been scaled, and the interpolation is trained
    through. Maps of up to 400 positions hold their logits in memory, larger ones a few at a time.

    Differs from the source: any map size; ``stride`` (lucidrains pools outside); on maps that
    ``stride`` does not divide, the last average is over the positions there are. timm's
    ``BottleneckAttn`` computes the same with ``scale_pos_embed=True``; with its default, multiply
    the two tables by ``head_dim**0.5`` after loading its weights.

    Args:
        channels: C, of the input.
        out_channels: Co, of the output and the values; None for ``channels``.
        feature_size: Rows and columns of the map that the tables are built for.
        num_heads: M.
        head_dim: D, of queries and keys; None for ``out_channels // num_heads``.
        position: ``'relative'`` to the query; ``'absolute'``, one vector per row and column of the
            key; or None.
        bias: Whether the projection has one.
        stride: 2 or more averages so many rows and columns of the result.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        - Input: ``(B, C, H, W)``, H and W at least 1 and free to change between calls.
        - Output: ``(B, Co, ceil(H / stride), ceil(W / stride))``.

    Raises:
        ValueError: A number is not a positive integer, ``out_channels`` is not a multiple of
            ``num_heads``, ``feature_size`` is not a pair, ``position`` or ``bias`` is unknown, or
            the input is not ``(B, channels, H, W)``.

    Example:
        >>> BottleneckAttention(64, feature_size=(14, 14))(torch.zeros(2, 64, 20, 9)).shape
        torch.Size([2, 64, 20, 9])
    """

    starts_as_identity = False

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        feature_size: Sequence[int] = (14, 14),
        num_heads: int = 4,
        head_dim: int | None = None,
        position: Literal["relative", "absolute"] | None = "relative",
        bias: bool = False,
        stride: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner = "BottleneckAttention"
        out_channels = channels if out_channels is None else out_channels
        check_positive(owner, channels=channels, out_channels=out_channels, num_heads=num_heads)
        check_divides(owner, num_heads, "the heads", out_channels=out_channels)
        head_dim = out_channels // num_heads if head_dim is None else head_dim
        check_positive(owner, head_dim=head_dim, stride=stride)
        check_choice(owner, ("relative", "absolute", None), position=position)
        check_choice(owner, (True, False), bias=bias)
        height, width = checked_size(owner, feature_size)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channels = channels
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.position = position
        inner = num_heads * head_dim
        self.widths = [inner, inner, out_channels]
        self.qkv = nn.Conv2d(channels, 2 * inner + out_channels, 1, bias=bias, **dd)
        if position == "relative":
            self.offset_rows = nn.Parameter(torch.empty(2 * height - 1, head_dim, **dd))
            self.offset_columns = nn.Parameter(torch.empty(2 * width - 1, head_dim, **dd))
        elif position == "absolute":
            self.rows = nn.Parameter(torch.empty(height, head_dim, **dd))
            self.columns = nn.Parameter(torch.empty(width, head_dim, **dd))
        for table in self._tables().values():
            nn.init.normal_(table, std=head_dim**-0.5)
        pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
        self.pool = pool if stride > 1 else nn.Identity()

    def extra_repr(self) -> str:
        """Returns what the layers inside do not show."""
        parts = [f"num_heads={self.num_heads}", f"position={self.position}"]
        return ", ".join(parts + [f"{name}={len(table)}" for name, table in self._tables().items()])

    def forward(self, x: Tensor) -> Tensor:
        """Returns the values of ``x`` mixed by attention."""
        check_feature_map("BottleneckAttention", x, self.channels)
        query, key, value = self._project(x)
        if self.position == "relative":
            mixed = relative_attention(query, key, value, *self._offsets(x))
        else:
            mixed = _attend(query, key, value, self.head_dim**-0.5)
        return self.pool(mixed.flatten(1, 2))

    def attention_weights(self, x: Tensor) -> Tensor:
        """Returns the share of each position, the last two axes, in what each position gets.

        Shape:
            ``(B, C, H, W)`` -> ``(B, M, H, W, H, W)``, which sums to 1 over the last two; before
            the pooling of a ``stride``. Memory grows with the square of the positions.
        """
        check_feature_map("BottleneckAttention", x, self.channels)
        query, key, _ = self._project(x)
        if self.position == "relative":
            weights = relative_attention_weights(query, key, *self._offsets(x))
        else:
            weights = _weights(query * self.head_dim**-0.5, key)
        return weights.view(*query.shape[:2], *x.shape[2:], *x.shape[2:])

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries, keys and values, ``(B, M, D, H, W)``; absolute positions are added."""
        h, w = x.shape[2:]
        heads = self.num_heads
        query, key, value = (
            part.reshape(x.shape[0], heads, width // heads, h, w)
            for part, width in zip(self.qkv(x).split(self.widths, 1), self.widths, strict=True)
        )
        if self.position == "absolute":
            rows, columns = resized(self.rows, h), resized(self.columns, w)
            key = key + (rows[:, None] + columns).permute(2, 0, 1)
        return query, key, value

    def _offsets(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the vectors of the offsets between the rows and the columns of this map."""
        h, w = x.shape[2:]
        return resized(self.offset_rows, 2 * h - 1), resized(self.offset_columns, 2 * w - 1)

    def _tables(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.named_parameters(recurse=False) if p.ndim == 2}


@register_block(
    "mhsa",
    role="mixer",
    aliases={"MHSA": {}},
    paper=_PAPER,
    source=Source(
        "https://github.com/leaderj1001/BottleneckTransformers", "model.py", "f494b0e", "MIT"
    ),
)
class MHSA(nn.Module):
    """Mixes all positions of the map by attention, in the form that circulates under this name.

    Kept because networks have been trained with it. For the published layer, at any map size, use
    ``BottleneckAttention``.

    Differs from the source: nothing in values or gradients. ``feature_size`` is its ``(width,
    height)``, which are rows and columns; the position term works, where printed copies read a
    variable before it exists; larger maps are refused with a sentence.
    Differs from the paper: logits are not scaled; the position is absolute, one vector per
    row plus one per column, and multiplies the query of the *other* position; projections have a
    bias. On a map with fewer positions than the table, the flattened table is cut, an error of the
    copies kept here: unless the map has the table's width, positions get the vectors of others.

    Args:
        channels: C, of input and output, a multiple of ``num_heads``.
        feature_size: Rows and columns of the position table.
        num_heads: M.
        use_position: Whether there is a position term.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        - Input: ``(B, C, H, W)``, H and W at least 1 and free to change between calls; with
          ``use_position``, no more positions than the table has.
        - Output: ``(B, C, H, W)``.

    Raises:
        ValueError: ``channels`` is not a positive multiple of ``num_heads``, ``feature_size`` is
            not a pair of positive integers, the input is not ``(B, channels, H, W)``, or the map
            has more positions than the table.

    Example:
        >>> MHSA(64)(torch.zeros(2, 64, 20, 9)).shape
        torch.Size([2, 64, 20, 9])
    """

    starts_as_identity = False

    def __init__(
        self,
        channels: int,
        *,
        feature_size: Sequence[int] = (14, 14),
        num_heads: int = 4,
        use_position: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("MHSA", channels=channels, num_heads=num_heads)
        check_divides("MHSA", num_heads, "the heads", channels=channels)
        check_choice("MHSA", (True, False), use_position=use_position)
        height, width = checked_size("MHSA", feature_size)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channels = channels
        self.num_heads = num_heads
        self.feature_size = (height, width)
        self.use_position = use_position
        self.query = nn.Conv2d(channels, channels, 1, **dd)
        self.key = nn.Conv2d(channels, channels, 1, **dd)
        self.value = nn.Conv2d(channels, channels, 1, **dd)
        if use_position:
            depth = channels // num_heads
            self.rows = nn.Parameter(torch.randn(num_heads, depth, height, 1, **dd))
            self.columns = nn.Parameter(torch.randn(num_heads, depth, 1, width, **dd))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the values of ``x`` mixed by attention."""
        check_feature_map("MHSA", x, self.channels)
        query, key, value = self._project(x)
        if self.use_position and (exporting() or x.shape[2] * x.shape[3] <= _MOST_DIRECT):
            mixed = value.flatten(3) @ _weights(query, key).transpose(2, 3)
            return mixed.flatten(1, 2).unflatten(2, x.shape[2:])
        return _attend(query, key, value, 1.0).flatten(1, 2)

    def attention_weights(self, x: Tensor) -> Tensor:
        """Returns the share of each position, the last two axes, in what each position gets.

        Shape:
            ``(B, C, H, W)`` -> ``(B, M, H, W, H, W)``, which sums to 1 over the last two. Memory
            grows with the square of the positions.
        """
        check_feature_map("MHSA", x, self.channels)
        query, key, _ = self._project(x)
        return _weights(query, key).unflatten(3, x.shape[2:]).unflatten(2, x.shape[2:])

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what is multiplied for the logits, and the values, ``(B, M, D, H, W)``."""
        shape = (x.shape[0], self.num_heads, self.channels // self.num_heads, *x.shape[2:])
        query, key, value = (
            layer(x).reshape(shape) for layer in (self.query, self.key, self.value)
        )
        if not self.use_position:
            return query, key, value
        # q_i k_j + r_i q_j is one product of the pairs (q_i, r_i) and (k_j, q_j)
        position = self._position(x).to(query.dtype).expand(query.shape)
        return torch.cat([query, position], 2), torch.cat([key, query], 2), value

    def _position(self, x: Tensor) -> Tensor:
        """Returns the start of the flattened table, ``(M, D, H, W)``."""
        h, w = x.shape[2:]
        height, width = self.feature_size
        if h * w > height * width:
            raise ValueError(
                f"MHSA: the map has {h} x {w} positions, more than the position table for "
                f"feature_size ({height}, {width}); build it for the largest map, or use "
                "bottleneck_attention, which takes any size"
            )
        start = torch.arange(h * w, device=x.device)  # a slice would be exported for one map size
        return (self.rows + self.columns).flatten(2).index_select(2, start).unflatten(2, (h, w))


def _weights(query: Tensor, key: Tensor) -> Tensor:
    """Returns ``(B, M, H * W, H * W)``."""
    return (query.flatten(3).transpose(2, 3) @ key.flatten(3)).softmax(3)


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Returns ``(B, M, Dv, H, W)`` by the attention of PyTorch, in memory linear in positions.

    Its linear form wants one depth for all and contiguous channels.
    """
    depth = max(query.shape[2], value.shape[2])

    def positions(x: Tensor) -> Tensor:  # (B, M, H * W, depth)
        return functional.pad(x.flatten(3).transpose(2, 3), (0, depth - x.shape[2])).contiguous()

    mixed = functional.scaled_dot_product_attention(
        positions(query), positions(key), positions(value), scale=scale
    )
    return mixed[..., : value.shape[2]].transpose(2, 3).unflatten(3, value.shape[3:])


def _resize_tables(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Resizes position tables that were built for another map."""
    for name in ("offset_rows", "offset_columns", "rows", "columns"):
        own, published = getattr(module, name, None), state.get(name)
        if own is not None and published is not None and published.shape[1:] == own.shape[1:]:
            state = {**state, name: resized(published, len(own))}
    return state


def _merge_projections(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Joins the projections, each ``(C, M, D)``."""
    names = [f"{name}.w" for name in ("q_proj", "k_proj", "v_proj")]
    if all(name in state and state[name].ndim == 3 for name in names):
        state = dict(state)
        weights = [state.pop(name).flatten(1).T for name in names]
        state["qkv.weight"] = torch.cat(weights)[:, :, None, None]
    return _resize_tables(module, state)


def _drop_leading_axis(_: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes the batch axis off the position tables."""
    tables = ("rows", "columns")
    return {k: v.flatten(0, 1) if k in tables and v.ndim == 5 else v for k, v in state.items()}


register_layouts(
    BottleneckAttention,
    Layout("visgraft, another feature_size", adapt=_resize_tables),
    Layout(
        "lucidrains/bottleneck-transformer-pytorch",
        {
            "to_qkv": "qkv",
            "pos_emb.rel_height": "offset_rows",
            "pos_emb.rel_width": "offset_columns",
            "pos_emb.height": "rows",
            "pos_emb.width": "columns",
        },
        _resize_tables,
    ),
    Layout(
        "timm",
        {"pos_embed.height_rel": "offset_rows", "pos_embed.width_rel": "offset_columns"},
        _resize_tables,
    ),
    Layout(
        "JDAI-CV/CoTNet",
        {
            "self_attention.rel_emb_h": "offset_rows",
            "self_attention.rel_emb_w": "offset_columns",
        },
        _merge_projections,
    ),
)
register_layouts(
    MHSA,
    Layout(
        "leaderj1001/BottleneckTransformers",
        {"rel_w": "rows", "rel_h": "columns"},
        _drop_leading_axis,
    ),
)
