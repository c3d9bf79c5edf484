"""Which places of an image speak for a class: Grad-CAM on a classifier's last feature map.

Paper: Selvaraju, Cogswell, Das, Vedantam, Parikh and Batra, "Grad-CAM: Visual Explanations from
    Deep Networks via Gradient-based Localization", ICCV 2017, https://arxiv.org/abs/1610.02391,
    section 3, equations 1 and 2; written from the formulas.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visgraft.inspect._kept import keeping_model

__all__ = ["ClassActivation", "class_activation"]


@dataclass(frozen=True)
class ClassActivation:
    """What a classifier says of some images, and where it sees it.

    Attributes:
        maps: ``(N, h, w)``, not negative, at the size of the last feature map; larger means that
            the place raises the score of the class more.
        scores: ``(N, classes)``, the network's output.
    """

    maps: Tensor
    scores: Tensor


def class_activation(model: nn.Module, images: Tensor, classes: Sequence[int]) -> ClassActivation:
    """Computes the class-activation map of each image for a class.

    The gradient of the class's score, averaged over the places, weighs the channels of what
    ``forward_features`` returns; the sum of the weighted channels is kept where it is positive.

    Args:
        model: A classifier of timm's interface, ours included; its modes, buffers and gradients
            stay as they were.
        images: ``(N, C, H, W)``, prepared as for the network, on its device.
        classes: One index per image.

    Raises:
        ValueError: The network has no feature map, or ``classes`` does not fit.

    Shape:
        images ``(N, C, H, W)`` -> maps ``(N, h, w)``, scores ``(N, classes)``.

    Example:
        >>> import timm
        >>> model = timm.create_model("resnet18")
        >>> tuple(class_activation(model, torch.randn(2, 3, 64, 64), [0, 7]).maps.shape)
        (2, 2, 2)
    """
    if len(classes) != len(images):
        raise ValueError(
            f"class_activation: there must be one class per image, got {len(classes)} classes for "
            f"{len(images)} images"
        )
    network: Any = model
    if not (hasattr(network, "forward_features") and hasattr(network, "forward_head")):
        raise ValueError(
            f"class_activation: {type(model).__name__} has no forward_features and forward_head; "
            "give a classifier of timm's interface"
        )
    with keeping_model(model):
        model.eval()
        with torch.no_grad():
            features = network.forward_features(images)
        if not isinstance(features, Tensor) or features.dim() != 4:
            raise ValueError(
                f"class_activation: {type(model).__name__} has no feature map before its head, but "
                f"{_described(features)}; class-activation maps need one"
            )
        with torch.enable_grad():
            features = features.detach().requires_grad_()
            scores = network.forward_head(features)
            outside = [c for c in classes if not 0 <= c < scores.shape[1]]
            if outside:
                raise ValueError(
                    f"class_activation: a class must be 0 to {scores.shape[1] - 1}, got "
                    f"{outside[0]}"
                )
            chosen = scores[torch.arange(len(images)), torch.as_tensor(classes)].sum()
            (gradient,) = torch.autograd.grad(chosen, features)
    places, channel = ((1, 2), 3) if _is_channels_last(network) else ((2, 3), 1)
    weights = gradient.mean(places, keepdim=True)
    maps = (weights * features.detach()).sum(channel).clamp_min(0)
    return ClassActivation(maps, scores.detach())


def _is_channels_last(model: Any) -> bool:
    """Tells whether a network of timm returns its features as (N, H, W, C)."""
    return str(getattr(model, "output_fmt", "")).upper().endswith("NHWC")


def _described(features: object) -> str:
    if isinstance(features, Tensor):
        return f"a tensor of shape {tuple(features.shape)}"
    return f"a {type(features).__name__}"
