import argparse
import os
import re
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from tests.golden_table import build, golden_cases
from visgraft.blocks import (
    ContextualTransformer,
    CoordAttention,
    Layout,
    create_block,
    layouts_of,
    load_published,
    register_layouts,
)

(COT,) = (case for case in golden_cases("cot-official") if case.name.endswith("d16k3_7x7"))
(COORD,) = (case for case in golden_cases("ca-mbv2") if case.name.endswith("i16r4_5x9"))


def tensors_of(module):
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def assert_unchanged(module, before):
    assert_close(dict(module.state_dict()), before, rtol=0, atol=0)


def assert_computes_the_recorded_values(module, case=COT):
    with torch.no_grad():
        y = module.eval()(case.tensors["input"])
    assert_close(y, case.tensors["output_eval"], **case.tolerance("eval"))


@pytest.fixture
def cot():
    return build(COT)


@pytest.fixture
def state():
    return COT.named("state")


def test_report_says_what_was_done(cot, state):
    report = load_published(cot, state)
    assert report.layout == "JDAI-CV/CoTNet"
    assert report.tensors == len(state)
    assert (report.unwrapped, report.casts, report.kept, report.ignored) == ((), {}, (), ())
    assert str(report) == "36 tensors in the layout of JDAI-CV/CoTNet"


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ""])
def test_files(cot, state, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    load_published(cot, path)
    assert_computes_the_recorded_values(cot)
    load_published(cot, str(path))


@pytest.mark.parametrize("start", [b"\x80", b"PK"])
def test_safetensors_whose_length_begins_like_another_format(tmp_path, start):
    """The first bytes of the file are a number, and may be any."""
    layer, path = nn.Linear(2, 2), tmp_path / "weights"  # torch.load knows the suffix
    save_file(tensors_of(layer), path, {"note": ""})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    more = (int.from_bytes(start, "little") - length) % 256 ** len(start)
    save_file(tensors_of(layer), path, {"note": "x" * more})
    assert path.read_bytes().startswith(start)
    twin = nn.Linear(2, 2)
    load_published(twin, path)
    assert_close(twin.weight, layer.weight, rtol=0, atol=0)


def test_a_caffe_model_is_named(cot, tmp_path):
    path = tmp_path / "sknet50.caffemodel"
    path.write_bytes(b"\n\x07SKNet50")
    with pytest.raises(ValueError, match=r"sknet50.caffemodel is a Caffe model, .* LAYER.weight"):
        load_published(cot, path)


def test_old_torch_format(cot, state, tmp_path):
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    load_published(cot, tmp_path / "old.pth")
    assert_computes_the_recorded_values(cot)


@pytest.mark.parametrize(
    ("wrap", "unwrapped"),
    [
        (lambda s: {"state_dict": s, "epoch": 3}, ("state_dict",)),
        (lambda s: {"state_dict_ema": s}, ("state_dict_ema",)),
        (lambda s: {"model": s, "optimizer": {"state": {}}}, ("model",)),
        (lambda s: {"model": {"state_dict": s}}, ("model", "state_dict")),
        (lambda s: {"model_ema": s}, ("model_ema",)),
        (lambda s: {"meta": {"epoch": 3}, "state_dict": s, "optimizer": {}}, ("state_dict",)),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, ("module.",)),
        (
            lambda s: {"state_dict": {f"module.backbone.{k}": v for k, v in s.items()}},
            ("state_dict", "module.", "backbone."),
        ),
        (lambda s: OrderedDict((f"_orig_mod.{k}", v) for k, v in s.items()), ("_orig_mod.",)),
    ],
)
def test_wrappings(cot, state, wrap, unwrapped):
    assert load_published(cot, wrap(state)).unwrapped == unwrapped
    assert_computes_the_recorded_values(cot)


def test_averaged_weights_are_taken_on_request(cot, state):
    plain = {key: torch.zeros_like(value) for key, value in state.items()}
    both = {"state_dict": plain, "state_dict_ema": state}
    assert load_published(cot, both).unwrapped == ("state_dict",)
    assert not cot.key.weight.any()
    assert load_published(cot, both, ema=True).unwrapped == ("state_dict_ema",)
    assert_computes_the_recorded_values(cot)


@pytest.mark.parametrize("container", ["state_dict_ema", "model_ema"])
def test_averaged_weights_are_preferred_to_every_container(cot, state, container):
    plain = {key: torch.zeros_like(value) for key, value in state.items()}
    everything = {"state_dict": plain, "model": plain, container: state}
    report = load_published(cot, everything, ema=True)
    assert (report.unwrapped, report.lacks_ema) == ((container,), False)
    assert_computes_the_recorded_values(cot)


def test_a_lack_of_averaged_weights_is_said(cot, state):
    report = load_published(cot, {"state_dict": state}, ema=True)
    assert report.lacks_ema
    assert "taken out of state_dict; no averaged weights in it" in str(report)


def test_heads_of_a_detector_are_ignored_and_named(cot, state):
    detector = {f"backbone.{k}": v for k, v in state.items()} | {"rpn_head.weight": torch.ones(1)}
    report = load_published(cot, detector)
    assert report.ignored == ("rpn_head.weight",)
    assert "keys of other parts ignored: 1" in str(report)


def test_a_prefix_that_the_module_has_is_kept(state):
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = build(COT)

    detector = Detector()
    published = {f"backbone.{k}": v for k, v in state.items()}
    assert load_published(detector, published).unwrapped == ()
    assert_computes_the_recorded_values(detector.backbone)


def test_blocks_inside_a_network_are_translated_where_they_stand(state):
    network = nn.Sequential(
        OrderedDict(stem=nn.Conv2d(3, 16, 1), mixer=build(COT), gate=build(COORD))
    )
    published = {
        **{f"stem.{k}": torch.ones_like(v) for k, v in network.stem.state_dict().items()},
        **{f"mixer.{k}": v for k, v in state.items()},
        **{f"gate.{k}": v for k, v in COORD.named("state").items()},
    }
    report = load_published(network, published)
    assert report.layout == "JDAI-CV/CoTNet + houqb/CoordAttention mbv2_ca.py"
    assert_computes_the_recorded_values(network.mixer)
    assert_computes_the_recorded_values(network.gate, COORD)

    before = tensors_of(network)
    wrong = {k: v for k, v in published.items() if k != "mixer.bn.weight"}
    wrong["gate.conv1.weight"] = torch.zeros(4, 16, 1, 1)
    message = (
        r"missing, by its name here, mixer\.norm\.weight; "
        r"gate\.conv1\.weight is \(4, 16, 1, 1\) and should be \(8, 16, 1, 1\)"
    )
    with pytest.raises(ValueError, match=message):
        load_published(network, wrong)
    assert_unchanged(network, before)


def test_networks_register_tables_of_their_own(state):
    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.units = nn.ModuleList([build(COT), build(COT)])
            self.scale = nn.Parameter(torch.ones(2, 2))

    def square(module, tensors):
        return tensors | {"scale": tensors["scale"].reshape(module.scale.shape)}

    register_layouts(Stage, Layout("authors", {"layer*.conv2": "units.*", "s": "scale"}, square))
    published = {f"layer{i}.conv2.{k}": v for i in (0, 1) for k, v in state.items()}
    published["s"] = torch.arange(4.0)
    stage = Stage()
    report = load_published(stage, published)
    assert report.layout == "authors + JDAI-CV/CoTNet"
    assert_close(stage.scale.detach(), torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    for unit in stage.units:
        assert_computes_the_recorded_values(unit)
    del published["s"]
    with pytest.raises(ValueError, match=r"missing, by its name here, scale$"):
        load_published(stage, published)
    with pytest.raises(ValueError, match=r"Stage has a layout 'authors' already"):
        register_layouts(Stage, Layout("authors", {}))


def test_subclasses_know_the_layouts_of_their_base(state):
    class Mine(ContextualTransformer):
        pass

    assert layouts_of(Mine) == layouts_of(ContextualTransformer)
    mine = Mine(16)
    load_published(mine, state)
    assert_computes_the_recorded_values(mine)


@pytest.mark.parametrize(
    ("key", "renamed"),
    [
        ("layer1.0.conv2.embed.0.weight", "stages.1.0.mix.reduce.weight"),
        ("layer12.3.conv2.bias", "stages.12.3.mix.bias"),
        ("layer1.conv2.bias", "layer1.conv2.bias"),
        ("layer1.0.conv22.bias", "layer1.0.conv22.bias"),
        ("fc", "head"),
        ("fc2.weight", "fc2.weight"),
    ],
)
def test_stars_stand_for_parts_of_a_component(key, renamed):
    layout = Layout(
        "x",
        {
            "layer*.*.conv2.embed.0": "stages.*.*.mix.reduce",
            "layer*.*.conv2": "stages.*.*.mix",
            "fc": "head",
        },
    )
    assert layout.rename(key) == renamed


@pytest.mark.parametrize("source", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_take_the_dtype_of_the_module(source):
    case = COORD
    state = {
        k: v.to(source) if v.is_floating_point() else v for k, v in case.named("state").items()
    }
    module = build(case)
    report = load_published(module, state)
    short = str(source).removeprefix("torch.")
    assert report.casts == {f"{short} -> float32": len(state) - 1}
    assert {t.dtype for t in module.parameters()} == {torch.float32}
    expected = build(case).to(source)
    load_published(expected, state)
    assert_close(
        {k: v.float() for k, v in expected.named_parameters()}, dict(module.named_parameters())
    )


def test_a_conversion_that_destroys_values_is_refused(state):
    module = build(COT).half()
    before = tensors_of(module)
    state["embed.3.bias"] = torch.full_like(state["embed.3.bias"], 1e6)
    with pytest.raises(ValueError, match=r"embed\.3\.bias does not survive float32 -> float16"):
        load_published(module, state)
    state["embed.3.bias"] = torch.ones(18, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"embed\.3\.bias does not survive int8 -> float16"):
        load_published(module, state)
    assert_unchanged(module, before)


def test_batch_counters_may_be_absent(cot, state):
    cot.norm.num_batches_tracked.fill_(9)
    trained = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    report = load_published(cot, trained)
    assert len(report.kept) == 5
    assert "norm.num_batches_tracked" in report.kept
    assert cot.norm.num_batches_tracked == 9
    assert_computes_the_recorded_values(cot)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("bn.weight"),
            r"ContextualTransformer: .* missing, by its name here, norm\.weight$",
        ),
        (lambda s: s.update(extra=torch.ones(1)), r"unexpected extra$"),
        (
            lambda s: s.update({"norm.weight": torch.ones(16)}),
            r"unexpected (bn|norm)\.weight",
        ),
        (
            lambda s: s.update({"embed.0.weight": torch.ones(8, 16, 1, 1)}),
            r"embed\.0\.weight is \(8, 16, 1, 1\) and should be \(8, 32, 1, 1\)$",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(cot, state, change, message):
    before = tensors_of(cot)
    change(state)
    with pytest.raises(ValueError, match=message) as caught:
        load_published(cot, state)
    assert "(nearest layout: JDAI-CV/CoTNet)" in str(caught.value)
    assert_unchanged(cot, before)


def test_weights_of_another_block_are_refused(cot):
    message = r"the weights do not fit .* missing, .* and \d+ more; unexpected "
    with pytest.raises(ValueError, match=message):
        load_published(cot, COORD.named("state"))


def test_weights_of_another_size_are_refused(state):
    with pytest.raises(ValueError, match=r"key_embed\.0\.weight is \(16, 4, 3, 3\) and should be"):
        load_published(create_block("cot", 32), state)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, r"the state dict is empty"),
        ({"epoch": 3}, r"expected a state dict of tensors, got int under 'epoch'"),
        ({"model": nn.Identity()}, r"got Identity under 'model'"),
        ({3: torch.ones(1)}, r"got Tensor under 3"),
        (3.5, r"expected a path or a state dict, got float"),
    ],
)
def test_what_is_no_state_dict(cot, weights, message):
    with pytest.raises(ValueError, match=message):
        load_published(cot, weights)


def test_a_module_without_storage_is_refused(state):
    with pytest.raises(ValueError, match=r"on the meta device .* call to_empty\(device=\.\.\.\)"):
        load_published(ContextualTransformer(16, device="meta"), state)


class Payload:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_execute_code_is_refused(cot, state, tmp_path, zipped):
    before, proof = tensors_of(cot), tmp_path / "executed"
    content = {"state_dict": state, "payload": Payload(f"touch {proof}")}
    path = tmp_path / "evil.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"evil\.pth would execute code \(\w+\.system\) and is re"):
        load_published(cot, path)
    assert not proof.exists()
    assert_unchanged(cot, before)


def test_a_pickled_model_is_refused(cot, tmp_path):
    torch.save(cot, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"would execute code \(visgraft\.blocks\.cot\.Contextual"):
        load_published(cot, tmp_path / "model.pt")


def test_options_of_a_training_script_do_no_harm(cot, state, tmp_path):
    options = argparse.Namespace(lr=0.1, model="cotnet50")
    torch.save({"state_dict": state, "args": options, "epoch": 7}, tmp_path / "checkpoint.pth.tar")
    assert load_published(cot, tmp_path / "checkpoint.pth.tar").unwrapped == ("state_dict",)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.safetensors", b""),
        ("empty.pth", b""),
        ("page.safetensors", b"<!DOCTYPE html><html>not found</html>"),
        ("noise.pth", b"\x80\x02 this is no pickle"),
        ("short.pth", b"PK\x03\x04"),
    ],
)
def test_damaged_files(cot, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    message = rf"{re.escape(name)} \({len(content)} bytes\) is (neither an intact|damaged)"
    with pytest.raises(ValueError, match=message):
        load_published(cot, tmp_path / name)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files(cot, state, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    path.write_bytes(path.read_bytes()[:-1000])
    before = tensors_of(cot)
    with pytest.raises(ValueError, match=r"fetch it again"):
        load_published(cot, path)
    assert_unchanged(cot, before)


def test_missing_files_and_folders(cot, tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*nowhere\.pth: No such file or directory"):
        load_published(cot, tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match=r"cannot read .*: Is a directory"):
        load_published(cot, tmp_path)


def test_a_file_that_holds_something_else(cot, tmp_path):
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds a list, not a state dict"):
        load_published(cot, tmp_path / "list.pth")


def test_what_was_trained_here_loads_as_it_is(tmp_path):
    module = CoordAttention(16)
    save_file(module.state_dict(), tmp_path / "own.safetensors")
    other = CoordAttention(16)
    assert load_published(other, tmp_path / "own.safetensors").layout == "visgraft"
    assert_unchanged(other, tensors_of(module))
