"""MobileNetV2 with coordinate attention between depthwise convolution and projection.

Paper: Hou, Zhou and Feng, "Coordinate Attention for Efficient Mobile Network Design", CVPR 2021,
    https://arxiv.org/abs/2103.02907, sections 3.3 and 4.2.
Layout and weights: https://github.com/houqb/CoordAttention (mbv2_ca.py at 7619bea, MIT).
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet
from torch import nn

from visgraft.blocks import CoordAttention, Layout, Paper, Source, register_layouts
from visgraft.models._building import build_network, imagenet_cfg
from visgraft.models._catalogue import Published, describe_networks

__all__ = [
    "CoordMobileNetV2",
    "mobilenetv2_ca_050",
    "mobilenetv2_ca_075",
    "mobilenetv2_ca_100",
    "test_mobilenetv2_ca",
]

Rows = tuple[tuple[int, int, int, int], ...]

_ROWS: Rows = (  # expansion, channels, depth, stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class CoordMobileNetV2(EfficientNet):
    """timm's MobileNetV2 with coordinate attention in each block that expands its channels.

    Args:
        kwargs: As timm's ``EfficientNet`` takes them.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.init_weights()

    def init_weights(self) -> None:
        """Draws the weights from normal distributions, as the authors do.

        Those of a convolution have the variance ``2 / (kernel elements * output channels)``, of a
        depthwise one too, and those of the classifier the deviation 0.01.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
            else:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _gate(channels: int, act_layer: Any, **dd: Any) -> CoordAttention:  # noqa: ARG001
    """Returns the attention; its activation is its own, not that of the network."""
    return CoordAttention(channels, **dd)


def _create(
    variant: str, pretrained: bool, *, width: float, rows: Rows = _ROWS, **kwargs: Any
) -> CoordMobileNetV2:
    args = {
        "block_args": decode_arch_def([[_stage(*row)] for row in rows]),
        "num_features": 1280,
        "round_chs_fn": partial(round_channels, multiplier=width),
        "act_layer": nn.ReLU6,
        "se_layer": _gate,
        "drop_rate": 0.1,
        "feature_cfg": {"flatten_sequential": True},
    }
    return build_network(CoordMobileNetV2, variant, pretrained, **(args | kwargs))


def _stage(expansion: int, channels: int, depth: int, stride: int) -> str:
    """Returns a stage in timm's notation; ``se`` is what puts the attention in."""
    if expansion == 1:
        return f"ds_r{depth}_k3_s{stride}_c{channels}"
    return f"ir_r{depth}_k3_s{stride}_e{expansion}_c{channels}_se0.25"


_PLAIN_UNIT = {"conv.0": "conv_dw", "conv.1": "bn1", "conv.3": "conv_pw", "conv.4": "bn2"}
_UNIT = {
    "conv.0": "conv_pw",
    "conv.1": "bn1",
    "conv.3": "conv_dw",
    "conv.4": "bn2",
    "conv.6": "se",
    "conv.7": "conv_pwl",
    "conv.8": "bn3",
}


def _renames(rows: Rows) -> Iterable[tuple[str, str]]:
    """Yields the renames of the whole network, in whose source the units are counted through."""
    yield from {"features.0.0": "conv_stem", "features.0.1": "bn1"}.items()
    position = 0
    for stage, (expansion, _, depth, _) in enumerate(rows):
        for unit in range(depth):
            position += 1
            for old, new in (_PLAIN_UNIT if expansion == 1 else _UNIT).items():
                yield f"features.{position}.{old}", f"blocks.{stage}.{unit}.{new}"
    yield from {"conv.0": "conv_head", "conv.1": "bn2", "classifier.1": "classifier"}.items()


register_layouts(CoordMobileNetV2, Layout("houqb/CoordAttention mbv2_ca.py", dict(_renames(_ROWS))))


def _cfg(**changes: Any) -> dict[str, Any]:
    return imagenet_cfg(first_conv="conv_stem", classifier="classifier", **changes)


default_cfgs = generate_default_cfgs(
    {
        "mobilenetv2_ca_100.untrained": _cfg(),
        "mobilenetv2_ca_075.untrained": _cfg(),
        "mobilenetv2_ca_050.untrained": _cfg(),
        "test_mobilenetv2_ca.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


@register_model
def mobilenetv2_ca_100(pretrained: bool = False, **kwargs: Any) -> CoordMobileNetV2:
    """MobileNetV2 with coordinate attention, width 1: 3.95 M parameters."""
    return _create("mobilenetv2_ca_100", pretrained, width=1.0, **kwargs)


@register_model
def mobilenetv2_ca_075(pretrained: bool = False, **kwargs: Any) -> CoordMobileNetV2:
    """MobileNetV2 with coordinate attention, width 0.75: 2.89 M parameters."""
    return _create("mobilenetv2_ca_075", pretrained, width=0.75, **kwargs)


@register_model
def mobilenetv2_ca_050(pretrained: bool = False, **kwargs: Any) -> CoordMobileNetV2:
    """MobileNetV2 with coordinate attention, width 0.5: 2.10 M parameters."""
    return _create("mobilenetv2_ca_050", pretrained, width=0.5, **kwargs)


@register_model
def test_mobilenetv2_ca(pretrained: bool = False, **kwargs: Any) -> CoordMobileNetV2:
    """A quarter of the width, mostly one block per stage and a narrow head, for tests."""
    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 1, 2), (6, 64, 1, 2), (6, 96, 1, 2))
    args = {"width": 0.25, "rows": rows, "num_features": 64}
    return _create("test_mobilenetv2_ca", pretrained, **(args | kwargs))


_UNCHECKED = "Recalled from the paper, not checked against it."
describe_networks(
    {
        "mobilenetv2_ca_100": Published(params=3.95, gmacs=0.31, top1=74.3),
        "mobilenetv2_ca_075": Published(params=2.89, gmacs=0.21, top1=72.1, note=_UNCHECKED),
        "mobilenetv2_ca_050": Published(gmacs=0.10, top1=67.0, note=_UNCHECKED),
    },
    paper=Paper(
        title="Coordinate Attention for Efficient Mobile Network Design",
        authors="Hou, Zhou and Feng",
        venue="CVPR 2021",
        url="https://arxiv.org/abs/2103.02907",
    ),
    source=Source("https://github.com/houqb/CoordAttention", "mbv2_ca.py", "7619bea", "MIT"),
    figures_from="README.md of houqb/CoordAttention for width 1, the paper for the others",
    weights="The authors give those of width 1 away (linked in their README); 'visgraft convert "
    "FILE --model mobilenetv2_ca_100 -o out.safetensors' translates them.",
    recipe="mobilenetv2_ca",
)
