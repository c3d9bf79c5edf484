"""CoTNet and CoTNeXt: ResNets whose 3 x 3 convolutions are contextual transformers.

Paper: Li, Yao, Pan and Mei, "Contextual Transformer Networks for Visual Recognition", TPAMI 2022,
    https://arxiv.org/abs/2107.12292, section 3.3 and table 1.
Layout and weights: https://github.com/JDAI-CV/CoTNet (models/cotnet.py at 895e024, Apache-2.0).
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck
from torch import nn

from visgraft.blocks import ContextualTransformer, Paper, Source
from visgraft.models._building import build_network, imagenet_cfg
from visgraft.models._catalogue import Published, describe_networks
from visgraft.models._resnet import PaperResNet

__all__ = [
    "PAPER",
    "CoTBottleneck",
    "CoTNet",
    "cotnet50",
    "cotnet101",
    "cotnext50_2x48d",
    "cotnext101_2x48d",
]

PAPER = Paper(
    title="Contextual Transformer Networks for Visual Recognition",
    authors="Li, Yao, Pan and Mei",
    venue="TPAMI 2022",
    url="https://arxiv.org/abs/2107.12292",
)


class CoTBottleneck(Bottleneck):
    """timm's bottleneck with a contextual transformer in place of its 3 x 3 convolution.

    No normalisation or activation stands between the attention, which ends with its own, and the
    last convolution. Stride 2 is an average pooling before the attention; with timm's
    ``aa_layer``, that layer after it. The attention is never dilated.

    Args:
        args: As timm's ``Bottleneck`` takes them.
        kwargs: As timm's ``Bottleneck`` takes them; ``cardinality`` is the attention's ``groups``.

    Raises:
        ValueError: The first convolution does not give the attention its width, or the attention
            does not take that width or number of groups.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        conv = self.get_submodule("conv2")
        if not isinstance(conv, nn.Conv2d) or conv.in_channels != conv.out_channels:
            raise ValueError(
                "CoTBottleneck: reduce_first must be 1, because the attention keeps its channels, "
                f"got {kwargs.get('reduce_first')!r}"
            )
        self.conv2 = ContextualTransformer(
            conv.out_channels,
            groups=conv.groups,
            stride=conv.stride[0],
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        self.bn2 = nn.Identity()
        self.act2 = nn.Identity()


class CoTNet(PaperResNet):
    """timm's ResNet of ``CoTBottleneck``s.

    All convolutions, those of the attention included, start from He's distribution (fan out), and
    the last normalisation of each bottleneck from zero. With ``output_stride`` 16 or 8 the last
    stages keep the resolution and their attention is not dilated.

    Differs from the source: timm's options act as in today's timm (``aa_layer`` replaces the
    pooling in front of the attention, ``drop_block_rate`` acts behind the attention; the source
    ignores the first and drops after the other two convolutions). The published networks use
    neither.

    Args:
        args: As timm's ``ResNet`` takes them.
        kwargs: As timm's ``ResNet`` takes them; ``cardinality`` is 1, or 2 for CoTNeXt.

    Raises:
        ValueError: As ``CoTBottleneck``.
    """


_LAYERS_50 = (3, 4, 6, 3)
_LAYERS_101 = (3, 4, 23, 3)
_NEXT = {"cardinality": 2, "base_width": 48}

default_cfgs = generate_default_cfgs(
    {
        "cotnet50.untrained": imagenet_cfg(),
        "cotnet101.untrained": imagenet_cfg(),
        "cotnext50_2x48d.untrained": imagenet_cfg(),
        "cotnext101_2x48d.untrained": imagenet_cfg(),
        "test_cotnet.untrained": imagenet_cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
        "test_cotnext.untrained": imagenet_cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> CoTNet:
    return build_network(CoTNet, variant, pretrained, **({"block": CoTBottleneck} | kwargs))


@register_model
def cotnet50(pretrained: bool = False, **kwargs: Any) -> CoTNet:
    """CoTNet-50: 22.2 M parameters."""
    return _create("cotnet50", pretrained, **({"layers": _LAYERS_50} | kwargs))


@register_model
def cotnet101(pretrained: bool = False, **kwargs: Any) -> CoTNet:
    """CoTNet-101: 38.3 M parameters."""
    return _create("cotnet101", pretrained, **({"layers": _LAYERS_101} | kwargs))


@register_model
def cotnext50_2x48d(pretrained: bool = False, **kwargs: Any) -> CoTNet:
    """CoTNeXt-50 (2 x 48d): 30.0 M parameters, two groups."""
    args = {"layers": _LAYERS_50, **_NEXT}
    return _create("cotnext50_2x48d", pretrained, **(args | kwargs))


@register_model
def cotnext101_2x48d(pretrained: bool = False, **kwargs: Any) -> CoTNet:
    """CoTNeXt-101 (2 x 48d): 53.3 M parameters, two groups."""
    args = {"layers": _LAYERS_101, **_NEXT}
    return _create("cotnext101_2x48d", pretrained, **(args | kwargs))


@register_model
def test_cotnet(pretrained: bool = False, **kwargs: Any) -> CoTNet:
    """CoTNet of five narrow bottlenecks, for tests."""
    args = {"layers": (1, 2, 1, 1), "channels": (16, 24, 32, 48)}
    return _create("test_cotnet", pretrained, **(args | kwargs))


@register_model
def test_cotnext(pretrained: bool = False, **kwargs: Any) -> CoTNet:
    """CoTNeXt of four narrow bottlenecks, for tests."""
    args = {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "cardinality": 2}
    return _create("test_cotnext", pretrained, **(args | kwargs))


describe_networks(
    {
        "cotnet50": Published(params=22.2, gmacs=3.3, top1=81.3, top5=95.6),
        "cotnet101": Published(params=38.3, gmacs=6.1, top1=82.8, top5=96.2),
        "cotnext50_2x48d": Published(params=30.1, gmacs=4.3, top1=82.1, top5=95.9),
        "cotnext101_2x48d": Published(params=53.4, gmacs=8.2, top1=83.2, top5=96.4),
    },
    paper=PAPER,
    source=Source("https://github.com/JDAI-CV/CoTNet", "models/cotnet.py", "895e024", "Apache-2.0"),
    figures_from="the table of README.md in JDAI-CV/CoTNet",
    weights="The authors give ImageNet-1k weights away (Google Drive and Baidu, linked in their "
    "README); 'visgraft convert FILE --model NAME -o out.safetensors' translates them.",
    recipe="cotnet_advanced",
)
