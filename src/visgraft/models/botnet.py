"""BoTNets: ResNets whose last stage mixes positions by self-attention instead of convolution.

Paper: Srinivas, Lin, Parmar, Shlens, Abbeel and Vaswani, "Bottleneck Transformers for Visual
    Recognition", CVPR 2021, https://arxiv.org/abs/2101.11605, sections 3 and 4.8.
Layouts: the attention of https://github.com/lucidrains/bottleneck-transformer-pytorch (at e311f89,
    MIT), which follows the authors' gist, in torchvision's ResNet;
    https://github.com/JDAI-CV/CoTNet (models/botnet.py at 70e0e27, Apache-2.0).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from timm.layers.squeeze_excite import SEModule
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck

from visgraft.blocks import BottleneckAttention, Layout, Paper, Source, register_layouts
from visgraft.models._building import build_network, imagenet_cfg
from visgraft.models._catalogue import Published, describe_networks
from visgraft.models._resnet import PaperResNet

__all__ = [
    "BoTNet",
    "botnet50",
    "botnet_s1_50",
    "botnet_s1_59",
    "botnet_s1_77",
    "botnet_s1_110",
    "botnet_s1_128",
    "test_botnet",
]

_OUTPUT_STRIDES = {1: (16, 8), 2: (32, 16, 8)}  # by attention_stride, the network's own first


class BoTNet(PaperResNet):
    """timm's ResNet with relative self-attention for the 3 x 3 convolutions of its last stage.

    Batch normalisation and activation follow the attention as they follow the convolution. The
    position tables are made for images of ``img_size``; at other sizes they are interpolated, and
    weights of a network for another ``img_size`` are fitted when `load_published` reads them.

    Squeeze and excitation, where a network has it (S1-59 and larger), follows the last
    normalisation of every block, without biases, ratio 1/16, ReLU inside. Accounts of the paper
    differ on whether blocks with attention have it too; its parameter counts say so: with it in
    every block the networks S1-59, S1-77, S1-110 and S1-128 have 33.64, 54.16, 54.86 and 75.38
    million parameters, where the paper states 33.5, 53.9, 54.7 and 75.1; without it in the last
    stage they have 30.49, 47.87, 51.71 and 69.09. ``attention_se=False`` leaves it out there, as
    JDAI-CV's code does.

    Differs from the source: any image size. lucidrains' own bottleneck has a 3 x 3 strided
    shortcut with an activation; the shortcut here is ResNet's. JDAI-CV's networks have a ReLU after
    the first convolution and biases in squeeze and excitation, and take 256 x 256 pixels only.

    Args:
        img_size: Of the images that the position tables are made for, in pixels: of a square's
            side, or height and width.
        num_heads: Of the attention; the width of the last stage's bottleneck is divided by it.
        attention_stride: Of the last stage. 2 averages 2 x 2 positions after its first attention;
            1 keeps the resolution, and the network's reduction is 16.
        output_stride: Reduction of the last stage; None for the network's own. Smaller ones take
            strides away from the last stages, which dilates the convolutions left in them.
        attention_se: Whether blocks with attention keep their squeeze and excitation.
        device: Of the parameters.
        dtype: Of the parameters.
        kwargs: As timm's ``ResNet`` takes them, except ``block``.

    Raises:
        ValueError: ``img_size`` is neither a positive integer nor a pair of such, another value
            is none of those listed, or the heads do not divide the width.
    """

    keeps_initialisation = (BottleneckAttention,)

    def __init__(
        self,
        *,
        layers: tuple[int, ...],
        img_size: int | Sequence[int] = 224,
        num_heads: int = 4,
        attention_stride: Literal[1, 2] = 2,
        output_stride: int | None = None,
        attention_se: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        image = _image_size(img_size)
        super().__init__(
            block=Bottleneck,  # pyright: ignore[reportArgumentType]
            layers=layers,
            output_stride=_output_stride(attention_stride, output_stride),
            device=device,
            dtype=dtype,
            **kwargs,
        )
        *_, before, last = (int(info["reduction"]) for info in self.feature_info)
        stage: Any = self.layer4
        for index, block in enumerate(stage):
            reduction = before if index == 0 else last
            conv = block.conv2
            block.conv2 = BottleneckAttention(
                conv.in_channels,
                out_channels=conv.out_channels,
                feature_size=tuple(-(-side // reduction) for side in image),
                num_heads=num_heads,
                stride=conv.stride[0],
                device=device,
                dtype=dtype,
            )
            if not attention_se:
                block.se = None


def _image_size(value: int | Sequence[int]) -> tuple[int, int]:
    sides = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ValueError(
            "BoTNet: img_size must be a positive number of pixels, or a (height, width) pair of "
            f"such, got {value!r}"
        )
    return sides


def _output_stride(attention_stride: int, output_stride: int | None) -> int:
    if type(attention_stride) is not int or attention_stride not in _OUTPUT_STRIDES:
        raise ValueError(f"BoTNet: attention_stride must be 1 or 2, got {attention_stride!r}")
    legal = _OUTPUT_STRIDES[attention_stride]
    if output_stride is None:
        return legal[0]
    if output_stride not in legal:
        kind = "whose last stage keeps the resolution " if attention_stride == 1 else ""
        raise ValueError(
            f"BoTNet: output_stride of a network {kind}must be "
            f"{' or '.join(map(str, legal))}, got {output_stride!r}"
        )
    return output_stride


register_layouts(
    BoTNet,
    Layout("lucidrains/bottleneck-transformer-pytorch", {"layer*.*.conv2.0": "layer*.*.conv2"}),
    Layout(
        "JDAI-CV/CoTNet",
        {"layer*.*.conv2.0": "layer*.*.conv2", "layer*.*.conv2.1": "layer*.*.bn2"},
    ),
)

_SQUEEZE = partial(SEModule, rd_ratio=1 / 16, rd_divisor=1, bias=False)
_S1 = {"attention_stride": 1}
_SCALED = {"act_layer": "silu", "block_args": {"attn_layer": _SQUEEZE}}


def _cfg(size: int = 224, reduction: int = 16) -> dict[str, Any]:
    side = -(-size // reduction)
    return imagenet_cfg(input_size=(3, size, size), pool_size=(side, side))


default_cfgs = generate_default_cfgs(
    {
        "botnet50.untrained": _cfg(reduction=32),
        "botnet_s1_50.untrained": _cfg(),
        "botnet_s1_59.untrained": _cfg(),
        "botnet_s1_77.untrained": _cfg(),
        "botnet_s1_110.untrained": _cfg(),
        "botnet_s1_128.untrained": _cfg(),
        "test_botnet.untrained": _cfg(64, reduction=32),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> BoTNet:
    return build_network(BoTNet, variant, pretrained, **kwargs)


@register_model
def botnet50(pretrained: bool = False, **kwargs: Any) -> BoTNet:
    """BoTNet-50: attention in the last three blocks, strides of a ResNet-50."""
    return _create("botnet50", pretrained, **({"layers": (3, 4, 6, 3)} | kwargs))


@register_model
def botnet_s1_50(pretrained: bool = False, **kwargs: Any) -> BoTNet:
    """BoTNet-S1-50: BoTNet-50 whose last stage keeps the resolution."""
    args = _S1 | {"layers": (3, 4, 6, 3)}
    return _create("botnet_s1_50", pretrained, **(args | kwargs))


@register_model
def botnet_s1_59(pretrained: bool = False, **kwargs: Any) -> BoTNet:
    """BoTNet-S1-59 (T3 of the paper): six blocks with attention, squeeze and excitation, SiLU."""
    args = _S1 | _SCALED | {"layers": (3, 4, 6, 6)}
    return _create("botnet_s1_59", pretrained, **(args | kwargs))


@register_model
def botnet_s1_77(pretrained: bool = False, **kwargs: Any) -> BoTNet:
    """BoTNet-S1-77 (T6 of the paper, there with ``img_size=320``): twelve blocks with attention."""
    args = _S1 | _SCALED | {"layers": (3, 4, 6, 12)}
    return _create("botnet_s1_77", pretrained, **(args | kwargs))


@register_model
def botnet_s1_110(pretrained: bool = False, **kwargs: Any) -> BoTNet:
    """BoTNet-S1-110 (T4 of the paper): six blocks with attention on the trunk of a ResNet-101."""
    args = _S1 | _SCALED | {"layers": (3, 4, 23, 6)}
    return _create("botnet_s1_110", pretrained, **(args | kwargs))


@register_model
def botnet_s1_128(pretrained: bool = False, **kwargs: Any) -> BoTNet:
    """BoTNet-S1-128: twelve blocks with attention on the trunk of a ResNet-101.

    In the paper it sees 256 x 256 pixels (T5, ``img_size=256``) or 384 x 384 (T7).
    """
    args = _S1 | _SCALED | {"layers": (3, 4, 23, 12)}
    return _create("botnet_s1_128", pretrained, **(args | kwargs))


@register_model
def test_botnet(pretrained: bool = False, **kwargs: Any) -> BoTNet:
    """A tiny BoTNet with squeeze and excitation, for tests at 64 x 64 pixels."""
    args = _SCALED | {"layers": (1, 1, 1, 2), "channels": (8, 8, 16, 32), "img_size": 64}
    return _create("test_botnet", pretrained, **(args | kwargs))


describe_networks(
    {
        "botnet50": Published(params=20.8),
        "botnet_s1_50": Published(params=20.8),
        "botnet_s1_59": Published(params=33.5, gmacs=7.3, top1=81.7, top5=95.8),
        "botnet_s1_77": Published(params=53.9, top1=84.0, image_size=320),
        "botnet_s1_110": Published(params=54.7, gmacs=10.9, top1=82.8),
        "botnet_s1_128": Published(
            params=75.1,
            gmacs=19.3,
            top1=83.5,
            image_size=256,
            note="At 384 x 384 pixels the paper has 84.7 % with 45.8 G multiply-adds.",
        ),
    },
    paper=Paper(
        title="Bottleneck Transformers for Visual Recognition",
        authors="Srinivas et al.",
        venue="CVPR 2021",
        url="https://arxiv.org/abs/2101.11605",
    ),
    source=Source(
        "https://github.com/lucidrains/bottleneck-transformer-pytorch",
        "bottleneck_transformer_pytorch/bottleneck_transformer_pytorch.py",
        "e311f89",
        "MIT",
    ),
    recipe="botnet",
    figures_from="the paper's section 4.8, as later papers' tables repeat it",
    weights=(
        "The authors have published none. Weights of a ResNet with lucidrains' attention are "
        "translated by: visgraft convert FILE --model botnet50 -o out.safetensors"
    ),
)
