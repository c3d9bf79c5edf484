"""`visgraft graft`: the report, the files it writes, and what it refuses."""

import json
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import visgraft
from visgraft.cli.main import main

NETWORK = ("graft", "test_resnet")
SMALL = ("--image-size", "32")


def run(capsys, *argv):
    status = main(argv)
    return status, *capsys.readouterr()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_report_plan_and_model(capsys):
    status, out, error = run(
        capsys,
        *NETWORK,
        "coord_attention",
        *("--at", "stage3/block_end", "--at", "stage4/block_end"),
        *("--option", "reduction=8", "--num-classes", "10", *SMALL),
        *("--plan", "plan.json", "-o", "model.safetensors"),
    )
    assert (status, error) == (0, "")
    lines = out.splitlines()
    paths = [line.split()[0] for line in lines[2:4]]
    assert [path.split(".")[0] for path in paths] == ["layer3", "layer4"]
    assert "92 of 92 tensors kept" in lines[4]
    assert lines[4].endswith("max difference 0")
    assert lines[5:] == ["plan:  plan.json", "model: model.safetensors"]
    plan = json.loads(Path("plan.json").read_text())
    assert plan["options"] == {"reduction": 8}
    assert plan["example"] == [1, 3, 32, 32]
    again = timm.create_model("test_resnet", num_classes=10)
    (done,) = visgraft.apply_plan(again, "plan.json")
    model = visgraft.load("model.safetensors")
    again.load_state_dict(model.state_dict())
    assert [site.path for site in done.sites] == paths
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert sorted(os.listdir()) == ["model.safetensors", "plan.json"]


def test_weights_of_a_file_are_kept(capsys):
    torch.manual_seed(5)
    plain = timm.create_model("test_resnet", in_chans=1).eval()
    save_file(plain.state_dict(), "plain.safetensors")
    status, out, _ = run(
        capsys,
        *(*NETWORK, "cot", "--at", "conv3x3", "--how", "parallel", "--loose", "--in-chans", "1"),
        *("--weights", "plain.safetensors", "-o", "model.safetensors", *SMALL),
    )
    assert status == 0
    assert "skipped conv1.0: ContextualTransformer: channels must be a multiple of 8" in out
    assert "stride 2 by the block's 3 x 3 average pooling" in out
    x = torch.randn(1, 1, 32, 32)
    assert torch.equal(visgraft.load("model.safetensors")(x), plain(x))


def test_a_network_of_a_fixed_size_is_built_for_the_size(capsys):
    status, out, _ = run(
        capsys,
        *("graft", "test_vit", "coord_attention", "--at", "patch_embed.proj", "--how", "after"),
        *("--image-size", "64", "-o", "model.safetensors"),
    )
    assert status == 0
    assert " 4 x 4 " in out
    assert visgraft.load("model.safetensors")(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("fuse=('add', 'mul')", ("add", "mul")),
        ("reduction=4", 4),
        ("pool=average", "average"),
        ("position=none", None),
        ("use_position=true", True),
    ],
)
def test_options_are_python_values_or_words(given, value):
    from visgraft.cli._graft_options import _option

    assert _option(given) == (given.split("=")[0], value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("coord_atention", "--at", "block_end"), "no block 'coord_atention'; nearest: coord_att"),
        (("cot", "--at", "conv3"), "at='conv3' matches nothing; nearest: conv3x3"),
        (("cot", "--at", "conv3x3"), "strict=False leaves these out"),
        (("cot", "--at", "conv3x3", "--option", "width=3"), "cot has no option 'width'"),
        (
            ("cot", "--at", "layer4.0.conv2", "--plan", "nowhere/plan.json"),
            "nowhere/plan.json cannot be written: there is no folder nowhere",
        ),
        (
            ("cot", "--at", "layer4.0.conv2", "-o", "model.pt"),
            "must end in .safetensors, got model.pt",
        ),
        (
            ("cot", "--at", "layer4.0.conv2", "--weights", "no.safetensors"),
            "checkpoint no.safetensors: cannot be read (",
        ),
    ],
)
def test_refusals_are_one_sentence_and_write_nothing(capsys, argv, message):
    status, _, error = run(capsys, *NETWORK, *argv, *SMALL)
    assert status == 2
    assert message in error
    assert error.startswith("visgraft: ")
    assert error.count("\n") == 1
    assert os.listdir() == []


def test_a_file_that_is_there_is_replaced_on_demand_alone(capsys):
    order = (*NETWORK, "coord_attention", "--at", "stage4/block_end", *SMALL, "--plan", "plan.json")
    Path("plan.json").write_text("mine")
    status, out, error = run(capsys, *order)
    assert (status, out) == (2, "")
    assert error == "visgraft: plan.json is there already; --force replaces it\n"
    assert Path("plan.json").read_text() == "mine"
    assert run(capsys, *order, "--force")[0] == 0
    assert json.loads(Path("plan.json").read_text())["block"] == "coord_attention"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ("--option", "reduction"),
            "'reduction' is not of the form NAME=VALUE, such as kern",
        ),
        (("--how", "befor"), "'befor' is none of replace, after, parallel"),
        (("--weights", "a", "--pretrained"), "not allowed with argument"),
        (("--losse",), "unknown option --losse; did you mean --loose?"),
    ],
)
def test_options_that_make_no_sense(capsys, argv, message):
    with pytest.raises(SystemExit) as stopped:
        main([*NETWORK, "cot", "--at", "conv3x3", *argv])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
