"""What timm promises of each network, held by the tiny networks of every family of ours."""

import copy
import pickle
import re

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models import group_parameters, model_entrypoint
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

import visgraft.models

NAMES = [
    name
    for name in timm.list_models("test_*")
    if model_entrypoint(name).__module__.startswith("visgraft.")
]
# Parameters that a published formula cancels: a bias in front of a softmax over positions.
WITHOUT_EFFECT = {
    "test_gc_resnet": r"\.se\.attend\.bias$",
    "test_resnet_acmix": r"\.position\.bias$",
}
# Their max pooling has no padding, so that an odd map loses a row and a column.
POOLS_INSIDE = {"test_sknet"}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

each = pytest.mark.parametrize("name", NAMES)


def build(name, *, awake=True, seed=0, **options):
    """Builds a network in eval mode, the same for each call.

    ``awake``: nothing is zero or regular, as it may be at the start of a training.
    """
    torch.manual_seed(seed)
    network = timm.create_model(name, **options)
    generator = torch.Generator().manual_seed(1)
    for tensor_name, tensor in network.state_dict().items():
        if not awake or not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)
        if tensor_name.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs())
        elif tensor_name.endswith("running_mean") or not tensor.any():
            tensor.copy_(0.2 * noise)
        else:
            tensor.add_(0.02 * noise)
    return network.eval()


def images(network, batch=2, size=None, channels=3):
    """Returns noise, of the size of the network's configuration unless said otherwise."""
    height, width = size or network.pretrained_cfg["input_size"][1:]
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, channels, height, width, generator=generator)


def as_nchw(network, feature):
    return feature.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "") == "NHWC" else feature


def gradients(network, x):
    network.zero_grad()
    network(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@each
def test_every_parameter_learns(name):
    dead = []
    for seed in range(3):  # a narrow layer may happen to be silent on all images
        network = build(name, seed=seed).double()
        found = gradients(network, images(network, batch=4).double())
        assert found.keys() == dict(network.named_parameters()).keys()
        largest = max(g.abs().max() for g in found.values())
        dead.append({key for key, g in found.items() if not g.abs().max() > 1e-13 * largest})
    expected = {key for key in found if re.search(WITHOUT_EFFECT.get(name, "$^"), key)}
    assert set.intersection(*dead) == expected
    assert bool(expected) == (name in WITHOUT_EFFECT)


@each
def test_training_on_two_images(name):
    network = build(name, awake=False).train()
    out = network(images(network))
    out.square().mean().backward()
    assert out.shape == (2, network.num_classes)
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    assert any(not torch.equal(p.grad, torch.zeros_like(p)) for p in network.parameters())


@each
def test_a_step_of_training_lowers_the_loss_and_the_network_evaluates(name):
    network = build(name, awake=False).train()
    x, labels = images(network, batch=4), torch.arange(4) % network.num_classes
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)  # the same units are dropped
        loss = torch.nn.functional.cross_entropy(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    with torch.no_grad():
        assert network.eval()(x).isfinite().all()


@each
def test_configuration_describes_the_network(name):
    network, config = build(name), timm.get_pretrained_cfg(name)
    assert config.architecture in (None, name)
    assert (config.url, config.hf_hub_id, config.file) == (None, None, None)
    assert 0 < config.crop_pct <= 1
    assert config.interpolation in ("bilinear", "bicubic")
    assert [len(values) for values in (config.mean, config.std)] == [3, 3]
    classifier = network.get_submodule(config.classifier)
    assert isinstance(classifier, nn.Linear)
    assert classifier is network.get_classifier()
    assert classifier.out_features == config.num_classes == network.num_classes == 1000
    first = network.get_submodule(config.first_conv)
    assert isinstance(first, nn.Conv2d)
    assert first is next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    features = as_nchw(network, network.forward_features(images(network)))
    assert features.shape == (2, network.num_features, *config.pool_size)


@each
def test_heads(name):
    network = build(name)
    x = images(network)
    features = network.forward_features(x)
    pooled = network.forward_head(features, pre_logits=True)
    assert_close(network.forward_head(features), network(x))
    assert_close(network.get_classifier()(pooled), network(x), **CLOSE)
    assert pooled.shape == (2, network.head_hidden_size)
    network.reset_classifier(5)
    assert network(x).shape == (2, network.num_classes) == (2, 5)
    network.reset_classifier(0)
    assert_close(network(x), pooled)
    headless = build(name, num_classes=0)
    assert headless.num_classes == 0
    assert headless(x).shape == pooled.shape
    assert not any(
        k.startswith(network.pretrained_cfg["classifier"]) for k in headless.state_dict()
    )
    few = build(name, num_classes=7)
    assert few(x).shape == (2, 7)
    assert few.get_classifier().out_features == 7


@each
def test_global_pool(name):
    network = build(name)
    x = images(network)
    features = network.forward_features(x)
    weights = network.state_dict()
    unpooled = build(name, num_classes=0, global_pool="")
    unpooled.load_state_dict({key: weights[key] for key in unpooled.state_dict()})
    assert_close(unpooled(x), features)
    largest = build(name, num_classes=0, global_pool="max")
    largest.load_state_dict(unpooled.state_dict())
    assert_close(largest(x), as_nchw(network, features).amax((2, 3)))
    network.reset_classifier(3, global_pool="max")
    assert_close(network.forward_head(features, pre_logits=True), largest(x))


@each
@pytest.mark.parametrize("channels", [1, 4])
def test_image_channels(name, channels):
    network = build(name, in_chans=channels)
    assert network(images(network, channels=channels)).shape == (2, 1000)
    folder = build(name, in_chans=channels, features_only=True)
    assert len(folder(images(network, channels=channels))) == len(network.feature_info)


@each
def test_features_only(name):
    network = build(name)
    x = images(network)
    final, intermediates = network.forward_intermediates(x)
    assert_close(final, network.forward_features(x))
    count = len(network.feature_info)
    indices = range(count - len(intermediates), count)
    for chosen in (None, (indices[1], indices[-1]), (-2,)):
        options = {} if chosen is None else {"out_indices": chosen}
        extractor = build(name, features_only=True, **options)
        features = extractor(x)
        places = range(count) if chosen is None else [range(count)[i] for i in chosen]
        assert len(features) == len(places)
        assert extractor.feature_info.channels() == [
            as_nchw(extractor, feature).shape[1] for feature in features
        ]
        for place, feature, reduction in zip(
            places, features, extractor.feature_info.reduction(), strict=True
        ):
            expected = network.feature_info[place]
            feature = as_nchw(extractor, feature)
            assert (reduction, feature.shape[1]) == (expected["reduction"], expected["num_chs"])
            assert [*feature.shape[2:]] == [-(-n // reduction) for n in x.shape[2:]]
            if place in indices:
                assert_close(feature, intermediates[place - indices[0]], **CLOSE)


@each
def test_intermediates_by_index(name):
    network = build(name)
    x = images(network)
    _, every = network.forward_intermediates(x)
    last = network.forward_intermediates(x, indices=[-1], intermediates_only=True)
    assert_close(last, every[-1:])
    two = network.forward_intermediates(x, indices=2, intermediates_only=True, stop_early=True)
    assert_close(two, every[-2:])


@each
@pytest.mark.parametrize("extra", [(11, 26), (-17, 0)])
def test_other_sizes(name, extra):
    network = build(name)
    height, width = network.pretrained_cfg["input_size"][1:]
    x = images(network, size=(height + extra[0], width + extra[1]))
    y = network(x)
    assert y.shape == (2, 1000)
    assert torch.isfinite(y).all()
    assert_close(torch.cat([network(image[None]) for image in x]), y, **CLOSE)
    _, maps = network.forward_intermediates(x)
    reductions = [info["reduction"] for info in network.feature_info][-len(maps) :]
    less = name in POOLS_INSIDE
    for feature, reduction in zip(maps, reductions, strict=True):
        for n, length in zip(x.shape[2:], feature.shape[2:], strict=True):
            assert -(-n // reduction) - less <= length <= -(-n // reduction)


@each
def test_channels_last(name):
    network = build(name)
    x = images(network)
    expected = network(x)
    network.to(memory_format=torch.channels_last)
    assert_close(network(x.to(memory_format=torch.channels_last)), expected, **CLOSE)


@each
@pytest.mark.parametrize("option", ["drop_rate", "drop_path_rate"])
def test_dropping(name, option):
    network, plain = build(name, **{option: 0.5}), build(name)
    x = images(network)
    assert_close(network(x), plain(x))
    paths = [m for m in network.modules() if isinstance(m, DropPath) and m.drop_prob > 0]
    assert bool(paths) == (option == "drop_path_rate")
    network.train()
    outputs = []
    for seed in range(4):
        torch.manual_seed(seed)
        outputs.append(copy.deepcopy(network)(x))
    assert any(not torch.allclose(outputs[0], other) for other in outputs[1:])


@each
def test_gradient_checkpointing(name):
    kept = []
    network = build(name)
    x = images(network)
    with saved_tensors_hooks(lambda t: (kept.append(1), t)[1], lambda t: t):
        expected = gradients(network, x)
        without = len(kept)
        kept.clear()
        network.set_grad_checkpointing()
        found = gradients(network, x)
    assert len(kept) < without
    assert_close(found, expected, **CLOSE)
    network.set_grad_checkpointing(False)
    assert_close(gradients(network, x), expected)


@each
@pytest.mark.parametrize("coarse", [False, True])
def test_parameter_groups(name, coarse):
    network = build(name)
    groups = group_parameters(network, network.group_matcher(coarse=coarse))
    grouped = [key for keys in groups.values() for key in keys]
    assert sorted(grouped) == sorted(key for key, _ in network.named_parameters())
    layer = {key: number for number, keys in groups.items() for key in keys}
    config = network.pretrained_cfg
    assert layer[f"{config['first_conv']}.weight"] == min(groups)
    assert layer[f"{config['classifier']}.weight"] == max(groups)
    blocks = {key.rsplit(".", 1)[0]: number for key, number in layer.items()}
    assert len(set(blocks.values())) >= (3 if coarse else 5)


@each
def test_layer_decay(name):
    network = build(name)
    groups = param_groups_layer_decay(network, weight_decay=0.05, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scales.keys() == {id(p) for p in network.parameters()}
    first = network.get_submodule(network.pretrained_cfg["first_conv"]).weight
    assert scales[id(network.get_classifier().weight)] == 1
    assert scales[id(first)] == min(scales.values()) < 0.2
    decayed = [p for g in groups if g["weight_decay"] for p in g["params"]]
    assert all(p.ndim > 1 for p in decayed)


@each
@pytest.mark.parametrize("stride", [8, 16])
def test_output_stride(name, stride):
    plain = build(name, features_only=True)
    try:
        network = build(name, features_only=True, output_stride=stride)
    except ValueError as error:
        refusal = str(error)
        assert re.search(rf"output_stride.*{stride}", refusal)
        return
    x = images(plain, size=[n + 8 for n in plain.pretrained_cfg["input_size"][1:]])
    features = network(x)
    reductions = [min(r, stride) for r in plain.feature_info.reduction()]
    assert network.feature_info.reduction() == reductions
    assert [[-(-n // r) for n in x.shape[2:]] for r in reductions] == [
        [*as_nchw(network, feature).shape[2:]] for feature in features
    ]


@each
def test_placement(name):
    network = build(name, device="meta", awake=False)
    assert {t.device.type for t in (*network.parameters(), *network.buffers())} == {"meta"}
    shape = network.pretrained_cfg["input_size"]
    assert network(torch.empty(2, *shape, device="meta")).shape == (2, 1000)
    source = build(name)
    network.to_empty(device="cpu")
    for module in network.modules():  # as timm's loaders do
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    network.load_state_dict(source.state_dict())
    x = images(source)
    assert_close(network.eval()(x), source(x))


@each
def test_bfloat16(name):
    network = build(name, dtype=torch.bfloat16)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    x = images(network)
    y = network(x.bfloat16())
    assert y.dtype == torch.bfloat16
    exact = copy.deepcopy(network).float()(x)
    assert (y.float() - exact).abs().max() < 0.1 * exact.abs().max()


@each
def test_copies(name):
    network = build(name)
    x = images(network)
    expected = network(x)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert_close(other(x), expected, rtol=0, atol=0)
        other.load_state_dict({k: v.clone() for k, v in network.state_dict().items()})
    fresh = build(name, awake=False)
    fresh.load_state_dict(network.state_dict())
    assert_close(fresh(x), expected, rtol=0, atol=0)


@pytest.mark.slow
@each
def test_exports_with_a_free_batch(name):
    network = build(name)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(network, (images(network),), dynamic_shapes=({0: batch},))
    for size in (1, 3):
        x = images(network, batch=size)
        assert_close(exported.module()(x), network(x), **CLOSE)


@pytest.mark.slow
@each
def test_compiles(name):
    network = build(name)
    x = images(network)
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    assert_close(compiled(x), network(x), **CLOSE)


@each
def test_pretrained_needs_a_file(name):
    with pytest.raises(ValueError, match=rf"^{name}: pretrained=True finds no weights, .* add .*$"):
        timm.create_model(name, pretrained=True)


def test_every_family_has_a_tiny_network():
    homes = {model_entrypoint(name).__module__ for name in visgraft.models.list_networks()}
    assert {model_entrypoint(name).__module__ for name in NAMES} == homes
