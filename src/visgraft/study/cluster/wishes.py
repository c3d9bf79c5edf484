"""From the wishes of a call to an executor on a Ray cluster."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from visgraft.study.cluster.executor import RayExecutor
from visgraft.study.cluster.machines import RayCluster, Share, connect, gpus_per_trial
from visgraft.study.cluster.storage import Storage
from visgraft.study.errors import StudyError
from visgraft.study.plan import Study, trials

__all__ = ["RayPlaces", "RayWishes", "check_wishes"]


@dataclass(frozen=True)
class RayWishes:
    """What a caller wants of Ray.

    Args:
        address: Of the cluster.
        gpus: Per trial; None decides by recipe and cluster.
        storage: Where trials keep their files; None if all machines see the study's folder.
    """

    address: str = "auto"
    gpus: float | None = None
    storage: str | Path | None = None

    @contextmanager
    def connected(self, study: Study, threads: int | None) -> Iterator["RayPlaces"]:
        """Connects with the cluster as long as its body runs.

        Args:
            study: Of which trials are to run there.
            threads: Per trial, if that is decided.

        Raises:
            StudyError: There is no cluster, no machine for a trial, or no such storage.
        """
        storage = Storage(str(self.storage)) if self.storage else None
        with connect(self.address) as cluster:
            gpus = gpus_per_trial(study.recipe, self.gpus, cluster)
            least = study.recipe.devices  # each has a thread
            cluster.check_room(Share(threads or least, gpus))
            if storage:
                storage.wipe_mark(storage.leave_mark())
            usual = max(least, cluster.usual_threads(len(trials(study))))
            yield RayPlaces(cluster, gpus, storage, usual)


@dataclass(frozen=True)
class RayPlaces:
    """A cluster that has room for trials.

    Attributes:
        cluster: It.
        gpus: Of each trial.
        storage: Where trials keep their files.
        usual_threads: Per trial, where nothing else is said.
    """

    cluster: RayCluster
    gpus: float
    storage: Storage | None
    usual_threads: int

    def executor(self, threads: int, fingerprint: str, most: int | None) -> RayExecutor:
        """Returns what runs the trials.

        Args:
            threads: Per trial.
            fingerprint: Of the images.
            most: Trials at a time; None takes as many as there is room for.

        Raises:
            StudyError: No machine has so many CPUs.
        """
        share = Share(threads, self.gpus)
        self.cluster.check_room(share)
        return RayExecutor(self.cluster, share, fingerprint, most=most, storage=self.storage)


def check_wishes(executor: str, workers: int | None, **wishes: object) -> None:
    """Makes sure that what is asked for belongs to the executor.

    Raises:
        StudyError: It does not, or there is no such executor.
    """
    if executor not in ("local", "ray"):
        raise StudyError(f"study: executor must be local or ray, got {executor!r}.")
    given = [name for name, wish in wishes.items() if wish is not None]
    if executor == "local" and given:
        raise StudyError(
            f"study: {given[0]} is for executor ray; leave it out, or set executor to ray."
        )
    if executor == "ray" and workers == 0:
        raise StudyError(
            "study: workers 0 runs trials in this process; with executor ray it must be at least 1."
        )
