"""What the attention of a model's blocks looks like for some images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from visgraft.blocks import MHSA, BottleneckAttention
from visgraft.inspect._kept import keeping_model

__all__ = ["attention_maps", "attention_places"]


def attention_maps(model: nn.Module, images: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
    """Reads what the blocks inside a model weigh their maps with, for some images.

    A block is read if it has a method ``attention_weights``, which takes what ``forward`` takes;
    ours have one but for ``SPDConv``, and a block of your own is read as soon as it has one:

    ====================================  ==============================  =========================
    block                                 shape                           what it is
    ====================================  ==============================  =========================
    ``BottleneckAttention``, ``MHSA``     ``(B, heads, H, W, H, W)``      the share of each position
                                                                          in what a position gets
    ``ACmix``                             ``(B, heads, H, W, A, A)``      the same, in the window
                                                                          around the position
    ``ACmixWindowAttention`` (Swin)       ``(B, heads, H, W, h, w)``      the same, in the window
                                                                          that holds it
    ``ContextualTransformer``             ``(B, C / 8, H, W, K, K)``      the kernel that 8 channels
                                                                          are summed under
    ``DeformConv``                        ``(B, groups, H, W, K, K)``     the scale of each tap
    ``GlobalContext``                     ``(B, 1, H, W)``                the share of each position
                                                                          in the context
    ``CoTAttention``                      ``(B, C, H, W)``                the gate, a softmax over
                                                                          the positions
    ``CoordAttention``                    ``(B, C, H, W)``                the gate
    ``SelectiveKernel``, ``SKAttention``  ``(B, branches, C)``            the share of each branch
    ====================================  ==============================  =========================

    H and W are those of the map that the block returns, so ``maps[path][b, m, y, x]`` is a picture
    of what head m of image b reads for position (y, x). A block that has nothing to show (average
    pooling, taps without a scale) is left out.

    Args:
        model: Any module; it is run in eval mode. Its modes and buffers stay as they were.
        images: What the model takes, prepared as for the network, on its device.

    Returns:
        By the path of the block, in the order in which they run. A block that runs several times
        is there once for each, as ``path``, ``path:2`` and so on.

    Raises:
        ValueError: No block that ran has attention weights.

    Example:
        >>> import timm
        >>> import visgraft as vg
        >>> model = timm.create_model("resnet18")
        >>> _ = vg.graft(model, "global_context", at="layer4.*.bn2")
        >>> maps = attention_maps(model, torch.randn(2, 3, 64, 96))
        >>> {path: tuple(weights.shape) for path, weights in maps.items()}
        {'layer4.0.bn2.graft.block': (2, 1, 2, 3), 'layer4.1.bn2.graft.block': (2, 1, 2, 3)}
    """
    found = _read_all(model, images, lambda _, weights: weights)
    if not found:
        raise ValueError(
            f"attention_maps: no block that ran in {type(model).__name__} has attention weights; "
            "graft one that has (vg.graft), or give yours a method attention_weights(x)"
        )
    return found


def attention_places(model: nn.Module, images: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
    """Reads how much the blocks inside a model make of each place of their maps.

    Of the blocks of `attention_maps`, those that weigh places: gates and shares of positions,
    ``(B, C, H, W)``, as the mean over the channels; attention of all positions to all as the mean
    share that a position gets from them and the heads. Windows, taps and branches are left out.

    Args:
        model: As for `attention_maps`.
        images: As for `attention_maps`.

    Returns:
        ``(B, H, W)`` by the path of the block, in the order in which they run; empty where none
        weighs places.
    """
    return _read_all(model, images, _of_places)


def _of_places(block: nn.Module, weights: Tensor) -> Tensor | None:
    if weights.dim() == 4:
        return weights.mean(1)
    return weights.mean((1, 2, 3)) if isinstance(block, BottleneckAttention | MHSA) else None


Reading = Callable[[nn.Module, Tensor], Tensor | None]


def _read_all(
    model: nn.Module, images: Tensor | Sequence[Tensor], reading: Reading
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    with keeping_model(model), _read_into(found, model, reading), torch.no_grad():
        model.eval()
        model(images)
    return found


@contextmanager
def _read_into(found: dict[str, Tensor], model: nn.Module, reading: Reading) -> Iterator[None]:
    """Reads each call of a block that can be read."""
    hooks = [
        module.register_forward_pre_hook(partial(_read, found, reading, path), with_kwargs=True)
        for path, module in model.named_modules()
        if callable(getattr(type(module), "attention_weights", None))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _read(
    found: dict[str, Tensor],
    reading: Reading,
    path: str,
    block: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    weights = block.attention_weights(*args, **kwargs)
    values = None if weights is None else reading(block, weights)
    if values is None:
        return
    name, times = path, 1
    while name in found:
        times += 1
        name = f"{path}:{times}"
    found[name] = values
