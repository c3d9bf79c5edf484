"""Refusals: models whose layers are no longer, or not yet, there to be changed."""

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

__all__ = ["check_model"]


def check_model(owner: str, model: nn.Module) -> None:
    """Raises ValueError if ``model`` cannot be grafted, whatever the block."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"{owner}: model must be a torch.nn.Module, got {type(model).__name__}")
    for path, module in model.named_modules():
        reason = _refusal(module)
        if reason is not None:
            where = f"the layer {path!r}" if path else "the model"
            raise ValueError(f"{owner}: {where} {reason}")


def _refusal(module: nn.Module) -> str | None:
    if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
        return "is compiled by torch.compile; graft it first and compile it afterwards"
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        name = type(module).__name__
        return f"is wrapped in {name}; graft its .module first and wrap it afterwards"
    if any("fsdp" in base.__module__.split(".") for base in type(module).__mro__):
        return "is sharded by FSDP; graft it first and shard it afterwards"
    if type(module).__module__.startswith("torch.jit"):
        return "is a ScriptModule, whose layers cannot be changed; graft the Python model"
    if "quantized" in type(module).__module__.split("."):
        return "is quantised; graft the model first and quantise it afterwards"
    if any(is_lazy(tensor) for tensor in (*module.parameters(False), *module.buffers(False))):
        return "is lazy and has no weights yet; run the model once before grafting it"
    return None
