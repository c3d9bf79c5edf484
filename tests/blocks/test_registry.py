import inspect
import pickle

import pytest
import torch
from torch import nn

from visgraft.blocks import (
    ContextualTransformer,
    GlobalContext,
    UnknownBlockError,
    _registry,
    block_info,
    create_block,
    list_blocks,
    register_block,
)


@pytest.fixture(autouse=True)
def _restore_the_catalogue(monkeypatch):
    monkeypatch.setattr(_registry, "_BLOCKS", dict(_registry._BLOCKS))
    monkeypatch.setattr(_registry, "_ALIASES", dict(_registry._ALIASES))


def test_names_are_sorted_and_filtered_by_role():
    assert list_blocks() == sorted(list_blocks())
    assert {"cot", "cot_attention"} <= set(list_blocks("mixer"))
    assert {"coord_attention", "global_context"} <= set(list_blocks("gate"))
    by_role = [n for role in ("gate", "mixer", "downsample") for n in list_blocks(role)]
    assert sorted(by_role) == list_blocks()


@pytest.mark.parametrize(
    ("alias", "name", "presets"),
    [
        ("CotLayer", "cot", {}),
        ("CoXtLayer", "cot", {"groups": 2}),
        ("CoTAttention", "cot_attention", {}),
        ("ContextBlock", "global_context", {}),
        ("CB2d", "global_context", {"reduction": 4, "fuse": ("add", "mul")}),
        ("CA", "coord_attention", {}),
        ("CoordAtt", "coord_attention", {}),
    ],
)
def test_aliases(alias, name, presets):
    assert block_info(alias) is block_info(name)
    block = create_block(alias, 64)
    assert type(block) is block_info(name).cls
    assert dict(block_info(name).aliases[alias]) == presets
    assert alias not in list_blocks()


def test_an_option_overrides_the_preset_of_an_alias():
    assert create_block("CoXtLayer", 32).groups == 2
    assert create_block("CoXtLayer", 32, groups=1).groups == 1
    both = create_block("CB2d", 32, fuse=("mul",))
    assert (both.fuse, both.mul.reduce.out_channels) == (("mul",), 8)


def test_options_and_placement_reach_the_class():
    block = create_block("cot", 16, kernel_size=5, stride=2, dtype=torch.float64)
    assert (block.kernel_size, block.stride, block.key.weight.dtype) == (5, 2, torch.float64)


def test_info():
    info = block_info("global_context")
    assert (info.name, info.cls, info.role) == ("global_context", GlobalContext, "gate")
    assert info.summary == inspect.getdoc(GlobalContext).splitlines()[0]
    assert info.paper.url == "https://arxiv.org/abs/1904.11492"
    assert info.source.licence == "Apache-2.0"
    assert info.options == {
        "reduction": 16,
        "pool": "attention",
        "fuse": ("add",),
        "device": None,
        "dtype": None,
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coord_atention", r"^no block 'coord_atention'; nearest: coord_attention, "),
        ("cotlayer", r"^no block 'cotlayer'; nearest: CotLayer"),
        ("COT", r"^no block 'COT'; nearest: cot"),
        ("zzzzzz", r"^no block 'zzzzzz'; there are .*coord_attention, cot, cot_attention, "),
        ("", r"^no block ''; there are "),
    ],
)
def test_unknown_block_names_the_nearest(name, message):
    for ask in (block_info, lambda n: create_block(n, 8)):
        with pytest.raises(UnknownBlockError, match=message):
            ask(name)
    with pytest.raises(KeyError):
        block_info(name)
    with pytest.raises(ValueError, match=message):
        block_info(name)


def test_unknown_option_names_the_nearest():
    message = (
        r"^cot has no option 'kernal_size'; nearest: kernel_size; "
        r"it takes kernel_size, groups, stride, device, dtype$"
    )
    with pytest.raises(ValueError, match=message):
        create_block("cot", 16, kernal_size=3)


def test_unknown_role():
    with pytest.raises(ValueError, match=r"no role 'gates'; a block is one of gate, mixer, downs"):
        list_blocks("gates")
    with pytest.raises(ValueError, match=r"no role 'attention'"):
        register_block("mine", role="attention")


def test_a_block_of_ones_own():
    @register_block("mine", role="gate", aliases={"Mine2": {"factor": 2.0}})
    class Mine(nn.Module):
        """Scales its input."""

        def __init__(self, channels, factor=1.0, **more):
            super().__init__()
            self.channels, self.factor, self.more = channels, factor, more

        def forward(self, x):
            return self.factor * x

    assert "mine" in list_blocks("gate")
    assert block_info("mine").summary == "Scales its input."
    assert create_block("Mine2", 4)(torch.ones(1)).item() == 2
    assert create_block("mine", 4, colour="red").more == {"colour": "red"}


def test_a_taken_name_is_refused_and_nothing_is_entered():
    class Other(nn.Module):
        pass

    for names in ({"name": "cot"}, {"name": "new", "aliases": {"CotLayer": {}}}, {"name": "CA"}):
        with pytest.raises(ValueError, match=r"register_block: the name '\w+' is taken by \w+"):
            register_block(**names, role="gate")(Other)
    assert "new" not in list_blocks()
    with pytest.raises(ValueError, match=r"register_block: a name must not be empty"):
        register_block("", role="gate")(Other)


def test_a_class_may_be_defined_again():
    """A notebook cell that is run twice."""

    def cell():
        @register_block("again", role="gate", aliases={"Again": {}})
        class Again(nn.Module):
            pass

        return Again

    cell()
    newest = cell()
    assert block_info("Again").cls is newest
    assert block_info("again").cls is newest


def test_what_the_catalogue_hands_out_cannot_change_it():
    with pytest.raises(TypeError):
        block_info("cot").aliases["CoXtLayer"]["groups"] = 4
    create_block("CoXtLayer", 32)


def test_the_error_survives_pickling():
    """Errors travel between processes."""
    error = pickle.loads(pickle.dumps(UnknownBlockError("no block 'x'")))
    assert str(error) == "no block 'x'"


def test_classes_can_be_used_without_the_catalogue():
    assert isinstance(create_block("cot", 16), ContextualTransformer)
