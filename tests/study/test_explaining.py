import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.study.tiny import recipe, study
from visgraft.data import load_data
from visgraft.study.claims import claim_next
from visgraft.study.errors import StudyError
from visgraft.study.facts import open_images
from visgraft.study.reports import explaining
from visgraft.study.reports.explaining import draw_pictures, redraw_pictures
from visgraft.study.reports.pictures import read_pictures
from visgraft.study.reports.writing import report, study_data
from visgraft.study.store import Store
from visgraft.tasks import glow
from visgraft.tasks.training import train


@pytest.fixture(scope="module")
def images():
    return load_data("fashion_mini", train_limit=40, val_limit=60)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A study of which the baseline's first trial is finished; the variant's has failed."""
    fields = {"epochs": 1, "train_limit": 40, "val_limit": 60}
    planned = study(recipe=recipe(**fields), seeds=2)
    store = Store.prepare(tmp_path_factory.mktemp("ran") / "study", planned)
    data = open_images(store, planned.recipe)
    claim = claim_next(store)
    assert (claim.variant, claim.seed) == ("baseline", 0)
    one = planned.recipe.model_copy(update={"seed": 0})
    train(one, store.trial_folder("baseline", 0), progress=False, keep="last", data=data)
    claim.finish({1: {"top1": 10.0}})
    claim_next(store).fail("broken")
    return store, data


def test_pictures_are_drawn_and_read_back(ran):
    store, data = ran
    folder = draw_pictures(store, data)
    assert folder == store.folder / "pictures"
    index = json.loads((folder / "pictures.json").read_text())
    found = read_pictures(store.folder)
    assert (found.seed, found.grids) == (0, "4 x 4")
    assert [row.network for row in found.rows] == ["baseline"]
    assert found.missing == {"ca": "its trial of seed 0 is failed"}
    assert [i["name"] for i in index["images"]] == [
        data.val.names[i] for i in explaining._choose(data)
    ]
    assert len({image.label for image in found.images}) == 6
    for image, shown in zip(found.images, found.rows[0].pictures, strict=True):
        assert shown.is_right == (shown.label == image.label)
        assert 0.1 <= shown.chance <= 1  # the largest of ten
    with Image.open(folder / "baseline-3.png") as drawn:
        assert drawn.size == (128, 128)
    assert len(list(folder.iterdir())) == 1 + 2 * 6
    assert study_data(store.folder).pictures == found
    assert "What the networks look at" in report(store.folder).read_text(encoding="utf-8")


def test_pictures_are_drawn_anew(ran):
    store, _ = ran
    folder = store.folder / "pictures"
    folder.mkdir(exist_ok=True)
    (folder / "old-0.png").write_bytes(b"")
    assert redraw_pictures(store.folder) == folder
    assert not (folder / "old-0.png").exists()
    assert (folder / "pictures.json").exists()


def test_network_without_a_checkpoint_is_named(ran):
    store, data = ran
    checkpoint = store.trial_folder("baseline", 0) / "last.ckpt"
    kept = checkpoint.rename(checkpoint.with_suffix(".away"))
    try:
        assert draw_pictures(store, data) is None  # nothing to show
        with pytest.raises(StudyError, match=r"there is nothing to draw in .*seed 0 are finished"):
            redraw_pictures(store.folder)
    finally:
        kept.rename(checkpoint)


def test_images_are_spread_over_the_data_and_the_classes(images):
    chosen = explaining._choose(images)
    assert len(chosen) == 6
    assert [index // 10 for index in chosen] == list(range(6))
    assert len({images.val.labels[index] for index in chosen}) == 6


def test_glow_lies_where_the_map_is_large():
    black = glow.enlarge(Image.new("RGB", (32, 32)), 128)
    values = torch.zeros(4, 4)
    values[0, 3] = 7.0  # right above
    drawn = np.asarray(glow.glowing(black, values), float)
    assert drawn.shape == (128, 128, 3)
    assert drawn[4, 123].tolist() == [204, 77, 0]  # 0.8 of the glow
    assert drawn[100, 20].tolist() == [0, 0, 0]
    plain = np.asarray(glow.glowing(black, torch.zeros(4, 4)), float)
    assert plain.max() == 0


def test_pixels_are_those_that_the_network_sees():
    pixels = torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    inputs = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    seen = glow.as_pixels(inputs, mean, std)
    torch.testing.assert_close(seen, pixels)
    assert glow.colours(seen[0]).getpixel((1, 1)) == (51, 128, 230)
    gray = glow.colours(torch.full((1, 2, 2), 0.5))
    assert gray.getpixel((0, 0)) == (128, 128, 128)


def test_folder_that_cannot_be_written_is_a_warning(ran, monkeypatch):
    store, data = ran

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(explaining, "write_atomically", full)
    with pytest.warns(
        UserWarning, match=r"pictures of the report could not be written \(.*No space"
    ):
        assert draw_pictures(store, data) is None
    monkeypatch.undo()
    assert read_pictures(store.folder) is None


def stored(folder, **changes):
    """Pictures in a folder, some part of them changed."""
    place = Path(folder) / "pictures"
    place.mkdir(parents=True)
    stream = io.BytesIO()
    Image.new("RGB", (2, 2)).save(stream, format="PNG")
    (place / "a.png").write_bytes(stream.getvalue())
    (place / "text.png").write_bytes(b"no picture")
    shown = {"file": "a.png", "says": "cat", "chance": 0.5}
    index = {
        "seed": 3,
        "images": [{"name": "x", "label": "cat", "file": "a.png"}],
        "networks": [{"network": "n", "grid": [4, 7], "pictures": [shown]}],
        "missing": {},
    }
    (place / "pictures.json").write_text(json.dumps(index | changes))
    return folder


def test_pictures_are_read(tmp_path):
    assert read_pictures(tmp_path) is None
    found = read_pictures(stored(tmp_path / "whole"))
    assert (found.seed, found.grids, found.rows[0].pictures[0].chance) == (3, "4 x 7", 0.5)
    assert found.images[0].source.startswith("data:image/png;base64,iVBOR")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"images": [{"label": "cat", "file": "../../secret"}]}, r"'../../secret' is not a file"),
        ({"images": [{"label": "cat", "file": "gone.png"}]}, r"gone\.png"),
        ({"images": [{"label": "cat", "file": "text.png"}]}, r"text\.png is not a PNG"),
        ({"images": []}, r"zip\(\)"),
        ({"networks": [{"network": "n"}]}, r"'pictures'"),
    ],
)
def test_damaged_pictures_are_refused(tmp_path, changes, text):
    folder = stored(tmp_path / "study", **changes)
    with pytest.raises(StudyError, match=rf"are damaged \(.*{text}.*delete that folder"):
        read_pictures(folder)
