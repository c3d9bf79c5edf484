"""Published weights of what has parts: classifiers that are left out, blocks inside blocks."""

import pytest
import torch
from torch import nn

from tests.blocks.test_published import (
    COT,
    assert_computes_the_recorded_values,
    assert_unchanged,
    tensors_of,
)
from tests.golden_table import build
from visgraft.blocks import (
    ContextualTransformer,
    Layout,
    load_published,
    register_layouts,
    translate_published,
)


@pytest.fixture
def cot():
    return build(COT)


@pytest.fixture
def state():
    return COT.named("state")


class Classifier(nn.Module):
    """A network of timm's kind: its configuration names the classifier."""

    def __init__(self, classes, *heads):
        super().__init__()
        self.mixer = build(COT)
        self.pretrained_cfg = {"classifier": heads[0] if len(heads) == 1 else heads}
        for head in heads:
            self.add_module(head, nn.Linear(16, classes) if classes else nn.Identity())


def published_with(state, classes, *heads):
    made = {f"module.mixer.{k}": v for k, v in state.items()}
    for head in heads if classes else ():
        made |= {f"module.{head}.weight": torch.ones(classes, 16)}
        made |= {f"module.{head}.bias": torch.ones(classes)}
    return made


@pytest.mark.parametrize("heads", [("fc",), ("head", "head_dist")], ids=str)
@pytest.mark.parametrize(("own", "given"), [(5, 7), (5, 0), (0, 7)])
def test_another_classifier_is_left_out_on_request(state, own, given, heads):
    network, published = Classifier(own, *heads), published_with(state, given, *heads)
    before = tensors_of(network)
    with pytest.raises(ValueError, match=rf"skip_head=True leaves out .* {' and '.join(heads)}$"):
        load_published(network, published)
    assert_unchanged(network, before)
    report = load_published(network, published, skip_head=True)
    left_out = tuple(f"{head}.{name}" for head in heads for name in ("bias", "weight"))
    assert report.skipped == left_out
    assert (report.tensors, report.kept) == (len(state), ())
    assert str(report).endswith(f"; classifier left out: {', '.join(left_out)}")
    assert_computes_the_recorded_values(network.mixer)
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in left_out if name in before)


def test_a_classifier_that_fits_is_loaded(state):
    network = Classifier(5, "fc")
    report = load_published(network, published_with(state, 5, "fc"), skip_head=True)
    assert report.skipped == ()
    assert torch.equal(network.fc.weight, torch.ones(5, 16))


def test_half_a_classifier_is_none(state):
    network, published = Classifier(5, "fc"), published_with(state, 5, "fc")
    del published["module.fc.bias"]
    weight = network.fc.weight.detach().clone()
    assert load_published(network, published, skip_head=True).skipped == ("fc.bias", "fc.weight")
    assert torch.equal(network.fc.weight, weight)


def test_skip_head_leaves_out_nothing_else(state):
    network, published = Classifier(5, "fc"), published_with(state, 7, "fc")
    del published["module.mixer.bn.weight"]
    before = tensors_of(network)
    with pytest.raises(ValueError, match=r"missing, by its name here, mixer\.norm\.weight$"):
        load_published(network, published, skip_head=True)
    with pytest.raises(ValueError, match=r"fc\.bias is \(7,\) and should be \(5,\)$"):
        load_published(network, published)
    assert_unchanged(network, before)


def test_skip_head_needs_a_named_classifier(cot, state):
    message = r"^ContextualTransformer: skip_head needs the classifier's name in pretrained_cfg"
    with pytest.raises(ValueError, match=message):
        load_published(cot, state, skip_head=True)
    cot.pretrained_cfg = {"classifier": None}
    with pytest.raises(ValueError, match=message):
        load_published(cot, state, skip_head=True)


def test_adapt_drops_buffers_that_are_made_here(state):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer = build(COT)

    def drop(module, tensors):
        return {k: v for k, v in tensors.items() if not k.endswith("attn_mask")}

    register_layouts(Masked, Layout("masked", {}, drop))
    published = {f"mixer.{k}": v for k, v in state.items()} | {"attn_mask": torch.ones(3, 3)}
    masked = Masked()
    assert load_published(masked, {"model": published}).tensors == len(state)
    assert_computes_the_recorded_values(masked.mixer)


def test_blocks_inside_blocks_are_translated_by_both_tables(state):
    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = build(COT)
            self.scale = nn.Parameter(torch.zeros(1))

    register_layouts(Unit, Layout("units", {"conv2": "mix", "gamma": "scale"}))
    network = nn.Sequential(Unit(), nn.Sequential(Unit()), build(COT))
    published = {f"{place}.conv2.{k}": v for place in ("0", "1.0") for k, v in state.items()}
    published |= {f"{place}.gamma": torch.ones(1) for place in ("0", "1.0")}
    published |= {f"2.{k}": v for k, v in state.items()}
    assert load_published(network, published).layout == "units + JDAI-CV/CoTNet"
    for unit in (network[0], network[1][0]):
        assert unit.scale == 1
        assert_computes_the_recorded_values(unit.mix)
    assert_computes_the_recorded_values(network[2])
    published["1.0.conv2.bn.weight"] = torch.ones(3)
    with pytest.raises(ValueError, match=r"1\.0\.conv2\.bn\.weight is \(3,\) and should be"):
        load_published(network, published)


def test_translation_changes_nothing_and_keeps_what_does_not_fit(state):
    network = Classifier(5, "fc")
    before, published = tensors_of(network), published_with(state, 7, "fc")
    translated = translate_published(network, {"state_dict": published})
    assert_unchanged(network, before)
    assert translated.keys() == network.state_dict().keys()
    assert translated["fc.weight"].shape == (7, 16)
    assert translated["mixer.norm.weight"] is state["bn.weight"]
    with torch.device("meta"):
        empty = ContextualTransformer(16)
    assert translate_published(empty, state).keys() == empty.state_dict().keys()
    own = network.mixer.state_dict()
    assert translate_published(network.mixer, own) == own
    with pytest.raises(ValueError, match=r"the state dict is empty"):
        translate_published(network, {})
