"""Swin-ACmix: Swin transformers whose window attention shares its projections with a convolution.

Paper: Pan, Ge, Lu, Song, Chen, Huang and Huang, "On the Integration of Self-Attention and
    Convolution", CVPR 2022, https://arxiv.org/abs/2111.14556, section 5.1.
Layout and weights: https://github.com/LeapLabTHU/ACmix
    (Swin-Transformer/models/swin_transformer_acmix.py at 81dddb6, no licence stated: nothing of
    it is copied).
"""

from functools import partial
from typing import Any

import torch
from timm.layers.drop import DropPath
from timm.layers.helpers import to_2tuple
from timm.layers.patch_embed import PatchEmbed
from timm.models import generate_default_cfgs, register_model
from timm.models.swin_transformer import (
    SwinTransformer,
    SwinTransformerBlock,
    resolve_stage_window_sizes,
)
from torch import Tensor, nn

from visgraft.blocks import Layout, Paper, Source, register_layouts
from visgraft.models._acmix_window import ACmixWindowAttention
from visgraft.models._building import build_network, imagenet_cfg
from visgraft.models._catalogue import Published, describe_networks
from visgraft.ops._exporting import exporting

__all__ = [
    "ACmixSwin",
    "ACmixSwinBlock",
    "swin_acmix_small",
    "swin_acmix_tiny",
    "test_swin_acmix",
]


class ACmixSwinBlock(SwinTransformerBlock):
    """timm's Swin block with ``ACmixWindowAttention``, for maps that change between calls.

    Windows keep their size and their table on a map smaller than they are. An axis along which one
    window covers the map is not shifted, which is decided in each call.

    Args:
        dim: C, of input and output.
        input_resolution: Of the map that timm plans with; has no effect on values.
        num_heads: M, a divisor of ``dim``.
        window_size: Size of a window in positions, or ``(rows, columns)``.
        shift_size: Positions by which the map is rolled up and left around the attention.
        qkv_bias: Whether query, key and value have a bias.
        attn_drop: Drop rate of the attention's weights.
        proj_drop: Drop rate of the attention's output and of the MLP.
        device: Of the parameters.
        dtype: Of the parameters.
        kwargs: As timm's ``SwinTransformerBlock`` takes them.
    """

    def __init__(
        self,
        dim: int,
        input_resolution: tuple[int, int],
        *,
        num_heads: int,
        window_size: int | tuple[int, int] = 7,
        shift_size: int | tuple[int, int] = 0,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            dim,
            input_resolution,
            num_heads,
            window_size=window_size,
            shift_size=shift_size,  # pyright: ignore[reportArgumentType]
            qkv_bias=qkv_bias,
            proj_drop=proj_drop,
            dynamic_mask=True,
            device=device,
            dtype=dtype,
            **kwargs,
        )
        self.attn = ACmixWindowAttention(
            dim,
            num_heads=num_heads,
            window_size=window_size,
            bias=qkv_bias,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            device=device,
            dtype=dtype,
        )

    def _calc_window_shift(
        self,
        target_window_size: int | tuple[int, int],
        target_shift_size: int | tuple[int, int] | None = None,
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Returns window and shift of large maps, where timm shrinks them to the planned map."""
        window: Any = to_2tuple(target_window_size)
        shift: Any = target_shift_size
        if shift is not None:
            return window, to_2tuple(shift)  # pyright: ignore[reportReturnType]
        shifted = any(self.target_shift_size)
        return window, (window[0] // 2, window[1] // 2) if shifted else (0, 0)

    def _attn(self, x: Tensor) -> Tensor:
        shift = self.shift_size
        if any(shift) and not self.always_partition:
            axes = zip(x.shape[1:3], self.window_size, shift, strict=True)
            shift = tuple(_move_beyond(*axis) for axis in axes)
        if all(isinstance(move, int) for move in shift) and not any(shift):
            return self.attn(x)
        up, left = shift
        x = self.attn(torch.roll(x, (-up, -left), (1, 2)), shift)
        return torch.roll(x, (up, left), (1, 2))


def _move_beyond(size: int, window: int, move: int) -> int:
    """Returns ``move`` if the map is larger than the window, else 0; for all sizes in a graph."""
    if exporting() and not isinstance(size, int):
        return torch.sym_ite(size > window, move, 0)
    return move if size > window else 0


class ACmixSwin(SwinTransformer):
    """timm's Swin transformer of ``ACmixSwinBlock``.

    Differs from the source: any image, where the authors' network needs 224 x 224 pixels. Sizes
    that are no multiple of the patch are padded with zeros at the right and at the bottom, in the
    image and where patches merge. ``img_size`` has no effect on parameters or values. The masks
    are computed in each call, and no buffers are stored. Loading resizes the authors' tables of
    relative biases to another ``window_size``. As in timm's Swin, patches merge at the start of a
    stage, and what stages return is ``(B, H, W, C)``; the authors' stages end with the merging.

    Args:
        weight_init: As timm's ``SwinTransformer`` takes it.
        kwargs: As timm's ``SwinTransformer`` takes them, except ``head_dim``.

    Raises:
        ValueError: ``head_dim`` or an ``output_stride`` other than 32 is given, or a stage's
            channels are not a multiple of its heads.
    """

    def __init__(self, *, weight_init: str = "", **kwargs: Any) -> None:
        if kwargs.pop("head_dim", None) is not None:
            raise ValueError(
                "ACmixSwin: head_dim cannot be chosen, because both paths divide the channels of "
                "a stage by its heads; leave it out"
            )
        output_stride = kwargs.pop("output_stride", 32)
        if output_stride != 32:
            raise ValueError(
                "ACmixSwin: output_stride must be 32, because stages start by merging patches, "
                f"got {output_stride}"
            )
        options: dict[str, Any] = {
            "strict_img_size": False,
            "embed_layer": partial(PatchEmbed, dynamic_img_pad=True),
            "norm_layer": nn.LayerNorm,
        }
        options |= kwargs
        super().__init__(weight_init="skip", **options)
        shared = {key: options.get(key) for key in ("norm_layer", "device", "dtype")}
        windows = resolve_stage_window_sizes(options.get("window_size", 7), len(self.layers))
        stage: Any
        for stage, window in zip(self.layers, windows, strict=True):
            blocks = [_with_convolution(each, window, **shared) for each in stage.blocks]
            stage.blocks = nn.Sequential(*blocks)
        if weight_init != "skip":
            self.weight_init_mode = weight_init
            self.init_weights(needs_reset=False)


def _with_convolution(block: Any, window_size: tuple[int, int], **options: Any) -> ACmixSwinBlock:
    """Returns a new block like ``block``, of which timm has shrunk the window to the map."""
    path = block.drop_path1
    return ACmixSwinBlock(
        block.dim,
        block.input_resolution,
        num_heads=block.attn.num_heads,
        window_size=window_size,
        shift_size=block.target_shift_size,
        always_partition=block.always_partition,
        mlp_ratio=block.mlp_ratio,
        qkv_bias=block.attn.qkv.bias is not None,
        proj_drop=block.attn.proj_drop.p,
        attn_drop=block.attn.attn_drop.p,
        drop_path=path.drop_prob if isinstance(path, DropPath) else 0.0,
        **options,
    )


def _drop_masks(_: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drops the masks of shifted windows, which are computed in each call."""
    return {key: value for key, value in state.items() if not key.endswith(".attn_mask")}


register_layouts(
    ACmixSwin,
    Layout(
        "LeapLabTHU/ACmix",
        {
            "layers.0.downsample": "layers.1.downsample",
            "layers.1.downsample": "layers.2.downsample",
            "layers.2.downsample": "layers.3.downsample",
            "head": "head.fc",
        },
        _drop_masks,
    ),
)


def _cfg(**changes: Any) -> dict[str, Any]:
    return imagenet_cfg(first_conv="patch_embed.proj", classifier="head.fc") | changes


default_cfgs = generate_default_cfgs(
    {
        "swin_acmix_tiny.untrained": _cfg(),
        "swin_acmix_small.untrained": _cfg(),
        "test_swin_acmix.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> ACmixSwin:
    stages = tuple(range(len(kwargs["depths"])))
    feature_cfg = {"flatten_sequential": True, "out_indices": kwargs.pop("out_indices", stages)}
    return build_network(ACmixSwin, variant, pretrained, feature_cfg=feature_cfg, **kwargs)


@register_model
def swin_acmix_tiny(pretrained: bool = False, **kwargs: Any) -> ACmixSwin:
    """Swin-ACmix-T: 28.6 M parameters."""
    args = {"depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
    return _create("swin_acmix_tiny", pretrained, **(args | kwargs))


@register_model
def swin_acmix_small(pretrained: bool = False, **kwargs: Any) -> ACmixSwin:
    """Swin-ACmix-S: 50.3 M parameters."""
    args = {"depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)}
    return _create("swin_acmix_small", pretrained, **(args | kwargs))


@register_model
def test_swin_acmix(pretrained: bool = False, **kwargs: Any) -> ACmixSwin:
    """Narrow stages and windows of 4, for tests: 0.4 M parameters."""
    args = {
        "img_size": 64,
        "embed_dim": 16,
        "depths": (2, 1, 2, 1),
        "num_heads": (1, 2, 4, 8),
        "window_size": 4,
        "drop_path_rate": 0.0,
    }
    return _create("test_swin_acmix", pretrained, **(args | kwargs))


describe_networks(
    {
        "swin_acmix_tiny": Published(params=30, gmacs=4.6, top1=81.9),
        "swin_acmix_small": Published(params=51, gmacs=9.0, top1=83.5),
    },
    paper=Paper(
        title="On the Integration of Self-Attention and Convolution",
        authors="Pan et al.",
        venue="CVPR 2022",
        url="https://arxiv.org/abs/2111.14556",
    ),
    source=Source(
        "https://github.com/LeapLabTHU/ACmix",
        "Swin-Transformer/models/swin_transformer_acmix.py",
        "81dddb6",
        None,
    ),
    figures_from="the authors' README",
    weights="The authors' README links both files, on Tsinghua Cloud and Google Drive; "
    "translate one by: visgraft convert FILE --model NAME -o out.safetensors",
    recipe="acmix_swin",
)
