"""Blocks of the catalogue as layers of ultralytics' YAML: reading a row, building the layer.

A row is ``[from, repeats, name, [arguments]]``. The arguments are those of ultralytics' ``Conv``,
output channels (before width scaling), kernel size and stride, as far as the block has them, then
a mapping of options: ``[-1, 1, DeformConv, [128, 3, 2, {offset_groups: 2}]]``. ``C3With`` and
``C2fWith`` are ultralytics' ``C3`` and ``C2f`` with a block in each bottleneck:
``[-1, 3, C3With, [1024, CoT]]``.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from visgraft.blocks import SpaceToDepth, block_info, create_block
from visgraft.tasks.yolo._library import ultralytics_module
from visgraft.tasks.yolo._record import YAML_RECORD, YamlRecord

__all__ = ["LAYERS", "NormalisedBlock", "YamlLayer"]


class NormalisedBlock(nn.Module):
    """A block, batch normalisation and the network's activation, as ultralytics' ``Conv`` is built.

    Args:
        block: What takes the place of the convolution.
        channels: Of the block's output.

    Shape:
        - Input: as of the block.
        - Output: as of the block.
    """

    def __init__(self, block: nn.Module, channels: int) -> None:
        super().__init__()
        conv = ultralytics_module("NormalisedBlock", "nn.modules.conv").Conv
        self.conv = block
        self.bn = nn.BatchNorm2d(channels)
        self.act: nn.Module = conv.default_act

    def forward(self, x: Tensor) -> Tensor:
        """Returns the activation of the normalised output of the block."""
        return self.act(self.bn(self.conv(x)))


class YamlLayer(nn.Module):
    """What a name in the YAML stands for; calling the class builds the block.

    Attributes:
        block: Name in the catalogue.
        normalised: Whether batch normalisation and activation follow, unless ``norm: false``.
    """

    block: ClassVar[str]
    normalised: ClassVar[bool] = False

    def __new__(cls, channels: int, options: dict[str, Any]) -> nn.Module:  # type: ignore[misc]
        """Builds the layer for ``channels``; options are those of the block, and ``norm``."""
        options = dict(options)
        norm = options.pop("norm", cls.normalised)
        layer = create_block(cls.block, channels, **options)
        if norm:
            layer = NormalisedBlock(layer, options.get("out_channels", channels))
        return recorded(layer)

    @classmethod
    def yolo_row(
        cls,
        row: int,
        widths: Sequence[int],
        source: int | list[int],
        repeats: int,
        args: Sequence[Any],
        scaled: Callable[[int], int],
    ) -> tuple[int, int, list[Any]]:
        """Returns the output channels of a row, how often to call the class, and its arguments.

        Args:
            row: Its index.
            widths: Output channels of the layers so far.
            source: The row's ``from``.
            repeats: How often the layer is built, one after the other.
            args: The row's arguments.
            scaled: Applies the network's width to a number of channels.

        Raises:
            ValueError: The block does not take what the row says.
        """
        owner = f"layer {row} ({cls.__name__})"
        if not isinstance(source, int):
            raise ValueError(f"{owner}: reads one layer, got from {source}; put a Concat before it")
        channels = widths[source]
        try:
            made, arguments = cls._read(channels, list(args), scaled)
            calls, arguments = cls._repeated(channels, made, repeats, arguments)
            cls(*arguments)  # so that what the block refuses is said with the row
        except (ValueError, TypeError) as error:
            raise ValueError(f"{owner}: {error}") from error
        return made, calls, arguments

    @classmethod
    def _repeated(
        cls, channels: int, made: int, repeats: int, arguments: list[Any]
    ) -> tuple[int, list[Any]]:
        if repeats > 1 and cls._changes(channels, made, arguments):
            raise ValueError(f"changes the map, so it cannot be repeated {repeats} times; write 1")
        return repeats, arguments

    @classmethod
    def _read(
        cls, channels: int, args: list[Any], scaled: Callable[[int], int]
    ) -> tuple[int, list[Any]]:
        options: dict[str, Any] = {}
        if args and isinstance(args[-1], dict):
            options = args.pop()
        known = block_info(cls.block).options
        shrinks = "scale" if "scale" in known else "stride"
        names = ["out_channels", *(n for n in ("kernel_size", shrinks) if n in known)]
        if len(args) > len(names):
            raise ValueError(
                f"takes [{', '.join(names)}] and a mapping of options, got {len(args)} arguments"
            )
        options = {**dict(zip(names, args, strict=False)), **options}
        if "out_channels" not in options:
            return channels, [channels, options]
        wanted = channel_number(options.pop("out_channels"))
        made = scaled(wanted)
        if "out_channels" in known:
            options["out_channels"] = made
        elif made != channels:
            raise ValueError(
                f"keeps the {channels} channels it reads, got {wanted} (scaled: {made}); leave the "
                "number out"
            )
        return made, [channels, options]

    @classmethod
    def _changes(cls, channels: int, made: int, arguments: list[Any]) -> bool:
        options = {**block_info(cls.block).options, **arguments[1]}
        return made != channels or any(options.get(n, 1) not in (1, (1, 1)) for n in SHRINKING)


class _CspWith(YamlLayer):
    """ultralytics' ``C3`` or ``C2f`` with a block in place of each bottleneck's last convolution.

    The arguments are output channels, the name of the layer, and a mapping with its options and
    ``shortcut``, whether the bottlenecks add what they read. Rows and tensors around the block keep
    ultralytics' names.

    Attributes:
        unit: ultralytics' class.
    """

    unit: ClassVar[str]

    def __new__(  # type: ignore[misc]
        cls, channels: int, made: int, repeats: int, name: str, options: dict[str, Any]
    ) -> nn.Module:
        """Builds the layer."""
        options = dict(options)
        shortcut = options.pop("shortcut", True)
        unit = getattr(ultralytics_module(cls.__name__, "nn.modules.block"), cls.unit)
        csp = unit(channels, made, repeats, shortcut)
        for bottleneck in csp.m:
            width = bottleneck.cv2.conv.out_channels
            bottleneck.cv2 = LAYERS[name](width, options)
        return csp

    @classmethod
    def _read(
        cls, channels: int, args: list[Any], scaled: Callable[[int], int]
    ) -> tuple[int, list[Any]]:
        options = args.pop() if args and isinstance(args[-1], dict) else {}
        names = sorted(INSIDE)
        if len(args) != 2 or args[1] not in names:
            raise ValueError(
                f"takes [out_channels, layer] and a mapping of options, layer being one of "
                f"{', '.join(names)}, got {args}"
            )
        fixed = sorted({"out_channels", "padding", *SHRINKING} & options.keys())
        if fixed:
            raise ValueError(f"the layer inside keeps the map; leave out {', '.join(fixed)}")
        if not isinstance(options.get("shortcut", True), bool):
            raise ValueError(f"shortcut must be True or False, got {options['shortcut']!r}")
        made = scaled(channel_number(args[0]))
        return made, [channels, made, args[1], options]

    @classmethod
    def _repeated(
        cls,
        channels: int,  # noqa: ARG003
        made: int,  # noqa: ARG003
        repeats: int,
        arguments: list[Any],
    ) -> tuple[int, list[Any]]:
        return 1, [*arguments[:2], repeats, *arguments[2:]]


class _SpaceToDepth(YamlLayer):
    """The step of SPD-Conv alone; the row's argument is the scale."""

    def __new__(cls, scale: int) -> nn.Module:  # type: ignore[misc]
        """Builds the layer."""
        return recorded(SpaceToDepth(scale))

    @classmethod
    def _read(
        cls,
        channels: int,
        args: list[Any],
        scaled: Callable[[int], int],  # noqa: ARG003
    ) -> tuple[int, list[Any]]:
        if len(args) > 1:
            raise ValueError(f"takes [scale], got {len(args)} arguments")
        scale = args[0] if args else 2
        SpaceToDepth(scale)
        return channels * scale**2, [scale]

    @classmethod
    def _changes(cls, channels: int, made: int, arguments: list[Any]) -> bool:  # noqa: ARG003
        return made != channels


def channel_number(wanted: object) -> int:
    """Returns the output channels that a row asks for, or raises ValueError."""
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
        raise ValueError(f"output channels must be a positive integer, got {wanted!r}")
    return wanted


def recorded(layer: nn.Module) -> nn.Module:
    """Returns the layer with a record, so that whoever loads a file with it has the names too."""
    setattr(layer, YAML_RECORD, YamlRecord())
    return layer


SHRINKING = ("stride", "scale")
GATES_AND_MIXERS = {
    "CoT": "cot",
    "CoTAttention": "cot_attention",
    "CoordAttention": "coord_attention",
    "GlobalContext": "global_context",
    "SKAttention": "sk_attention",
    "SelectiveKernel": "selective_kernel",
}
CONVOLUTION_LIKE = {
    "ACmix": "acmix",
    "BottleneckAttention": "bottleneck_attention",
    "DeformConv": "deform_conv",
    "SPDConv": "spd_conv",
}
INSIDE = {"CoT", "CoTAttention", "SKAttention", "SelectiveKernel", *CONVOLUTION_LIKE} - {"SPDConv"}


def _layer(name: str, base: type[YamlLayer], **attributes: Any) -> type[YamlLayer]:
    return type(name, (base,), {"__module__": __name__, "__doc__": base.__doc__, **attributes})


LAYERS: dict[str, type[YamlLayer]] = {
    **{name: _layer(name, YamlLayer, block=block) for name, block in GATES_AND_MIXERS.items()},
    **{
        name: _layer(name, YamlLayer, block=block, normalised=True)
        for name, block in CONVOLUTION_LIKE.items()
    },
    "SpaceToDepth": _layer("SpaceToDepth", _SpaceToDepth),
    "C2fWith": _layer("C2fWith", _CspWith, unit="C2f"),
    "C3With": _layer("C3With", _CspWith, unit="C3"),
}
