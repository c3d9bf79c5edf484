"""DCN-ResNet: a ResNet with deformable 3 x 3 convolutions in its last three stages.

Papers: Dai et al., "Deformable Convolutional Networks", ICCV 2017,
    https://arxiv.org/abs/1703.06211, section 4.1; and Zhu, Hu, Lin and Dai, "Deformable ConvNets
    v2: More Deformable, Better Results", CVPR 2019, https://arxiv.org/abs/1811.11168, section 3.
Layout and weights: mmdetection, as carried by https://github.com/xvjiarui/GCNet
    (mmdet/models/backbones/resnet.py at 029db54, Apache-2.0), a backbone for detection.
"""

from typing import Any, ClassVar

from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck

from visgraft.blocks import DeformConv, Layout, Paper, Source, register_layouts
from visgraft.models._building import build_network, imagenet_cfg
from visgraft.models._catalogue import Published, describe_networks
from visgraft.models._resnet import PaperResNet

__all__ = [
    "DCNResNet",
    "DeformBottleneck",
    "ModulatedDeformBottleneck",
    "dcn_resnet50",
    "dcnv2_resnet50",
    "test_dcn_resnet",
]


class DeformBottleneck(Bottleneck):
    """timm's bottleneck with a deformable convolution (version 1) as ``conv2``.

    It takes the stride, the dilation and the groups of the convolution it stands for.

    Args:
        args: As timm's ``Bottleneck`` takes them.
        kwargs: As timm's ``Bottleneck`` takes them.
    """

    modulated: ClassVar[bool] = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        replaced = self.conv2
        self.conv2 = DeformConv(
            replaced.in_channels,
            out_channels=replaced.out_channels,
            stride=int(replaced.stride[0]),
            dilation=int(replaced.dilation[0]),
            groups=replaced.groups,
            modulated=self.modulated,
            device=replaced.weight.device,
            dtype=replaced.weight.dtype,
        )


class ModulatedDeformBottleneck(DeformBottleneck):
    """The same with version 2, which also scales its taps."""

    modulated = True


class DCNResNet(PaperResNet):
    """timm's ResNet with deformable convolutions in stages 2 to 4.

    The convolutions that move the taps start at zero, so a new network looks where a plain one
    does; in version 2 each tap then counts half.

    Differs from the source: ``output_stride`` 16 and 8 are timm's. The classifier is an addition:
    the source is a backbone for detection.

    Args:
        modulated: Version 2 of the convolution.
        kwargs: As timm's ``ResNet`` takes them, except ``block``.
    """

    keeps_initialisation = (DeformConv,)

    def __init__(self, *, modulated: bool = False, **kwargs: Any) -> None:
        deformable = ModulatedDeformBottleneck if modulated else DeformBottleneck
        blocks: Any = (Bottleneck, deformable, deformable, deformable)  # timm takes one per stage
        super().__init__(block=blocks, **kwargs)


register_layouts(DeformBottleneck, Layout("mmdetection", {"conv2_offset": "conv2.offset"}))

default_cfgs = generate_default_cfgs(
    {
        "dcn_resnet50.untrained": imagenet_cfg(interpolation="bilinear"),
        "dcnv2_resnet50.untrained": imagenet_cfg(interpolation="bilinear"),
        "test_dcn_resnet.untrained": imagenet_cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> DCNResNet:
    return build_network(DCNResNet, variant, pretrained, **kwargs)


@register_model
def dcn_resnet50(pretrained: bool = False, **kwargs: Any) -> DCNResNet:
    """ResNet-50 with deformable convolutions (version 1) in stages 2 to 4: 26.1 M parameters."""
    return _create("dcn_resnet50", pretrained, **({"layers": (3, 4, 6, 3)} | kwargs))


@register_model
def dcnv2_resnet50(pretrained: bool = False, **kwargs: Any) -> DCNResNet:
    """ResNet-50 with modulated deformable convolutions in stages 2 to 4: 26.4 M parameters."""
    args = {"layers": (3, 4, 6, 3), "modulated": True}
    return _create("dcnv2_resnet50", pretrained, **(args | kwargs))


@register_model
def test_dcn_resnet(pretrained: bool = False, **kwargs: Any) -> DCNResNet:
    """Version 2 in five narrow bottlenecks, for tests."""
    args = {"layers": (1, 2, 1, 1), "channels": (8, 16, 24, 32), "modulated": True}
    return _create("test_dcn_resnet", pretrained, **(args | kwargs))


_SOURCE = Source(
    "https://github.com/xvjiarui/GCNet",
    "mmdet/models/backbones/resnet.py",
    "029db54",
    "Apache-2.0",
)
_FIGURES = "MODEL_ZOO.md of mmdetection, as carried by xvjiarui/GCNet"
_WEIGHTS = (
    "mmdetection gives detectors away (configs/dcn); 'visgraft convert FILE --model NAME "
    "-o out.safetensors' takes their backbone, which has no classifier."
)
_AP = "No ImageNet figure in the source; COCO with FPN, 12 epochs: Faster R-CNN box AP"
describe_networks(
    {"dcn_resnet50": Published(note=f"{_AP} 40.0, Mask R-CNN box / mask AP 41.1 / 37.2.")},
    paper=Paper(
        title="Deformable Convolutional Networks",
        authors="Dai et al.",
        venue="ICCV 2017",
        url="https://arxiv.org/abs/1703.06211",
    ),
    source=_SOURCE,
    figures_from=_FIGURES,
    weights=_WEIGHTS,
)
describe_networks(
    {"dcnv2_resnet50": Published(note=f"{_AP} 40.2, Mask R-CNN box / mask AP 41.3 / 37.3.")},
    paper=Paper(
        title="Deformable ConvNets v2: More Deformable, Better Results",
        authors="Zhu, Hu, Lin and Dai",
        venue="CVPR 2019",
        url="https://arxiv.org/abs/1811.11168",
    ),
    source=_SOURCE,
    figures_from=_FIGURES,
    weights=_WEIGHTS,
)
