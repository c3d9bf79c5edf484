"""The authors' checkpoints, by whichever of timm's ways they are loaded."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from tests.models.golden_networks import GoldenNetwork, build_golden
from visgraft.blocks import load_published

CASE = GoldenNetwork("mbv2_ca_0.5")
NAME = "mobilenetv2_ca_050"


@pytest.fixture(scope="module")
def weights():
    return CASE.weights()


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "authors.pth.tar"
    state = {f"module.{k}": v for k, v in weights.items()}
    torch.save({"epoch": 300, "state_dict": state, "optimizer": {"state": {}}}, path)
    return path


@pytest.fixture(scope="module")
def loaded(weights):
    network = build_golden(CASE).eval()
    load_published(network, weights)
    return network


def assert_computes_the_recorded_logits(network):
    with torch.no_grad():
        CASE.check("logits", network.eval()(CASE.input()))


def assert_equal_tensors(network, expected, *, but=()):
    found = network.state_dict()
    for name, value in found.items():
        assert (name in but) != torch.equal(value, expected[name]), name


def test_pretrained_from_a_file(file):
    network = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    assert_computes_the_recorded_logits(network)


def test_pretrained_from_a_state_dict(weights):
    overlay = {"state_dict": weights}
    network = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay)
    assert_computes_the_recorded_logits(network)


def test_checkpoint_path(file):
    assert_computes_the_recorded_logits(timm.create_model(NAME, checkpoint_path=str(file)))


def test_averaged_weights_are_what_timm_takes(weights, tmp_path):
    zeros = {k: torch.zeros_like(v) for k, v in weights.items()}
    torch.save({"state_dict": zeros, "state_dict_ema": weights}, tmp_path / "both.pth")
    overlay = {"file": str(tmp_path / "both.pth")}
    network = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay)
    assert_computes_the_recorded_logits(network)


def test_another_classifier_is_left_to_timm(file, loaded):
    overlay = {"file": str(file)}
    network = timm.create_model(
        NAME, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7
    )
    assert network.get_classifier().weight.shape == (7, 1280)
    network.reset_classifier(0)
    assert_equal_tensors(network, loaded.state_dict())


def test_image_channels_are_left_to_timm(file, loaded):
    overlay = {"file": str(file)}
    network = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1)
    first = f"{network.pretrained_cfg['first_conv']}.weight"
    colour = loaded.state_dict()[first]
    assert_close(network.state_dict()[first], colour.sum(1, keepdim=True))
    del (expected := dict(loaded.state_dict()))[first]
    assert_equal_tensors(network, expected | {first: network.state_dict()[first]})


def test_features_only(file, loaded):
    network = timm.create_model(
        NAME, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, features_only=True
    )
    with torch.no_grad():
        features = network.eval()(CASE.input())
        expected = loaded.forward_intermediates(CASE.input(), intermediates_only=True)
    for feature, value in zip(features, expected, strict=True):
        assert_close(feature, value)


def test_a_tag_without_weights_is_no_source(file):
    with pytest.raises(ValueError, match=rf"`visgraft models {NAME}` says and add pretrained_cfg_"):
        timm.create_model(NAME, pretrained=True)
    with pytest.raises(ValueError, match=r"finds no weights, since none can be downloaded"):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"num_classes": 5})


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_load_state_dict_of_copies_translates(weights, duplicate):
    network = build_golden(CASE)
    other = duplicate(network)
    before = copy.deepcopy(network.state_dict())
    other.load_state_dict(weights)
    assert_computes_the_recorded_logits(other)
    assert_equal_tensors(network, before)


def test_load_state_dict_of_a_holder_translates(weights):
    holder = nn.ModuleDict({"net": build_golden(CASE), "extra": nn.Linear(2, 2)})
    state = {f"net.{k}": v for k, v in weights.items()} | {"extra.weight": torch.ones(2, 2)}
    state["extra.bias"] = torch.ones(2)
    given = dict(state)
    holder.load_state_dict(state)
    assert_computes_the_recorded_logits(holder["net"])
    assert torch.equal(holder["extra"].weight, torch.ones(2, 2))
    assert state.keys() == given.keys()


def test_load_state_dict_of_weights_without_counters(weights):
    network = build_golden(CASE)
    few = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    assert few.keys() < weights.keys()
    network.load_state_dict(few)
    assert_computes_the_recorded_logits(network)


def test_own_names_stay_as_they_are(loaded):
    network, state = build_golden(CASE), loaded.state_dict()
    network.load_state_dict(state)
    assert_equal_tensors(network, state)
    partial = {k: torch.zeros_like(v) for k, v in state.items() if k.startswith("classifier")}
    result = network.load_state_dict(partial, strict=False)
    weights = {k for k in state if not k.endswith("num_batches_tracked")}
    assert {*result.missing_keys} == weights - partial.keys()
    assert_equal_tensors(network, state, but=partial)


def test_tables_of_another_image_size_are_resized(tmp_path):
    torch.manual_seed(0)
    small = timm.create_model("test_botnet", img_size=64)
    torch.save(small.state_dict(), tmp_path / "small.pth")
    network = timm.create_model(
        "test_botnet", img_size=128, checkpoint_path=str(tmp_path / "small.pth")
    )
    other = timm.create_model("test_botnet", img_size=128)
    load_published(other, small.state_dict())
    assert_equal_tensors(network, other.state_dict())
    resized = [k for k, v in small.state_dict().items() if v.shape != other.state_dict()[k].shape]
    assert resized


def test_what_does_not_fit_is_torchs_error(weights, loaded):
    network = build_golden(CASE)
    with pytest.raises(RuntimeError, match=r"Missing key.*classifier.weight"):
        network.load_state_dict({k: v for k, v in weights.items() if "classifier" not in k})
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "graft\.scale"'):
        network.load_state_dict(loaded.state_dict() | {"graft.scale": torch.ones(1)})


def test_detectors_lack_the_classifier():
    case = GoldenNetwork("gcresnet50_r16_c3c5")
    weights = case.weights()
    detector = {f"backbone.{k}": v for k, v in weights.items() if not k.startswith("fc.")}
    detector |= {"rpn_head.rpn_conv.weight": torch.ones(1), "neck.bias": torch.ones(1)}
    checkpoint = {"meta": {"mmdet_version": "0.6"}, "state_dict": detector, "optimizer": {}}
    network = build_golden(case).eval()
    message = (
        r"missing, by its name here, fc\.weight, fc\.bias; skip_head=True leaves out the .* fc$"
    )
    with pytest.raises(ValueError, match=message):
        load_published(network, checkpoint)
    report = load_published(network, checkpoint, skip_head=True)
    assert report.skipped == ("fc.bias", "fc.weight")
    assert report.ignored == ("rpn_head.rpn_conv.weight", "neck.bias")
    assert report.unwrapped == ("state_dict", "backbone.")
    with torch.no_grad():
        pooled = network.forward_head(network.forward_features(case.input()), pre_logits=True)
    case.check("pooled", pooled)
