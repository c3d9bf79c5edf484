"""Runs trials on the machines of a Ray cluster.

This process, the driver, holds the claims and alone writes the study's record. A trial is a Ray
task that yields what there is to tell (`visgraft.study.cluster.task`). There is no actor in between
that could be lost: a word is with the driver or it is not, and what an attempt did not get to tell
its successor finds in the checkpoint. Ray itself tells when a machine or a process has died; the
driver then claims the trial anew, so that attempts and deaths are counted as for local workers.

Ray ends the tasks of a driver that dies. Its claims are freed by whoever runs the study next.
"""

import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import visgraft
from visgraft.study.child_process import thread_environment
from visgraft.study.claims import HEARTBEAT_SECONDS, Claim, LostClaimError, claim_next, sweep
from visgraft.study.cluster.machines import Machine, RayCluster, Share
from visgraft.study.cluster.storage import Storage
from visgraft.study.environment import describe_environment
from visgraft.study.errors import StudyError
from visgraft.study.facts import check_pairing
from visgraft.study.plan import Study, trial_spec
from visgraft.study.store import Store

__all__ = ["RayExecutor"]

POLL_SECONDS = 0.5
PATIENCE = 120.0  # seconds without any machine that could run a trial
LOG = "ray.log"


@dataclass
class _Attempt:
    """A trial that was given to the cluster.

    Attributes:
        claim: To it, in the driver's name.
        name: Of the trial in the storage.
        machine: Where it runs, once that is known.
        ready: Whether its process has started up, which is not the trial's time.
    """

    claim: Claim
    name: str
    machine: str | None = None
    ready: bool = False


class RayExecutor:
    """Keeps the machines of a cluster busy until no trial waits or runs.

    Args:
        cluster: To which this process is connected.
        share: What each trial takes of a machine.
        fingerprint: Of the images that the study began with.
        most: Most trials at a time; None takes as many as there is room for.
        storage: Where trials keep their files; None if all machines see the study's folder.
    """

    def __init__(
        self,
        cluster: RayCluster,
        share: Share,
        fingerprint: str,
        *,
        most: int | None = None,
        storage: Storage | None = None,
    ) -> None:
        self.cluster = cluster
        self.share = share
        self.fingerprint = fingerprint
        self.most = most
        self.storage = storage
        self._attempts: dict[Any, _Attempt] = {}  # by the stream of its words
        self._refusals: dict[str, str] = {}  # by machine
        self._idle_since: float | None = None

    def room(self) -> int:
        """Returns how many trials can run at a time on the machines that are there now."""
        room = sum(machine.room(self.share) for machine in self._machines())
        return room if self.most is None else min(room, self.most)

    def run(self, store: Store, on_tick: Callable[[], None]) -> None:
        """Returns when every trial of the store is finished or failed, whoever worked on it.

        Args:
            store: The study.
            on_tick: Called about twice a second.

        Raises:
            StudyError: No machine can run a trial (any more).
        """
        place = self.storage or Storage(str(store.folder.absolute()))
        with (store.folder / LOG).open("a") as log, redirect_stdout(log):  # Ray prints to it
            mark = place.leave_mark()
            try:
                self._work(store, place, mark, on_tick)
            finally:
                self._stop()
                place.wipe_mark(mark)

    def _work(self, store: Store, place: Storage, mark: str, on_tick: Callable[[], None]) -> None:
        remote = self._remote()
        common = self._common(place, mark)
        beaten = time.monotonic()
        while True:
            self._listen(store)
            if time.monotonic() - beaten > HEARTBEAT_SECONDS:
                beaten = time.monotonic()
                sweep(store)
                self._beat()
            counts = store.counts()
            on_tick()
            if not (counts.get("waiting") or counts.get("running")):
                return
            self._submit(store, remote, common)

    def _remote(self) -> Any:
        """Returns Ray's function of an attempt, with the resources and the environment of one."""
        import ray

        variables = thread_environment(self.share.threads)
        package = Path(visgraft.__file__).parents[1]
        if not {"site-packages", "dist-packages"} & set(package.parts):  # a checkout
            variables["PYTHONPATH"] = str(package)
        if not self.share.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ""
        return ray.remote(_attempt_function()).options(
            num_cpus=self.share.threads,
            num_gpus=self.share.gpus,
            num_returns="streaming",
            max_retries=0,
            runtime_env={"env_vars": variables},
        )

    def _common(self, place: Storage, mark: str) -> dict[str, Any]:
        """Returns what all attempts must know."""
        environment = describe_environment()
        return {
            "fingerprint": self.fingerprint,
            "environment": environment,
            "threads": self.share.threads,
            "gpu": self.share.gpus > 0,
            "directory": str(Path.cwd()),
            "place": place.url,
            "mark": mark,
        }

    def _name(self, study: Study, variant: str, seed: int) -> str:
        """Returns what a trial is called in the storage.

        The digest in it stands for all that decides the outcome, so that two studies, or a study
        that was changed before it began, never take each other's checkpoints.
        """
        recipe = trial_spec(study, variant, seed).recipe
        fields = recipe.model_dump_json(exclude={"workers", "loggers"})
        digest = sha256(f"{fields} {self.fingerprint}".encode()).hexdigest()
        return f"{variant}-seed{seed}-{digest[:12]}"

    def _machines(self) -> list[Machine]:
        return self.cluster.machines(without=self._refusals)

    def _submit(self, store: Store, remote: Any, common: Mapping[str, Any]) -> None:
        """Gives trials to the cluster, as many as there is room for."""
        room = self.room()
        self._check_that_something_goes_on(room)
        for _ in range(room - len(self._attempts)):
            claim = claim_next(store)
            if claim is None:
                return
            study = store.study  # now: another run may have added to it
            folder = store.trial_folder(claim.variant, claim.seed).absolute()
            name = self._name(study, claim.variant, claim.seed)
            if self.storage:
                trial = self.storage.trial(name)
                if (folder / "last.ckpt").exists() and trial.is_empty():
                    trial.save(folder, f"{0:06d}-{uuid4().hex[:12]}", 0)
            job = {
                **common,
                "study": study.model_dump_json(),
                "variant": claim.variant,
                "seed": claim.seed,
                "number": claim.attempt,
                "token": claim.token,
                "folder": None if self.storage else str(folder),
                "trial": name,
            }
            self._attempts[self._placed(remote).remote(job)] = _Attempt(claim, name)

    def _placed(self, remote: Any) -> Any:
        """Keeps an attempt away from the machines that refused."""
        if not self._refusals:
            return remote
        return remote.options(label_selector={"ray.io/node-id": f"!in({','.join(self._refusals)})"})

    def _check_that_something_goes_on(self, room: int) -> None:
        if room or any(attempt.machine for attempt in self._attempts.values()):
            self._idle_since = None
            return
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if self._refusals:
            reasons = "\n  ".join(f"{reason}." for reason in self._refusals.values())
            raise StudyError(
                "study: no machine is left that can run a trial; the trials so far are kept, run "
                f"the same command again once this is mended:\n  {reasons}"
            )
        if now - self._idle_since > PATIENCE:
            raise StudyError(
                f"study: for {PATIENCE:.0f} s no machine of the cluster has had {self.share}, "
                "which a trial asks for; the trials so far are kept, add a machine with "
                "'ray start' and run the same command again."
            )

    def _listen(self, store: Store) -> None:
        """Takes down what the attempts tell; waits a moment if they tell nothing."""
        import ray

        if not self._attempts:
            time.sleep(POLL_SECONDS)
            return
        ready, _ = ray.wait(list(self._attempts), timeout=POLL_SECONDS, fetch_local=False)
        while ready:
            for stream in ready:
                self._hear(store, stream)
            if not self._attempts:
                return
            everything = list(self._attempts)
            ready, _ = ray.wait(
                everything, num_returns=len(everything), timeout=0, fetch_local=False
            )

    def _hear(self, store: Store, stream: Any) -> None:
        """Takes down the next thing that an attempt has to tell."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        attempt = self._attempts[stream]
        try:
            try:
                word, content = ray.get(next(stream))
            except StopIteration:
                word, content = "dead", "It ended without a word."
            except RayTaskError as error:  # Python's, before or beside the training
                word, content = "failed", str(error)
            except RayError as error:
                word, content = "dead", str(error).partition("\n")[0]
            if self._take_down(store, attempt, word, content):
                del self._attempts[stream]
        except LostClaimError:
            self._cancel(stream)
        except _UnfairError as error:
            self._cancel(stream)
            with suppress(LostClaimError):
                attempt.claim.fail(str(error))

    def _take_down(self, store: Store, attempt: _Attempt, word: str, content: Any) -> bool:
        """Records one thing; returns whether the attempt has ended with it."""
        claim = attempt.claim
        match word:
            case "arrived":
                attempt.machine = content["machine"]
            case "ready":
                attempt.ready = True
                claim.start_clock()
            case "environment":
                claim.record_environment(content)
            case "facts":
                claim.record_facts(content)
                try:
                    check_pairing(store.study, store.peers(claim.variant, claim.seed))
                except StudyError as error:
                    raise _UnfairError(traceback.format_exc()) from error
            case "epoch":
                claim.record_epoch(*content)
            case "finished":
                self._bring_home(store, attempt)
                claim.finish(content)
            case "failed":
                claim.fail(content)
            case "refused":
                claim.release()
                self._exclude(content["machine"], content["name"], content["reason"])
            case _:
                claim.crash(content)
        return word in ("finished", "failed", "refused", "dead")

    def _bring_home(self, store: Store, attempt: _Attempt) -> None:
        """Copies a finished trial into the study's folder."""
        if not self.storage:
            return
        folder = store.trial_folder(attempt.claim.variant, attempt.claim.seed)
        trial = self.storage.trial(attempt.name)
        try:
            found = trial.restore(folder)
        except OSError as error:
            raise StudyError(
                f"study: {attempt.name} cannot be copied from {self.storage.url} to {folder}: "
                f"{error}."
            ) from error
        if found is None:
            raise StudyError(
                f"study: {attempt.name} is finished, but this machine does not find its files in "
                f"{self.storage.url}; give a storage that all machines see, this one included."
            )
        trial.keep_newest()

    def _exclude(self, machine: str, name: str, reason: str) -> None:
        if machine not in self._refusals:
            self._refusals[machine] = f"{name} {reason}"
            warnings.warn(
                f"study: {self._refusals[machine]}. It gets no trials in this run.", stacklevel=2
            )

    def _beat(self) -> None:
        """Shows, for all trials that are with the cluster, that the driver lives."""
        for stream, attempt in list(self._attempts.items()):
            if not attempt.ready:
                attempt.claim.start_clock()
            try:
                attempt.claim.heartbeat()
            except LostClaimError:
                self._cancel(stream)

    def _cancel(self, stream: Any) -> None:
        """Ends an attempt and the process that works on it."""
        import ray

        del self._attempts[stream]
        ray.cancel(stream, force=True)

    def _stop(self) -> None:
        """Ends all attempts and gives their trials back."""
        for stream, attempt in list(self._attempts.items()):
            with suppress(Exception):  # the cluster may be gone, which ends them, too
                self._cancel(stream)
            with suppress(StudyError):  # freed by the next run, then
                attempt.claim.release()


class _UnfairError(Exception):
    """A trial does not fit those it is compared with."""


def _attempt_function() -> Callable[[Mapping[str, Any]], Iterator[tuple[str, Any]]]:
    """Returns what Ray runs; a function inside a function travels as code, not by its name.

    So that a machine without visgraft can say that it has none.
    """

    def visgraft_trial(job: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        import socket

        import ray

        machine = ray.get_runtime_context().get_node_id()
        yield "arrived", {"machine": machine}
        try:
            from visgraft.study.cluster.task import run_attempt
        except ImportError as error:
            reason = f"cannot import visgraft ({error}); install visgraft[ray] there"
            name = socket.gethostname()
            yield "refused", {"machine": machine, "name": name, "reason": reason}
            return
        yield "ready", None
        for word, content in run_attempt(job):
            if word == "refused":
                name = socket.gethostname()
                content = {"machine": machine, "name": name, "reason": content}
            yield word, content

    return visgraft_trial
