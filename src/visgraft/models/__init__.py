"""Networks registered in timm: importing this package makes `timm.create_model` know them."""

from visgraft.models import (
    acmix_resnet,
    acmix_swin,
    botnet,
    cotnet,
    dcn_resnet,
    gc_resnet,
    mobilenetv2_ca,
    se_cotnetd,
    sknet,
    spd_resnet,
)
from visgraft.models._catalogue import (
    NetworkCost,
    NetworkInfo,
    Published,
    list_networks,
    network_info,
)
from visgraft.models._conversion import convert_published
from visgraft.models._registry import UnknownModelError, create_model, list_models
from visgraft.models.small_resnet import SmallResNet

__all__ = [
    "NetworkCost",
    "NetworkInfo",
    "Published",
    "SmallResNet",
    "UnknownModelError",
    "acmix_resnet",
    "acmix_swin",
    "botnet",
    "convert_published",
    "cotnet",
    "create_model",
    "dcn_resnet",
    "gc_resnet",
    "list_models",
    "list_networks",
    "mobilenetv2_ca",
    "network_info",
    "se_cotnetd",
    "sknet",
    "spd_resnet",
]
