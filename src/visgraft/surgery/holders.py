"""The modules that hold a block at a layer and let it work on what the layer computes.

A holder is a child of the layer (or, where the layer runs its children one after the other, of a
layer inside it) and acts through a forward hook. The layer itself stays what and where it was: its
class, attributes, index, tensors and hooks. The classes are importable, so that a grafted model can
be copied and pickled; a saved model needs visgraft to be loaded.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

__all__ = ["After", "Holder", "Parallel"]


class Holder(nn.Module):
    """Holds a block and, if the graft is to start as the identity, one factor per channel.

    Args:
        block: The block.
        scale_channels: How many factors, all zero, multiply what the block changes: one for each
            channel of the layer's output; None for no factors. Being of one dimension, they are
            exempt from weight decay wherever biases are.
        device: Of the factors.
        dtype: Of the factors.
    """

    scale: Tensor | None

    def __init__(
        self,
        block: nn.Module,
        scale_channels: int | None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.block = block
        self.enabled = True
        scale = None
        if scale_channels is not None:
            scale = nn.Parameter(torch.zeros(scale_channels, device=device, dtype=dtype))
        self.register_parameter("scale", scale)

    def extra_repr(self) -> str:
        """Shows a graft that is switched off."""
        return "" if self.enabled else "enabled=False"

    def on_output(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Forward hook of the layer; returns what takes the place of the layer's output."""
        raise NotImplementedError

    def call(self, *maps: Any) -> Any:
        """Calls the holder; where FX traces, as one node, whatever the block does inside."""
        if isinstance(maps[0], Proxy):
            tracer: Any = maps[0].tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), maps, {})
        return self(*maps)

    def factors(self, like: Tensor) -> Tensor | None:
        """Returns the factors as ``(C, 1, 1)``, in the dtype of ``like``."""
        return None if self.scale is None else self.scale.to(like.dtype)[:, None, None]


class After(Holder):
    """Sends a layer's output ``y`` through the block: ``y + scale * (block(y) - y)``."""

    def on_output(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:  # noqa: ARG002
        """Forward hook of the layer."""
        return self.call(output) if self.enabled else None

    def forward(self, y: Tensor) -> Tensor:
        """Blends ``y`` with the block's output; without ``scale`` returns the latter."""
        result = self.block(y).to(y.dtype)
        scale = self.factors(y)
        return result if scale is None else torch.lerp(y, result, scale)


class Parallel(Holder):
    """Adds to a layer's output ``y`` the block's for its input: ``y + scale * block(x)``."""

    def on_output(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:  # noqa: ARG002
        """Forward hook of the layer."""
        return self.call(args[0], output) if self.enabled else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Adds the block's output for ``x`` to ``y``."""
        result = self.block(x).to(y.dtype)
        scale = self.factors(y)
        return y + result if scale is None else torch.addcmul(y, result, scale)
