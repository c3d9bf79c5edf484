"""How a report writes numbers."""

import math

__all__ = [
    "duration",
    "interval",
    "latency",
    "memory",
    "p_value",
    "percent",
    "quantity",
    "signed",
    "value",
    "versus",
]

NOTHING = "–"  # noqa: RUF001 (an en dash stands for "no number")
NONE = "none"
"""For what was measured and does not exist, such as the precision on objects that are not there."""
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def value(number: float | None) -> str:
    """Two decimals: ``93.41``; ``none`` for NaN."""
    if number is None:
        return NOTHING
    return NONE if math.isnan(number) else f"{number:.2f}"


def signed(number: float | None) -> str:
    """Two decimals and always a sign, a plus for what rounds to zero: ``+0.42``."""
    return NOTHING if number is None else f"{round(number, 2) + 0.0:+.2f}"


def interval(mean: float | None, low: float | None, high: float | None) -> str:
    """A signed number with its interval: ``+0.42 [-0.10, +0.94]``."""
    if mean is None or low is None or high is None:
        return signed(mean)
    return f"{signed(mean)} [{signed(low)}, {signed(high)}]"


def p_value(p: float | None) -> str:
    """Three decimals, or ``< 0.001``."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.0005 else f"{p:.3f}"


def quantity(count: float | None) -> str:
    """Three digits with the unit of the thousands: ``1.23 M``."""
    if count is None:
        return NOTHING
    for size, unit in _UNITS:
        if count >= 0.9995 * size:
            return f"{_three_digits(count / size)} {unit}"
    return f"{count:.0f}"


def versus(count: float | None, reference: float | None) -> str:
    """The relative difference in percent: ``+4.1 %``; empty without a reference."""
    if count is None or not reference:
        return ""
    percent = round(100 * (count / reference - 1), 1) + 0.0
    return f"{percent:+.1f} %"


def duration(seconds: float | None) -> str:
    """The largest fitting unit: ``74.2 s``, ``12.3 min``, ``5.1 h``."""
    if seconds is None:
        return NOTHING
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def latency(seconds: float | None) -> str:
    """Three digits with the fitting unit: ``1.23 ms``, ``85.0 µs``, ``2.10 s``."""
    if not seconds:
        return NOTHING
    size, unit = next(
        ((size, unit) for size, unit in ((1.0, "s"), (1e-3, "ms")) if seconds >= 0.9995 * size),
        (1e-6, "µs"),
    )
    return f"{_three_digits(seconds / size)} {unit}"


def memory(count: float | None) -> str:
    """Bytes with a binary unit: ``12.3 MiB``."""
    if count is None:
        return NOTHING
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= 0.9995 * size:
            return f"{_three_digits(count / size)} {unit}"
    return f"{count:.0f} B"


def percent(share: float | None) -> str:
    """A share in whole percent: ``71 %``."""
    return NOTHING if share is None else f"{100 * share:.0f} %"


def _three_digits(number: float) -> str:
    decimals = 2 - math.floor(math.log10(float(f"{number:.2e}")))
    return f"{number:.{max(decimals, 0)}f}"
