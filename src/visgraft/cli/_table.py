"""Tables of plain text."""

from collections.abc import Sequence

__all__ = ["format_count", "format_table"]


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns aligned columns; numbers to the right, text to the left."""
    cells = [[str(c) for c in row] for row in rows]
    widths = [max(len(r[i]) for r in [list(header), *cells]) for i in range(len(header))]
    right = [bool(cells) and all(_is_number(r[i]) for r in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in [list(header), ["-" * w for w in widths], *cells]
    ]
    return "\n".join(lines)


def format_count(value: float) -> str:
    """Returns a count with a thousands' unit: 26 744 as ``26.7 k``."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:g}"


def _is_number(text: str) -> bool:
    return bool(text) and (text[0].isdigit() or text in {"-", "?"})
