import pickle
import subprocess
import sys
from importlib.resources import files

import pytest
import torch
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn

from visgraft.tasks.errors import RecipeError
from visgraft.tasks.legal_names import SCHEDULES
from visgraft.tasks.recipe import (
    GraftSpec,
    Recipe,
    differing_fields,
    dump_recipe,
    list_recipes,
    load_recipe,
)


def problem(**fields) -> str:
    """Returns the one thing that is wrong with a small recipe when these fields are changed."""
    with pytest.raises(RecipeError) as error:
        load_recipe("cpu_small", **fields)
    assert len(error.value.problems) == 1, error.value
    return error.value.problems[0]


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipe_loads_and_says_what_it_is(name):
    recipe = load_recipe(name, data="fashion_mini")
    assert load_recipe(recipe) == recipe
    assert (files("visgraft") / "recipes" / f"{name}.yaml").read_text("utf-8").startswith("# ")


def test_each_field_is_described_in_a_sentence():
    for model in (Recipe, GraftSpec):
        for name, field in model.model_fields.items():
            assert field.description, name
            assert field.description[-1] == "." or field.description.endswith("..."), name


def test_import_is_cheap():
    code = "import sys, visgraft.tasks.recipe; print([m for m in ('timm', 'torchvision', "
    code += "'pytorch_lightning', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_errors_are_named_at_once():
    with pytest.raises(RecipeError) as error:
        load_recipe("cpu_small", epochs=0, lr="fast", optimizer="adamv", epoch=3, warmup_epochs=9)
    assert str(error.value) == (
        "recipe cpu_small: 4 errors\n"
        "  epochs: must be greater than 0, got 0\n"
        "  optimizer: 'adamv' is no optimizer of timm (such as sgd, adamw, lamb, lion, muon); "
        "did you mean adam or radam?\n"
        "  lr: must be a valid number, unable to parse string as a number, got 'fast'\n"
        "  epoch: there is no such field; did you mean epochs?"
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"epochs": True}, "epochs: must be a number, got True"),
        ({"lr": float("nan")}, "lr: must be a finite number, got nan"),
        ({"val_fraction": 1.0}, "val_fraction: must be less than 1, got 1.0"),
        ({"seed": -1}, "seed: must be greater than or equal to 0, got -1"),
        (
            {"precision": "fp16"},
            "precision: must be one of fp32, bf16, got 'fp16'; did you mean bf16?",
        ),
        (
            {"loggers": "tensorbord"},
            "loggers.0: must be one of tensorboard, wandb, mlflow, got 'tensorbord'; "
            "did you mean tensorboard?",
        ),
        (
            {"model": "resnet10_smal"},
            "model: 'resnet10_smal' is no network of timm or visgraft; "
            "did you mean resnet10_small or resnet18_small?",
        ),
        ({"warmup_epochs": 7}, "warmup_epochs: must be less than epochs (5), got 7"),
        ({"min_lr": 1}, "min_lr: must be at most lr (0.004), got 1"),
        (
            {"mixup": 0.2, "batch_size": 5},
            "mixup: mixes pairs and needs an even batch_size, not 5, got 0.2",
        ),
        (
            {"crop_scale": [0.5, 1]},
            "crop_scale: cannot be given together with crop_padding; choose one of them, "
            "got [0.5, 1]",
        ),
        (
            {"crop_scale": [0.5, 0.2], "crop_padding": None},
            "crop_scale: must be two rising fractions in (0, 1], such as [0.5, 1], got [0.5, 0.2]",
        ),
        (
            {"checkpoint": "a.pth", "pretrained": True},
            "checkpoint: cannot be given together with pretrained; choose one of them, got 'a.pth'",
        ),
        (
            {"auto_augment": "rnd"},
            "auto_augment: 'rnd' is no policy of timm, such as rand-m9-mstd0.5, augmix-m3-w3 or "
            "original",
        ),
        (
            {"schedule_args": {"min_lr": 1}},
            "schedule_args: 'min_lr' is set by the field min_lr, got {'min_lr': 1}",
        ),
        ({"opt_args": "{eps: [}"}, None),
    ],
)
def test_rejects(fields, expected):
    found = problem(**fields)
    if expected is None:
        assert found.startswith("opt_args: line 1: not valid YAML:")
    else:
        assert found == expected


def test_names_the_arguments_that_an_optimizer_takes():
    found = problem(opt_args={"nestrov": True}, optimizer="sgd")
    assert found.startswith(
        "opt_args: optimizer 'sgd' takes no argument 'nestrov'; did you mean nesterov?"
    )


@pytest.mark.parametrize(
    ("graft", "expected"),
    [
        ({"block": "coord_atention", "at": "x"}, "grafts.0.block: no block 'coord_atention'"),
        ({"block": "cot"}, "grafts.0.at: is required (Where"),
        (
            {"block": "coord_attention", "at": "x", "options": {"reductoin": 2}},
            "grafts.0.options: block 'coord_attention' takes no argument 'reductoin'; did you mean "
            "reduction?",
        ),
        (
            {"block": "cot", "at": "x", "hwo": "after"},
            "grafts.0.hwo: there is no such field; did you mean how?",
        ),
        (
            {"block": "cot", "at": "x", "how": "befor"},
            "grafts.0.how: must be one of replace, after, parallel, got 'befor'",
        ),
    ],
)
def test_rejects_graft(graft, expected):
    assert problem(grafts=graft).startswith(expected)


def test_command_line_text_is_understood():
    recipe = load_recipe(
        "cpu_small",
        epochs="3",
        loggers="none",
        opt_args="{eps: 1e-6}",
        grafts="[{block: coord_attention, at: block_end}, {block: cot, at: [a, b]}]",
    )
    assert recipe.epochs == 3
    assert recipe.loggers == ()
    assert recipe.opt_args == {"eps": 1e-6}
    assert [g.at for g in recipe.grafts] == [("block_end",), ("a", "b")]


def test_dump_and_pickle_keep_everything():
    recipe = load_recipe("cpu_small", grafts={"block": "cot", "at": "x"}, crop_padding=None)
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert "lr: 0.004\n" in dump_recipe(recipe)


def test_file_with_base_and_overrides(tmp_path):
    (tmp_path / "a.yaml").write_text("base: cpu_small\nlr: 2e-3\nepochs: 7\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nepochs: 8\n")
    recipe = load_recipe(tmp_path / "b.yaml", seed=4)
    assert (recipe.lr, recipe.epochs, recipe.seed, recipe.model) == (0.002, 8, 4, "resnet10_small")
    (tmp_path / "saved.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "saved.yaml") == recipe


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr: 1\nlr: 2\n", r"a\.yaml, line 2: the key 'lr' was already given in line 1"),
        ("lr: [1\n", r"a\.yaml, line 2: not valid YAML: expected ',' or '\]'"),
        ("- lr\n", r"a\.yaml: must hold 'field: value' lines, got list"),
        ("lr: !!python/object/apply:os.system [ls]\n", r"line 1: not valid YAML: could not"),
        ("base: a.yaml\n", r"base: .*a\.yaml -> .*a\.yaml is a circle"),
        ("base: [1]\n", r"base: must be a name or a file, got \[1\]"),
        ("base: nowhere\n", r"nowhere: 1 error\n  is neither a file nor one of acmix_resnet"),
        ("", r"2 errors\n  data: is required .*\n  model: is required"),
    ],
)
def test_rejects_file(tmp_path, text, expected):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(RecipeError, match=expected):
        load_recipe(tmp_path / "a.yaml")


def test_unknown_name_has_the_nearest():
    with pytest.raises(RecipeError, match=r"neither a file nor one of .*; did you mean cpu_small"):
        load_recipe("cpu_smal")


def test_differing_fields_ignore_what_does_not_touch_the_numbers():
    one = load_recipe("cpu_small")
    other = load_recipe("cpu_small", workers=3, loggers="none", lr=0.1, seed=1)
    assert differing_fields(one, other) == ["lr", "seed"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_timm_has_each_schedule(name):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule, _ = create_scheduler_v2(
        optimizer, name, num_epochs=4, warmup_epochs=1, step_on_epochs=False, updates_per_epoch=5
    )
    assert (schedule is None) == (name == "none")


DETECTION = {"task": "detection", "data": "fashion_scenes", "model": "resnet10_small"}


def test_detector_follows_the_task():
    assert Recipe(**DETECTION).detector == "faster_rcnn"
    masks = Recipe(**DETECTION | {"task": "instance_segmentation"})
    assert (masks.detector, masks.metric, masks.finds_masks) == ("mask_rcnn", "mask_AP", True)
    plain = load_recipe("cpu_small")
    assert (plain.detector, plain.metric, plain.finds_objects) == (None, "top1", False)
    assert load_recipe(masks) == masks
    assert Recipe(**masks.model_dump(mode="json")) == masks


def test_sizes_as_the_command_line_writes_them():
    def sizes(value):
        return Recipe(**DETECTION | {"min_size": value}).min_size

    assert sizes("480") == sizes(480) == sizes("[480]") == (480,)
    assert sizes("480, 512,800") == sizes([480, 512, 800]) == (480, 512, 800)
    jitter = Recipe(**DETECTION | {"scale_jitter": "0.1, 2"}).scale_jitter
    assert jitter == (0.1, 2.0)
    assert load_recipe("cpu_small", crop_padding=None, crop_scale="[0.5, 1]").crop_scale == (0.5, 1)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"detector": "mask_rcnn"},
            "detector: is for task instance_segmentation, got 'mask_rcnn'",
        ),
        (
            {"detector": "fcos", "task": "instance_segmentation"},
            "detector: must be mask_rcnn for task instance_segmentation, got 'fcos'",
        ),
        (
            {"detector": "retina_net"},
            "detector: must be one of faster_rcnn, mask_rcnn, retinanet, fcos, got 'retina_net'; "
            "did you mean retinanet?",
        ),
        (
            {"mixup": 0.2},
            "mixup: is for task classification; leave it out, got 0.2",
        ),
        (
            {"image_size": 512},
            "image_size: is for task classification; leave it out; a detector has min_size and "
            "max_size, got 512",
        ),
        ({"min_size": True}, "min_size: must be a valid tuple, got True"),
        ({"min_size": [320, 0]}, "min_size.1: must be greater than 0, got 0"),
        ({"max_size": 700}, "max_size: must be at least min_size (800), got 700"),
        (
            {"scale_jitter": [2, 1]},
            "scale_jitter: must be two rising factors above 0, such as [0.8, 1.25], got [2, 1]",
        ),
        (
            {"detector_args": {"num_classes": 3}},
            "detector_args: 'num_classes' follows from the recipe's other fields; leave it out, "
            "got {'num_classes': 3}",
        ),
        (
            {"detector_args": {"box_score_tresh": 0.1}},
            "detector_args: faster_rcnn takes no argument 'box_score_tresh'; did you mean "
            "box_score_thresh",
        ),
        (
            {"detector_args": {"box_head": "big"}},
            "detector_args: faster_rcnn takes no argument 'box_head'",
        ),
        (
            {"detector_args": {"learning": [1]}},
            "detector_args: 'learning' follows from the recipe's other fields; leave it out",
        ),
        (
            {"warmup_updates": 9, "warmup_epochs": 1},
            "warmup_updates: cannot be given together with warmup_epochs; choose one of them, "
            "got 9",
        ),
        (
            {"warmup_updates": 9, "schedule_on": "epoch"},
            "warmup_updates: needs schedule_on update, got 9",
        ),
    ],
)
def test_rejects_in_detection(fields, expected):
    with pytest.raises(RecipeError) as error:
        Recipe(**DETECTION | fields)
    (found,) = error.value.problems
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("detector", "fcos"),
        ("detector_args", {"a": 1}),
        ("frozen_stages", 1),
        ("frozen_norm", True),
        ("min_size", 320),
        ("max_size", 999),
        ("scale_jitter", (0.5, 1)),
        ("val_data", "b.json"),
        ("images", "b"),
        ("val_images", "b"),
    ],
)
def test_rejects_detection_in_classification(name, value):
    expected = f"{name}: is for task detection or instance_segmentation; leave it out, got"
    assert problem(**{name: value}).startswith(expected)


def test_defaults_of_another_task_may_be_written_down():
    fields = Recipe(**DETECTION).model_dump(mode="json")
    assert fields["mixup"] == 0.0
    assert Recipe(**fields).task == "detection"


def test_a_recipe_of_another_task_is_named_with_those_that_fit():
    with pytest.raises(RecipeError) as caught:
        load_recipe("cpu_small", task="instance_segmentation")
    assert caught.value.problems == (
        "task: is for classification, not for instance_segmentation; recipes for that: "
        "botnet_maskrcnn, cotnet_maskrcnn_1x, gc_maskrcnn_1x, scenes_small",
    )
    with pytest.raises(RecipeError, match="is for instance_segmentation, not for classification"):
        load_recipe("scenes_small", task="classification")
    with pytest.raises(RecipeError, match="task: must be"):
        load_recipe("cpu_small", task="segmentation")
