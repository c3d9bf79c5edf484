import pytest
import timm
import torch
from torch.testing import assert_close

from visgraft.models import UnknownModelError, create_model


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [("resnet10_small", 10, 308_826), ("resnet18_small", 10, 11_173_962)],
)
def test_parameter_count(name, classes, parameters):
    model = timm.create_model(name, num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_stem_keeps_the_resolution():
    model = timm.create_model("resnet10_small", in_chans=1, features_only=True)
    shapes = [tuple(f.shape) for f in model(torch.zeros(1, 1, 28, 28))]
    assert shapes == [
        (1, 16, 28, 28),
        (1, 16, 28, 28),
        (1, 32, 14, 14),
        (1, 64, 7, 7),
        (1, 128, 4, 4),
    ]
    assert model.feature_info.reduction() == [1, 1, 2, 4, 8]


def test_timm_contract():
    model = timm.create_model("resnet10_small", num_classes=10).eval()
    x = torch.randn(2, 3, 32, 40)
    features = model.forward_features(x)
    assert features.shape == (2, 128, 4, 5)
    assert_close(model.forward_head(features), model(x))
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.set_grad_checkpointing()
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_odd_width_is_refused():
    with pytest.raises(ValueError, match=r"first of channels must be even, got 15"):
        timm.create_model("resnet10_small", channels=(15, 32, 64, 128))


def test_unknown_model_names_the_nearest():
    with pytest.raises(UnknownModelError, match=r"model 'resnet19' is not .*nearest: resnet1"):
        create_model("resnet19")


def test_unknown_argument_is_named():
    with pytest.raises(ValueError, match=r"model 'resnet18' takes no argument 'widht'"):
        create_model("resnet18", widht=3)
