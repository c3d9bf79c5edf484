"""`visgraft models`: the papers' networks, or one in full."""

from argparse import Namespace, _SubParsersAction
from typing import TYPE_CHECKING, Any

from visgraft.cli._table import format_count, format_table

if TYPE_CHECKING:
    from visgraft.models import Published

__all__ = ["add_command"]


def add_command(commands: _SubParsersAction) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "models",
        help="list the papers' networks, or show one in full",
        description="Lists the papers' networks with what each costs and the accuracy that its "
        "authors publish, or shows one in full. Networks of timm itself are not listed.",
        epilog='example: visgraft models "cotnet*"',
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="a network, or a pattern of several: 'cotnet*'"
    )
    parser.set_defaults(run=_run, parser=parser)


def _run(args: Namespace) -> None:
    from visgraft.models import list_networks, network_info

    names = list_networks(args.name or "*")
    if args.name in names:
        _show(args.name)
        return
    if not names:
        network_info(args.name)  # complains and names the nearest
    print(format_table(_HEADER, [_row(name) for name in names]))
    print("\nMACs of one image of the size under `at`; top-1 on ImageNet-1k as published.", end=" ")
    print("`visgraft models NAME` shows one in full.")


_HEADER = ("network", "parameters", "MACs", "at", "top-1", "paper")


def _row(name: str) -> tuple[str, ...]:
    from visgraft.models import network_info

    info = network_info(name)
    cost, top1 = info.cost, info.published.top1
    return (
        name,
        format_count(cost.params),
        format_count(cost.macs),
        _size(cost.image_size),
        "-" if top1 is None else f"{top1:g}",
        f"{info.paper.authors}, {info.paper.venue}",
    )


def _show(name: str) -> None:
    from timm.models import get_pretrained_cfg

    from visgraft.models import create_model, network_info

    info, config = network_info(name), get_pretrained_cfg(name)
    cost = info.cost
    network = create_model(name, device="meta")
    print(f"{name}: {type(network).__name__}\n")
    print(f"Paper: {info.paper.title} ({info.paper.authors}, {info.paper.venue})")
    print(f"       {info.paper.url}")
    licence = info.source.licence or "no licence stated"
    commit = f" at {info.source.commit}" if info.source.commit else ""
    print(f"Source: {info.source.repository}, {info.source.file}{commit} ({licence})")
    print(f"Published: {_published(info.published)}")
    print(f"           from {info.figures_from}")
    if info.published.note:
        print(f"           {info.published.note}")
    print(f"Parameters: {cost.params:,}")
    sizes = {cost.image_size: cost.macs, (224, 224): cost.macs_at_224}
    if cost.macs_at_published is not None:
        sizes[info.published.image_size, info.published.image_size] = cost.macs_at_published
    print(f"MACs: {', '.join(f'{m / 1e9:.3f} G at {_size(s)}' for s, m in sizes.items())}")
    if config is not None:
        mean, std = ([f"{v:g}" for v in values] for values in (config.mean, config.std))
        print(f"Images: {_size(config.input_size[1:])}, crop {config.crop_pct}, ", end="")
        print(f"{config.interpolation}, mean {' '.join(mean)}, std {' '.join(std)}")
    print(f"Recipe: {info.recipe or 'none'}")
    weights = info.weights.replace("NAME", name) or "none are published"
    print(f"Weights: {weights}\n")
    stages: Any = network.feature_info
    rows = [(stage["module"], stage["num_chs"], stage["reduction"]) for stage in stages]
    print(format_table(("stage", "channels", "reduction"), rows))


def _published(figures: "Published") -> str:
    told = []
    if figures.params is not None:
        told.append(f"{figures.params:g} M parameters")
    if figures.gmacs is not None:
        told.append(f"{figures.gmacs:g} G MACs")
    if figures.top1 is not None:
        told.append(f"top-1 {figures.top1:g} %")
    if figures.top5 is not None:
        told.append(f"top-5 {figures.top5:g} %")
    return f"{', '.join(told)}, at {figures.image_size} pixels" if told else "no figures"


def _size(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
