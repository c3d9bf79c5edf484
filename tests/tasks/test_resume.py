"""A training process is killed without warning, by the signal that cannot be caught."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.tasks.conftest import TINY
from visgraft.tasks.checkpoint import read_checkpoint, read_weights
from visgraft.tasks.training import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

SCRIPT = """
import json, sys
from visgraft.tasks import load_recipe, train

def say(row):
    print("epoch", int(row["epoch"]), flush=True)

train(load_recipe(json.loads(sys.argv[1])), sys.argv[2], progress=False, on_epoch=say)
"""


def kill_in_epoch(epoch: int, recipe: dict, folder) -> None:
    """Trains in a process of its own and kills it a moment after the epoch before has ended."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(recipe), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.stdout.readline().strip() != f"epoch {epoch - 1}":
            assert process.poll() is None
        time.sleep(0.03)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "mixup": 0.3,
            "cutmix": 0.5,
            "drop_rate": 0.2,
            "drop_path_rate": 0.1,
            "random_erase": 0.5,
            "color_jitter": 0.2,
            "ema_decay": 0.9,
            "workers": 1,
            "grafts": [{"block": "coord_attention", "at": "block_end"}],
        },
    ],
    ids=["plain", "everything on"],
)
def test_killed_it_ends_with_the_same_weights(tmp_path, make_recipe, images, changes):
    recipe = TINY | {"epochs": 3, "train_limit": 300} | changes
    kill_in_epoch(2, recipe, tmp_path / "killed")
    rows = []
    resumed = train(recipe, tmp_path / "killed", progress=False, on_epoch=rows.append)
    assert [row["epoch"] for row in rows] == [2, 3]
    whole = train(recipe, tmp_path / "whole", progress=False)
    for one, other in [
        (resumed.checkpoint, whole.checkpoint),
        (resumed.best_checkpoint, whole.best_checkpoint),
    ]:
        state, expected = (read_weights(read_checkpoint(path), path) for path in (one, other))
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in state)
    metrics = (tmp_path / "killed" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in metrics] == ["epoch", "1", "2", "3"]
