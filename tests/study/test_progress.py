import io

import pytest
from rich.console import Console

from tests.study.tiny import study
from visgraft.study.claims import claim_next
from visgraft.study.progress import StudyProgress, seconds_left
from visgraft.study.store import Store, TrialRecord


def trial(variant, seed, status, epochs, seconds):
    return TrialRecord(
        variant, seed, status, 1, epochs, seconds, None, None, None, None, None, None, None, None
    )


def test_time_left():
    trials = [
        trial("a", 0, "finished", 4, 40.0),
        trial("b", 0, "running", 2, 40.0),
        trial("a", 1, "running", 1, 10.0),
        trial("b", 1, "waiting", 0, 0.0),
        trial("c", 0, "failed", 1, 15.0),
    ]
    # b: 2 epochs of 20 s; a: 3 of 10 s, then b again: 4 of 20 s on the lane that a leaves.
    assert seconds_left(trials, 4, workers=2) == pytest.approx(30 + 80)
    assert seconds_left(trials, 4, workers=1) == pytest.approx(40 + 30 + 80)
    assert seconds_left([trial("a", 0, "waiting", 0, 0.0)], 4, workers=2) is None
    assert seconds_left(trials[:1], 4, workers=2) == 0


@pytest.fixture
def store(tmp_path):
    return Store.prepare(tmp_path, study(name="A study"))


def shown(store, monkeypatch, terminal, act):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100, color_system=None)
    monkeypatch.setattr("visgraft.study.progress.Console", lambda stderr: console)
    with StudyProgress(store, workers=2, threads=1) as display:
        act(display)
    return text.getvalue()


def run_two(store):
    claim = claim_next(store)
    claim.record_epoch(1, {"top1": 40.0})
    claim.finish({1: {"top1": 40.0}, 2: {"top1": 50.25}})
    claim_next(store).fail("Traceback\nRuntimeError: no luck")
    claim_next(store).record_epoch(1, {"top1": 30.0})


def test_lines_without_a_terminal(store, monkeypatch):
    def act(display):
        display.update()
        run_two(store)
        display.update()
        display.update()

    first, one, two = shown(store, monkeypatch, False, act).splitlines()
    assert first == "A study: 0 of 4 trials finished, 2 at a time, 1 thread each"
    assert one.startswith("baseline seed 0 finished after 0 s, top1 50.25 (2 of 4, 0:0")
    assert two.startswith("ca seed 0 failed after 0 s: RuntimeError: no luck (2 of 4, 0:0")


def test_table_in_a_terminal(store, monkeypatch):
    run_two(store)
    text = shown(store, monkeypatch, True, lambda display: display.update())
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "baseline 1 of 2 seed 1: epoch 2 of 2 50.25" in lines
    assert "ca 0 of 2, 1 failed" in lines
    assert any("62 % 0:00 so far, 0:00 left" in line for line in lines)


def test_nothing_when_disabled(store, monkeypatch, capsys):
    with StudyProgress(store, workers=2, threads=1, enabled=False) as display:
        run_two(store)
        display.update()
    assert capsys.readouterr() == ("", "")
