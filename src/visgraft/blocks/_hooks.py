"""What a call of a module does beyond what its class says."""

from torch import nn

__all__ = ["is_hooked"]


def is_hooked(module: nn.Module) -> bool:
    """Whether anything watches or replaces a call of the module."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or "forward" in vars(module)
        or nn.modules.module._has_any_global_hook()
    )
