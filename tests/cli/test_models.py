import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.models.golden_networks import GoldenNetwork
from visgraft.cli.main import main
from visgraft.models import create_model, list_networks

CASE = GoldenNetwork("mbv2_ca_0.5")
NAME = "mobilenetv2_ca_050"


def run(capsys, *argv):
    status = main([str(word) for word in argv])
    return status, *capsys.readouterr()


def refused(capsys, *argv):
    status, out, error = run(capsys, *argv)
    assert (status, out) == (2, "")
    return error


def test_list(capsys):
    status, out, _ = run(capsys, "models")
    rows = [line.split() for line in out.splitlines()[2:-2]]
    assert status == 0
    assert [row[0] for row in rows] == list_networks()
    (cotnet50,) = (row for row in rows if row[0] == "cotnet50")
    assert cotnet50[1:9] == ["22.2", "M", "3.24", "G", "224", "x", "224", "81.3"]
    (spd,) = (row for row in rows if row[0] == "spd_resnet50")
    assert spd[1:9] == ["27.8", "M", "447", "M", "32", "x", "32", "-"]


def test_pattern(capsys):
    _, out, _ = run(capsys, "models", "cotne?t50*")
    assert [line.split()[0] for line in out.splitlines()[2:-2]] == ["cotnext50_2x48d"]


def test_no_network_of_this_name(capsys):
    error = refused(capsys, "models", "cotnet52")
    assert "network 'cotnet52' is none of the papers' networks; nearest: cotnet50" in error
    assert "nearest: " in refused(capsys, "models", "convnext*")


def test_one_in_full(capsys):
    _, out, _ = run(capsys, "models", "se_cotnetd_152")
    for line in (
        "se_cotnetd_152: SECoTNetD",
        "Paper: Contextual Transformer Networks for Visual Recognition (",
        "Source: https://github.com/JDAI-CV/CoTNet, models/cotnet_hybrid.py at 895e024 (Apache",
        "Published: 55.8 M parameters, 17 G MACs, top-1 84 %, top-5 97 %, at 224 pixels",
        "           Listed at 224 pixels, but 17.0 is the cost at 256",
        "Parameters: 55,783,688",
        "MACs: 16.841 G at 256 x 256, 12.895 G at 224 x 224",
        "Images: 256 x 256, crop ",
        "Recipe: ",
        "Weights: ",
    ):
        assert f"\n{line}" in f"\n{out}"
    assert "--model se_cotnetd_152" in out
    stages = [line.split() for line in out.splitlines()[-5:]]
    assert stages[0] == ["act1", "128", "2"]
    assert stages[-1] == ["layer4", "2048", "32"]


def test_one_without_figures(capsys):
    _, out, _ = run(capsys, "models", "gc_resnet50_r4")
    assert "\nPublished: no figures\n" in out
    assert "\nMACs: 4.105 G at 224 x 224\n" in out


def test_cost_at_the_published_size(capsys):
    _, out, _ = run(capsys, "models", "botnet_s1_128")
    assert "\nMACs: 14.598 G at 224 x 224, 19.261 G at 256 x 256\n" in out


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "authors.pth.tar"
    state = {f"module.{k}": v for k, v in CASE.weights().items()}
    zeros = {k: torch.zeros_like(v) for k, v in state.items()}
    torch.save({"state_dict": zeros, "state_dict_ema": state, "epoch": 3}, path)
    return path


def assert_computes_the_recorded_logits(network):
    with torch.no_grad():
        CASE.check("logits", network.eval()(CASE.input()))


def test_convert(capsys, checkpoint, tmp_path):
    output = tmp_path / "out.safetensors"
    status, out, _ = run(capsys, "convert", checkpoint, "--model", NAME, "-o", output, "--ema")
    assert status == 0
    assert f"{checkpoint}: 490 tensors in the layout of " in out
    assert "taken out of state_dict_ema > module." in out
    assert f'\ntimm.create_model("{NAME}", checkpoint_path="{output}") loads it.' in out
    network = create_model(NAME, checkpoint_path=output)
    assert_computes_the_recorded_logits(network)
    assert load_file(output).keys() == network.state_dict().keys()
    with safe_open(output, "pt") as file:
        assert file.metadata()["architecture"] == NAME
    overlay = {"file": str(output)}
    again = create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay)
    assert_computes_the_recorded_logits(again)


def test_convert_takes_plain_weights_unless_told(capsys, checkpoint, tmp_path):
    output = tmp_path / "out.safetensors"
    run(capsys, "convert", checkpoint, "--model", NAME, "-o", output)
    assert not load_file(output)["conv_stem.weight"].any()


def test_convert_without_the_classifier(capsys, checkpoint, tmp_path):
    output = tmp_path / "out.safetensors"
    words = ("convert", checkpoint, "--model", NAME, "-o", output, "--ema")
    error = refused(capsys, *words, "--num-classes", 10)
    assert error.rstrip().endswith("; --skip-head leaves out the classifier classifier")
    assert not output.exists()
    _, out, _ = run(capsys, *words, "--num-classes", 10, "--skip-head")
    assert "classifier left out: classifier.bias, classifier.weight" in out
    assert f'"{NAME}", num_classes=0, checkpoint_path=' in out
    assert not any("classifier" in key for key in load_file(output))
    network = timm.create_model(NAME, num_classes=0, checkpoint_path=str(output))
    with torch.no_grad():
        CASE.check("pooled", network.eval()(CASE.input()))
    overlay = {"file": str(output)}
    other = timm.create_model(NAME, pretrained=True, num_classes=7, pretrained_cfg_overlay=overlay)
    assert torch.equal(other.conv_stem.weight, network.conv_stem.weight)


def test_convert_of_another_class_count(capsys, tmp_path):
    weights = CASE.weights()
    weights = {k: v[:10] if k.startswith("classifier") else v for k, v in weights.items()}
    save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / "ten.safetensors")
    output = tmp_path / "out.safetensors"
    words = ("convert", tmp_path / "ten.safetensors", "--model", NAME, "-o", output)
    _, out, _ = run(capsys, *words, "--num-classes", 10)
    assert f'"{NAME}", num_classes=10, checkpoint_path=' in out
    network = timm.create_model(NAME, num_classes=10, checkpoint_path=str(output))
    with torch.no_grad():
        logits = network.eval()(CASE.input())
    expected = CASE.tensors["logits"][..., :10].reshape(logits.shape)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_convert_resizes_tables_of_positions(capsys, tmp_path):
    torch.save(timm.create_model("test_botnet", img_size=64).state_dict(), tmp_path / "small.pth")
    output = tmp_path / "out.safetensors"
    words = ("convert", tmp_path / "small.pth", "--model", "test_botnet", "-o", output)
    run(capsys, *words, "--image-size", 128)
    create_model("test_botnet", img_size=128, checkpoint_path=output)
    error = refused(capsys, "convert", *words[1:3], NAME, *words[4:], "--image-size", 9, "--force")
    assert f"model '{NAME}' takes no argument 'img_size'" in error


def test_convert_overwrites_only_when_told(capsys, checkpoint, tmp_path):
    output = tmp_path / "out.safetensors"
    output.write_text("precious")
    words = ("convert", checkpoint, "--model", NAME, "-o", output)
    assert f"{output} exists; choose another output, or add --force" in refused(capsys, *words)
    assert output.read_text() == "precious"
    assert run(capsys, *words, "--force")[0] == 0
    assert len(load_file(output)) == 490
    assert sorted(p.name for p in tmp_path.iterdir()) == ["authors.pth.tar", "out.safetensors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--model": "cotnet5"}, "model 'cotnet5' is not registered in timm or visgraft; nearest:"),
        ({"--model": "cotnet50"}, "CoTNet: the weights do not fit (nearest layout: "),
        ({"file": "nowhere.pth"}, "load_published: cannot read "),
        ({"-o": "out.pth"}, "the output must end in .safetensors, got "),
        ({"-o": "no/out.safetensors"}, "/no does not exist; make it first"),
    ],
)
def test_convert_refuses(capsys, checkpoint, tmp_path, change, message):
    words = {"file": checkpoint.name, "--model": NAME, "-o": "out.safetensors"} | change
    paths = (tmp_path / words["file"], "--model", words["--model"], "-o", tmp_path / words["-o"])
    assert message in refused(capsys, "convert", *paths)
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.name]


def test_convert_never_overwrites_its_input(capsys, tmp_path):
    source = tmp_path / "own.safetensors"
    save_file(timm.create_model("test_botnet").state_dict(), source)
    before = source.read_bytes()
    words = ("convert", source, "--model", "test_botnet", "-o", source, "--force")
    assert "own.safetensors is the input; choose another output" in refused(capsys, *words)
    assert source.read_bytes() == before
