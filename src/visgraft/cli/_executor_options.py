"""The options that say where the trials of a study run."""

from argparse import ArgumentParser

__all__ = ["add_executor_options"]


def add_executor_options(parser: ArgumentParser) -> None:
    """Adds the choice of an executor, and what only a cluster takes."""
    parser.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="train on this machine, or on those of a Ray cluster (default: local)",
    )
    ray = parser.add_argument_group("with --executor ray")
    ray.add_argument(
        "--address",
        help="HOST:PORT of the head node (default: auto, the cluster of this machine)",
    )
    ray.add_argument(
        "--gpus",
        type=float,
        help="GPUs per trial; 0 to 1 for a recipe with devices 1, which may share one (default: as "
        "many as devices, where recipe and cluster have a use for them)",
    )
    ray.add_argument(
        "--storage",
        metavar="URL",
        help="path or fsspec URL for checkpoints, if the machines do not all see --folder",
    )
