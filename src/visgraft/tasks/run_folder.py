"""The folder of a run: whose it is, how far it got, and what stays when it is finished."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from visgraft.tasks.checkpoint import RunRecord, read_checkpoint, read_record, write_checkpoint
from visgraft.tasks.errors import RecipeError, TrainingError
from visgraft.tasks.files import remove_parts, write_atomically
from visgraft.tasks.recipe import Recipe, differing_fields, dump_recipe, load_recipe

__all__ = ["RunFolder"]

_KEPT_WHEN_FINISHED = ("epoch", "global_step", "pytorch-lightning_version", "state_dict")


class RunFolder:
    """A folder with ``recipe.yaml``, ``metrics.csv``, ``last.ckpt`` and ``best.ckpt``.

    Args:
        path: It need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.metrics = path / "metrics.csv"
        self.last = path / "last.ckpt"
        self.best = path / "best.ckpt"

    def claim(self, recipe: Recipe) -> None:
        """Makes the folder that of ``recipe``."""
        remove_parts(self.path)
        if not self.recipe.exists():
            write_atomically(self.recipe, dump_recipe(recipe).encode())

    def check(self, recipe: Recipe) -> None:
        """Sees to it that the folder is free, or that of ``recipe``.

        Raises:
            TrainingError: It holds a run of another recipe; the text names the fields.
        """
        if not self.recipe.exists():
            if self.last.exists():
                raise TrainingError(
                    f"{self.path} has a {self.last.name} but no {self.recipe.name}; choose another "
                    "folder"
                )
            return
        try:
            stored = load_recipe(self.recipe)
        except RecipeError as error:
            raise TrainingError(f"{error}\n  choose another folder, or mend that file") from error
        changes = [
            f"{name} was {getattr(stored, name)!r} and is {getattr(recipe, name)!r}"
            for name in differing_fields(stored, recipe)
        ]
        if changes:
            raise TrainingError(
                f"{self.path} holds a run of another recipe ({'; '.join(changes)}); choose another "
                "folder, or delete this one to start anew"
            )

    def record(self) -> RunRecord | None:
        """Returns what earlier calls achieved, None if no epoch is complete.

        Raises:
            CheckpointError: The last checkpoint cannot be read.
            TrainingError: It is not visgraft's.
        """
        if not self.last.exists():
            return None
        record = read_record(read_checkpoint(self.last), self.last)
        if record is None:
            raise TrainingError(f"{self.last} was not written by visgraft; choose another folder")
        return record

    def write_metrics(self, history: Sequence[Mapping[str, float]]) -> None:
        """Writes ``metrics.csv``, a row per epoch."""
        text = io.StringIO()
        writer = csv.DictWriter(text, history[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_atomically(self.metrics, text.getvalue().encode())

    def finish(self) -> None:
        """Drops from the last checkpoint what only a run that goes on needs."""
        content = read_checkpoint(self.last)
        record = read_record(content, self.last)
        if record and "optimizer_states" in content:
            self.write_metrics(record.history)  # a kill may have come before the last row
            kept = {name: content[name] for name in _KEPT_WHEN_FINISHED}
            write_checkpoint(kept, record, self.last)
