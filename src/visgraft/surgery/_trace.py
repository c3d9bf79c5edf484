"""What happens in one run of a model on shapes: the calls of its modules and the maps between."""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from visgraft._shapes import Example, fake_copy, fake_mode, first_line, shapes_only
from visgraft.blocks import block_info, list_blocks
from visgraft.surgery.holders import Holder

__all__ = ["Addition", "Call", "Trace", "Value", "opaque_modules", "trace"]

aten = torch.ops.aten
ADD = {aten.add.Tensor, aten.add_.Tensor}
WEIGHTED = {aten.convolution, aten.mm, aten.addmm, aten.bmm, aten.baddbmm}


@dataclass(eq=False, repr=False)
class Value:
    """A tensor between two operations.

    Attributes:
        time: When it was made.
        shape: Its shape.
        parents: The values it was made from; parameters are none.
        weighs: Whether it came out of a convolution or a matrix product that no graft added.
        is_map: True when known to be ``(B, C, H, W)``, False when known to be ``(B, H, W, C)``,
            None when unknown.
    """

    time: int
    shape: tuple[int, ...]
    parents: tuple["Value", ...] = ()
    weighs: bool = False
    is_map: bool | None = None


@dataclass(eq=False, repr=False)
class Call:
    """One call of a module.

    Attributes:
        path: First name of the module in the model.
        start: Time of entry.
        end: Time of return.
        parent: The call it was made from.
        input: Its first argument, by place or by name, when that is a tensor made in the run.
        output: What it returned, when that is a tensor made in the run.
        opaque: Whether the module is part of a block that was grafted or is in the catalogue.
        macs: Multiply-accumulate operations in the course of the call.
        by_keyword: Whether the first argument was given by its name.
    """

    path: str
    start: int
    parent: "Call | None"
    opaque: bool
    input: Value | None = None
    output: Value | None = None
    end: int = -1
    macs: int = 0
    by_keyword: bool = False

    def encloses(self, other: "Call") -> bool:
        """Whether ``other`` was made in the course of this call."""
        return self.start < other.start and other.end < self.end


@dataclass(eq=False, repr=False)
class Addition:
    """One addition of two maps of the same shape, and the call in which it was written."""

    operands: tuple[Value, Value]
    result: Value
    inside: Call


@dataclass(repr=False)
class Trace:
    """One run of a model on shapes alone.

    Attributes:
        example: What it ran on.
        modules: The model's modules by their first name.
        names: All names of each module, the first one first.
        calls: By path, in order of time.
        additions: In order of time, without those inside opaque blocks.
        opaque: Paths of the modules inside blocks, and of the holders of blocks.
        macs: Multiply-accumulate operations of the run.
    """

    example: Example
    modules: dict[str, nn.Module]
    names: dict[nn.Module, list[str]]
    opaque: set[str]
    calls: dict[str, list[Call]] = field(default_factory=dict)
    additions: list[Addition] = field(default_factory=list)
    macs: int = 0

    def in_order(self) -> list[Call]:
        """Returns all calls by time of return."""
        return sorted((c for calls in self.calls.values() for c in calls), key=lambda c: c.end)


def trace(owner: str, model: nn.Module, example: Any = None) -> Trace:
    """Runs a copy of ``model`` on shapes and returns what happened; ``model`` is not touched.

    Args:
        owner: Function that complains when the run fails.
        model: Any module.
        example: A tensor, a shape, a tuple of positional or a dict of keyword arguments; None
            takes one image of the size the model asks for.

    Raises:
        ValueError: No example can be guessed, or the model does not run on it.
    """
    if example is None:
        tries = _default_examples(model)
    else:
        tries = [example if isinstance(example, Example) else Example.of(owner, example)]
    if not tries:
        raise ValueError(
            f"{owner}: {type(model).__name__} has no convolution to tell the shape of its input; "
            "pass example=, a tensor or a shape such as (1, 3, 224, 224)"
        )
    errors = []
    for attempt in tries:
        try:
            return _run(model, attempt)
        except Exception as error:
            errors.append(error)
    raise ValueError(_failure(owner, model, tries[0], errors[0])) from errors[0]


def _default_examples(model: nn.Module) -> list[Example]:
    """Returns one image of the likely shapes, the likeliest first; none without a convolution.

    Channels are those of the first convolution (or the configured ones, for models that rearrange
    the image first); rows and columns what the model's configuration says, as timm's models carry
    it, or 224.
    """
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if channels is None:
        return []
    shapes = [(1, channels, 224, 224)]
    side = getattr(getattr(model, "config", None), "image_size", None)  # as transformers has it
    if isinstance(side, int):
        shapes.insert(0, (1, channels, side, side))
    elif isinstance(side, (tuple, list)) and len(side) == 2:
        shapes.insert(0, (1, channels, *side))
    for name in ("default_cfg", "pretrained_cfg"):
        config = getattr(model, name, None)
        size = config.get("input_size") if isinstance(config, Mapping) else None
        if size is not None and len(size) == 3:
            shapes = [(1, channels, *size[1:]), (1, *size)]
    return [Example(shape=shape) for shape in dict.fromkeys(shapes)]


def _run(model: nn.Module, example: Example) -> Trace:
    names: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(path)
    modules = {paths[0]: module for module, paths in names.items()}
    run = Trace(example, modules, names, opaque_modules(modules))
    mode = fake_mode()
    flops = FlopCounterMode(display=False)
    recorder = _Recorder(run, flops)
    try:
        clone = fake_copy(model, mode)
    except Exception as error:
        raise _CopyError(first_line(error)) from error
    for path, module in clone.named_modules():
        recorder.watch(path, module)
    args, kwargs = example.fake(model, mode)
    recorder.note_inputs((args, kwargs))
    with shapes_only(mode), flops, recorder:
        clone(*args, **kwargs)
    run.macs = flops.get_total_flops() // 2
    return run


class _CopyError(Exception):
    """The model has an attribute that cannot be copied."""


def _failure(owner: str, model: nn.Module, example: Example, error: Exception) -> str:
    name = type(model).__name__
    if isinstance(error, _CopyError):
        return (
            f"{owner}: {name} cannot be copied by copy.deepcopy ({error}), which running it on "
            "shapes needs; take away the attribute, or pass a part of the model"
        )
    if isinstance(error, (DataDependentOutputException, DynamicOutputShapeException)):
        return (
            f"{owner}: the shapes inside {name} depend on values ({first_line(error)}), so it "
            "cannot be run on shapes alone; pass the part that computes maps, such as "
            "model.backbone"
        )
    shape = example.only_shape
    return (
        f"{owner}: {name} does not run on the example{f' of shape {shape}' if shape else ''} "
        f"({type(error).__name__}: {first_line(error)}); pass example=, a tensor or a shape such "
        "as (1, 3, 32, 32), that it runs on"
    )


def opaque_modules(modules: dict[str, nn.Module]) -> set[str]:
    """Returns the paths of holders and of all modules inside holders and catalogue blocks."""
    blocks = tuple(block_info(name).cls for name in list_blocks())
    holders = [p for p, m in modules.items() if isinstance(m, Holder)]
    closed = [p for p, m in modules.items() if isinstance(m, (Holder, *blocks))]
    inside = {
        path for path in modules for block in closed if path.startswith(block + ".") or not block
    }
    return inside.union(holders)


class _Recorder(TorchDispatchMode):
    """Writes a :class:`Trace`."""

    def __init__(self, run: Trace, flops: FlopCounterMode) -> None:
        super().__init__()
        self.run = run
        self.flops = flops
        self.time = 0
        self.values: dict[int, Value] = {}  # by id of the tensor
        self.alive: list[Tensor] = []  # so that no id is used twice
        self.stack: list[Call] = []
        self.parameterless: dict[str, bool] = {}
        self.holders = 0  # how many are running

    def watch(self, path: str, module: nn.Module) -> None:
        self.parameterless[path] = next(module.parameters(), None) is None
        opaque = path in self.run.opaque

        is_holder = isinstance(module, Holder)
        flops: list[int] = []

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            parent = self.stack[-1] if self.stack else None
            call = Call(path, self.tick(), parent, opaque, by_keyword=not args)
            call.input = self.value_of(next(chain(args, kwargs.values()), None))
            self.stack.append(call)
            self.holders += is_holder
            flops.append(self.flops.get_total_flops())

        def leave(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            self.holders -= is_holder
            call = self.stack.pop()
            while call.path != path:  # left by an exception that the model caught
                call = self.stack.pop()
            call.end = self.tick()
            call.output = self.value_of(output)
            call.macs = (self.flops.get_total_flops() - flops.pop()) // 2
            self.run.calls.setdefault(path, []).append(call)

        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave)

    def tick(self) -> int:
        self.time += 1
        return self.time

    def value_of(self, tensor: object) -> Value | None:
        return self.values.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def note_inputs(self, inputs: Any) -> None:
        for tensor in _tensors(inputs):
            is_map = True if tensor.ndim == 4 else None
            self.note(tensor, Value(self.tick(), tuple(tensor.shape), is_map=is_map))

    def note(self, tensor: Tensor, value: Value) -> None:
        self.alive.append(tensor)
        self.values[id(tensor)] = value

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        parents = [v for t in _tensors((args, kwargs)) if (v := self.value_of(t)) is not None]
        time = self.tick()
        result = func(*args, **kwargs)
        weighs = func.overloadpacket in WEIGHTED and not self.holders
        for tensor in _tensors(result):
            is_map = _is_map(func, args, tensor, parents)
            shape = tuple(tensor.shape)
            value = Value(time, shape, tuple(parents), weighs, is_map)
            self.note(tensor, value)
            if func in ADD and len(parents) == 2 and self.stack:
                self.note_addition(parents[0], parents[1], value)
        return result

    def note_addition(self, a: Value, b: Value, result: Value) -> None:
        call = self.stack[-1]
        if call.opaque or a.shape != b.shape or not (a.is_map and b.is_map):
            return
        while call.parent is not None and self.parameterless[call.path]:
            call = call.parent  # a module that only adds, such as FloatFunctional
        self.run.additions.append(Addition((a, b), result, call))


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _is_map(func: Any, args: tuple[Any, ...], result: Tensor, parents: list[Value]) -> bool | None:
    """Follows the order of the axes through an operation."""
    if result.ndim != 4:
        return None
    if func is aten.convolution.default:
        return True
    if func is aten.permute.default:
        order = [d % 4 for d in args[1]]
        return {(0, 3, 1, 2): True, (0, 2, 3, 1): False}.get(tuple(order))
    of_same_rank = [p for p in parents if len(p.shape) == 4 and p.is_map is not None]
    if not of_same_rank or func.overloadpacket is aten.transpose:
        return None
    reshapes = func.overloadpacket in (aten.view, aten._unsafe_view, aten.reshape)
    if reshapes and tuple(result.shape) != of_same_rank[0].shape:
        return None
    return all(p.is_map for p in of_same_rank)


def exclusive_ancestors(a: Value, b: Value) -> tuple[list[Value], list[Value]]:
    """Returns what only ``a`` and what only ``b`` was made from, themselves included."""
    marks = {a: 1, b: 2}
    only: dict[int, list[Value]] = {1: [], 2: []}
    queue = [(-v.time, id(v), v) for v in (a, b)]
    heapq.heapify(queue)
    while any(marks[v] != 3 for _, _, v in queue):
        _, _, value = heapq.heappop(queue)  # the youngest: all its descendants have been seen
        mark = marks[value]
        if mark != 3:
            only[mark].append(value)
        for parent in value.parents:
            if parent not in marks:
                heapq.heappush(queue, (-parent.time, id(parent), parent))
            marks[parent] = marks.get(parent, 0) | mark
    return only[1], only[2]
