import math

import numpy as np
import pytest
import torch
from torch import nn

from visgraft.tasks.assembly import build_optimizer, build_schedule, build_task
from visgraft.tasks.building import build_model
from visgraft.tasks.metrics import ClassifierMetrics
from visgraft.tasks.mixing import Mixing


def test_metrics_are_those_of_all_images_together():
    logits, labels = torch.randn(50, 10), torch.randint(10, (50,))
    metrics = ClassifierMetrics(10)
    for part in (slice(0, 33), slice(33, 50)):
        metrics.update(logits[part], labels[part])
    result = metrics.result()
    order = logits.argsort(descending=True)
    hits = (order == labels[:, None]).float()
    assert result["top1"] == pytest.approx(100 * hits[:, :1].sum(1).mean().item())
    assert result["top5"] == pytest.approx(100 * hits[:, :5].sum(1).mean().item())
    assert result["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item())
    metrics.update(torch.tensor([[9.0] + [0.0] * 9]), torch.tensor([0]))
    assert metrics.result()["top1"] == 100


def test_top5_of_three_classes_is_100():
    metrics = ClassifierMetrics(3)
    metrics.update(torch.randn(8, 3), torch.randint(3, (8,)))
    assert metrics.result()["top5"] == 100


def test_mixing_depends_on_seed_epoch_and_step_alone():
    def mix(seed, *when):
        mixing = Mixing(4, mixup=0.5, cutmix=0.5, label_smoothing=0.1, seed=seed)
        return mixing(torch.arange(64.0).reshape(4, 1, 4, 4), torch.arange(4), *when)

    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    images, targets = mix(0, 0, 1, 2)
    assert np.random.rand() == expected
    assert torch.equal(images, mix(0, 0, 1, 2)[0])
    assert torch.equal(targets, mix(0, 0, 1, 2)[1])
    assert torch.allclose(targets.sum(1), torch.ones(4))
    others = [mix(1, 0, 1, 2), mix(0, 1, 1, 2), mix(0, 0, 2, 2), mix(0, 0, 1, 3)]
    assert all(not torch.equal(targets, other[1]) for other in others)


def test_every_weight_is_trained_and_vectors_do_not_decay(make_recipe, images):
    grafts = [
        {"block": "coord_attention", "at": "block_end"},
        {"block": "cot", "at": "layer4.*.conv2"},
    ]
    recipe = make_recipe(grafts=grafts, ema_decay=0.9, weight_decay=0.3)
    task = build_task(recipe, build_model(recipe, images)[0], images)
    optimizer = task.configure_optimizers()
    groups = {g["weight_decay"]: g["params"] for g in optimizer.param_groups}
    assert sum(len(params) for params in groups.values()) == len(list(task.model.parameters()))
    assert all(p.ndim > 1 for p in groups[0.3])
    inside = [p for n, p in task.model.named_parameters() if ".graft" in n]
    trained = {id(p) for params in groups.values() for p in params}
    assert len(inside) > 10
    assert all(id(p) in trained for p in inside)
    assert not any(p.requires_grad for p in task.ema.parameters())


def rates(recipe, steps):
    """Returns the learning rate of each update, five of which make an epoch."""
    optimizer = build_optimizer(recipe, nn.Linear(2, 2))
    schedule = build_schedule(recipe, optimizer, 5)
    seen = []
    for step in range(steps):
        if step % 5 == 0:
            schedule.step(step // 5)
        schedule.step_update(step)
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


def test_schedule_falls_in_steps_after_a_rise_of_some_updates(make_recipe):
    steps = {"decay_milestones": [1, 3], "decay_rate": 0.1, "warmup_lr": 0.1}
    recipe = make_recipe(
        epochs=4, lr=1.0, warmup_updates=3, schedule="multistep", schedule_args=steps
    )
    seen = rates(recipe, 20)
    assert seen[:4] == pytest.approx([0.1, 0.4, 0.7, 1.0])
    assert (seen[5], seen[13], seen[15]) == pytest.approx((0.1, 0.1, 0.01))


def test_schedule_by_update_and_by_epoch(make_recipe):
    recipe = make_recipe(epochs=4, lr=1.0, warmup_epochs=1, min_lr=0.1)
    per_update = rates(recipe, 20)
    assert per_update[:5] == sorted(per_update[:5])
    assert per_update[5] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 4)))
    assert per_update[5:] == sorted(per_update[5:], reverse=True)
    per_epoch = rates(recipe.model_copy(update={"schedule_on": "epoch"}), 20)
    assert len(set(per_epoch)) == 4
    assert per_epoch[5] == pytest.approx(per_update[5])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"optimizer": "bnbadam"}, r"optimizer 'bnbadam' cannot be built: .*; change optimizer or"),
        (
            {"optimizer": "sgd", "momentum": 0.0, "opt_args": {"nesterov": True}},
            r"optimizer 'sgd' cannot be built: Nesterov momentum requires a momentum",
        ),
    ],
)
def test_optimizer_that_cannot_be_built(make_recipe, fields, expected):
    with pytest.raises(ValueError, match=expected):
        build_optimizer(make_recipe(**fields), nn.Linear(2, 2))


def test_schedule_that_cannot_be_built(make_recipe):
    recipe = make_recipe(schedule="wsd", schedule_args={"decay_epochs": 9})
    optimizer = build_optimizer(recipe, nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"schedule 'wsd' cannot be built: .*; change schedule"):
        build_schedule(recipe, optimizer, 5)
