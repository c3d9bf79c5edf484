"""A clock that tests turn themselves: no test depends on the speed of the machine."""

import pytest

from visgraft.inspect import _clock


class MadeUpTime:
    def __init__(self):
        self.now = 0.0

    def wait(self, seconds):
        self.now += seconds


@pytest.fixture
def made_up_time(monkeypatch):
    time = MadeUpTime()
    monkeypatch.setitem(_clock._CLOCKS, "wall", lambda: time.now)
    return time
