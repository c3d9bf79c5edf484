"""`C3With` and `C2fWith`: ultralytics' own units with a block in each bottleneck."""

import pytest
import torch

from tests.offline_ultralytics import ultralytics  # noqa: F401
from tests.surgery.models import alive
from tests.tasks.test_yolo_yaml import network
from visgraft import blocks
from visgraft.tasks import yolo
from visgraft.tasks.yolo.layers import NormalisedBlock

block_module = pytest.importorskip("ultralytics.nn.modules.block")


@pytest.fixture(autouse=True)
def _registered():
    yolo.register()
    yield
    yolo.unregister()


@pytest.mark.parametrize("unit", ["C3", "C2f"])
def test_all_but_the_block_is_ultralytics(unit):
    mine = network([-1, 6, f"{unit}With", [128, "DeformConv"]]).model[1]
    theirs = network([-1, 6, unit, [128, True]]).model[1]
    assert type(mine) is type(theirs) is getattr(block_module, unit)
    assert len(mine.m) == len(theirs.m) == 2
    kept = {n: tuple(t.shape) for n, t in theirs.state_dict().items()}
    new = {n: tuple(t.shape) for n, t in mine.state_dict().items()}
    assert {n for n in new.keys() - kept.keys() if ".cv2.conv.offset." not in n} == set()
    assert {n: new.get(n) for n in kept} == kept


@pytest.mark.parametrize("unit", ["C3", "C2f"])
@pytest.mark.parametrize("shortcut", [True, False])
def test_with_a_deformable_convolution_it_starts_as_the_plain_unit(unit, shortcut):
    torch.manual_seed(0)
    options = {"modulated": False, **({} if shortcut else {"shortcut": False})}
    mine = network([-1, 6, f"{unit}With", [128, "DeformConv", options]]).model[1]
    theirs = alive(network([-1, 6, unit, [128, shortcut]])).model[1]
    missing, unexpected = mine.load_state_dict(theirs.state_dict(), strict=False)
    assert unexpected == []
    assert all(".offset." in name for name in missing)
    for parameter in (p for n, p in mine.named_parameters() if ".offset." in n):
        assert not parameter.any()
    x = torch.randn(2, 16, 9, 12)
    torch.testing.assert_close(mine.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)


def test_blocks_that_normalise_themselves_stay_bare():
    inside = network([-1, 3, "C3With", [128, "CoT"]]).model[1].m[0].cv2
    assert type(inside) is blocks.ContextualTransformer
    inside = network([-1, 3, "C3With", [128, "ACmix"]]).model[1].m[0].cv2
    assert type(inside) is NormalisedBlock
    inside = network([-1, 3, "C3With", [128, "DeformConv", {"norm": False}]]).model[1].m[0].cv2
    assert type(inside) is blocks.DeformConv


def test_options_reach_every_block():
    unit = network([-1, 6, "C2fWith", [128, "ACmix", {"num_heads": 2}]]).model[1]
    assert [m.cv2.conv.num_heads for m in unit.m] == [2, 2]


def test_folding_leaves_the_output():
    """ultralytics folds normalisation into its convolutions, not into a block."""
    model = alive(network([-1, 3, "C3With", [128, "DeformConv"]])).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)[0]
        after = model.fuse(verbose=False)(x)[0]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-3)
    assert type(model.model[1].m[0].cv2.bn) is torch.nn.BatchNorm2d
    assert not hasattr(model.model[1].cv1, "bn")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([128], r"layer 1 \(C3With\): takes \[out_channels, layer\] and .* got \[128\]"),
        ([128, "CoordAttention"], r"layer being one of ACmix, .* got \[128, 'CoordAttention'\]"),
        ([128, "SPDConv"], r"layer being one of ACmix, .* got \[128, 'SPDConv'\]"),
        ([128, "CoT", True], r"takes \[out_channels, layer\] and a mapping"),
        ([0, "CoT"], r"layer 1 \(C3With\): output channels must be a positive integer, got 0"),
        ([128, "ACmix", {"stride": 2}], r"the layer inside keeps the map; leave out stride"),
        ([128, "DeformConv", {"out_channels": 8}], r"keeps the map; leave out out_channels"),
        ([128, "CoT", {"heads": 3}], r"layer 1 \(C3With\): cot has no option 'heads'"),
        ([128, "CoT", {"shortcut": "no"}], r"shortcut must be True or False, got 'no'"),
    ],
)
def test_refused_rows(args, sentence):
    with pytest.raises(ValueError, match=sentence):
        network([-1, 3, "C3With", args])
