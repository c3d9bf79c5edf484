"""Which part of a map each tap of a kernel reads, and for which part of the output."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Geometry", "Tap"]


@dataclass(frozen=True)
class Tap:
    """One position of the kernel.

    Attributes:
        number: Its place in the kernel, counted row by row.
        reads: The part of the map it reads.
        writes: The part of the output it contributes to, of the same size.
    """

    number: int
    reads: tuple[slice, ...]
    writes: tuple[slice, ...]


@dataclass(frozen=True)
class Geometry:
    """How positions of the output map to positions of the input."""

    kernel_size: int
    stride: int
    padding: int
    dilation: int
    size: tuple[int, int]
    out_size: tuple[int, int]

    @property
    def joined(self) -> bool:
        """Whether rows are joined: a shift is then one offset into the flattened map."""
        return self.stride == 1 and self.size == self.out_size

    def join(self, t: Tensor) -> Tensor:
        """Returns ``(..., H, W)`` as ``(..., H * W)`` where rows are joined."""
        return t.flatten(-2) if self.joined else t

    def columns(self) -> list[tuple[int, list[Tap]]]:
        """Returns the taps that meet the map by column of the kernel, each with its shift.

        The shift is how far to the right the column lies where rows are joined, otherwise 0.
        """
        columns = []
        for left in range(self.kernel_size):
            taps = [self._tap(top, left) for top in range(self.kernel_size)]
            shift = self.dilation * left - self.padding if self.joined else 0
            columns.append((shift, [tap for tap in taps if tap is not None]))
        return [column for column in columns if column[1]]

    def cleared(self, t: Tensor, shift: int) -> Tensor:
        """Returns joined rows with zeros where reading ``shift`` further meets another row."""
        if shift == 0:
            return t
        rows = t.unflatten(-1, self.size).clone()
        wrapped = rows[..., :shift] if shift > 0 else rows[..., shift:]
        wrapped.zero_()
        return rows.flatten(-2)

    def _tap(self, top: int, left: int) -> Tap | None:
        """Returns the tap in this row and column of the kernel, or None if it misses the map."""
        down, right = (self.dilation * i - self.padding for i in (top, left))
        shifts = [down, right]
        spans = [self._span(shift, axis) for axis, shift in enumerate(shifts)]
        if not all(spans):
            return None
        if self.joined:
            length, offset = self.size[0] * self.size[1], down * self.size[1] + right
            shifts, spans = [offset], [range(max(0, -offset), min(length, length - offset))]
        reads = [
            slice(span[0] * self.stride + shift, span[-1] * self.stride + shift + 1, self.stride)
            for span, shift in zip(spans, shifts, strict=True)
        ]
        writes = [slice(span.start, span.stop) for span in spans]
        return Tap(top * self.kernel_size + left, tuple(reads), tuple(writes))

    def _span(self, shift: int, axis: int) -> range:
        """Returns the output positions along one axis that read inside the map."""
        first = max(0, -(shift // self.stride))
        last = (self.size[axis] - 1 - shift) // self.stride
        return range(first, min(self.out_size[axis], last + 1))
