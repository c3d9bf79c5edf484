"""Folding batch normalisation into the layers before it, for inference."""

import copy
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from visgraft._shapes import Example, first_line, like_of
from visgraft.inspect._dataflow import Flow, watch
from visgraft.inspect._folding import (
    agree,
    fold,
    give,
    is_layer,
    is_norm,
    refusal_of_layer,
    refusal_of_norm,
    remainder,
)
from visgraft.inspect._kept import keeping_process

__all__ = ["Fused", "fuse"]

# Largest difference to the largest value, of one layer and of a whole network.
_TOLERANCE = {torch.float64: (1e-10, 1e-8), torch.float32: (2e-5, 1e-3)}
_HALF_TOLERANCE = (2e-2, 5e-2)


@dataclass(frozen=True)
class Fused:
    """A model without the normalisations that could be folded away.

    Attributes:
        model: The copy, in eval mode.
        folded: Path of each normalisation that is gone, to the paths of the layers that hold it.
        kept: Path of each one that stayed, to the reason.
        max_difference: Largest difference on the example to what the given model returns, as a
            fraction of the largest value.
    """

    model: nn.Module = field(repr=False)
    folded: Mapping[str, tuple[str, ...]]
    kept: Mapping[str, str]
    max_difference: float

    def __str__(self) -> str:
        lines = [
            f"{len(self.folded)} normalisations folded, {len(self.kept)} kept; largest difference "
            f"{self.max_difference:.1e} of the largest value"
        ]
        return "\n".join([*lines, *(f"kept {path}: {why}" for path, why in self.kept.items())])


def fuse(model: nn.Module, example: Any = None) -> Fused:
    """Folds batch normalisation into the convolutions and linear layers before it.

    In eval mode a batch normalisation is a multiplication and an addition per channel, which the
    weights of the layer before it can do. That saves a pass over each map. The copy that is
    returned computes the same up to rounding and is for inference: training it trains something
    else.

    Nothing is guessed from names or from the order of modules. The copy runs on the example while
    every operator is watched, and a normalisation is folded only where its input is the very output
    of a layer, nothing else reads that output or the tensors of the two, and the layer with its new
    weights gives what the two gave, on the example and on noise. What the example does not reach
    stays. Activations that a normalisation also applies, as timm's ``BatchNormAct2d``, remain in
    its place. Layers and normalisations with hooks, such as those that a graft sits on, are left
    alone; hooks elsewhere are kept, and run on the example.

    Args:
        model: Any module in eval mode; it stays as it is.
        example: A tensor, the shape of one, a tuple of positional or a dict of keyword arguments;
            None for one image of the size in a timm network's ``pretrained_cfg``.

    Raises:
        ValueError: The model is in training mode, has no values, does not run on the example, or
            there is no example.
        RuntimeError: The model gives other values each time, or the copy gives other values.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> fuse(net, (1, 3, 8, 8)).model
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
          (2): ReLU()
        )
    """
    inputs = Example.of("fuse", _size_of(model) if example is None else example)
    modules = model.named_modules()
    training = next((p for p, m in modules if m.training and (not p or is_norm(m))), None)
    if training is not None:
        raise ValueError(
            f"fuse: {training or 'the model'} is in training mode, where batch normalisation is no "
            "linear function; call eval() first"
        )
    device, dtype = like_of([model])
    if device.type == "meta":
        raise ValueError("fuse: the model is on the meta device and has no values to fold")
    clone = copy.deepcopy(model)
    paths = {module: path for path, module in clone.named_modules()}
    layers = {m: p for m, p in paths.items() if is_layer(m)}
    norms = {m: p for m, p in paths.items() if is_norm(m)}
    args, kwargs = inputs.real(clone)
    each, whole = _TOLERANCE.get(dtype, _HALF_TOLERANCE)

    @torch.no_grad()
    def run() -> Any:
        return clone(*copy.deepcopy(args), **copy.deepcopy(kwargs))

    with keeping_process(None, device):
        try:
            flow = watch(run, layers, norms)
        except Exception as error:
            raise ValueError(
                f"fuse: {type(model).__name__} does not run on the example "
                f"({type(error).__name__}: {first_line(error)}); pass a tensor or a shape that it "
                "runs on"
            ) from error
        before = [t.clone() for t in tree_leaves(flow.result) if isinstance(t, Tensor)]
        again = [t for t in tree_leaves(run()) if isinstance(t, Tensor)]
        if _largest(again, before) > whole:
            raise RuntimeError(
                "fuse: the model gives other values each time it is called, so nothing can be "
                "compared; switch off what is random in it"
            )
        kept, pairs = _choose(flow, layers, norms, clone)
        kept |= _verify(run, flow, pairs, norms, each)
        pairs = {norm: found for norm, found in pairs.items() if norms[norm] not in kept}
        folded = {norms[n]: tuple(layers[m] for m in found) for n, found in pairs.items()}
        _apply(clone, pairs)
        after = [t for t in tree_leaves(run()) if isinstance(t, Tensor)]
    difference = _largest(after, before)
    if difference > whole:
        raise RuntimeError(
            f"fuse: the copy differs from the model by {difference:.1e} of the largest value, more "
            f"than rounding explains ({whole:.0e}); use the model as it is, and report this"
        )
    in_order = {path: kept[path] for path in norms.values() if path in kept}
    return Fused(clone, MappingProxyType(folded), MappingProxyType(in_order), difference)


def _size_of(model: nn.Module) -> tuple[int, ...]:
    """Returns the shape of one image as a timm network declares it."""
    settings = getattr(model, "pretrained_cfg", None)
    size = getattr(settings, "get", lambda _: None)("input_size")
    if size is None:
        raise ValueError(
            f"fuse: {type(model).__name__} does not say what it takes; pass an example, such as "
            "the shape (1, 3, 224, 224)"
        )
    return (1, *size)


Pairs = dict[nn.Module, list[nn.Module]]


def _choose(
    flow: Flow,
    layers: Mapping[nn.Module, str],
    norms: Mapping[nn.Module, str],
    model: nn.Module,
) -> tuple[dict[str, str], Pairs]:
    """Returns why normalisations must stay, by path, and the layers before the others."""
    owners: dict[int, set[nn.Module]] = {}
    for module in model.modules():
        for tensor in module._parameters.values():
            if tensor is not None:
                owners.setdefault(id(tensor), set()).add(module)
    kept: dict[str, str] = {}
    pairs: Pairs = {}
    for norm, path in norms.items():
        sources = flow.sources.get(norm, [])
        reason = refusal_of_norm(norm) or flow.shared.get(norm)
        if reason is None and not sources:
            reason = "it is not reached on the example"
        if reason is None and None in sources:
            reason = "what it reads is not the output of a convolution or linear layer alone"
        found = [layer for layer in dict.fromkeys(sources) if layer is not None]
        for layer in found:
            if reason is not None:
                break
            why = refusal_of_layer(layer) or flow.shared.get(layer)
            if why is None and any(reader is not norm for reader in flow.readers[layer]):
                why = "it is also called without this normalisation"
            parameters = [t for t in layer._parameters.values() if t is not None]
            if why is None and any(owners[id(t)] != {layer} for t in parameters):
                why = "its weight is shared with another layer"
            reason = None if why is None else f"the layer before it, {layers[layer]}: {why}"
        if reason is None:
            pairs[norm] = found
        else:
            kept[path] = reason
    return kept, pairs


def _verify(
    run: Callable[[], Any],
    flow: Flow,
    pairs: Pairs,
    norms: Mapping[nn.Module, str],
    tolerance: float,
) -> dict[str, str]:
    """Compares, call by call, the layers with their new weights with what the two gave."""
    kept: dict[str, str] = {}
    trials: dict[nn.Module, nn.Module] = {}
    for norm, found in pairs.items():
        for layer in found:
            trials[layer] = copy.deepcopy(layer)
            give(trials[layer], *fold(layer, norm))
    given: dict[nn.Module, deque[tuple[Any, ...]]] = defaultdict(deque)
    sources = {norm: iter(flow.sources[norm]) for norm in pairs}

    def remember(layer: nn.Module, args: tuple[Any, ...]) -> None:
        given[layer].append(tuple(a.clone() if isinstance(a, Tensor) else a for a in args))

    def compare(norm: nn.Module, _: Any, result: Any) -> None:
        layer = next(sources[norm])
        if layer is None:
            return
        args = given[layer].popleft()
        noise = tuple(torch.randn_like(a) if isinstance(a, Tensor) else a for a in args)
        trial, rest = trials[layer], remainder(norm)
        worst = agree(rest(trial(*args)), result)
        worst = max(worst, agree(rest(trial(*noise)), norm.forward(layer.forward(*noise))))
        if worst > tolerance:
            kept[norms[norm]] = (
                f"with it folded, the layer before it differs by {worst:.0e} of the largest value"
            )

    handles = [layer.register_forward_pre_hook(remember) for layer in trials]
    handles += [norm.register_forward_hook(compare) for norm in pairs]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return kept


def _apply(model: nn.Module, pairs: Pairs) -> None:
    """Gives the layers their new tensors and takes the normalisations out, wherever they stand."""
    for norm, found in pairs.items():
        for layer in found:
            give(layer, *fold(layer, norm))
        rest = remainder(norm)
        for parent in list(model.modules()):
            for name, child in parent._modules.items():
                if child is norm:
                    parent._modules[name] = rest


def _largest(mine: list[Tensor], theirs: list[Tensor]) -> float:
    if len(mine) != len(theirs):
        return float("inf")
    return max(map(agree, mine, theirs), default=0.0)
