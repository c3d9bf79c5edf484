"""Which normalisation reads which layer, and who else does: seen by running the model once."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Flow", "watch"]


@dataclass
class Flow:
    """What was seen.

    Attributes:
        sources: For each normalisation, the layer whose very output it read, call by call; None
            where it read something else.
        readers: For each layer, the normalisation that read its output, call by call; None where
            nothing or something else did.
        shared: Layers and normalisations whose output or tensors were also used by something else,
            and by what.
        result: What the model returned.
    """

    sources: dict[nn.Module, list[nn.Module | None]] = field(
        default_factory=lambda: defaultdict(list)
    )
    readers: dict[nn.Module, list[nn.Module | None]] = field(
        default_factory=lambda: defaultdict(list)
    )
    shared: dict[nn.Module, str] = field(default_factory=dict)
    result: Any = None


@dataclass
class _Output:
    """One output of a layer; it is kept, so that no other tensor takes its storage."""

    layer: nn.Module
    tensor: Tensor
    call: int


def watch(
    call: Callable[[], Any], layers: Mapping[nn.Module, str], norms: Mapping[nn.Module, str]
) -> Flow:
    """Runs ``call`` and notes who reads the outputs of the layers.

    Every operator that touches an output or a parameter is seen, whatever Python did to get there.
    """
    flow = Flow()
    outputs: dict[int, _Output] = {}
    active: list[nn.Module] = []
    owners = {
        _storage(tensor): module
        for module in (*layers, *norms)
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None and tensor.numel()
    }

    def note(module: nn.Module, what: str) -> None:
        flow.shared.setdefault(module, what)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            for leaf in tree_leaves((args, kwargs)):
                if not isinstance(leaf, Tensor) or not _has_storage(leaf):
                    continue
                key = _storage(leaf)
                owner = owners.get(key)
                if owner is not None and owner not in active:
                    note(owner, f"its tensors are also used by {func}")
                output = outputs.get(key)
                if output is not None:
                    reader = flow.readers[output.layer][output.call]
                    if output.layer not in active and (reader is None or reader not in active):
                        note(output.layer, f"its output is also used by {func}")
            return func(*args, **(kwargs or {}))

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        active.append(module)
        if module in norms:
            source = None
            if args and isinstance(args[0], Tensor) and _has_storage(args[0]):
                output = outputs.get(_storage(args[0]))
                if output is not None and _same_view(output.tensor, args[0]):
                    source = output.layer
                    if flow.readers[source][output.call] is not None:
                        note(source, "its output is also used by another normalisation")
                    flow.readers[source][output.call] = module
            flow.sources[module].append(source)

    def leave(module: nn.Module, _: Any, result: Any) -> None:
        active.pop()
        if module in layers:
            flow.readers[module].append(None)
            if isinstance(result, Tensor) and _has_storage(result):
                call_number = len(flow.readers[module]) - 1
                outputs[_storage(result)] = _Output(module, result, call_number)

    with _hooked((*layers, *norms), enter, leave), Watch():
        flow.result = call()
    for leaf in tree_leaves(flow.result):
        output = outputs.get(_storage(leaf)) if isinstance(leaf, Tensor) else None
        if output is not None:
            note(output.layer, "its output is part of what the model returns")
    return flow


@contextmanager
def _hooked(
    modules: tuple[nn.Module, ...], enter: Callable[..., None], leave: Callable[..., None]
) -> Iterator[None]:
    handles = [m.register_forward_pre_hook(enter) for m in modules]
    handles += [m.register_forward_hook(leave) for m in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _has_storage(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.untyped_storage().nbytes() > 0


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _same_view(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one storage are the same part of it, in the same order."""
    layouts = [(t.shape, t.stride(), t.storage_offset()) for t in (one, other)]
    return layouts[0] == layouts[1]
