"""As much of Ray as the driver of a study uses; its tasks say what a script tells them to."""

import itertools
import time
from types import SimpleNamespace

import pytest

__all__ = ["METRICS", "FakeRay", "RayError", "RayTaskError", "facts_of", "well"]

PATIENCE = 30.0
FACTS = {"params": 7, "macs": 9, "init_digest": "w", "order_digest": "o"}
METRICS = {1: {"top1": 10.0}, 2: {"top1": 20.0}}
WELL = [
    ("environment", {"torch": "2"}),
    ("facts", FACTS),
    ("epoch", (1, METRICS[1])),
    ("epoch", (2, METRICS[2])),
    ("finished", METRICS),
]


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class FakeRay:
    """As much of Ray as the driver uses; each task says what ``script(job, attempt)`` returns."""

    def __init__(self, script, *nodes):
        self.script = script
        self.alive = list(nodes)
        self.jobs = []
        self.cancelled = []
        self.options_seen = []
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
        self._end = time.monotonic() + PATIENCE

    def check_time(self):
        """Ends a driver that would go on for ever."""
        if time.monotonic() > self._end:
            pytest.fail(f"the driver has not come to an end within {PATIENCE:.0f} s")

    def nodes(self):
        return [
            {
                "NodeID": name,
                "NodeManagerAddress": f"10.0.0.{index}",
                "Alive": True,
                "Resources": {"CPU": float(cpus), "GPU": float(gpus)},
            }
            for index, (name, cpus, gpus) in enumerate(self.alive)
        ]

    def remote(self, function):
        return self

    def options(self, **options):
        self.options_seen.append(options)
        return SimpleNamespace(options=self.options, remote=self._start)

    def _start(self, job):
        self.check_time()
        self.jobs.append(job)
        before = sum((j["variant"], j["seed"]) == (job["variant"], job["seed"]) for j in self.jobs)
        begin = [("arrived", {"machine": "n0"}), ("ready", None)]
        return _Stream(job, itertools.chain(begin, self.script(job, before)))

    def wait(self, streams, *, num_returns=1, timeout=None, fetch_local=True):
        self.check_time()
        return streams[:num_returns], streams[num_returns:]

    def get(self, word):
        if isinstance(word, Exception):
            raise word
        return word

    def cancel(self, stream, *, force):
        assert force
        self.cancelled.append((stream.job["variant"], stream.job["seed"]))


class _Stream:
    def __init__(self, job, words):
        self.job = job
        self._words = iter(words)

    def __next__(self):
        return next(self._words)


def facts_of(job):
    return FACTS | {name: f"{FACTS[name]}{job['seed']}" for name in ("init_digest", "order_digest")}


def well(job, attempt=1):
    return [(word, facts_of(job) if word == "facts" else content) for word, content in WELL]
