"""Grafts in ultralytics' models survive what ultralytics does to them."""

import copy
import io

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests.offline_ultralytics import ultralytics
from tests.surgery.models import alive
from visgraft.surgery import apply_plan, find_sites, graft
from visgraft.surgery._apart import KeptApart
from visgraft.surgery._graftable import RebuiltModelWarning
from visgraft.surgery.holders import Holder

get_cfg = pytest.importorskip("ultralytics.cfg").get_cfg
tasks = pytest.importorskip("ultralytics.nn.tasks")
ModelEMA = pytest.importorskip("ultralytics.utils.torch_utils").ModelEMA

pytestmark = pytest.mark.filterwarnings("ignore::visgraft.surgery._graftable.RebuiltModelWarning")

X = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))
ROWS = [f"model.{row}" for row in (2, 4, 6, 8, 9)]
CLASSES = {"yolov8n-seg": tasks.SegmentationModel}
NUMBERING = ("i", "f", "type", "np")
_BUILT = {}


def build(name):
    """Returns a model of random weights, all of which count."""
    if name not in _BUILT:
        torch.manual_seed(0)
        _BUILT[name] = alive(CLASSES.get(name, tasks.DetectionModel)(f"{name}.yaml", verbose=False))
    return copy.deepcopy(_BUILT[name])


def outputs(model, x=X):
    with torch.no_grad():
        return next(leaf for leaf in tree_leaves(model.eval()(x)) if isinstance(leaf, torch.Tensor))


def trained(done):
    """Gives the new tensors values that count."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in done.parameters():
            parameter.add_(0.1 * torch.rand(parameter.shape, generator=generator))
    return done


def called_convolutions(model):
    """Returns the paths of the 3 x 3 convolutions in the order in which a run calls them."""
    called = {}
    handles = [
        m.register_forward_hook(lambda *_, path=path: called.setdefault(path))
        for path, m in model.named_modules()
        if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    outputs(model)
    for handle in handles:
        handle.remove()
    return list(called)


def fused(model):
    return copy.deepcopy(model).fuse(verbose=False)


def assert_near(made, expected):
    scale = expected.abs().max().item()
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize(("name", "tensors"), [("yolov8n", 355), ("yolov5n", 427)])
def test_every_tensor_is_kept_and_the_output_stays(name, tensors):
    model = build(name)
    plain, before = copy.deepcopy(model.state_dict()), outputs(model)
    done = graft(model, "coord_attention", ROWS)
    assert (done.totals.kept, done.totals.tensors) == (tensors, tensors)
    assert done.max_difference == 0
    assert torch.equal(outputs(model), before)
    transferred = tasks.intersect_dicts(plain, model.state_dict())
    assert len(transferred) == len(plain) == tensors
    trained(done)
    assert not torch.equal(outputs(model), before)


@pytest.mark.parametrize("name", ["yolov8n", "yolov5n", "yolo11n", "yolov8n-seg", "yolo26n"])
def test_sites_of_all_families(name):
    model = build(name)
    before, keys = outputs(model), list(model.state_dict())
    sites = find_sites(model)
    paths = {kind: [s.path for s in sites if s.kind == kind] for kind in ("conv3x3", "block_end")}
    assert paths["conv3x3"] == called_convolutions(model)
    assert len(paths["conv3x3"]) > 25
    assert len(paths["block_end"]) > 5
    done = graft(model, "coord_attention", "block_end")
    assert done.max_difference == 0
    assert [s.path for s in done.sites] == paths["block_end"]
    trained(done).undo()
    assert torch.equal(outputs(model), before)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize(
    ("block", "at", "how"),
    [
        ("coord_attention", "model.4", "after"),
        ("coord_attention", "model.1", "after"),
        ("cot", "model.4.m.0.cv1", "parallel"),
        ("cot", "model.4.m.0.cv1.conv", None),
        ("deform_conv", "model.5.conv", None),
        ("spd_conv", "model.5.conv", None),
        ("global_context", "model.6.cv1.conv", "after"),
        ("coord_attention", "model.6.cv1.bn", "after"),
    ],
)
def test_fusing_keeps_the_graft(block, at, how):
    model = build("yolov8n")
    before, keys = outputs(model), list(model.state_dict())
    kinds = [type(m) for m in model.modules()]
    done = trained(graft(model, block, at, how=how))
    expected = outputs(model)
    assert not torch.equal(expected, before)
    quick = fused(model)
    assert quick.is_fused()
    assert_near(outputs(quick), expected)
    assert sum(hasattr(m, "bn") for m in quick.modules()) == at.endswith((".conv", ".bn"))
    done.undo()
    assert [type(m) for m in model.modules()] == kinds
    assert list(model.state_dict()) == keys
    assert_near(outputs(model), before)


def test_a_unit_is_kept_apart_as_long_as_a_graft_needs_it():
    model = build("yolov8n")
    unit = model.model[6].cv1
    first = graft(model, "coord_attention", "model.6.cv1.conv")
    second = graft(model, "global_context", "model.6.cv1.bn")
    assert "model.6.cv1 will not be fused" in first.table()
    first.undo()
    assert type(unit) is KeptApart
    assert (unit.conv.in_channels, unit.i if hasattr(unit, "i") else None) == (128, None)
    second.undo()
    assert type(unit).__name__ == "Conv"
    assert "unit_class" not in vars(unit)


def test_a_unit_that_is_kept_apart_has_the_methods_it_had():
    model = build("yolov8n")
    unit = model.model[1]
    x = torch.rand(1, 16, 8, 8)
    fused_alone, plain = unit.forward_fuse(x), unit(x)
    graft(model, "coord_attention", "model.1.conv")
    assert torch.equal(unit.forward_fuse(x), fused_alone)
    assert torch.equal(unit(x), plain)
    with pytest.raises(AttributeError, match="no_such_thing"):
        unit.no_such_thing  # noqa: B018


def test_a_fused_model_takes_grafts_too():
    model = fused(build("yolov8n"))
    before = outputs(model)
    done = graft(model, "coord_attention", ["model.1.conv", "model.4"])
    assert torch.equal(outputs(model), before)
    assert not any(isinstance(m, KeptApart) for m in model.modules())
    expected = outputs(trained(done).model)
    assert torch.equal(outputs(fused(model)), expected)


@pytest.mark.parametrize(
    ("block", "row", "how", "start"),
    [
        ("coord_attention", 6, None, "identity"),
        ("cot", 6, "parallel", "identity"),
        ("cot", 6, "replace", "paper"),
        ("deform_conv", 5, "replace", "paper"),
    ],
)
def test_rows_keep_their_numbers(block, row, how, start):
    model = build("yolov8n")
    numbers = [[getattr(m, name) for name in NUMBERING] for m in model.model]
    done = graft(model, block, f"model.{row}", how=how, start=start)
    assert [[getattr(m, name) for name in NUMBERING] for m in model.model] == numbers
    assert outputs(model).shape == outputs(build("yolov8n")).shape
    assert outputs(fused(model)).isfinite().all()
    done.undo()
    assert torch.equal(outputs(model), outputs(build("yolov8n")))


def test_the_loss_reaches_the_graft():
    model = build("yolov8n").train()
    model.args = get_cfg()
    done = trained(graft(model, "coord_attention", ROWS))
    batch = {
        "img": torch.rand(2, 3, 64, 64),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[0.0], [1.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.4, 0.4, 0.3, 0.3]]),
    }
    loss, _ = model.loss(batch)
    loss.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in done.parameters())


def test_the_moving_average_follows_the_graft():
    model = build("yolov8n")
    done = graft(model, "coord_attention", ROWS)
    average = ModelEMA(model)
    trained(done)
    average.update(model)
    mine = model.state_dict()["model.4.graft.scale"]
    share = average.ema.state_dict()["model.4.graft.scale"] / mine
    assert 0.99 < share.min() < 1
    torch.testing.assert_close(share, share[:1].expand_as(share))


def test_half_precision_copies_pickle():
    model = build("yolov8n")
    trained(graft(model, "coord_attention", [*ROWS, "model.1.conv"]))
    expected = outputs(model)
    buffer = io.BytesIO()
    torch.save(copy.deepcopy(model).half(), buffer)
    buffer.seek(0)
    twin = torch.load(buffer, weights_only=False)
    assert {p.dtype for p in twin.parameters()} == {torch.float16}
    assert sum(isinstance(m, Holder) for m in twin.modules()) == 6
    twin = twin.float()
    scale = expected.abs().max().item()
    torch.testing.assert_close(outputs(twin), expected, rtol=0, atol=0.02 * scale)
    assert outputs(fused(twin)).shape == expected.shape


def test_a_plan_repeats_the_graft():
    source, target = build("yolo11n"), build("yolo11n")
    first = trained(graft(source, "coord_attention", "stage2/block_end"))
    second = apply_plan(target, first.plan)
    target.load_state_dict(source.state_dict())
    assert torch.equal(outputs(target), outputs(source))
    assert [row.key for row in second[0].rows] == [row.key for row in first.rows]


@pytest.mark.filterwarnings("error::visgraft.surgery._graftable.RebuiltModelWarning")
def test_a_graft_that_the_trainer_would_lose_is_warned_of():
    with pytest.warns(RebuiltModelWarning, match="graft: ultralytics' trainer builds a Detection"):
        graft(build("yolov8n"), "coord_attention", "model.4")


def test_the_wrapper_is_refused():
    with pytest.raises(ValueError, match="find_sites: the model is a wrapper around one; graft it"):
        find_sites(ultralytics.YOLO("yolov8n.yaml"))
