"""The papers' recipes: each names its source, and trains two steps of its own network."""

import itertools
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from visgraft.data.detection import load_detection
from visgraft.models import list_networks, network_info
from visgraft.tasks import train
from visgraft.tasks.assembly import build_schedule
from visgraft.tasks.building import build_model
from visgraft.tasks.recipe import list_recipes, load_recipe

OWN = {"cpu_small", "finetune", "scenes_small"}
PAPERS = [name for name in list_recipes() if name not in OWN]
OF_DETECTORS = [name for name in PAPERS if "rcnn" in name]
OF_CLASSIFIERS = [name for name in PAPERS if name not in OF_DETECTORS]


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A folder of coloured noise: two classes, 20 images to train on and 4 to look at."""
    folder = tmp_path_factory.mktemp("colours")
    random = np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 2)):
        for label in ("cold", "warm"):
            (folder / part / label).mkdir(parents=True)
            for index in range(count):
                noise = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / part / label / f"{index}.png")
    return folder


@pytest.mark.parametrize("name", PAPERS)
def test_recipe_names_its_source(name):
    text = (files("visgraft") / "recipes" / f"{name}.yaml").read_text("utf-8")
    head = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))
    assert "# Source: " in head
    assert "https://" in head
    assert ("# Machine: " in head) == (name in OF_DETECTORS)


def test_recipes_say_what_the_sources_say():
    recipe = load_recipe("cotnet_advanced", data="fashion_mini")
    assert (recipe.epochs, recipe.lr, recipe.weight_decay) == (350, 0.25, 4e-5)
    assert (recipe.mixup, recipe.cutmix, recipe.drop_rate, recipe.drop_path_rate) == (
        0.8,
        1.0,
        0.25,
        0.1,
    )
    assert (recipe.auto_augment, recipe.ema_decay) == ("rand-m15-mstd0.5-n2", 0.9999)
    recipe = load_recipe("spd_resnet", data="fashion_mini")
    assert recipe.schedule_args == {"decay_milestones": [60, 120, 160], "decay_rate": 0.2}
    recipe = load_recipe("acmix_resnet", data="fashion_mini")
    assert (recipe.epochs, recipe.batch_size, recipe.warmup_epochs) == (90, 128, 5)


def test_networks_name_recipes_that_exist():
    named = {network_info(name).recipe for name in list_networks()} - {None}
    assert named <= set(list_recipes())
    assert named >= set(OF_CLASSIFIERS) - {"cotnet_default"}  # cotnets name the advanced one


SCHEDULES = {
    "gc_maskrcnn_1x": (12, 16, 0.02, 1e-4, [8, 11], 500, (800,), 1333),
    "dcn_fasterrcnn_1x": (12, 16, 0.02, 1e-4, [8, 11], 500, (800,), 1333),
    "cotnet_maskrcnn_1x": (
        *(12, 16, 0.02, 1e-4, [8.2, 10.9], 1000),
        *((640, 672, 704, 736, 768, 800), 1333),
    ),
    "botnet_maskrcnn": (36, 64, 0.08, 1e-4, [24, 32], 500, (1024,), 1024),
}


@pytest.mark.parametrize("name", OF_DETECTORS)
def test_recipes_of_detectors_say_what_the_sources_say(name):
    recipe = load_recipe(name, data="coco/")
    assert SCHEDULES[name] == (
        *(recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay),
        *(recipe.schedule_args["decay_milestones"], recipe.warmup_updates),
        *(recipe.min_size, recipe.max_size),
    )
    assert (recipe.schedule, recipe.schedule_on, recipe.hflip) == ("multistep", "update", 0.5)
    assert (recipe.optimizer, recipe.momentum) == ("momentum", 0.9)
    assert recipe.task == ("detection" if "faster" in name else "instance_segmentation")


@pytest.mark.parametrize("name", OF_DETECTORS)
def test_detectors_of_the_recipes_are_built_and_frozen_as_in_the_sources(name):
    """Stem and first stage stay as they are, what is grafted and the later stages learn."""
    recipe = load_recipe(name, data="fashion_scenes", pretrained=False)
    data = load_detection("fashion_scenes", train_limit=1, val_limit=1)
    with torch.device("meta"):  # no numbers, no pictures of 1333 pixels
        model, grafts = build_model(recipe, data)
    network = model.get_submodule("backbone.network")
    learning = {n for n, p in network.named_parameters() if p.requires_grad}
    assert not any(n.startswith(("conv1", "bn1", "layer1")) for n in learning)
    assert "layer2.0.conv1.weight" in learning
    assert ("layer4.0.bn1.weight" in learning) != recipe.frozen_norm
    sites = sum(len(graft.sites) for graft in grafts)
    assert sites == (0 if recipe.model in ("cotnet50", "botnet50") else 13)
    brought = [n for n in learning if n.endswith(("conv2.offset.weight", "block.attend.weight"))]
    assert len(brought) == sites


def test_the_rate_rises_and_falls_where_the_source_says():
    recipe = load_recipe("gc_maskrcnn_1x", data="coco/")
    layer = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=recipe.lr)
    schedule = build_schedule(recipe, optimizer, 7330)

    def rate(update):
        schedule.step_update(update)
        return optimizer.param_groups[0]["lr"]

    assert rate(0) == pytest.approx(0.02 / 3, rel=1e-3)
    assert rate(250) == pytest.approx(0.02 * 2 / 3, rel=1e-3)
    assert [rate(500), rate(8 * 7330 - 2)] == [0.02, 0.02]
    assert [rate(8 * 7330), rate(11 * 7330)] == pytest.approx([0.002, 0.0002])


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_CLASSIFIERS)
def test_recipe_trains_two_steps(name, colours, tmp_path):
    recipe = load_recipe(
        name,
        data=str(colours),
        image_size=32,
        epochs=1,
        warmup_epochs=0,
        batch_size=10,
        workers=0,
        loggers=[],
    )
    result = train(recipe, tmp_path / "run", progress=False)
    saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert result.checkpoint.is_file()
