"""`visgraft data`."""

from pathlib import Path

import pytest

from tests.data.detection.conftest import Coco, annotation
from visgraft.cli import data
from visgraft.cli.main import main
from visgraft.tasks import progress


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_scenes_are_written_and_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "scenes"
    assert main(["data", "scenes", str(folder), "--images", "3", "--val-images", "2"]) == 0
    assert f"{folder}/annotations/instances_train.json: 3 images, " in capsys.readouterr().out
    assert len(list((folder / "train").glob("*.png"))) == 3
    assert main(["data", "check", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.endswith("nothing to mend\n")
    assert "instances_val.json: COCO\n  usable: 2 images, " in out
    assert main(["data", "scenes", str(folder)]) == 2
    assert "is not an empty folder; choose another" in capsys.readouterr().err


def test_problems_are_listed_and_the_status_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = Coco(tmp_path / "set")
    coco.annotations += [annotation(3, 99), annotation(4, bbox=[0, 0, 0, 0])]
    path = coco.write()
    for place in (path, coco.root):
        assert main(["data", "check", str(place)]) == 1
        out = capsys.readouterr().out
        assert "usable: 2 images, 2 objects (2 with masks, 0 crowds), 3 classes" in out
        assert f"mend: {path}, annotation 3: image_id 99 is no usable image of the file" in out
        assert f"mend: {path}, annotation 4 of 10.png: box (0, 0, 0, 0) has no area" in out
        assert out.endswith("2 to mend\n")


def test_a_json_that_cannot_be_read_is_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = Coco(tmp_path / "set")
    coco.path.write_text("{")
    assert main(["data", "check", str(coco.path)]) == 1
    assert "is not json" in capsys.readouterr().out


def test_the_folder_of_the_pictures_can_be_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = Coco(tmp_path / "set")
    moved = coco.folder.rename(tmp_path / "pictures")
    assert main(["data", "check", str(coco.write()), "--images", str(moved)]) == 0
    assert "nothing to mend" in capsys.readouterr().out


def test_what_is_no_data_set_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tmp_path)]) == 2
    assert "is neither a COCO json, a YOLO data.yaml, nor a folder" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path / "no")]) == 2
    assert "there is no" in capsys.readouterr().err


def test_each_part_has_a_bar_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    totals: list[int] = []

    class Bar(progress.Bar):
        def __init__(self, text: str, steps: int) -> None:
            totals.append(steps)
            super().__init__(text, steps)

    monkeypatch.setattr(progress, "Bar", Bar)
    with data._bar_per_part("reading") as count:
        for done, total in ((4, 6), (6, 6), (6, 6), (3, 9), (9, 9)):
            count(done, total)
    assert totals == [6, 6, 9]
