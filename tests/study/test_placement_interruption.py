"""A placement that is killed goes on, and ends with the numbers of an unbroken one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.study.tiny import numbers, recipe
from visgraft.study.placement.placing import place
from visgraft.study.store import Store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WISHES = {
    "recipe": recipe(),
    "at": ["stage2/block_end", "stage4/block_end"],
    "survivors": 1,
    "seeds": 2,
    "screening_seeds": 1,
}
RUNNING = {"workers": 0, "threads": 1, "progress": False, "measure": False}
CODE = f"""
import sys
from visgraft.study import place
place("coord_attention", folder=sys.argv[1], **{RUNNING!r}, **{WISHES!r})
"""


def finished(folder):
    store = Store.find(folder)
    return sum(trial.status == "finished" for trial in store.trials()) if store else 0


def killed_when(condition, folder):
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CODE, str(folder)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 300
        while not condition():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL


def test_killed_placement_ends_with_the_same_numbers(tmp_path):
    whole = place("coord_attention", folder=tmp_path / "whole", **RUNNING, **WISHES)
    folder = tmp_path / "place"
    killed_when(lambda: finished(folder / "final") >= 1, folder)
    result = place("coord_attention", folder=folder, **RUNNING, **WISHES)
    assert result.rungs[0].survivors == whole.rungs[0].survivors
    assert result.headline == whole.headline
    for name, trials in (("rung1", 3), ("final", 4)):
        assert numbers(folder / name) == numbers(tmp_path / "whole" / name)
        records = Store.open(folder / name).trials()
        assert len(records) == trials
        assert {record.status for record in records} == {"finished"}
        assert sum(record.attempts for record in records) == trials + (name == "final")
    assert not (folder / "rung1" / "pictures").exists()
    assert (folder / "final" / "pictures").is_dir()
    assert result.report.is_file()
    assert (folder / "place.svg").read_text() == (whole.folder / "place.svg").read_text()
