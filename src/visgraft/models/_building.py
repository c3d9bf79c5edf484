"""What the builders of all networks share: timm's default configuration and construction."""

import logging
from typing import Any, TypeVar

from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import nn

from visgraft.blocks import translate_published

__all__ = ["build_network", "imagenet_cfg"]

NetworkT = TypeVar("NetworkT", bound=nn.Module)

_logger = logging.getLogger(__name__)


def imagenet_cfg(**changes: Any) -> dict[str, Any]:
    """Returns timm's default configuration of a network for ImageNet-1k at 224 x 224 pixels."""
    cfg = {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "conv1",
        "classifier": "fc",
    }
    return cfg | changes


def build_network(cls: type[NetworkT], variant: str, pretrained: bool, **kwargs: Any) -> NetworkT:
    """Builds a network through timm, which adds its configuration and wraps ``features_only``.

    Weights under the authors' names are translated wherever timm loads them: from
    ``pretrained_cfg_overlay=dict(file=...)`` with ``pretrained=True``, from ``checkpoint_path``,
    and in ``load_state_dict``.

    Raises:
        ValueError: ``pretrained`` is asked for without a file; none can be downloaded by name.
    """
    if pretrained:
        _check_source(variant, kwargs)
    network = build_model_with_cfg(
        cls, variant, pretrained, pretrained_filter_fn=_translate_for_timm, **kwargs
    )
    if isinstance(network, cls):
        network.register_load_state_dict_pre_hook(_translate_in_place)
    return network


def _check_source(variant: str, kwargs: dict[str, Any]) -> None:
    """Refuses to load weights that nothing says where to find."""
    config = resolve_pretrained_cfg(
        variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay")
    )
    if not (config.has_weights or config.state_dict or config.source):
        raise ValueError(
            f"{variant}: pretrained=True finds no weights, since none can be downloaded by name; "
            f"get the authors' file as `visgraft models {variant}` says and add "
            "pretrained_cfg_overlay=dict(file=FILE)"
        )


def _translate_for_timm(state: dict[str, Any], network: nn.Module) -> dict[str, Any]:
    """Gives weights their names here; timm adapts classifier and image channels afterwards."""
    translated = translate_published(network, state)
    _logger.info(
        "%s: %d of %d tensors renamed from a published layout",
        type(network).__name__,
        len(translated.keys() - state.keys()),
        len(state),
    )
    return translated


def _translate_in_place(network: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Translates the network's part of a state dict that is about to be loaded.

    Tensors that have their names and shapes here already, all or some of them, stay as they are.
    """
    own = network.state_dict()
    inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if all(key in own and own[key].shape == value.shape for key, value in inside.items()):
        return
    translated = _translate_for_timm(inside, network)
    for key in inside:
        del state[prefix + key]
    state.update({prefix + k: v for k, v in translated.items()})
