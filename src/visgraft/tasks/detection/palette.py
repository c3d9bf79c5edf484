"""Colours that stay apart, also for eyes that tell red and green, or blue and yellow, badly.

Sources: the first seven are those of Okabe and Ito, "Color Universal Design", 2008,
    https://jfly.uni-koeln.de/color. Each further one is the colour that is farthest (in CIELAB)
    from all before it, for normal vision and for the three kinds of colour blindness as simulated
    by Machado, Oliveira and Fernandes, IEEE TVCG 2009, https://doi.org/10.1109/TVCG.2009.113.
"""

__all__ = ["class_color", "ink_on"]

Color = tuple[int, int, int]

_ROWS = (
    "e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7 8800ff bbee99 994433",
    "bb55ff 00ffcc aaaa55 884477 bb0000 88ee66 8822cc ff0066 aa1199 9999ff",
    "ff7799 ffbbee aa2255 7777dd 88cc88 aa6633 dd00cc 99cc33 bb77bb bb9933",
    "ff77dd 22ddbb bb5599 8844ff 336600 bbcc77 558855 ee99cc cc7777 00bb99",
    "dd2222 bb4477 ccee88 555599 cc44bb ffbb44 aaeeaa eebbff 4455dd 3377ee",
    "ee99ff ee4455 77ddaa ccbb55 cc3344 99aa66 9911bb dd7700 aa0088 cc2288",
    "227744 ee5588 998833 1188cc 9988ff 77eedd 993366 ffcc00 cc4455 cc88bb",
    "88dd66 cc8844 66cc66 aa22aa 557722 bb77dd 338866 cc5588 33cccc bb1122",
)
_COLORS = [code for row in _ROWS for code in row.split()]


def class_color(label: int) -> Color:
    """Returns red, green and blue (0 to 255) of a class; from the 81st on they begin anew."""
    code = _COLORS[label % len(_COLORS)]
    return int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16)


def ink_on(color: Color) -> Color:
    """Returns black or white, whichever is read better on a colour."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)  # equal contrast at 0.179 (WCAG)
