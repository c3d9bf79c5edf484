"""Training and evaluation on a COCO folder, by the command line."""

import dataclasses

import pytest

from tests.tasks.detection.tiny_run import TINY, tiny_recipe
from visgraft.cli.main import main
from visgraft.data.detection import fashion_scenes, load_coco, load_detection, write_coco
from visgraft.tasks import evaluate, train
from visgraft.tasks.detection.loaders import DetectionLoaders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    train_part, val_part = fashion_scenes(train_images=4, val_images=2)
    path = tmp_path_factory.mktemp("data") / "shop"
    crowd = dataclasses.replace(train_part.images[0].objects[0], is_crowd=True)
    image = dataclasses.replace(train_part.images[0], objects=(crowd,))
    spoiled = dataclasses.replace(train_part, images=[image, *train_part.images[1:]])
    write_coco(path, {"train": spoiled, "val": val_part})
    return path


def test_crowds_are_not_learned_from(folder):
    data = load_detection(folder)
    assert data.train.images[0].objects[0].is_crowd
    loaders = DetectionLoaders(data, tiny_recipe(data=str(folder)))
    targets = [loaders.train[index][1] for index in range(4)]
    assert [int(target["iscrowd"].sum()) for target in targets] == [0] * 4
    assert len(targets[0]["boxes"]) == 0 < len(targets[1]["boxes"])
    assert loaders.val is data.val


def test_by_the_command_line(folder, tmp_path, capsys):
    recipe = tmp_path / "tiny.yaml"
    fields = {k: v for k, v in TINY.items() if k not in ("data", "train_limit", "val_limit")}
    recipe.write_text("\n".join(f"{name}: {value}" for name, value in fields.items()))
    command = ["train", "--recipe", str(recipe), "--data", str(folder), "--epochs", "1", "--quiet"]
    command += ["--folder", str(tmp_path / "run"), "--min-size", "40,56", "--hflip", "0"]
    command += ["--grafts", "{block: coord_attention, at: layer4.*.conv2, how: after}"]
    assert not main(command)
    told = capsys.readouterr().out
    assert "mask_AP " in told
    last = tmp_path / "run" / "last.ckpt"
    val = folder / "annotations" / "instances_val.json"
    assert not main(["eval", str(last), "--data", str(val), "--quiet"])
    told = capsys.readouterr().out
    assert "mask_AP50" in told
    assert told.endswith("measured on the 2 images of instances_val\n")
    assert not main(["eval", str(last), "--quiet"])
    assert capsys.readouterr().out.endswith("measured on the 2 validation images of shop\n")


def test_each_way_to_the_same_images_gives_the_same_numbers(folder, tmp_path):
    result = train(TINY | {"data": str(folder), "epochs": 1}, tmp_path, progress=False)
    val = folder / "annotations" / "instances_val.json"
    ways = [{}, {"data": val}, {"data": folder}, {"data": load_coco(val)}]
    ways += [{"data": val, "images": folder / "val"}, {"workers": 0, "image_size": 64}]
    for way in ways:
        measured = evaluate(result.checkpoint, progress=False, **way)
        assert measured == {name: result.final[name] for name in measured}, way
    val_part = load_coco(val)
    bare = [dataclasses.replace(image, objects=()) for image in val_part.images]
    with pytest.raises(ValueError, match="2 images of instances_val have no object to measure on"):
        evaluate(result.checkpoint, data=dataclasses.replace(val_part, images=bare), progress=False)
    maskless = dataclasses.replace(val_part.images[0].objects[0], mask=None)
    images = [dataclasses.replace(val_part.images[0], objects=(maskless,)), *bare[1:]]
    with pytest.raises(ValueError, match="1 of 1 objects of instances_val have no mask, object 1"):
        evaluate(
            result.checkpoint, data=dataclasses.replace(val_part, images=images), progress=False
        )
    smaller = evaluate(result.checkpoint, image_size=32, progress=False)
    assert smaller.keys() == measured.keys()
    with pytest.raises(ValueError, match="images is the folder of the pictures of another COCO"):
        evaluate(result.checkpoint, images=folder / "val", progress=False)
