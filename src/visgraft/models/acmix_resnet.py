"""ResNet-ACmix: ResNets with ACmix in place of every 3 x 3 convolution of a bottleneck.

Paper: Pan, Ge, Lu, Song, Chen, Huang and Huang, "On the Integration of Self-Attention and
    Convolution", CVPR 2022, https://arxiv.org/abs/2111.14556, section 5.1.
Layout and weights: https://github.com/LeapLabTHU/ACmix (ResNet/ResNet_ImageNet.py and
    ResNet/main.py at 81dddb6, no licence stated: nothing of it is copied).
"""

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck

from visgraft.blocks import ACmix, Paper, Source
from visgraft.models._building import build_network, imagenet_cfg
from visgraft.models._catalogue import Published, describe_networks
from visgraft.models._resnet import PaperResNet

__all__ = [
    "ACmixBottleneck",
    "ACmixResNet",
    "resnet26_acmix",
    "resnet38_acmix",
    "resnet50_acmix",
    "test_resnet_acmix",
]


class ACmixBottleneck(Bottleneck):
    """timm's bottleneck with ACmix as ``conv2``: 4 heads, windows of 7 x 7, convolution of 3 x 3.

    It takes the stride and the dilation of the convolution that it stands for. The dilation spreads
    the attention's window and the taps of the convolution alike.

    Args:
        inplanes: Channels of the input.
        planes: A quarter of the channels of the output.
        stride: Of ``conv2``.
        cardinality: 1; ACmix has no groups.
        kwargs: As timm's ``Bottleneck`` takes them.

    Raises:
        ValueError: ``cardinality`` is not 1, or the width is not a multiple of 4 heads.
    """

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(inplanes, planes, stride, *args, **kwargs)
        replaced: Any = self.conv2
        if replaced.groups != 1:
            raise ValueError(
                "ACmixBottleneck: cardinality must be 1 because ACmix has no groups, got "
                f"{replaced.groups}"
            )
        dilation = replaced.dilation[0]
        self.conv2 = ACmix(
            replaced.in_channels,
            out_channels=replaced.out_channels,
            stride=replaced.stride[0],
            dilation=dilation,
            device=replaced.weight.device,
            dtype=replaced.weight.dtype,
        )
        shift = self.conv2.shift
        shift.dilation = (dilation, dilation)
        shift.padding = (dilation * (shift.kernel_size[0] // 2),) * 2


class ACmixResNet(PaperResNet):
    """timm's ResNet of ``ACmixBottleneck``.

    Differs from the source: any image, where the authors' network needs a multiple of 32 pixels
    and 128 at least; and the shifts of ACmix start as the paper's shift kernels. The authors'
    network draws all convolutions anew after construction and thereby overwrites these kernels,
    which their block has set, with He's distribution; here only the other convolutions are drawn.
    The last normalisation of each bottleneck starts at zero (``zero_init_last=False`` for the
    authors' one). ``output_stride`` is new: the authors' ACmix fails with a dilation.

    Args:
        args: As timm's ``ResNet`` takes them.
        kwargs: As timm's ``ResNet`` takes them.

    Raises:
        ValueError: ``cardinality`` is not 1, or a width is not a multiple of 4 heads.
    """

    def init_weights(self, zero_init_last: bool = True) -> None:
        """Draws the convolutions but the shifts of ACmix from He's distribution (fan out)."""
        shifts = [each.shift.weight for each in self.modules() if isinstance(each, ACmix)]
        kept = [weight.detach().clone() for weight in shifts]
        super().init_weights(zero_init_last=zero_init_last)
        with torch.no_grad():
            for weight, start in zip(shifts, kept, strict=True):
                weight.copy_(start)


def _cfg(**changes: Any) -> dict[str, Any]:
    return imagenet_cfg(interpolation="bilinear") | changes


default_cfgs = generate_default_cfgs(
    {
        "resnet26_acmix.untrained": _cfg(),
        "resnet38_acmix.untrained": _cfg(),
        "resnet50_acmix.untrained": _cfg(),
        "test_resnet_acmix.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> ACmixResNet:
    return build_network(ACmixResNet, variant, pretrained, block=ACmixBottleneck, **kwargs)


@register_model
def resnet26_acmix(pretrained: bool = False, **kwargs: Any) -> ACmixResNet:
    """ResNet-ACmix-26: 10.5 M parameters."""
    args = {"layers": (1, 2, 4, 1)}
    return _create("resnet26_acmix", pretrained, **(args | kwargs))


@register_model
def resnet38_acmix(pretrained: bool = False, **kwargs: Any) -> ACmixResNet:
    """ResNet-ACmix-38: 14.4 M parameters."""
    args = {"layers": (2, 3, 5, 2)}
    return _create("resnet38_acmix", pretrained, **(args | kwargs))


@register_model
def resnet50_acmix(pretrained: bool = False, **kwargs: Any) -> ACmixResNet:
    """ResNet-ACmix-50: 18.3 M parameters."""
    args = {"layers": (3, 4, 6, 3)}
    return _create("resnet50_acmix", pretrained, **(args | kwargs))


@register_model
def test_resnet_acmix(pretrained: bool = False, **kwargs: Any) -> ACmixResNet:
    """One narrow bottleneck per stage, for tests: 0.2 M parameters."""
    args = {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)}
    return _create("test_resnet_acmix", pretrained, **(args | kwargs))


describe_networks(
    {
        "resnet26_acmix": Published(params=10.6, gmacs=2.3, top1=76.1),
        "resnet38_acmix": Published(params=14.6, gmacs=2.9, top1=77.4),
        "resnet50_acmix": Published(params=18.6, gmacs=3.6, top1=77.8),
    },
    paper=Paper(
        title="On the Integration of Self-Attention and Convolution",
        authors="Pan et al.",
        venue="CVPR 2022",
        url="https://arxiv.org/abs/2111.14556",
    ),
    source=Source(
        "https://github.com/LeapLabTHU/ACmix", "ResNet/ResNet_ImageNet.py", "81dddb6", None
    ),
    figures_from="the paper",
    weights="The authors give no weights of these networks away. Those that their code trains "
    "are translated by: visgraft convert FILE --model NAME -o out.safetensors",
    recipe="acmix_resnet",
)
