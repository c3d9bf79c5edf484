"""An attempt on a trial as a machine of a cluster carries it out, without a cluster."""

import json
import re
import shutil
from dataclasses import asdict

import pytest
import torch

from tests.study.tiny import recipe, study
from visgraft.study.cluster import task as ray_task
from visgraft.study.cluster.storage import Storage
from visgraft.study.cluster.task import Job, run_attempt
from visgraft.study.environment import describe_environment
from visgraft.study.ownership import Owner
from visgraft.study.trial import find_spec
from visgraft.tasks.images import load_images
from visgraft.tasks.training import train

PLAN = study(seeds=1, recipe=recipe(epochs=2))


@pytest.fixture(scope="module")
def fingerprint():
    return load_images(PLAN.recipe, False).fingerprint


@pytest.fixture
def job(tmp_path, fingerprint, monkeypatch):
    monkeypatch.setattr(ray_task.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    place = Storage(str(tmp_path / "place"))
    return Job(
        study=PLAN.model_dump_json(),
        variant="ca",
        seed=0,
        number=1,
        token="a" * 32,
        fingerprint=fingerprint,
        environment=describe_environment(),
        threads=1,
        gpu=False,
        directory=str(tmp_path),
        place=place.url,
        mark=place.leave_mark(),
        folder=str(tmp_path / "place" / "trials" / "ca-seed0"),
        trial="ca-seed0-digest",
    )


@pytest.fixture(autouse=True)
def _stay_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def told(job, **changes):
    return list(run_attempt(asdict(job) | changes))


def words(events):
    return [word for word, _ in events]


def without_time(metrics):
    return {name: value for name, value in metrics.items() if name != "seconds"}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The metrics of both epochs, by training alone."""
    recipe = find_spec(PLAN, "ca", 0).recipe
    result = train(recipe, tmp_path_factory.mktemp("alone"), progress=False)
    return {
        int(row["epoch"]): without_time({n: v for n, v in row.items() if n != "epoch"})
        for row in result.metrics
    }


def test_attempt_tells_everything_and_the_next_one_goes_on_from_the_storage(
    job, unbroken, tmp_path
):
    heard, place = [], tmp_path / "place" / job.trial
    for event in run_attempt(asdict(job) | {"folder": None}):
        heard.append(event)
        if event[0] == "epoch" and event[1][0] == 1:
            shutil.copytree(place, tmp_path / "after one epoch")
    assert words(heard) == ["environment", "facts", "epoch", "epoch", "finished"]
    assert heard[0][1]["threads"] == 1
    assert heard[1][1].keys() == {"params", "macs", "init_digest", "order_digest"}
    assert {epoch: without_time(row) for epoch, row in heard[-1][1].items()} == unbroken
    assert not list((tmp_path / "tmp").glob("*/*"))

    shutil.rmtree(place)  # as if the machine had died after one epoch
    shutil.copytree(tmp_path / "after one epoch", place)
    rest = told(job, folder=None, number=2)
    assert words(rest) == ["environment", "facts", "epoch", "finished"]
    assert rest[2][1][0] == 2
    assert {epoch: without_time(row) for epoch, row in rest[-1][1].items()} == unbroken


def test_error_of_the_trial_is_told_with_its_traceback(job, monkeypatch):
    from visgraft.study import trial

    def fail(*args, **kwargs):
        raise RuntimeError("no luck today")

    monkeypatch.setattr(trial, "train", fail)
    events = told(job)
    assert words(events) == ["environment", "facts", "failed"]
    assert events[-1][1].startswith("Traceback")
    assert events[-1][1].rstrip().endswith("RuntimeError: no luck today")


def test_attempt_that_was_replaced_stops_without_a_word(job, monkeypatch, tmp_path):
    events = run_attempt(asdict(job))
    for word, _ in events:
        if word == "facts":  # it trains now, and takes longer than a look at a file
            (tmp_path / "place" / "trials" / "ca-seed0" / ".attempt").write_text("000002-b")
            break
    assert words(list(events)) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"mark": ".seen-other"}, r"does not see .*place; give --storage"),
        ({"mark": ".seen-other", "folder": None}, r"give a storage that all machines see"),
        ({"place": "nosuch://x"}, r"cannot use the storage \(.*Protocol not known"),
        ({"fingerprint": "other"}, r"has other images in fashion_mini than the study began with"),
        ({"gpu": True}, r"gave the trial a GPU, but torch finds none"),
        (
            {"environment": describe_environment() | {"torch": "1.13"}},
            rf"has torch {torch.__version__.replace('+', '.')}, the driver 1\.13; install the same",
        ),
        (
            {"study": PLAN.model_dump_json().replace('"fashion_mini"', '"/not/there"')},
            r"cannot load /not/there \(.*; put the data there",
        ),
        (
            {"study": PLAN.model_dump_json().replace("coord_attention", "my_own_block")},
            r"cannot build the study \(.*my_own_block.*run with executor='local' and workers=0",
        ),
    ],
)
def test_machine_that_cannot_do_it_refuses_with_a_sentence(job, changes, text, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ((word, reason),) = told(job, **changes)
    assert word == "refused"
    assert re.search(text, reason.replace("\n", " ")), reason


def test_folders_of_killed_processes_are_removed(job, tmp_path):
    base = tmp_path / "base"
    me = asdict(Owner.current())
    for name, owner in {
        "mine": me,
        "dead": me | {"born": "1"},
        "elsewhere": me | {"host": "other", "born": "1"},
    }.items():
        (base / name).mkdir(parents=True)
        (base / name / ".owner").write_text(json.dumps(owner))
    ray_task._remove_orphans(base)
    assert sorted(path.name for path in base.iterdir()) == ["elsewhere", "mine"]
