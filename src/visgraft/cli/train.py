"""`visgraft train`: one training run by a recipe."""

from argparse import Namespace, _SubParsersAction

from visgraft.cli._recipe_options import add_recipe_options, recipe_options

__all__ = ["add_command"]


def add_command(commands: _SubParsersAction) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "train",
        help="train a network, grafted or not, by a recipe",
        description="Trains one network. Run the same command again after an interruption and it "
        "goes on from its last epoch, with the numbers of an unbroken run.",
        epilog="example: visgraft train --data photos/ --recipe finetune --folder runs/photos \\\n"
        "             --grafts '{block: coord_attention, at: block_end}'",
    )
    parser.add_argument(
        "--recipe",
        default="cpu_small",
        help="a recipe's name (cpu_small, finetune; of detectors scenes_small, ...; a wrong name "
        "lists all) or a YAML file (default: cpu_small)",
    )
    parser.add_argument(
        "--folder", default="runs/train", help="where everything is written (default: runs/train)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_recipe_options(parser)
    parser.set_defaults(run=_run, parser=parser)


def _run(args: Namespace) -> None:
    from visgraft.tasks import load_recipe, train

    recipe = load_recipe(args.recipe, **recipe_options(args))
    result = train(recipe, args.folder, progress=not args.quiet)
    final = ", ".join(f"{k} {v:.4g}" for k, v in result.final.items() if k != "epoch")
    print(f"last epoch: {final}")
    print(f"checkpoint: {result.checkpoint}")
    print(f"evaluate:   visgraft eval {result.checkpoint}")
