"""A detection run is killed without warning, by the signal that cannot be caught."""

import pytest
import torch

from tests.tasks.detection.tiny_run import TINY
from tests.tasks.test_resume import kill_in_epoch
from visgraft.tasks.checkpoint import read_checkpoint, read_weights
from visgraft.tasks.training import train


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_it_ends_with_the_same_weights(tmp_path):
    recipe = TINY | {
        "epochs": 3,
        "train_limit": 12,
        "scale_jitter": [0.6, 1.6],
        "color_jitter": 0.2,
        "ema_decay": 0.9,
        "workers": 1,
        "frozen_stages": 1,
        "grafts": [{"block": "coord_attention", "at": "block_end"}],
    }
    kill_in_epoch(2, recipe, tmp_path / "killed")
    rows = []
    resumed = train(recipe, tmp_path / "killed", progress=False, on_epoch=rows.append)
    assert [row["epoch"] for row in rows] == [2, 3]
    whole = train(recipe | {"workers": 0}, tmp_path / "whole", progress=False)
    for one, other in [
        (resumed.checkpoint, whole.checkpoint),
        (resumed.best_checkpoint, whole.best_checkpoint),
    ]:
        state, expected = (read_weights(read_checkpoint(path), path) for path in (one, other))
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in state)
    metrics = (tmp_path / "killed" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in metrics] == ["epoch", "1", "2", "3"]
