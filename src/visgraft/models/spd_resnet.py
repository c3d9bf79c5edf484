"""SPD-ResNet: a ResNet for small images that moves pixels into channels instead of dropping them.

Paper: Sunkara and Luo, "No More Strided Convolutions or Pooling: A New CNN Building Block for
    Low-Resolution Images and Small Objects", ECML PKDD 2022, https://arxiv.org/abs/2208.03641,
    section 4.2.
Layout and weights: https://github.com/LabSAINT/SPD-Conv (ResNet50-SPD/models/resnet50_spd.py and
    ResNet18-SPD/models/resnet50_spd.py at 5fbe302, MIT).
"""

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from visgraft.blocks import Layout, Paper, Source, SpaceToDepth, SPDConv, register_layouts
from visgraft.models._building import build_network, imagenet_cfg
from visgraft.models._catalogue import Published, describe_networks
from visgraft.models._resnet import PaperResNet

__all__ = [
    "SPDBasicBlock",
    "SPDBottleneck",
    "SPDResNet",
    "spd_resnet18",
    "spd_resnet50",
    "test_spd_resnet",
]

_REFUSED = ("aa_layer", "replace_stem_pool", "stem_type", "stem_width")
_TIMMS_STEM = 2  # what timm's stem reduces the image by more than this one


def _folding(conv: nn.Conv2d) -> nn.Sequential:
    """Returns the convolution at stride 1, followed by space to depth."""
    conv.stride = (1, 1)
    return nn.Sequential(conv, SpaceToDepth())


class SPDBasicBlock(BasicBlock):
    """timm's basic block; where it has stride 2, space to depth follows its first convolution.

    The second convolution then has four times the channels to read. The shortcut stays a strided
    1 x 1 convolution, as in the source.

    Args:
        inplanes: Channels of the input.
        planes: Channels of the output.
        stride: 1 or 2.
        args: As timm's ``BasicBlock`` takes them.
        norm_layer: Called with the channels.
        kwargs: As timm's ``BasicBlock`` takes them.
    """

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        *args: Any,
        norm_layer: Any = nn.BatchNorm2d,
        **kwargs: Any,
    ) -> None:
        super().__init__(inplanes, planes, stride, *args, norm_layer=norm_layer, **kwargs)
        if stride == 2:
            first, second = self.conv1, self.conv2
            dd: dict[str, Any] = {"device": first.weight.device, "dtype": first.weight.dtype}
            folded = 4 * first.out_channels
            self.conv1 = _folding(first)
            self.bn1 = norm_layer(folded, **dd)
            self.conv2 = nn.Conv2d(folded, second.out_channels, 3, padding=1, bias=False, **dd)


class SPDBottleneck(Bottleneck):
    """timm's bottleneck; where it has stride 2, space to depth follows its 3 x 3 convolution.

    The last convolution then has four times the channels to read. The shortcut stays a strided
    1 x 1 convolution, as in the source.

    Args:
        inplanes: Channels of the input.
        planes: A quarter of the channels of the output.
        stride: 1 or 2.
        args: As timm's ``Bottleneck`` takes them.
        norm_layer: Called with the channels.
        kwargs: As timm's ``Bottleneck`` takes them.
    """

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        *args: Any,
        norm_layer: Any = nn.BatchNorm2d,
        **kwargs: Any,
    ) -> None:
        super().__init__(inplanes, planes, stride, *args, norm_layer=norm_layer, **kwargs)
        if stride == 2:
            middle, last = self.conv2, self.conv3
            dd: dict[str, Any] = {"device": middle.weight.device, "dtype": middle.weight.dtype}
            folded = 4 * middle.out_channels
            self.conv2 = _folding(middle)
            self.bn2 = norm_layer(folded, **dd)
            self.conv3 = nn.Conv2d(folded, last.out_channels, 1, bias=False, **dd)


class SPDResNet(PaperResNet):
    """timm's ResNet with SPD-Conv in place of its strided convolutions and its pooling.

    The stem folds 2 x 2 pixels into channels, a 1 x 1 convolution and SiLU follow. The four stages
    see the image reduced by 2, 4, 8 and 16, so a large image costs four times as much as in a
    ResNet. All layers keep PyTorch's own initialisation, as in the source.

    Differs from the source: any image size, where the source needs a multiple of 16; sizes that do
    not divide are rounded up.

    Args:
        block: The class ``SPDBasicBlock`` or ``SPDBottleneck``.
        in_chans: Channels of the image.
        output_stride: 16, the only one.
        norm_layer: Called with the channels.
        zero_init_last: Whether the last normalisation of each block starts at zero.
        device: Of the parameters.
        dtype: Of the parameters.
        kwargs: As timm's ``ResNet`` takes them, except those of its stem and ``aa_layer``.

    Raises:
        ValueError: ``output_stride`` is not 16, or timm's stem or ``aa_layer`` is asked for.

    Example:
        >>> network = spd_resnet18()
        >>> network.forward_features(torch.zeros(1, 3, 64, 40)).shape
        torch.Size([1, 512, 4, 3])
    """

    keeps_initialisation = (nn.Module,)

    def __init__(
        self,
        block: Any,  # timm's annotation asks for an instance
        *,
        in_chans: int = 3,
        output_stride: int = 16,
        norm_layer: Any = nn.BatchNorm2d,
        zero_init_last: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        if output_stride != 16:
            raise ValueError(
                "SPDResNet: output_stride must be 16, because a dilation cannot stand for space "
                f"to depth, got {output_stride}"
            )
        for name in _REFUSED:
            if kwargs.get(name):
                raise ValueError(
                    f"SPDResNet: {name} must be left out, because the network has a stem of its "
                    f"own and nothing to smooth, got {kwargs[name]!r}"
                )
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            block=block,
            in_chans=in_chans,
            norm_layer=norm_layer,
            zero_init_last=zero_init_last,
            **dd,
            **kwargs,
        )
        self.conv1 = SPDConv(in_chans, out_channels=64, kernel_size=1, **dd)
        self.act1 = nn.SiLU(inplace=True)
        self.maxpool = nn.Identity()
        for stage in self.feature_info[1:]:
            stage["reduction"] = int(stage["reduction"]) // _TIMMS_STEM


_STEM = {
    "conv1.conv.conv": "conv1.conv",
    "conv1.conv.bn": "bn1",
    "conv2_x": "layer1",
    "conv3_x": "layer2",
    "conv4_x": "layer3",
    "conv5_x": "layer4",
}


def _unit(*names: str) -> dict[str, str]:
    """Returns the renames of a residual unit; an empty name is a layer without tensors."""
    numbered = {f"residual_function.{i}": name for i, name in enumerate(names) if name}
    return {**numbered, "shortcut": "downsample"}


_NAME, _NAME_2 = "LabSAINT/SPD-Conv", "LabSAINT/SPD-Conv stride 2"
register_layouts(SPDResNet, Layout(_NAME, _STEM))
register_layouts(
    SPDBasicBlock,
    Layout(_NAME, _unit("conv1", "bn1", "", "conv2", "bn2")),
    Layout(_NAME_2, _unit("conv1.0", "", "bn1", "", "conv2", "bn2")),
)
register_layouts(
    SPDBottleneck,
    Layout(_NAME, _unit("conv1", "bn1", "", "conv2", "bn2", "", "conv3", "bn3")),
    Layout(_NAME_2, _unit("conv1", "bn1", "", "conv2.0", "", "bn2", "", "conv3", "bn3")),
)

_TINY_IMAGENET = {
    "num_classes": 200,
    "input_size": (3, 64, 64),
    "pool_size": (4, 4),
    "crop_pct": 1.0,
    "mean": (0.4803, 0.4481, 0.3976),
    "std": (0.2764, 0.2689, 0.2816),
}
_CIFAR = {
    "num_classes": 100,
    "input_size": (3, 32, 32),
    "pool_size": (2, 2),
    "crop_pct": 1.0,
    "mean": (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
    "std": (0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
}

default_cfgs = generate_default_cfgs(
    {
        "spd_resnet18.untrained": imagenet_cfg(first_conv="conv1.conv", **_TINY_IMAGENET),
        "spd_resnet50.untrained": imagenet_cfg(first_conv="conv1.conv", **_CIFAR),
        "test_spd_resnet.untrained": imagenet_cfg(
            first_conv="conv1.conv", input_size=(3, 32, 32), pool_size=(2, 2)
        ),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> SPDResNet:
    return build_network(SPDResNet, variant, pretrained, **kwargs)


@register_model
def spd_resnet18(pretrained: bool = False, **kwargs: Any) -> SPDResNet:
    """SPD-ResNet-18: 20.6 M parameters, and by default the 200 classes of Tiny ImageNet.

    The network of the authors' function of this name has 50 layers: it is ``spd_resnet50`` with
    ``num_classes=200``, and so are the weights they give away for this one.
    """
    args = {"block": SPDBasicBlock, "layers": (2, 2, 2, 2)}
    return _create("spd_resnet18", pretrained, **(args | kwargs))


@register_model
def spd_resnet50(pretrained: bool = False, **kwargs: Any) -> SPDResNet:
    """SPD-ResNet-50: 27.8 M parameters, and by default 100 classes.

    The authors train it on CIFAR-10 and leave 90 of the 100 classes without images.
    """
    args = {"block": SPDBottleneck, "layers": (3, 4, 6, 3)}
    return _create("spd_resnet50", pretrained, **(args | kwargs))


@register_model
def test_spd_resnet(pretrained: bool = False, **kwargs: Any) -> SPDResNet:
    """SPD-ResNet of five narrow bottlenecks, for tests."""
    args = {"block": SPDBottleneck, "layers": (1, 2, 1, 1), "channels": (8, 16, 24, 32)}
    return _create("test_spd_resnet", pretrained, **(args | kwargs))


describe_networks(
    {
        "spd_resnet18": Published(
            note="64.52 % on Tiny ImageNet at 64 pixels, by a network of 50 layers: the authors' "
            "function resnet18() builds spd_resnet50 with 200 classes.",
        ),
        "spd_resnet50": Published(note="95.03 % on CIFAR-10 at 32 pixels."),
    },
    paper=Paper(
        title="No More Strided Convolutions or Pooling: A New CNN Building Block for "
        "Low-Resolution Images and Small Objects",
        authors="Sunkara and Luo",
        venue="ECML PKDD 2022",
        url="https://arxiv.org/abs/2208.03641",
    ),
    source=Source(
        "https://github.com/LabSAINT/SPD-Conv",
        "ResNet50-SPD/models/resnet50_spd.py",
        "5fbe302",
        "MIT",
    ),
    figures_from="README.md of LabSAINT/SPD-Conv",
    weights="The authors give them away (Google Drive, linked in their README); 'visgraft convert "
    "FILE --model spd_resnet50 -o out.safetensors' translates those of CIFAR-10.",
    recipe="spd_resnet",
)
