"""Refusals: models whose layers are no longer, or not yet, there to be changed."""

import warnings
from operator import attrgetter

from torch import nn
from torch.fx import GraphModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = ["RebuiltModelWarning", "check_model", "warn_if_rebuilt"]


class RebuiltModelWarning(UserWarning):
    """The trainer of the model's library will build the model anew, without the graft."""


def warn_if_rebuilt(owner: str, model: nn.Module) -> None:
    """Warns of ultralytics' models, whose trainer copies weights into a model of its own."""
    if _comes_from(model, "ultralytics.nn"):
        warnings.warn(
            f"{owner}: ultralytics' trainer builds a {type(model).__name__} anew from its YAML, "
            "which loses this graft without a word; if you train with it, graft by "
            "visgraft.tasks.yolo.graft, which takes the YOLO object",
            RebuiltModelWarning,
            stacklevel=4,
        )


def _comes_from(model: nn.Module, package: str) -> bool:
    return any(base.__module__.startswith(f"{package}.") for base in type(model).__mro__)


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
    if _comes_from(module, "ultralytics.engine"):
        return "is a wrapper around one; graft it by visgraft.tasks.yolo.graft, or graft its .model"
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
    if isinstance(module, GraphModule) and _is_flat(module):
        return "is an exported graph of operations without layers; graft the model, then export it"
    tensors = (*module.parameters(False), *module.buffers(False))
    wrapped = next((t for t in tensors if is_traceable_wrapper_subclass(t)), None)
    if wrapped is not None:
        kind = type(wrapped).__name__
        return (
            f"holds a {kind} (quantised or distributed); graft it first and convert it afterwards"
        )
    if any(is_lazy(tensor) for tensor in tensors):
        return "is lazy and has no weights yet; run the model once before grafting it"
    return None


def _is_flat(module: GraphModule) -> bool:
    """Whether a graph reads parameters itself and calls no layer that has any."""
    nodes = list(module.graph.nodes)
    called = [module.get_submodule(str(n.target)) for n in nodes if n.op == "call_module"]
    if any(next(layer.parameters(), None) is not None for layer in called):
        return False
    read = (attrgetter(str(n.target))(module) for n in nodes if n.op == "get_attr")
    return any(isinstance(tensor, nn.Parameter) for tensor in read)
