"""Checks of arguments and inputs, with one wording for all blocks."""

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = [
    "check_choice",
    "check_divides",
    "check_feature_map",
    "check_odd",
    "check_positive",
    "check_statistics",
]


def check_positive(owner: str, **values: int) -> None:
    """Raises ValueError unless each named value is an integer of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{owner}: {name} must be an integer >= 1, got {value!r}")


def check_odd(owner: str, **values: int) -> None:
    """Raises ValueError unless each named value is an odd integer of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1 or value % 2 == 0:
            raise ValueError(f"{owner}: {name} must be an odd integer >= 1, got {value!r}")


def check_divides(owner: str, divisor: int, why: str, **values: int) -> None:
    """Raises ValueError unless each named value is a multiple of ``divisor``."""
    for name, value in values.items():
        if value % divisor:
            raise ValueError(
                f"{owner}: {name} must be a multiple of {divisor} ({why}), got {value}"
            )


def check_choice(owner: str, choices: Sequence[object], **values: object) -> None:
    """Raises ValueError unless each named value is one of the choices."""
    for name, value in values.items():
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            legal = " or ".join(map(repr, choices))
            raise ValueError(f"{owner}: {name} must be {legal}, got {value!r}")


def check_feature_map(owner: str, x: Tensor, channels: int) -> None:
    """Raises ValueError unless ``x`` is floating point and ``(B, channels, H, W)``."""
    if x.ndim != 4 or x.shape[1] != channels or x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"{owner}: expected (B, {channels}, H, W), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{owner}: expected a floating-point map, got {x.dtype}; convert it first")


def check_statistics(owner: str, norm: nn.Module, values: int, where: str) -> None:
    """Raises ValueError where batch normalisation has fewer than two values per channel.

    Args:
        owner: The block that speaks.
        norm: The layer; only a plain BatchNorm2d in training mode is concerned.
        values: Values per channel that it will see.
        where: What they are, for the text.
    """
    if isinstance(norm, nn.BatchNorm2d) and norm.training and values < 2:
        raise ValueError(
            f"{owner}: training needs at least 2 values per channel for its batch statistics, got "
            f"{values} ({where}); use a larger batch, or call eval() on the block to freeze them"
        )
