"""Window attention on any map: tiles of queries attend to the keys of the tile and its halo.

The keys and values of all tiles, three to four times the map, exist only while a few images are
computed: for the backward pass they are gathered again.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from visgraft.ops._dispatch import Implementation, being_traced
from visgraft.ops._exporting import exporting
from visgraft.ops.window_attention._geometry import AxisTiles, divide_axis

__all__ = ["TILES"]

_AT_ONCE_ON_CPU = 2**20  # gathered key elements: those of one tensor fill 4 MiB of cache
_AT_ONCE = 2**27


def _run(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int, stride: int, dilation: int
) -> Tensor:
    axes = [divide_axis(n, kernel_size, stride, dilation) for n in query.shape[3:]]
    if being_traced():
        return _attend(query, key, value, *axes)
    gathered = query.shape[1] * query.shape[2]
    for axis in axes:
        gathered *= axis.count * axis.phases * axis.span
    images = max(1, (_AT_ONCE_ON_CPU if query.device.type == "cpu" else _AT_ONCE) // gathered)
    parts = zip(query.split(images), key.split(images), value.split(images), strict=True)
    return torch.cat([_attend(*part, *axes) for part in parts])


def _attend(
    query: Tensor, key: Tensor, value: Tensor, rows: AxisTiles, columns: AxisTiles
) -> Tensor:
    """Attends within the tiles of some images."""
    device = query.device
    inside = rows.inside(device)[:, None, :, None] & columns.inside(device)[None, :, None, :]
    inside = inside.view(rows.side * columns.side, rows.span * columns.span)
    index = _key_index(key, rows, columns)
    remakes = [
        partial(_query_tiles, query.detach(), rows, columns),
        partial(_key_tiles, key.detach(), index),
        partial(_key_tiles, value.detach(), index),
    ]
    tiles = (_query_tiles(query, rows, columns), _key_tiles(key, index), _key_tiles(value, index))
    if being_traced():
        out = functional.scaled_dot_product_attention(*tiles, inside)
    else:
        with _made_again((query, key, value), tiles, remakes):
            out = functional.scaled_dot_product_attention(*tiles, inside)
    return _from_query_tiles(out, query, rows, columns)


def _key_index(key: Tensor, rows: AxisTiles, columns: AxisTiles) -> Tensor:
    """Returns ``(tiles of all images, span * span)``, positions among those of all images."""
    b, _, _, h, w = key.shape
    y = rows.keys(h, key.device)[:, :, None, None, :, None] * w
    x = columns.keys(w, key.device)[None, None, :, :, None, :]
    image = torch.arange(b, device=key.device)[:, None, None, None, None, None, None] * (h * w)
    tiles = b * rows.count * rows.phases * columns.count * columns.phases
    return (image + (y + x)).reshape(tiles, rows.span * columns.span)


def _key_tiles(x: Tensor, index: Tensor) -> Tensor:
    """Returns ``(tiles, M, span * span, D)``."""
    b, m, d, h, w = x.shape
    positions = x.permute(0, 3, 4, 1, 2).reshape(b * h * w, m * d)
    return functional.embedding(index, positions).unflatten(2, (m, d)).transpose(1, 2)


def _query_tiles(x: Tensor, rows: AxisTiles, columns: AxisTiles) -> Tensor:
    """Returns ``(tiles, M, side * side, D)``; queries beyond the map are zero."""
    b, m, d, h, w = x.shape
    below = rows.count * rows.side * rows.phases - h
    beside = columns.count * columns.side * columns.phases - w
    x = x.permute(0, 3, 4, 1, 2)
    if exporting() or below or beside:
        x = functional.pad(x, (0, 0, 0, 0, 0, beside, 0, below))
    x = x.reshape(
        b, rows.count, rows.side, rows.phases, columns.count, columns.side, columns.phases, m, d
    )
    x = x.permute(0, 1, 3, 4, 6, 7, 2, 5, 8)
    tiles = b * rows.count * rows.phases * columns.count * columns.phases
    return x.reshape(tiles, m, rows.side * columns.side, d)


def _from_query_tiles(out: Tensor, query: Tensor, rows: AxisTiles, columns: AxisTiles) -> Tensor:
    """Puts the results of the tiles where their queries stood."""
    b, m, d, h, w = query.shape
    out = out.reshape(
        b, rows.count, rows.phases, columns.count, columns.phases, m, rows.side, columns.side, d
    )
    out = out.permute(0, 5, 8, 1, 6, 2, 3, 7, 4)
    height = rows.count * rows.side * rows.phases
    width = columns.count * columns.side * columns.phases
    return out.reshape(b, m, d, height, width)[..., :h, :w]


def _made_again(
    sources: Sequence[Tensor], made: Sequence[Tensor], remakes: Sequence[Callable[[], Tensor]]
) -> saved_tensors_hooks:
    """Keeps the way to make each tensor for the backward pass, instead of the tensor itself."""
    versions = [source._version for source in sources]
    places = {id(tensor): i for i, tensor in enumerate(made)}  # autograd keeps what pack refers to

    def pack(tensor: Tensor) -> Tensor | int:
        return places.get(id(tensor), tensor)

    def unpack(packed: Tensor | int) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        if sources[packed]._version != versions[packed]:
            raise RuntimeError(
                "window_attention: a query, key or value was changed in place before the backward "
                "pass, which needs it as it was"
            )
        return remakes[packed]()

    return saved_tensors_hooks(pack, unpack)


TILES = Implementation("tiles", _run, lambda *_: None)
