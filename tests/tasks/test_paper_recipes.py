"""The papers' recipes: each names its source, and trains two steps of its own network."""

from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from visgraft.models import list_networks, network_info
from visgraft.tasks import train
from visgraft.tasks.recipe import list_recipes, load_recipe

OWN = {"cpu_small", "finetune"}
PAPERS = [name for name in list_recipes() if name not in OWN]


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
    head = (files("visgraft") / "recipes" / f"{name}.yaml").read_text("utf-8").split("model:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert "# Source: " in head
    assert "https://" in head


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
    assert named >= set(PAPERS) - {"cotnet_default"}  # cotnets name the advanced one


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
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
