"""Networks registered in timm: importing this package makes `timm.create_model` know them."""

from visgraft.models._registry import UnknownModelError, create_model, list_models
from visgraft.models.small_resnet import SmallResNet

__all__ = ["SmallResNet", "UnknownModelError", "create_model", "list_models"]
