"""ResNets for small images: timm's trunk with a stem that keeps the resolution.

Paper: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
    https://arxiv.org/abs/1512.03385, section 4.2 (3 x 3 first convolution, no max pooling).
The four-stage layout at full width is the ResNet-18 that is commonly trained on CIFAR-10.
"""

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from visgraft.models._building import build_network, imagenet_cfg

__all__ = ["SmallResNet", "resnet10_small", "resnet18_small"]

_STEM_REDUCTION = 4  # of timm's stem, which this one does without


class SmallResNet(ResNet):
    """timm's ResNet with a 3 x 3 stride-1 first convolution and no max pooling.

    A 28 x 28 image is seen at 28, 14, 7 and 4 pixels by the four stages.

    Args:
        channels: Width of the four stages; the stem has the first one's.
        in_chans: Channels of the image.
        device: Of the parameters.
        dtype: Of the parameters.
        kwargs: As timm's ``ResNet`` takes them, except ``stem_width`` and ``stem_type``.
    """

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        in_chans: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        width = channels[0]
        if width % 2:
            raise ValueError(f"SmallResNet: the first of channels must be even, got {width}")
        super().__init__(
            channels=tuple(channels),
            in_chans=in_chans,
            stem_type="deep",  # the only stem of timm's whose width can be chosen
            stem_width=width // 2,
            device=device,
            dtype=dtype,
            **kwargs,
        )
        self.conv1 = nn.Conv2d(
            in_chans, width, kernel_size=3, padding=1, bias=False, device=device, dtype=dtype
        )
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        stem, *stages = self.feature_info
        stem["reduction"] = 1
        for stage in stages:
            stage["reduction"] = int(stage["reduction"]) // _STEM_REDUCTION


def _cfg() -> dict[str, Any]:
    return imagenet_cfg(input_size=(3, 32, 32), pool_size=(4, 4), crop_pct=1.0)


default_cfgs = generate_default_cfgs(
    {"resnet10_small.untrained": _cfg(), "resnet18_small.untrained": _cfg()}
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> SmallResNet:
    return build_network(SmallResNet, variant, pretrained, **kwargs)


@register_model
def resnet10_small(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """ResNet-10, 16 to 128 channels: 0.3 M parameters, for a quick look on a laptop."""
    args = {"block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)}
    return _create("resnet10_small", pretrained, **(args | kwargs))


@register_model
def resnet18_small(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """ResNet-18, 64 to 512 channels: 11.2 M parameters, the usual baseline of CIFAR-10."""
    args = {"block": BasicBlock, "layers": (2, 2, 2, 2), "channels": (64, 128, 256, 512)}
    return _create("resnet18_small", pretrained, **(args | kwargs))
