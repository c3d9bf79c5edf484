"""Which sizes of a network's tensors grow together: groups of channels, and layouts made of them.

A layout says what one dimension of a tensor consists of: pieces of groups, one after the other,
each of which grows in proportion to its group. None is a dimension that keeps its size.
"""

import math
from collections.abc import Iterable, Sequence

__all__ = ["Groups", "Layout"]

Segment = tuple[int, int]
"""A group, and how many entries of the dimension grow in proportion to it."""

Layout = tuple[Segment, ...] | None

_GOLDEN = (math.sqrt(5) - 1) / 2


class Groups:
    """Groups of channels that always have the same number, found by equating layouts.

    A group that turns out to consist of others is bound to their layout. Numbers of channels are
    multiples of a step, where a convolution has groups or a tensor is cut into parts.
    """

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._steps: list[int] = []  # how many equal steps the size is made of
        self._frozen: list[bool] = []
        self._bound: list[Layout] = []

    def add(self, size: int) -> Layout:
        """Returns the layout of a new group; of one entry it is None."""
        if size == 1:
            return None
        self._sizes.append(size)
        self._steps.append(size)
        self._frozen.append(False)
        self._bound.append(None)
        return ((len(self._sizes) - 1, size),)

    def freeze(self, layout: Layout) -> bool:
        """Lets a layout keep its size; tells whether it could grow before."""
        resolved = self.resolve(layout) or ()
        changed = any(not self._frozen[group] for group, _ in resolved)
        for group, _ in resolved:
            self._frozen[group] = True
        return changed

    def resolve(self, layout: Layout) -> Layout:
        """Returns a layout in terms of groups that are bound to no others."""
        if layout is None:
            return None
        found: list[Segment] = []
        for group, size in layout:
            bound, whole = self.resolve(self._bound[group]), self._sizes[group]
            if bound is None:
                found.append((group, size))
            elif all(part * size % whole == 0 for _, part in bound):
                found += self._limited((g, part * size // whole) for g, part in bound)
            else:
                found += self._fixed(bound, size)
        return tuple(found)

    def equate(self, first: Layout, second: Layout) -> Layout:
        """Makes two dimensions of one size grow alike, and returns their layout."""
        if first is None or second is None:
            self.freeze(first or second)
            return None
        found: list[Segment] = []
        while first and second:
            (group, size), (other, length) = first[0], second[0]
            if size == length:
                self._join(first[0], second[0])
                found.append(first[0])
                first, second = first[1:], second[1:]
            elif size > length:
                self._split(group, size, length)
            else:
                self._split(other, length, size)
            first, second = self.resolve(first), self.resolve(second)
            if first and second and self._are_stuck(first[0], second[0]):
                self.freeze((*first, *second))
                return self.resolve((*found, *first))
        return self.resolve(tuple(found))

    def scaled(self, layout: Layout, factor: int, divisor: int = 1) -> Layout:
        """Returns the layout of a dimension ``factor / divisor`` times as long."""
        resolved = self.resolve(layout)
        if resolved is None:
            return None
        if any(size * factor % divisor for _, size in resolved):
            self.freeze(resolved)
            return None
        return tuple(self._limited((g, size * factor // divisor) for g, size in resolved))

    def cut(self, layout: Layout, lengths: Sequence[int]) -> list[Layout]:
        """Returns the layouts of consecutive parts of a dimension."""
        rest = list(self.resolve(layout) or ())
        parts: list[Layout] = []
        for length in lengths:
            taken: list[Segment] = []
            while rest and sum(size for _, size in taken) < length:
                taken.append(rest.pop(0))
            parts.append(tuple(taken))
            if sum(size for _, size in taken) != length:
                break
        else:
            return parts
        if len(set(lengths)) == 1:  # equal parts of what is one
            return [self.scaled(layout, 1, len(lengths))] * len(lengths)
        self.freeze(layout)
        return [None] * len(lengths)

    def joined(self, layouts: Sequence[Layout], sizes: Sequence[int]) -> Layout:
        """Returns the layout of dimensions that are laid end to end."""
        if all(layout is None for layout in layouts):
            return None
        found: list[Segment] = []
        for layout, size in zip(layouts, sizes, strict=True):
            found += self.resolve(layout) or self._constant(size)
        return tuple(found)

    def numbers(self, factor: float) -> dict[int, int]:
        """Returns the sizes of the groups in a network ``factor`` times as wide.

        Groups of one size are rounded at different factors, so that the network grows evenly.
        """
        return {g: self._rounded(g, self._steps[g] * factor + self._offset(g)) for g in self.free()}

    def probing_numbers(self) -> dict[int, int]:
        """Returns sizes in which every group that can grow has grown, not all by as much."""
        return {g: self._rounded(g, self._steps[g] + 1 + g % 3) for g in self.free()}

    def free(self) -> Iterable[int]:
        """Returns the groups that can grow."""
        return [
            group
            for group, bound in enumerate(self._bound)
            if bound is None and not self._frozen[group]
        ]

    def length(self, layout: Layout, size: int, numbers: dict[int, int]) -> int:
        """Returns the size of a dimension that now has ``size``."""
        resolved = self.resolve(layout)
        if resolved is None:
            return size
        return sum(s * numbers.get(g, self._sizes[g]) // self._sizes[g] for g, s in resolved)

    def _rounded(self, group: int, steps: float) -> int:
        return self._sizes[group] // self._steps[group] * max(1, math.floor(steps))

    @staticmethod
    def _offset(group: int) -> float:
        return group * _GOLDEN % 1.0

    def _limited(self, segments: Iterable[Segment]) -> Iterable[Segment]:
        for group, size in segments:
            self._steps[group] = math.gcd(self._steps[group], size)
            yield group, size

    def _constant(self, size: int) -> tuple[Segment, ...]:
        """Returns a layout that keeps its size."""
        layout = self.add(size)
        if layout is None:  # of one entry, which add does not count
            self._sizes.append(1)
            self._steps.append(1)
            self._frozen.append(True)
            self._bound.append(None)
            return ((len(self._sizes) - 1, 1),)
        self.freeze(layout)
        return layout

    def _fixed(self, layout: Layout, size: int) -> tuple[Segment, ...]:
        self.freeze(layout)
        return self._constant(size)

    def _is_whole(self, segment: Segment) -> bool:
        return segment[1] == self._sizes[segment[0]]

    def _are_stuck(self, first: Segment, second: Segment) -> bool:
        """Tells whether two segments differ in length and the longer one cannot be split."""
        longer = max(first, second, key=lambda segment: segment[1])
        return first[1] != second[1] and not self._is_whole(longer)

    def _join(self, first: Segment, second: Segment) -> None:
        """Makes two segments of one length grow alike."""
        if first == second:
            return
        if self._is_whole(first) and self._is_whole(second):
            low, high = sorted((first, second))
            self._bind(high[0], (low,))
        elif self._is_whole(first):
            self._bind(first[0], (second,))
        elif self._is_whole(second):
            self._bind(second[0], (first,))
        elif first[0] != second[0] and self._sizes[first[0]] == self._sizes[second[0]]:
            low, high = sorted((first[0], second[0]))
            self._bind(high, ((low, self._sizes[low]),))
        else:
            self.freeze((first, second))

    def _split(self, group: int, size: int, length: int) -> None:
        """Cuts a group in two; what is not a group as a whole is left as it is."""
        if size != self._sizes[group]:
            return
        parts = []
        for part in (length, size - length):
            parts += self.add(part) or self._constant(part)
        self._bind(group, tuple(parts))

    def _bind(self, group: int, layout: tuple[Segment, ...]) -> None:
        """Lets a group be what a layout says, with the limits that it has."""
        if any(other == group for other, _ in layout):
            self.freeze(layout)
            return
        step = self._sizes[group] // self._steps[group]
        for other, size in layout:
            if size % step:
                self._frozen[other] = True
            self._steps[other] = math.gcd(self._steps[other], max(1, size // step))
        self._bound[group] = layout
        if self._frozen[group]:
            self.freeze(layout)
