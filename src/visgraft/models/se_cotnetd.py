"""SE-CoTNetD: a ResNet-D that mixes contextual transformers with gated 3 x 3 convolutions.

Paper: Li, Yao, Pan and Mei, "Contextual Transformer Networks for Visual Recognition", TPAMI 2022,
    https://arxiv.org/abs/2107.12292, section 4.1.
Layout and weights: https://github.com/JDAI-CV/CoTNet (models/cotnet_hybrid.py at 895e024,
    Apache-2.0).
"""

from collections.abc import Callable, Iterator
from itertools import cycle, repeat
from typing import Any

import torch
from timm.layers.split_attn import SplitAttn
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, downsample_avg
from torch import Tensor, nn
from torch.nn import functional

from visgraft.blocks import Source
from visgraft.models._building import build_network, imagenet_cfg
from visgraft.models._catalogue import Published, describe_networks
from visgraft.models._resnet import PaperResNet
from visgraft.models.cotnet import PAPER, CoTBottleneck

__all__ = [
    "BlurPool",
    "GatedConv",
    "GatedConvBottleneck",
    "SECoTNetD",
    "se_cotnetd_50",
    "se_cotnetd_101",
    "se_cotnetd_152",
]


class BlurPool(nn.Module):
    """Smooths with the binomial 3 x 3 kernel (1, 2, 1) and keeps every second position.

    Two average poolings of 2 x 2 have this kernel, so there is no tensor to place or to save. The
    map is reflected at its border; one that is a pixel high or wide cannot be, and is continued.

    Args:
        channels: Any; timm hands it to an ``aa_layer``, as it does device and dtype.
        stride: Of the positions that are kept.
        device: Any.
        dtype: Any.

    Shape:
        - Input: ``(B, C, H, W)``.
        - Output: ``(B, C, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(
        self,
        channels: int | None = None,  # noqa: ARG002
        stride: int = 2,
        device: torch.device | str | None = None,  # noqa: ARG002
        dtype: torch.dtype | None = None,  # noqa: ARG002
    ) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Returns the smoothed map at every ``stride``-th position."""
        mode = "reflect" if min(x.shape[2:]) > 1 else "replicate"
        x = functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode), 2, stride=1)
        return functional.avg_pool2d(x, 2, self.stride)

    def extra_repr(self) -> str:
        """Returns the stride."""
        return f"stride={self.stride}"


class GatedConv(SplitAttn):
    """timm's split attention of radix 1: a 3 x 3 convolution whose channels a gate weights.

    Convolution, normalisation, SiLU; then two 1 x 1 convolutions on the mean of the map, with
    normalisation and SiLU between them, whose sigmoid multiplies the channels.

    Shape:
        - Input: ``(B, C, H, W)``; B at least 2 in training, because the gate normalises one value
          per image and channel.
        - Output: ``(B, out, ceil(H / stride), ceil(W / stride))``.

    Raises:
        ValueError: A single image in training.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the gated convolution of ``x``."""
        if isinstance(self.bn1, nn.BatchNorm2d) and self.bn1.training and x.shape[0] < 2:
            raise ValueError(
                "GatedConv: training needs at least 2 values per channel for its batch "
                f"statistics, got {x.shape[0]} (one per image); use a larger batch, or call "
                "eval() on the block to freeze them"
            )
        return super().forward(x)


class GatedConvBottleneck(Bottleneck):
    """timm's bottleneck with a gated convolution, which ends with its own activation, as conv2.

    Args:
        args: As timm's ``Bottleneck`` takes them.
        norm_layer: Normalisation, of the gated convolution too.
        kwargs: As timm's ``Bottleneck`` takes them.
    """

    def __init__(
        self, *args: Any, norm_layer: type[nn.Module] = nn.BatchNorm2d, **kwargs: Any
    ) -> None:
        super().__init__(*args, norm_layer=norm_layer, **kwargs)
        conv: Any = self.get_submodule("conv2")
        self.conv2 = GatedConv(
            conv.in_channels,
            conv.out_channels,
            stride=conv.stride[0],
            padding=conv.padding[0],
            dilation=conv.dilation[0],
            groups=conv.groups,
            radix=1,
            rd_channels=max(conv.in_channels // 4, 32),
            act_layer=nn.SiLU,
            norm_layer=norm_layer,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        self.bn2 = nn.Identity()
        self.act2 = nn.Identity()


class _Stage:
    """What timm's ResNet calls for each block of one stage, in order.

    timm tells a block neither its place in the stage nor that the first stage, too, has stride 2.
    """

    expansion = Bottleneck.expansion

    def __init__(self, kinds: Iterator[Callable[..., Bottleneck]], *, halves: bool = False) -> None:
        self.kinds = kinds
        self.halves = halves

    def __call__(
        self, inplanes: int, planes: int, stride: int, downsample: nn.Module | None, **kwargs: Any
    ) -> Bottleneck:
        if self.halves:
            stride, self.halves = 2, False
            downsample = downsample_avg(
                inplanes,
                planes * self.expansion,
                kernel_size=1,
                stride=stride,
                norm_layer=kwargs["norm_layer"],
                device=kwargs["device"],
                dtype=kwargs["dtype"],
            )
        return next(self.kinds)(inplanes, planes, stride, downsample, **kwargs)


class SECoTNetD(PaperResNet):
    """timm's ResNet-D without max pooling: all four stages have stride 2.

    The first two stages have gated convolutions, the third a contextual transformer and a gated
    convolution in turn, the fourth contextual transformers. The 152-layer network blurs after
    either instead of striding in them (``aa_layer=BlurPool``). Initialisation is as in ``CoTNet``.

    Differs from the source: with ``output_stride`` 16 or 8, which no published network uses, a
    ``BlurPool`` blurs without stride where a stage's stride is taken away, as in timm's other
    networks; ``drop_block_rate`` acts once per bottleneck, behind conv2, not in it and after the
    other two convolutions. As in the source, gated convolutions are then dilated and contextual
    transformers are not.

    Args:
        layers: Bottlenecks of each of the four stages.
        kwargs: As timm's ``ResNet`` takes them, except ``block``, ``stem_type``, ``avg_down`` and
            ``replace_stem_pool``, which the architecture decides.

    Raises:
        ValueError: As ``CoTBottleneck``.
    """

    def __init__(self, *, layers: tuple[int, ...], **kwargs: Any) -> None:
        stages: Any = (  # timm annotates one block class, and takes one for each stage
            _Stage(repeat(GatedConvBottleneck), halves=True),
            _Stage(repeat(GatedConvBottleneck)),
            _Stage(cycle((CoTBottleneck, GatedConvBottleneck))),
            _Stage(repeat(CoTBottleneck)),
        )
        super().__init__(stages, layers, stem_type="deep", avg_down=True, **kwargs)
        self.maxpool = nn.Identity()


_DEEP_STEM = {"first_conv": "conv1.0"}

default_cfgs = generate_default_cfgs(
    {
        "se_cotnetd_50.untrained": imagenet_cfg(**_DEEP_STEM),
        "se_cotnetd_101.untrained": imagenet_cfg(**_DEEP_STEM),
        "se_cotnetd_152.untrained": imagenet_cfg(
            input_size=(3, 256, 256), pool_size=(8, 8), crop_pct=0.888, **_DEEP_STEM
        ),
        "test_se_cotnetd.untrained": imagenet_cfg(
            input_size=(3, 64, 64), pool_size=(2, 2), **_DEEP_STEM
        ),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> SECoTNetD:
    return build_network(SECoTNetD, variant, pretrained, **kwargs)


@register_model
def se_cotnetd_50(pretrained: bool = False, **kwargs: Any) -> SECoTNetD:
    """SE-CoTNetD-50: 23.1 M parameters."""
    args = {"layers": (3, 4, 6, 3), "stem_width": 32}
    return _create("se_cotnetd_50", pretrained, **(args | kwargs))


@register_model
def se_cotnetd_101(pretrained: bool = False, **kwargs: Any) -> SECoTNetD:
    """SE-CoTNetD-101: 40.9 M parameters."""
    args = {"layers": (3, 4, 23, 3), "stem_width": 64}
    return _create("se_cotnetd_101", pretrained, **(args | kwargs))


@register_model
def se_cotnetd_152(pretrained: bool = False, **kwargs: Any) -> SECoTNetD:
    """SE-CoTNetD-152: 55.8 M parameters, for images of 256 or 320 pixels."""
    args = {"layers": (3, 8, 36, 3), "stem_width": 64, "aa_layer": BlurPool}
    return _create("se_cotnetd_152", pretrained, **(args | kwargs))


@register_model
def test_se_cotnetd(pretrained: bool = False, **kwargs: Any) -> SECoTNetD:
    """SE-CoTNetD of six narrow bottlenecks, with blur pooling, for tests."""
    args = {"layers": (1, 1, 3, 1), "channels": (16, 16, 32, 48), "stem_width": 8}
    return _create("test_se_cotnetd", pretrained, **(args | {"aa_layer": BlurPool} | kwargs))


describe_networks(
    {
        "se_cotnetd_50": Published(params=23.1, gmacs=4.1, top1=81.6, top5=95.8),
        "se_cotnetd_101": Published(params=40.9, gmacs=8.5, top1=83.2, top5=96.5),
        "se_cotnetd_152": Published(
            params=55.8,
            gmacs=17.0,
            top1=84.0,
            top5=97.0,
            note="Listed at 224 pixels, but 17.0 is the cost at 256, the default size of the "
            "authors' code; at 224 it is 12.9. Other weights, for 320 pixels, are listed with "
            "26.5 GMACs, 84.6 and 97.1 %.",
        ),
    },
    paper=PAPER,
    source=Source(
        "https://github.com/JDAI-CV/CoTNet", "models/cotnet_hybrid.py", "895e024", "Apache-2.0"
    ),
    figures_from="the table of README.md in JDAI-CV/CoTNet",
    weights="The authors give ImageNet-1k weights away (Google Drive and Baidu, linked in their "
    "README); 'visgraft convert FILE --model NAME -o out.safetensors' translates them.",
    recipe="cotnet_advanced",
)
