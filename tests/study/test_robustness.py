"""What a study does where something is wrong with it, with the disk, or with another process."""

import errno
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.study.tiny import FIELDS, numbers, recipe, study
from visgraft.cli.main import main
from visgraft.data import DataError
from visgraft.study import execution, store, trial
from visgraft.study.claims import claim_next
from visgraft.study.errors import StudyError
from visgraft.study.execution import StudyInterrupted, run_study
from visgraft.study.store import Store

ROOT = Path(__file__).parents[2]
CA = FIELDS["variants"]["ca"]


def tree(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def no_network():
    return study(variants={"a": {"block": "cot", "at": "layer9.*.conv2"}}), StudyError, "layer9"


def no_data():
    return study(recipe=recipe(data="no/such/folder")), DataError, "no/such/folder"


@pytest.mark.parametrize("wrong", [no_network, no_data])
def test_failed_call_leaves_the_disk_as_it_was(tmp_path, wrong):
    plan, error, text = wrong()
    (tmp_path / "notes.txt").write_text("of the user")
    before = tree(tmp_path)
    for folder in (tmp_path, tmp_path / "runs" / "new"):
        with pytest.raises(error, match=text):
            run_study(plan, folder, progress=False)
    assert tree(tmp_path) == before
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_failed_call_leaves_a_begun_study_as_it_was(tmp_path):
    begun = Store.prepare(tmp_path, study())
    claim_next(begun).fail("Traceback")
    before = tree(tmp_path)
    worse = study(variants=FIELDS["variants"] | {"a": {"block": "cot", "at": "layer9.*"}})
    with pytest.raises(StudyError, match=r"variants\.a: .*layer9"):
        run_study(worse, tmp_path, progress=False)
    assert tree(tmp_path).keys() == before.keys()
    assert begun.study == study()
    assert [t.status for t in begun.trials()] == ["failed", "waiting", "waiting", "waiting"]


def test_interruption_before_the_first_trial(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(execution, "preflight", stop)
    with pytest.raises(StudyInterrupted, match="run the same command again to go on"):
        run_study(study(), tmp_path / "runs" / "new", progress=False)
    assert os.listdir(tmp_path) == []


def test_full_disk_while_the_folder_is_made(tmp_path, monkeypatch):
    def write(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(store, "write_atomically", write)
    with pytest.raises(StudyError, match=r"cannot be written: .*No space left on device"):
        Store.prepare(tmp_path / "runs" / "new", study())
    assert os.listdir(tmp_path) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(StudyError, match="cannot be written"):
        Store.prepare(tmp_path / "mine", study())
    assert os.listdir(tmp_path / "mine") == []


def overfill(begun):
    with begun.transaction(write=True) as connection:
        connection.execute("PRAGMA max_page_count = 1")  # as many as there are
        connection.execute("INSERT INTO meta VALUES ('large', zeroblob(1000000))")


def test_full_disk_under_the_database(tmp_path):
    begun = Store.prepare(tmp_path, study())
    with pytest.raises(StudyError, match=r"the disk of .*study\.sqlite is full; make room and run"):
        overfill(begun)
    assert begun.study == study()
    begun.settle("small", "fits")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_under_the_log(tmp_path, monkeypatch):
    names = [tmp_path / "out", tmp_path / "err"]
    with names[0].open("w") as out, names[1].open("w") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        with trial._logged_to(Path("/dev/full")):
            out.write("lost\n")
            err.write("lost, too\n")
        out.write("after\n")
        err.write("after\n")
    monkeypatch.undo()
    assert [name.read_text().splitlines()[-1] for name in names] == ["after", "after"]


FULL = """
import json, os, sys
from pathlib import Path
from tests.study.tiny import numbers, recipe, study
from visgraft.study import StudyError, run_study

place, workers = Path(sys.argv[1]), int(sys.argv[2])
plan = study(seeds=1)
told = []
for room in sys.argv[3:]:
    folder = place / room
    free = os.statvfs(place)
    filler = place / "filler"
    filler.write_bytes(b"x" * (free.f_bavail * free.f_frsize - int(room)))
    try:
        result = run_study(plan, folder, workers=workers, progress=False, measure=False)
        words = [t.error.strip().splitlines()[-1] for t in result.failed]
    except StudyError as error:
        words = [str(error)]
    filler.unlink()
    result = run_study(plan, folder, workers=workers, threads=1, progress=False, measure=False)
    parts = [str(path) for path in folder.rglob(".*.part")]
    told.append([words, parts, len(result.finished), repr(numbers(folder))])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    run_study(study(seeds=1), folder, workers=0, threads=1, progress=False, measure=False)
    return numbers(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "rooms"), [(0, (0, 70_000, 240_000)), (1, (240_000,))])
def test_disk_that_is_really_full(tmp_path, unbroken, workers, rooms):
    """On a file system of 4 MB, with so much room as lets another write fail each time."""
    inside = ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o size=4m tmpfs '{tmp_path}' && $0"]
    try:
        subprocess.run([*inside, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a file system of its own")
    inside[-1] = inside[-1].replace("$0", 'exec "$0" "$@"')
    command = [*inside, sys.executable, "-c", FULL, str(tmp_path), str(workers)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}/src:{ROOT}", "OMP_NUM_THREADS": "1"}
    command += map(str, rooms)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout.splitlines()[-1])
    for words, parts, finished, values in found:
        assert words
        assert all(
            "is full; make room" in text or "No space left on device" in text for text in words
        )
        assert parts == []
        assert finished == 2
        assert values == repr(unbroken)


RACE = """
import sys, time
from pathlib import Path
from tests.study.tiny import recipe, study
from visgraft.study import run_study
networks = {"channels": [24, 24, 24, 24]}
plan = study(seeds=1, controls=["widened"], recipe=recipe(epochs=1, model_args=networks))
Path(sys.argv[1] + ".ready." + sys.argv[2]).touch()
while not Path(sys.argv[1] + ".go").exists():
    time.sleep(0.001)
result = run_study(plan, sys.argv[1], workers=0, threads=1, progress=False, measure=False)
assert len(result.finished) == 3, result
"""


@pytest.mark.slow
def test_two_drivers_start_at_the_same_moment(tmp_path):
    folder = tmp_path / "study"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}/src:{ROOT}", "OMP_NUM_THREADS": "1"}
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(folder), str(i)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    while len(list(tmp_path.glob("*.ready.*"))) < 2:
        assert all(driver.poll() is None for driver in drivers), drivers[0].stderr.read()
    (tmp_path / "study.go").touch()
    for driver in drivers:
        _, told = driver.communicate(timeout=300)
        assert driver.returncode == 0, told
    assert [t.attempts for t in Store.open(folder).trials()] == [1, 1, 1]
    alone = tmp_path / "alone"
    plan = study(
        seeds=1,
        controls=["widened"],
        recipe=recipe(epochs=1, model_args={"channels": [24, 24, 24, 24]}),
    )
    run_study(plan, alone, workers=0, threads=1, progress=False, measure=False)
    assert numbers(folder) == numbers(alone)
    assert Store.open(folder).study == Store.open(alone).study


def test_trial_that_always_fails_on_the_command_line(tmp_path, monkeypatch, capsys):
    def fail(recipe, *args, **kwargs):
        if recipe.grafts and recipe.seed == 1:
            raise RuntimeError("no luck with this one")
        return train(recipe, *args, **kwargs)

    train = trial.train
    monkeypatch.setattr(trial, "train", fail)
    file, folder = tmp_path / "plan.yaml", tmp_path / "runs"
    file.write_text(yaml.safe_dump(FIELDS | {"recipe": recipe(epochs=1)}))
    command = ["study", "run", str(file), "--folder", str(folder), "--workers", "0"]
    command += ["--threads", "1", "--quiet", "--no-measure"]
    for attempt in (1, 2):
        assert main(command) == 1
        trials = Store.open(folder).trials()
        assert [t.status for t in trials] == ["finished", "finished", "finished", "failed"]
        assert [t.attempts for t in trials] == [1, 1, 1, attempt]
    assert "Traceback" in trials[-1].error
    shown = capsys.readouterr().out
    assert "3 of 4 trials finished (1 failed)" in (folder / "report.md").read_text()
    assert "report: file://" in shown
    for name in ("report.md", "report.html"):
        assert "RuntimeError: no luck with this one" in (folder / name).read_text()
    assert math.isfinite(Store.open(folder).final("top1")["ca", 0])
    monkeypatch.undo()
    assert main(command) == 0
