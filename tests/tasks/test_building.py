import logging

import pytest
import torch
from safetensors.torch import save_file

from visgraft.tasks import building
from visgraft.tasks.building import build_model, resolve_input, weights_digest
from visgraft.tasks.errors import CheckpointError, TrainingError

GATE = {"block": "coord_attention", "at": "block_end"}
MIXER = {"block": "cot", "at": "layer4.*.conv2"}


def test_grafts_leave_the_rest_bit_equal(make_recipe, images):
    plain, _ = build_model(make_recipe(), images)
    variants = [[GATE], [MIXER], [GATE, MIXER], [GATE | {"start": "paper"}]]
    for grafts in variants:
        model, done = build_model(make_recipe(grafts=grafts), images)
        state = model.state_dict()
        assert all(torch.equal(t, state[n]) for n, t in plain.state_dict().items())
        assert len(state) > len(plain.state_dict())
        assert weights_digest(model) == weights_digest(plain)
        assert weights_digest(model, exclude_grafts=False) != weights_digest(plain)
        assert len(done) == len(grafts)


def test_a_replacing_graft_keeps_every_other_tensor(make_recipe, images):
    plain = build_model(make_recipe(), images)[0].state_dict()
    graft = MIXER | {"start": "paper", "how": "replace"}
    state = build_model(make_recipe(grafts=[graft]), images)[0].state_dict()
    gone = {name for name in plain if name.startswith("layer4.0.conv2.")}
    assert gone == plain.keys() - state.keys()
    assert all(torch.equal(plain[name], state[name]) for name in plain.keys() - gone)


def test_a_graft_has_the_same_weights_whatever_stands_before_it(make_recipe, images):
    model = build_model(make_recipe(grafts=[GATE]), images)[0]
    again = build_model(make_recipe(grafts=[GATE]), images)[0]
    assert weights_digest(model, exclude_grafts=False) == weights_digest(
        again, exclude_grafts=False
    )


def test_seeds_differ_and_the_callers_stream_is_left_alone(make_recipe, images):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = build_model(make_recipe(grafts=[GATE]), images)[0]
    assert torch.equal(torch.rand(1), expected)
    other = build_model(make_recipe(grafts=[GATE], seed=1), images)[0]
    assert weights_digest(one) != weights_digest(other)


def test_digest_sees_one_bit_names_and_shapes(make_recipe, images):
    model = build_model(make_recipe(), images)[0]
    before = weights_digest(model)
    with torch.no_grad():
        model.fc.bias[0] = torch.nextafter(model.fc.bias[0], torch.tensor(1e9))
    assert weights_digest(model) != before


def test_input_follows_data_unless_pretrained(make_recipe, images):
    plain = resolve_input(make_recipe(), images)
    assert (plain.size, plain.mean, plain.crop_pct) == ((28, 28), images.mean, None)
    assert resolve_input(make_recipe(image_size=32), images).size == (32, 32)
    tuned = resolve_input(make_recipe(model="resnet18.a1_in1k", pretrained=True), images)
    assert (tuned.size, tuned.crop_pct) == ((224, 224), 0.95)
    assert tuned.mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))
    smaller = resolve_input(
        make_recipe(model="resnet18.a1_in1k", pretrained=True, image_size=64), images
    )
    assert smaller.size == (64, 64)


def test_a_network_of_fixed_size_is_built_for_the_images(make_recipe, images):
    recipe = make_recipe(model="vit_tiny_patch16_224", model_args={"depth": 1}, image_size=32)
    model = build_model(recipe, images)[0]
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_starts_from_weights_of_others(make_recipe, images, tmp_path):
    source = build_model(make_recipe(seed=3), images)[0]
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{n}": t for n, t in source.state_dict().items()}}, path)
    model = build_model(make_recipe(checkpoint=path, grafts=[GATE]), images)[0]
    assert weights_digest(model) == weights_digest(source)


def test_a_classifier_of_other_classes_is_left_out_and_named(make_recipe, images, tmp_path, caplog):
    source = build_model(make_recipe(seed=3), images)[0].state_dict()
    source["fc.weight"], source["fc.bias"] = torch.ones(7, 16), torch.ones(7)
    save_file(source, tmp_path / "weights.safetensors")
    with caplog.at_level(logging.WARNING, logger="visgraft"):
        model = build_model(make_recipe(checkpoint=tmp_path / "weights.safetensors"), images)[0]
    assert "another number of classes; fc.bias, fc.weight left out" in caplog.text
    state = model.state_dict()
    assert torch.equal(state["conv1.weight"], source["conv1.weight"])
    assert torch.equal(state["fc.bias"], build_model(make_recipe(), images)[0].fc.bias)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s.pop("bn1.weight"), r"does not fit the network: the file lacks bn1\.weight$"),
        (
            lambda s: s.update({f"x{i}": torch.ones(1) for i in range(5)}),
            r"the network has no place for x0, x1, x2 and 2 more$",
        ),
        (
            lambda s: s.update({"conv1.weight": torch.ones(9)}),
            r"the shapes differ in conv1\.weight$",
        ),
    ],
)
def test_rejects_weights_that_do_not_fit(make_recipe, images, tmp_path, change, expected):
    state = build_model(make_recipe(), images)[0].state_dict()
    change(state)
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=expected):
        build_model(make_recipe(checkpoint=path), images)


def test_pretrained_weights_out_of_reach(make_recipe, images, monkeypatch):
    def offline(*args, **kwargs):
        raise FileNotFoundError("no connection")

    monkeypatch.setattr(building, "create_model", offline)
    with pytest.raises(
        TrainingError, match=r"cannot be downloaded \(no connection\); start from a"
    ):
        build_model(make_recipe(model="resnet18", pretrained=True), images)
    with pytest.raises(TrainingError, match="what its pretrained weights expect to see is not kno"):
        build_model(make_recipe(model="hf-hub:some/model", pretrained=True), images)
