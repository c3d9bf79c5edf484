"""Makes any network wider or narrower: every group of channels that can grow does, by one factor.

Networks without an argument for their width get one here. Channels are followed through a run on
shapes, in eval and in train mode; those that the network fixes somewhere (heads of attention, parts
that it cuts off, classes) keep their number. A wider network is run once, and every operation is
compared with what it should give; what does not grow along is kept, too.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves

from visgraft._shapes import fake_copy, fake_mode, first_line, shapes_only
from visgraft.models._width_layouts import Groups, Layout
from visgraft.models._width_rules import Layouts
from visgraft.models._width_tracing import Record, Replay, Trace

__all__ = ["WIDENED", "factor_of", "resized"]

WIDENED = "widened"
"""Argument of networks of any family: how many times as wide they are."""

_REMEMBERED = 8
_COUNTS = ("num_features", "head_hidden_size", "hidden_size", "in_features", "embed_dim")
_plans: "OrderedDict[str, _Plan]" = OrderedDict()


def factor_of(name: str, arguments: Mapping[str, Any]) -> float:
    """Returns how many times as wide a network is to be.

    Args:
        name: Of the network, for the complaint.
        arguments: What it is built with, ``widened`` among them.

    Raises:
        ValueError: It is no width, or the network has trained weights.
    """
    factor = arguments[WIDENED]
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not 0 < factor < math.inf:
        raise ValueError(f"model {name!r}: {WIDENED} must be a positive number, got {factor!r}")
    for reason in ("pretrained", "checkpoint_path", "features_only"):
        if arguments.get(reason):
            raise ValueError(f"model {name!r} takes either {reason} or {WIDENED}, not both")
    return float(factor)


def resized(name: str, model: nn.Module, factor: float, arguments: Mapping[str, Any]) -> nn.Module:
    """Changes the widths of a network that has random weights, in place.

    Channels that are there keep their start, in convolutions and linear layers divided by the
    square root of the growth of their inputs, so that outputs start as large as before; new ones
    draw theirs from the values of their layer.

    Args:
        name: Of the network, for the complaint.
        model: Just built.
        factor: How many times as wide it is to be.
        arguments: What it was built with.

    Raises:
        ValueError: No channels of it can grow.
    """
    key = f"{name} {sorted(arguments.items(), key=str)}"
    if key not in _plans:
        _plans[key] = _planned(name, model, arguments)
        while len(_plans) > _REMEMBERED:
            _plans.popitem(last=False)
    plan = _plans[key]
    _resize(model, plan, plan.groups.numbers(factor))
    return model


@dataclass
class _Plan:
    """What can grow in a network.

    Attributes:
        groups: Of channels.
        shapes: Of weights and buffers, by name.
        layouts: Of the same.
        depthwise: Weights of convolutions that have as many groups as channels.
        features: Layouts of the maps in timm's ``feature_info``, None where they are not known.
        told: Layouts of what attributes of modules count, by module and attribute.
    """

    groups: Groups
    shapes: dict[str, tuple[int, ...]]
    layouts: dict[str, Layouts]
    depthwise: set[str] = field(default_factory=set)
    features: dict[int, Layout] = field(default_factory=dict)
    told: dict[tuple[str, str], Layout] = field(default_factory=dict)

    def shape(self, name: str, numbers: dict[int, int]) -> tuple[int, ...]:
        """Returns the shape that a weight gets."""
        pairs = zip(self.layouts[name], self.shapes[name], strict=True)
        return tuple(self.groups.length(layout, size, numbers) for layout, size in pairs)


def _planned(name: str, model: nn.Module, arguments: Mapping[str, Any]) -> _Plan:
    """Finds out what can grow in a network.

    Raises:
        ValueError: Nothing can, or the network does not run on shapes.
    """
    mode = fake_mode()
    clone = fake_copy(model, mode)
    plan = _Plan(Groups(), {}, {})
    shape = _input_shape(model, arguments)
    runs: dict[bool, list[Record]] = {}
    used: set[str] = set()

    def run(watched: AbstractContextManager[Any], training: bool) -> list[Tensor]:
        try:
            noted = plan if isinstance(watched, Trace) and not training else None
            return _run(clone, mode, watched, shape, training, noted)
        except Exception as error:
            how = "train" if training else "eval"
            raise ValueError(
                f"model {name!r} does not run on {shape} in {how} mode: {first_line(error)}"
            ) from error

    weights: dict[str, tuple[Tensor, Layouts]] = {}
    before = {path: tensor.shape for path, tensor in _tensors(clone)}
    run(nullcontext(), training=False)
    for path, tensor in _tensors(clone):
        if tensor.shape == before.get(path):  # not a table that the first run makes
            layouts = tuple(plan.groups.add(size) for size in tensor.shape)
            weights[path] = (tensor, layouts)
            plan.shapes[path], plan.layouts[path] = tuple(tensor.shape), layouts
    for training in (False, True):
        trace = Trace(plan.groups, weights)
        outputs = run(trace, training)
        if getattr(model, "num_classes", 0):
            for output in outputs:
                for layout in trace.layouts(output):
                    plan.groups.freeze(layout)
        runs[training] = trace.records
        used |= trace.used
        plan.depthwise |= trace.depthwise
    for path in plan.layouts.keys() - used:
        for layout in plan.layouts[path]:
            plan.groups.freeze(layout)
    _note_classifier(clone, plan)
    _keep_what_breaks(name, clone, mode, plan, runs, shape)
    return plan


def _keep_what_breaks(
    name: str,
    clone: nn.Module,
    mode: FakeTensorMode,
    plan: _Plan,
    runs: Mapping[bool, list[Record]],
    shape: tuple[int, ...],
) -> None:
    """Runs a network in which everything has grown until each operation gives what it should."""
    for training, records in runs.items():
        while True:
            numbers = plan.groups.probing_numbers()
            if not any(plan.shape(path, numbers) != size for path, size in plan.shapes.items()):
                raise ValueError(f"model {name!r} fixes all of its numbers of channels")
            with mode:
                _resize(clone, plan, numbers)
            replay = Replay(plan.groups, records, numbers)
            try:
                _run(clone, mode, replay, shape, training)
            except Exception as error:
                if not replay.freeze():
                    raise ValueError(
                        f"model {name!r} does not run with other numbers of channels: "
                        f"{first_line(error)}"
                    ) from error
            else:
                break


def _run(
    clone: nn.Module,
    mode: FakeTensorMode,
    watched: AbstractContextManager[Any],
    shape: tuple[int, ...],
    training: bool,
    plan: _Plan | None = None,
) -> list[Tensor]:
    """Runs a copy on shapes, and notes the layouts of its features in ``plan``."""
    hooks = list(_noting_features(clone, watched, plan)) if plan else []
    try:
        clone.train(training)
        with shapes_only(mode):
            images = torch.empty(shape, device=next(clone.parameters()).device)
            with watched:
                outputs = clone(images)
        return [t for t in tree_leaves(outputs) if isinstance(t, Tensor)]
    finally:
        for hook in hooks:
            hook.remove()


def _noting_features(clone: nn.Module, trace: Any, plan: _Plan) -> Iterator[Any]:
    """Lets modules note what grows in the maps that timm takes from them."""
    info: Any = getattr(clone, "feature_info", None)
    modules = dict(clone.named_modules())
    for index, entry in enumerate(info if isinstance(info, list) else ()):

        def note(_: Any, __: Any, output: Any, i: int = index, n: Any = entry["num_chs"]) -> None:
            plan.features.pop(i, None)
            if isinstance(output, Tensor) and n in output.shape[1:]:
                plan.features[i] = trace.layouts(output)[output.shape.index(n, 1)]
                if i == len(info) - 1 and n == vars(clone).get("num_features"):
                    plan.told["", "num_features"] = plan.features[i]

        if entry.get("module") in modules:
            yield modules[entry["module"]].register_forward_hook(note)


def _input_shape(model: nn.Module, arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the shape of two images for a network."""
    usual = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    patches = getattr(model, "patch_embed", None)
    size = getattr(patches, "img_size", None) or arguments.get("img_size") or usual[1:]
    size = (size, size) if isinstance(size, int) else tuple(size)
    return (2, arguments.get("in_chans", usual[0]), *size)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields weights and buffers by their first names."""
    return chain(model.named_parameters(), model.named_buffers())


def _note_classifier(clone: nn.Module, plan: _Plan) -> None:
    """Notes the attributes that count what the classifier gets."""
    getter: Any = getattr(clone, "get_classifier", lambda: None)
    found = getter()
    paths = [path for path, module in clone.named_modules() if module is found]
    if not isinstance(found, nn.Linear | nn.Conv2d) or not paths:
        return
    size, layout = found.weight.shape[1], plan.layouts[f"{paths[0]}.weight"][1]
    parts = paths[0].split(".")[:-1]
    for owner in ("", *(".".join(parts[: i + 1]) for i in range(len(parts)))):
        for name in _COUNTS:
            if vars(clone.get_submodule(owner)).get(name) == size:
                plan.told.setdefault((owner, name), layout)


def _resize(model: nn.Module, plan: _Plan, numbers: dict[int, int]) -> None:
    """Gives the weights of a model the shapes of a plan, and its layers the numbers they know."""
    former = [(path, tensor) for path, tensor in _tensors(model)]
    names = {id(tensor): path for path, tensor in former}
    done: dict[int, Tensor] = {}
    for module in list(model.modules()):
        path = names.get(id(getattr(module, "weight", None)))
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is None or names.get(id(tensor)) not in plan.layouts:
                    continue
                shape = plan.shape(names[id(tensor)], numbers)
                if tuple(tensor.shape) != shape and id(tensor) not in done:
                    done[id(tensor)] = _grown(module, key, tensor, shape)
                tensors[key] = done.get(id(tensor), tensor)  # type: ignore[assignment]
        _tell_sizes(module, path in plan.depthwise)
    _tell_features(model, plan, numbers)


def _grown(module: nn.Module, key: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns a weight or a buffer with another shape."""
    old = tensor.detach()
    if not isinstance(tensor, nn.Parameter):
        for dim, size in enumerate(shape):
            index = torch.arange(size, device=old.device) % old.shape[dim]
            old = old.index_select(dim, index)
        return old
    drawn = torch.randint(old.numel(), (math.prod(shape),), device=old.device)
    new = old.flatten()[drawn].reshape(shape)
    common = tuple(slice(min(a, b)) for a, b in zip(old.shape, shape, strict=True))
    new[common] = old[common]
    is_layer = isinstance(module, nn.Linear | _ConvNd) and key == "weight"
    if is_layer and not isinstance(module, _ConvTransposeNd):
        new *= math.sqrt(math.prod(old.shape[1:]) / math.prod(shape[1:]))
    parameter = nn.Parameter(new, tensor.requires_grad)
    vars(parameter).update(vars(tensor))
    return parameter


def _tell_sizes(module: nn.Module, depthwise: bool) -> None:
    """Tells a layer how many channels it has."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _ConvTransposeNd):
        module.in_channels = module.weight.shape[0]
        module.out_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, _ConvNd):
        wider = module.weight.shape[0]
        if depthwise:
            module.groups = wider * module.groups // module.out_channels
        module.out_channels = wider
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(weight, Tensor) and hasattr(module, "normalized_shape"):
        vars(module)["normalized_shape"] = tuple(weight.shape)
    elif isinstance(weight, Tensor) and isinstance(module, _NormBase):
        module.num_features = weight.shape[0]
    elif isinstance(weight, Tensor) and isinstance(module, nn.GroupNorm):
        module.num_channels = weight.shape[0]


def _tell_features(model: nn.Module, plan: _Plan, numbers: dict[int, int]) -> None:
    """Tells a network how many features it has; numbers that are not known any more are dropped."""
    if isinstance(info := getattr(model, "feature_info", None), list):
        model.feature_info = [dict(entry) for entry in info]  # type: ignore[assignment]
        for index, entry in enumerate(model.feature_info):  # type: ignore[arg-type]
            size = entry.pop("num_chs", 0)
            if index in plan.features:
                entry["num_chs"] = plan.groups.length(plan.features[index], size, numbers)
    for (owner, name), layout in plan.told.items():
        part = model.get_submodule(owner)
        setattr(part, name, plan.groups.length(layout, getattr(part, name), numbers))
