"""Studies on a real cluster: two nodes on this machine, and one of them dies."""

import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.study.tiny import numbers, recipe, study
from visgraft.study.cluster import machines
from visgraft.study.cluster.machines import connect
from visgraft.study.errors import StudyError
from visgraft.study.execution import run_study
from visgraft.study.store import Store

ray = pytest.importorskip("ray", reason="Ray is not installed")

PLAN = {"recipe": recipe(epochs=3)}
LEDGER = """
CREATE TRIGGER book AFTER UPDATE OF status ON trials
BEGIN INSERT INTO ledger VALUES (NEW.id, OLD.status, NEW.status); END
"""
HOW = {"executor": "ray", "threads": 1, "progress": False, "measure": False}

needs_proc = pytest.mark.skipif(not Path("/proc").exists(), reason="looks up processes in /proc")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray's pipes and sockets


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with one CPU each; the driver belongs to the first, which stays."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # else nothing happens beside other tests
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # kills for the memory of others
        cluster = Cluster()
        try:
            add_node(cluster, include_dashboard=False)
            add_node(cluster)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def add_node(cluster, **options):
    """Starts a node; on a busy machine Ray gives up too early, so that another try is worth it."""
    for left in reversed(range(3)):
        try:
            return cluster.add_node(num_cpus=1, **options)
        except Exception:
            if not left:
                raise
    return None


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    run_study(study(**PLAN), folder, workers=0, threads=1, progress=False, measure=False)
    return numbers(folder)


@pytest.fixture
def store(tmp_path):
    """A study that has not begun, with a ledger of every change of a trial's status."""
    store = Store.prepare(tmp_path / "study", study(**PLAN))
    with store.transaction(write=True) as connection:
        connection.execute("CREATE TABLE ledger (trial INTEGER, before TEXT, after TEXT)")
        connection.execute(LEDGER)
    return store


def check_ledger(store):
    """No trial was touched after it had finished, and each finished once."""
    with store.transaction() as connection:
        rows = connection.execute("SELECT trial, before, after FROM ledger").fetchall()
    assert not [row for row in rows if row[1] == "finished"]
    assert sorted(trial for trial, _, after in rows if after == "finished") == [1, 2, 3, 4]


def log_of(store, variant, seed):
    path = store.trial_folder(variant, seed) / "log.txt"
    return path.read_text() if path.exists() else ""


def wait_for(store, condition):
    end = time.monotonic() + 600.0
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        assert any(trial.status != "finished" for trial in store.trials()), "waited in vain"
        time.sleep(0.02)
    return found


@pytest.mark.slow
def test_same_numbers_as_local_and_a_failing_trial_stops_nobody(cluster, store, unbroken):
    broken = store.trial_folder("ca", 1)
    broken.mkdir(parents=True)
    (broken / "last.ckpt").write_bytes(b"no checkpoint")
    (broken / "recipe.yaml").write_text("epochs: 1\n")
    result = run_study(store.study, store.folder, **HOW)
    assert [(trial.variant, trial.seed) for trial in result.failed] == [("ca", 1)]
    assert result.failed[0].error.startswith("Traceback")
    assert "last.ckpt" in result.failed[0].error or "recipe" in result.failed[0].error
    assert len(result.finished) == 3
    for path in broken.iterdir():
        path.unlink()
    result = run_study(store.study, store.folder, **HOW)
    assert numbers(store.folder) == unbroken
    assert sorted(trial.attempts for trial in result.trials) == [1, 1, 1, 2]
    check_ledger(store)
    log = log_of(store, "ca", 0)
    assert "epoch 3, train_loss" in log
    assert {facts["threads"] for facts in store.environments()} == {1}


@needs_proc
@pytest.mark.slow
def test_node_that_dies_in_mid_trial_costs_nothing_but_time(cluster, store, unbroken):
    (doomed,) = cluster.worker_nodes

    def kill():
        pid = wait_for(store, lambda: _frozen_half_way(store, doomed))
        cluster.remove_node(doomed, allow_graceful=False)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill)
        result = run_study(store.study, store.folder, **HOW)
        killing.result()
    add_node(cluster)  # for the tests that follow
    assert numbers(store.folder) == unbroken
    assert sorted(trial.attempts for trial in result.trials) == [1, 1, 1, 2]
    check_ledger(store)
    (hit,) = (trial for trial in result.trials if trial.attempts == 2)
    log = log_of(store, hit.variant, hit.seed)
    assert log.count("taken up by process") == 2
    assert log.count("epoch 1, train_loss") == 1  # its successor went on from the checkpoint


@pytest.mark.slow
def test_killed_process_goes_on_from_the_storage(cluster, store, unbroken, tmp_path):
    killed = []

    def kill():
        tell = wait_for(store, lambda: _process_with_an_epoch(tmp_path / "away"))
        killed.append(tell)
        os.kill(tell, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    storage = (tmp_path / "away").as_uri()
    result = run_study(store.study, store.folder, storage=storage, **HOW)
    thread.join()
    assert numbers(store.folder) == unbroken
    assert sorted(trial.attempts for trial in result.trials) == [1, 1, 1, 2]
    check_ledger(store)
    (hit,) = (trial for trial in result.trials if trial.attempts == 2)
    log = log_of(store, hit.variant, hit.seed)
    assert f"taken up by process {killed[0]}" in log
    assert log.count("taken up by process") == 2
    assert log.count("epoch 1, train_loss") == 1
    assert len(list((tmp_path / "away").glob("*/*/*-finished"))) == 4
    for trial in result.trials:
        assert (store.trial_folder(trial.variant, trial.seed) / "last.ckpt").exists()


def _frozen_half_way(store, node):
    """Stops a process of the node in a trial that has an epoch, but not all; returns its number."""
    (raylet,) = node.all_processes["raylet"]
    for trial in store.trials():
        log = log_of(store, trial.variant, trial.seed)
        if trial.status != "running" or "epoch 1, train_loss" not in log:
            continue
        pid = int(log.rpartition("taken up by process ")[2].split()[0])
        with suppress(FileNotFoundError, ProcessLookupError):
            stat = Path(f"/proc/{pid}/stat").read_text()
            if int(stat.rpartition(")")[2].split()[1]) != raylet.process.pid:
                continue
            os.kill(pid, signal.SIGSTOP)
            if "epoch 3, train_loss" not in log_of(store, trial.variant, trial.seed):
                return pid
            os.kill(pid, signal.SIGCONT)  # too late
    return None


def _process_with_an_epoch(storage):
    """Returns the process that has saved the first epoch of a trial, once one has."""
    for log in storage.glob("*/*/000001/log.txt"):
        with suppress(FileNotFoundError):
            if (log.parent / "manifest.json").exists():
                return int(log.read_text().partition("taken up by process ")[2].split()[0])
    return None


@pytest.mark.slow
def test_trial_that_fits_nowhere_is_refused_before_anything_is_written(cluster, tmp_path):
    how = HOW | {"threads": 64}
    with pytest.raises(StudyError, match=r"asks for 64 CPUs, and no machine .* with 1 CPU\)"):
        run_study(study(**PLAN), tmp_path / "new", **how)
    with pytest.raises(StudyError, match=r"asks for 1 CPU and 1 GPU, and no machine"):
        run_study(study(recipe=recipe(device="auto")), tmp_path / "new", gpus=1, **HOW)
    assert not (tmp_path / "new").exists()


@pytest.fixture
def listener():
    """A port where something listens that is no Ray."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            line, _ = server.accept()
            with line:
                line.recv(100)
                line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


@pytest.fixture
def alone(monkeypatch):
    """A process that is not connected, and a machine whose own address is that of the loop."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("ray._private.services.get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_no_cluster_at_the_address(alone):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    text = rf"no Ray cluster answers at 127\.0\.0\.1:{port} \(.*refused.*start one with 'ray start"
    with pytest.raises(StudyError, match=text):
        connect(f"127.0.0.1:{port}").__enter__()


def test_something_else_at_the_address(alone, listener):
    with pytest.raises(StudyError, match="something else than Ray listens there"):
        connect(f"127.0.0.1:{listener}").__enter__()


@pytest.mark.parametrize("error", [ConnectionError, ray.exceptions.AuthenticationError])
def test_cluster_that_asks_for_a_token(alone, monkeypatch, error):
    def refuse(**_):
        raise error("Authentication token\nis missing.")

    monkeypatch.setattr(machines, "_check_answer", lambda _: None)
    monkeypatch.setattr(ray, "init", refuse)
    text = (
        r"cluster at h:1 does not take this machine in \(Authentication token is missing\..*\); if "
        r"it asks for a token, copy ~/\.ray/auth_token of its head .* set RAY_AUTH_MODE=token\."
    )
    with pytest.raises(StudyError, match=text):
        connect("h:1").__enter__()


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("ray://head:10001", "is an address for Ray Client; run the study on a machine of the"),
        ("nonsense", "no Ray cluster answers at nonsense"),
    ],
)
def test_address_that_is_none(alone, address, text):
    with pytest.raises(StudyError, match=text):
        connect(address).__enter__()
