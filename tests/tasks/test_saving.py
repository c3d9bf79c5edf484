"""What `save` writes, `load` builds again; what is not of that kind is refused in a sentence."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import visgraft
from visgraft import apply_plan, graft, load, save
from visgraft.surgery.holders import Holder

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def trained(model, seed=0):
    """Gives all tensors values that no fresh network has."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator).to(tensor))
    return model.eval()


def network(**options):
    torch.manual_seed(0)
    return timm.create_model("test_resnet", **options)


def own():
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def record_of(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["visgraft"])


def rewrite(path, **changes):
    """Writes the file again with another record."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        record = json.loads(file.metadata()["visgraft"]) | changes
    save_file(tensors, path, {"visgraft": json.dumps(record)})


def assert_same(model, other):
    mine, yours = model.state_dict(), other.state_dict()
    assert list(mine) == list(yours)
    for name, tensor in mine.items():
        assert tensor.dtype == yours[name].dtype
        assert torch.equal(tensor, yours[name]), name


def test_a_grafted_network_of_the_registry(path):
    model = network(num_classes=7)
    grafts = [
        graft(model, "coord_attention", "block_end", reduction=8, example=X),
        graft(model, "cot", "conv3x3", start="paper", strict=False, example=X),
    ]
    trained(model)
    save(model, path, grafts=grafts)
    state = torch.get_rng_state()
    twin = load(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not twin.training
    assert_same(twin, model)
    assert torch.equal(twin(X), model(X))
    record = record_of(path)
    assert record["model"]["options"] == {"num_classes": 7}
    assert [plan["block"] for plan in record["plans"]] == ["coord_attention", "cot"]


def test_options_are_recorded_and_used(path):
    options = {"in_chans": 1, "drop_rate": 0.25, "num_classes": 3}
    model = trained(network(**options))
    save(model, path, name="test_resnet", options=options)
    twin = load(path)
    assert twin.drop_rate == 0.25
    assert torch.equal(twin(X[:, :1]), model(X[:, :1]))


def test_the_tag_of_the_weights_is_recorded(path):
    model = timm.create_model("resnet18.a1_in1k")
    assert model.pretrained_cfg["tag"] == "a1_in1k"
    save(model, path)
    assert record_of(path)["model"] == {"name": "resnet18.a1_in1k", "options": {}}
    assert load(path).pretrained_cfg == model.pretrained_cfg


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_number_types_stay(path, dtype):
    model = trained(network()).to(dtype)
    save(model, path)
    assert_same(load(path), model)


def test_mixed_number_types_stay(path):
    model = trained(own())
    model[2].bfloat16()
    save(model, path)
    twin = load(path, build=own)
    assert_same(twin, model)
    assert twin[0].weight.dtype is torch.float32


@pytest.mark.parametrize("length", [0x80 + 0x1000, 0x4B50])
def test_files_are_told_apart_by_what_they_hold(path, length):
    """The length at the beginning of a safetensors file may look like a pickle or a zip."""
    model = trained(own())
    save(model, path)
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(length.to_bytes(8, "little") + content[8:end].ljust(length) + content[end:])
    assert path.read_bytes()[:2] in (b"\x80\x10", b"PK")
    assert_same(load(path, build=own), model)


def test_channels_last_and_strided_tensors_are_written(path):
    model = trained(network()).to(memory_format=torch.channels_last)
    save(model, path)
    assert_same(load(path), model)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


def test_tied_tensors_are_written_once_and_stay_tied(path):
    model = trained(Tied())
    save(model, path)
    assert record_of(path)["tied"] == {"second.weight": "first.weight"}
    twin = load(path, build=Tied)
    assert_same(twin, model)
    assert twin.second.weight is twin.first.weight


def test_a_model_of_ones_own(path):
    model = own()
    done = graft(model, "cot", "2", example=X)
    trained(model)
    save(model, path, grafts=done, build=own)
    assert record_of(path)["model"] is None
    twin = load(path, build=own)
    assert_same(twin, model)
    assert torch.equal(twin(X), model(X))
    with pytest.raises(ValueError, match=r"is not in timm's registry; pass build=, a function"):
        load(path)
    with pytest.raises(ValueError, match=r"does not fit the network: the file lacks 3\.weight"):
        load(path, build=lambda: nn.Sequential(*own(), nn.Conv2d(32, 1, 1, bias=False)))


def test_a_grafted_model_that_is_loaded_can_be_saved_again(path):
    model = network()
    save(model, path, grafts=graft(model, "coord_attention", "block_end", example=X))
    again = network()
    grafts = apply_plan(again, record_of(path)["plans"])
    save(trained(again), path, grafts=grafts)
    assert_same(load(path), again)


@pytest.mark.slow
def test_in_another_process_without_lightning(path):
    model = network()
    save(trained(model), path, grafts=graft(model, "coord_attention", "block_end", example=X))
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["pytorch_lightning", "pydantic", "rich", "scipy"]))
import torch, visgraft
x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
print(visgraft.load({str(path)!r})(x).double().sum().item())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(out.stdout) == model(X).double().sum().item()


@pytest.mark.slow
def test_a_checkpoint_of_a_training_run(tmp_path, make_recipe, images):
    from visgraft.tasks import load_trained, train

    recipe = make_recipe(
        epochs=1,
        train_limit=24,
        val_limit=10,
        grafts=[{"block": "coord_attention", "at": "block_end"}],
    )
    result = train(recipe, tmp_path, progress=False)
    model = load(result.checkpoint)
    assert any(isinstance(module, Holder) for module in model.modules())
    assert not model.training
    assert_same(model, load_trained(result.checkpoint).model)
    with pytest.raises(ValueError, match=r"names its network itself; leave build out"):
        load(result.checkpoint, build=own)


def grafted():
    model = network()
    return model, graft(model, "coord_attention", "block_end", example=X)


def undone():
    model, done = grafted()
    done.undo()
    return model, {"grafts": done}


def of_a_function():
    model = network()
    return model, {"grafts": graft(model, lambda site: nn.Identity(), "block_end", example=X)}


def with_another_head():
    model = network()
    model.fc = nn.Linear(model.fc.in_features, 5)
    return model, {}


def with_extra_state():
    class Extra(nn.Conv2d):
        def get_extra_state(self):
            return "text"

    return Extra(3, 8, 3), {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ("resnet18", {}), r"save: model must be a torch\.nn\.Module, got str"),
        (
            lambda: (nn.DataParallel(own()), {}),
            r"save: the model is wrapped in DataParallel; save its \.module",
        ),
        (
            lambda: (torch.compile(own(), backend="eager"), {}),
            r"save: the model is wrapped in OptimizedModule; save its \._orig_mod",
        ),
        (
            lambda: (grafted()[0], {}),
            r"has no layer1\.0\.\S+, which the model has; give all grafts=",
        ),
        (
            lambda: (network(), {"grafts": grafted()[1]}),
            r"save: <Graft of 'coord_attention' at 4 sites> is of another model",
        ),
        (undone, r"save: <Graft .* undone> is no longer in the model; leave it out"),
        (
            lambda: (network(), {"grafts": ["cot"]}),
            r"grafts must be what graft\(\) returned, got",
        ),
        (of_a_function, r"Graft\.plan: the block was made by <function"),
        (with_another_head, r"has fc\.weight in the shape \(1000, \d+\), the model in \(5, \d+\)"),
        (
            lambda: (network(), {"name": "test_resnt"}),
            r"save: test_resnt cannot be built .*nearest: test_resnet",
        ),
        (
            lambda: (network(), {"name": "test_resnet", "options": {"depth": 3}}),
            r"save: test_resnet cannot be built with the options \{'depth': 3\}",
        ),
        (
            lambda: (network(), {"name": "test_resnet", "options": {"act_layer": nn.GELU}}),
            r"save: an option is not plain data \(.*type.*\); timm takes names too",
        ),
        (
            lambda: (network(), {"name": "test_resnet", "options": {"pretrained": True}}),
            r"save: the options of test_resnet have pretrained, but the weights are those in",
        ),
        (lambda: (network(), {"name": "hf-hub:x/y"}), r"save: 'hf-hub:x/y' is no name of timm's"),
        (lambda: (own(), {"options": {"a": 1}}), r"options build a network of timm's registry; g"),
        (
            lambda: (own(), {"name": "resnet18", "build": own}),
            r"save: build is for models without a name and options",
        ),
        (
            lambda: (own(), {"build": lambda: own()[0]}),
            r"save: what build makes, has no 0\.weight, which the model has",
        ),
        (with_extra_state, r"save: _extra_state is a str, not a tensor"),
        (lambda: (own().to("meta"), {}), r"save: the model is on the meta device and has no val"),
    ],
)
def test_what_cannot_be_saved_leaves_no_file(path, make, message):
    model, given = make()
    with pytest.raises(ValueError, match=message):
        save(model, path, **given)
    assert os.listdir(path.parent) == []


def test_a_model_of_ones_own_with_grafts_that_were_not_given(path):
    model = own()
    done = graft(model, "cot", "2", example=X)
    with pytest.raises(ValueError, match=r"^save: the model has grafts; pass them as grafts=$"):
        save(model, path)
    with pytest.raises(ValueError, match=r"must end in \.safetensors, got model\.pt"):
        save(model, path.with_suffix(".pt"), grafts=done)


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    save(own(), path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(OSError, match="No space"):
        save(trained(own()), path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_code_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "evil.ckpt")
    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(ValueError, match=r"evil\.ckpt: refused, it would execute code when opened"):
        load("evil.ckpt")
    with pytest.raises(ValueError, match=r"evil\.safetensors: (refused|is damaged)"):
        load("evil.safetensors")
    assert not (tmp_path / "executed").exists()


def test_files_that_say_nothing_of_a_network(tmp_path):
    torch.save(own().state_dict(), tmp_path / "a.pt")
    save_file(own().state_dict(), tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        with pytest.raises(ValueError, match=r"do not say what network they are of|does not say"):
            load(tmp_path / name)
    with pytest.raises(ValueError, match=r"no\.safetensors: cannot be read \(No such file"):
        load(tmp_path / "no.safetensors")


@pytest.mark.parametrize("length", [0, 5, 40, 3000])
def test_a_file_that_is_cut_off(path, length):
    save(own(), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"model\.safetensors: is damaged, or is no checkpoint"):
        load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2, "version": "9.1"}, r"was written by visgraft 9\.1 in format 2; this is"),
        ({"format": None}, r"was written by visgraft \S+ in format None"),
        ({"plans": 3}, r"its record is damaged \(TypeError\('plans'\)\)"),
        ({"model": {"name": 5, "options": {}}}, r"its record is damaged \(TypeError\('model'\)\)"),
        ({"model": ["x"]}, r"its record is damaged"),
        ({"tied": {"a": "b"}}, r"its record is damaged \(KeyError\('b'\)\)"),
        (
            {"model": {"name": "no_such_network", "options": {}}},
            r"no_such_network cannot be built .*is not registered",
        ),
        (
            {"model": {"name": "hf-hub:evil/model", "options": {}}},
            r"'hf-hub:evil/model' is no name of timm's registry",
        ),
        (
            {"model": {"name": "test_resnet", "options": {"checkpoint_path": "/etc/passwd"}}},
            r"the options of test_resnet have checkpoint_path, but the weights are those in the",
        ),
        ({"model": {"name": "test_vit", "options": {}}}, r"does not fit the network: the file lac"),
        ({"plans": [{"format": "x"}]}, r"is not the plan of a graft"),
    ],
)
def test_records_that_cannot_be_followed(path, changes, message):
    save(trained(network()), path)
    rewrite(path, **changes)
    with pytest.raises(ValueError, match=message):
        load(path)


def test_the_package_offers_both():
    assert visgraft.load is load
    assert visgraft.save is save
