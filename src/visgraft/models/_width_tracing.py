"""Follows channels through a network: which dimensions of its tensors grow together.

A network runs on shapes, and every operation of it says something about the layouts of what goes
in and what comes out. An operation that is not known here keeps the sizes that it sees.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from visgraft.models._width_layouts import Groups
from visgraft.models._width_rules import RULES, Layouts, Operation, alike

__all__ = ["DeviationError", "Record", "Replay", "Trace"]


@dataclass(frozen=True)
class Record:
    """One operation of a run.

    Attributes:
        name: Of the operation.
        seen: Layouts of everything that went in.
        shapes: Of what came out.
        layouts: Of what came out.
    """

    name: str
    seen: Layouts
    shapes: tuple[tuple[int, ...], ...]
    layouts: tuple[Layouts, ...]


class Trace(TorchDispatchMode):
    """Runs what is inside, and notes for every operation which dimensions grow together.

    Attributes:
        records: The operations.
        depthwise: Weights of convolutions that have as many groups as channels.
        used: Weights that something was computed with.
    """

    def __init__(self, groups: Groups, weights: Mapping[str, tuple[Tensor, Layouts]]) -> None:
        super().__init__()
        self._groups = groups
        self._labels: Any = WeakTensorKeyDictionary()
        self._names: Any = WeakTensorKeyDictionary()
        for name, (tensor, layouts) in weights.items():
            self._labels[tensor] = layouts
            self._names[tensor] = name
        self.records: list[Record] = []
        self.depthwise: set[str] = set()
        self.used: set[str] = set()

    def layouts(self, tensor: Tensor) -> Layouts:
        """Returns what is known of a tensor."""
        return self._labels.get(tensor, (None,) * tensor.ndim)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        seen = tuple(layout for t in given for layout in self.layouts(t))
        self.used.update(self._names[t] for t in given if t in self._names)
        out = func(*args, **(kwargs or {}))
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if not results:
            return out  # a question, such as which device
        name = func.overloadpacket.__name__
        rule = RULES.get(name, alike if torch.Tag.pointwise in func.tags else None)
        op = Operation(args, given, results, self._groups, self.layouts, self._note_depthwise)
        found = rule(op) if rule and given else None
        if found is None:
            for layout in seen:
                self._groups.freeze(layout)
            found = [(None,) * t.ndim for t in results]
        for tensor, layouts in zip(results, found, strict=True):
            self._labels[tensor] = layouts
        shapes = tuple(tuple(t.shape) for t in results)
        self.records.append(Record(name, seen, shapes, tuple(found)))
        return out

    def _note_depthwise(self, weight: Tensor) -> None:
        if weight in self._names:
            self.depthwise.add(self._names[weight])


class DeviationError(Exception):
    """An operation of a network that has grown does not give what its layouts say."""


class Replay(TorchDispatchMode):
    """Runs what is inside and compares each operation with its record.

    Attributes:
        done: Number of operations that gave what was expected.
    """

    def __init__(self, groups: Groups, records: Sequence[Record], numbers: dict[int, int]) -> None:
        super().__init__()
        self._groups, self._records, self._numbers = groups, records, numbers
        self.done = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        shapes = [tuple(t.shape) for t in tree_leaves(out) if isinstance(t, Tensor)]
        if not shapes:
            return out
        name = func.overloadpacket.__name__
        if self.done >= len(self._records):
            raise DeviationError(f"{name} is one operation too many")
        record = self._records[self.done]
        expected = [
            tuple(
                self._groups.length(layout, size, self._numbers)
                for layout, size in zip(layouts, shape, strict=True)
            )
            for layouts, shape in zip(record.layouts, record.shapes, strict=True)
        ]
        if name != record.name or shapes != expected:
            raise DeviationError(f"{name} gives {shapes} in place of {expected}")
        self.done += 1
        return out

    def freeze(self) -> bool:
        """Lets what the operation that went wrong works on keep its size.

        Where nothing of it can grow, a size was read off a tensor before: the last that can grow.
        Returns whether there was any.
        """
        last = min(self.done, len(self._records) - 1)
        for record in reversed(self._records[: last + 1]):
            layouts = [*record.seen, *(layout for own in record.layouts for layout in own)]
            frozen = [self._groups.freeze(layout) for layout in layouts]
            if any(frozen):
                return True
        return False
