"""GC-ResNet: a ResNet whose bottlenecks end in a global context block.

Paper: Cao, Xu, Lin, Wei and Hu, "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and
    Beyond", ICCV Workshops 2019, https://arxiv.org/abs/1904.11492, sections 3.4 and 4.2.
Layout and weights: https://github.com/xvjiarui/GCNet (mmdet/models/backbones/resnet.py at 029db54,
    Apache-2.0), a backbone for detection.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck

from visgraft.blocks import GlobalContext, Layout, Paper, Source, register_layouts
from visgraft.models._building import build_network, imagenet_cfg
from visgraft.models._catalogue import Published, describe_networks
from visgraft.models._resnet import PaperResNet

__all__ = [
    "GCBottleneck",
    "GCResNet",
    "gc_resnet50_r4",
    "gc_resnet50_r16",
    "gc_resnet101_r4",
    "gc_resnet101_r16",
    "test_gc_resnet",
]


class GCBottleneck(Bottleneck):
    """timm's bottleneck, with a global context block between its last normalisation and the sum.

    The block stands where timm puts squeeze and excitation, under the name ``se``.
    """

    def add_context(self, reduction: int, **dd: Any) -> None:
        """Adds a new block of the given reduction.

        Raises:
            ValueError: Something else stands there, or the block refuses the reduction.
        """
        if self.se is not None:
            raise ValueError(
                "GCBottleneck: attn_layer must be left out, because the global context block "
                f"stands in its place, got {type(self.se).__name__}"
            )
        self.se = GlobalContext(self.conv3.out_channels, reduction=reduction, **dd)


class GCResNet(PaperResNet):
    """ResNet with a global context block at the end of each bottleneck of the chosen stages.

    A new block adds nothing: its last convolution starts at zero.

    Differs from the source: without pretrained weights, the source's initialisation of the whole
    network draws the blocks' convolutions anew and so undoes that zero; here they keep it. The
    classifier is an addition: the source is a backbone for detection.

    Args:
        context_stages: Which of the four stages have the block, counted from 1; none of them for a
            plain ResNet.
        context_reduction: Of the blocks' bottlenecks; the paper's ratios are 1/16 and 1/4.
        device: Of the parameters.
        dtype: Of the parameters.
        kwargs: As timm's ``ResNet`` takes them, except ``block``.

    Raises:
        ValueError: ``context_stages`` are not different numbers from 1 to 4, the reduction leaves
            a block's bottleneck less than 2 channels, or timm's ``attn_layer`` is asked for.

    Example:
        >>> network = gc_resnet50_r16(context_stages=(4,))
        >>> network.layer3[0].se, type(network.layer4[0].se).__name__
        (None, 'GlobalContext')
    """

    keeps_initialisation = (GlobalContext,)

    def __init__(
        self,
        *,
        context_stages: Sequence[int] = (2, 3, 4),
        context_reduction: int = 16,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        chosen = set(context_stages)
        if len(chosen) < len(context_stages) or not chosen <= {1, 2, 3, 4}:
            raise ValueError(
                "GCResNet: context_stages must be different numbers from 1 to 4, "
                f"got {context_stages!r}"
            )
        bottleneck: Any = GCBottleneck  # timm's annotation asks for an instance
        super().__init__(block=bottleneck, device=device, dtype=dtype, **kwargs)
        for stage in sorted(chosen):
            for block in self.get_submodule(f"layer{stage}").children():
                if isinstance(block, GCBottleneck):
                    block.add_context(context_reduction, device=device, dtype=dtype)


register_layouts(GCBottleneck, Layout("xvjiarui/GCNet", {"context_block": "se"}))

_LAYERS_50 = (3, 4, 6, 3)
_LAYERS_101 = (3, 4, 23, 3)

default_cfgs = generate_default_cfgs(
    {
        "gc_resnet50_r16.untrained": imagenet_cfg(interpolation="bilinear"),
        "gc_resnet50_r4.untrained": imagenet_cfg(interpolation="bilinear"),
        "gc_resnet101_r16.untrained": imagenet_cfg(interpolation="bilinear"),
        "gc_resnet101_r4.untrained": imagenet_cfg(interpolation="bilinear"),
        "test_gc_resnet.untrained": imagenet_cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> GCResNet:
    return build_network(GCResNet, variant, pretrained, **kwargs)


@register_model
def gc_resnet50_r16(pretrained: bool = False, **kwargs: Any) -> GCResNet:
    """GC-ResNet-50, ratio 1/16 in stages 2 to 4: 28.1 M parameters."""
    args = {"layers": _LAYERS_50, "context_reduction": 16}
    return _create("gc_resnet50_r16", pretrained, **(args | kwargs))


@register_model
def gc_resnet50_r4(pretrained: bool = False, **kwargs: Any) -> GCResNet:
    """GC-ResNet-50, ratio 1/4 in stages 2 to 4: 35.6 M parameters."""
    args = {"layers": _LAYERS_50, "context_reduction": 4}
    return _create("gc_resnet50_r4", pretrained, **(args | kwargs))


@register_model
def gc_resnet101_r16(pretrained: bool = False, **kwargs: Any) -> GCResNet:
    """GC-ResNet-101, ratio 1/16 in stages 2 to 4: 49.3 M parameters."""
    args = {"layers": _LAYERS_101, "context_reduction": 16}
    return _create("gc_resnet101_r16", pretrained, **(args | kwargs))


@register_model
def gc_resnet101_r4(pretrained: bool = False, **kwargs: Any) -> GCResNet:
    """GC-ResNet-101, ratio 1/4 in stages 2 to 4: 63.5 M parameters."""
    args = {"layers": _LAYERS_101, "context_reduction": 4}
    return _create("gc_resnet101_r4", pretrained, **(args | kwargs))


@register_model
def test_gc_resnet(pretrained: bool = False, **kwargs: Any) -> GCResNet:
    """GC-ResNet of five narrow bottlenecks, for tests."""
    args = {"layers": (1, 2, 1, 1), "channels": (8, 16, 24, 32), "context_reduction": 16}
    return _create("test_gc_resnet", pretrained, **(args | kwargs))


_AP = "No ImageNet figure in the source; COCO, Mask R-CNN with FPN, 12 epochs: box / mask AP"
describe_networks(
    {
        "gc_resnet50_r16": Published(note=f"{_AP} 38.5 / 35.1 (ResNet-50: 37.3 / 34.2)."),
        "gc_resnet50_r4": Published(note=f"{_AP} 38.9 / 35.5 (ResNet-50: 37.3 / 34.2)."),
        "gc_resnet101_r16": Published(note=f"{_AP} 40.8 / 37.0 (ResNet-101: 39.4 / 35.9)."),
        "gc_resnet101_r4": Published(note=f"{_AP} 40.8 / 36.9 (ResNet-101: 39.4 / 35.9)."),
    },
    paper=Paper(
        title="GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond",
        authors="Cao, Xu, Lin, Wei and Hu",
        venue="ICCV Workshops 2019",
        url="https://arxiv.org/abs/1904.11492",
    ),
    source=Source(
        "https://github.com/xvjiarui/GCNet",
        "mmdet/models/backbones/resnet.py",
        "029db54",
        "Apache-2.0",
    ),
    figures_from="README.md of xvjiarui/GCNet, rows with fixed batch normalisation",
    weights="The links of the authors' README are empty; mmdetection gives away detectors of its "
    "own training (configs/gcnet). 'visgraft convert FILE --model NAME -o out.safetensors' "
    "takes their backbone, which has no classifier.",
)
