"""A study survives the death of its driver and of its workers at any moment."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.study.tiny import numbers, recipe, study
from visgraft.study.execution import run_study
from visgraft.study.store import Store

ROOT = Path(__file__).parents[2]
PLAN = {"recipe": recipe(epochs=3)}
CODE = """
import sys
from visgraft.study import StudyInterrupted, load_study, run_study
try:
    run_study(load_study(sys.argv[1]), sys.argv[1].rpartition("/")[0], workers=2, threads=1)
except StudyInterrupted as stop:
    sys.exit(str(stop))
"""
LEDGER = """
CREATE TABLE ledger (trial INTEGER, before TEXT, after TEXT);
CREATE TRIGGER book AFTER UPDATE OF status ON trials
BEGIN INSERT INTO ledger VALUES (NEW.id, OLD.status, NEW.status); END;
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").exists(), reason="looks up processes in /proc"),
]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    run_study(study(**PLAN), folder, workers=0, threads=1, progress=False)
    return numbers(folder)


@pytest.fixture
def store(tmp_path):
    """A study that has not begun, with a ledger of every change of a trial's status."""
    store = Store.prepare(tmp_path / "study", study(**PLAN))
    with store.transaction(write=True) as connection:
        for statement in LEDGER.replace("END;", "END").split(";\nCREATE TRIGGER"):
            connection.execute(statement if "TABLE" in statement else f"CREATE TRIGGER{statement}")
    return store


@contextmanager
def driver(store):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CODE, str(store.folder / "study.yaml")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def workers_of(process):
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == process.pid and state != "Z":
            found.append(int(entry.parent.name))
    return found


def wait_for(condition, seconds=90.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return found


def is_at_work(store):
    return any(trial.status == "running" for trial in store.trials())


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def check_ledger(store):
    """No trial was touched after it had finished, and each finished once."""
    with store.transaction() as connection:
        rows = connection.execute("SELECT trial, before, after FROM ledger").fetchall()
    assert not [row for row in rows if row[1] == "finished"]
    assert sorted(trial for trial, _, after in rows if after == "finished") == [1, 2, 3, 4]


@pytest.mark.parametrize("luck", [0])
def test_five_kills_at_random_moments_change_nothing(store, unbroken, luck):
    dice = random.Random(luck)
    victims = ["worker", "driver", "worker", "everybody", "worker"]
    while victims:
        with driver(store) as process:
            while victims:
                wait_for(lambda: is_at_work(store) and workers_of(process))
                time.sleep(dice.uniform(0.0, 1.0))
                workers = workers_of(process)
                if not workers:
                    continue
                victim = victims.pop(0)
                if victim == "worker":
                    os.kill(dice.choice(workers), signal.SIGKILL)
                    continue
                process.kill()
                process.wait()
                if victim == "everybody":
                    for worker in workers:
                        os.kill(worker, signal.SIGKILL)
                wait_for(lambda: all(map(is_gone, workers)), seconds=10)  # noqa: B023
                break
            else:
                assert process.wait(120) == 0, process.stderr.read()
    with driver(store) as process:
        assert process.wait(120) == 0, process.stderr.read()
    assert numbers(store.folder) == unbroken
    check_ledger(store)
    for trial in store.trials():
        log = (store.trial_folder(trial.variant, trial.seed) / "log.txt").read_text()
        assert 1 <= log.count("taken up by process") <= trial.attempts
        assert "epoch 3, train_loss" in log


def test_two_drivers_share_a_folder_and_one_may_be_interrupted(store, unbroken):
    with driver(store) as one, driver(store) as other:
        wait_for(lambda: is_at_work(store) and workers_of(one))
        workers = workers_of(one)
        one.send_signal(signal.SIGINT)
        assert one.wait(30) == 1
        text = one.stderr.read()
        assert "run the same command again to go on" in text
        assert "Traceback" not in text
        wait_for(lambda: all(map(is_gone, workers)), seconds=10)
        assert other.wait(120) == 0, other.stderr.read()
    assert numbers(store.folder) == unbroken
    check_ledger(store)
