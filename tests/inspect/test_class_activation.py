import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from visgraft.inspect.class_activation import class_activation


class Plain(nn.Module):
    """Convolution, mean over the places, linear layer: Grad-CAM is the class's own sum there."""

    def __init__(self, output_fmt="NCHW"):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(5, 4)
        self.output_fmt = output_fmt

    def forward_features(self, x):
        features = self.drop(self.conv(x).relu())
        return features.permute(0, 2, 3, 1) if self.output_fmt == "NHWC" else features

    def forward_head(self, features):
        places = (1, 2) if self.output_fmt == "NHWC" else (2, 3)
        return self.fc(features.mean(places))


@pytest.mark.parametrize("output_fmt", ["NCHW", "NHWC"])
def test_map_of_a_network_with_mean_and_linear_layer(output_fmt):
    torch.manual_seed(0)
    model, images = Plain(output_fmt), torch.randn(2, 3, 8, 6)
    found = class_activation(model, images, [1, 3])
    features = model.conv(images).relu()
    scores = model.fc(features.mean((2, 3)))
    torch.testing.assert_close(found.scores, scores.detach())
    # The mean's gradient is the weight over the number of places, the paper's alpha.
    expected = torch.stack(
        [
            (model.fc.weight[c][:, None, None] * f).sum(0).relu() / f[0].numel()
            for c, f in zip((1, 3), features, strict=True)
        ]
    )
    torch.testing.assert_close(found.maps, expected.detach())
    assert found.maps.shape == (2, 6, 4)
    assert float(found.maps.max()) > 0


def test_planted_place_is_found():
    """A network that looks for one bright place glows there and nowhere else."""
    model = Plain()
    with torch.no_grad():
        model.conv.weight.zero_()
        model.conv.weight[0, :, 1, 1] = 1
        model.conv.bias.zero_()
        model.fc.weight.zero_()
        model.fc.weight[2, 0] = 1
    images = torch.zeros(1, 3, 10, 10)
    images[0, :, 6, 3] = 1
    (found,) = class_activation(model, images, [2]).maps
    assert torch.nonzero(found).tolist() == [[5, 2]]


def test_network_stays_as_it_was():
    model = timm.create_model("resnet18", num_classes=5).train()
    images = torch.randn(2, 3, 64, 64)
    cross_entropy(model(images), torch.tensor([0, 1])).backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradient = model.fc.weight.grad.clone()
    found = class_activation(model, images, [4, 0])
    assert found.maps.shape == (2, 2, 2)
    assert not found.maps.requires_grad
    assert model.training
    assert model.bn1.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model.fc.weight.grad, gradient)


@pytest.mark.parametrize(
    ("model", "classes", "text"),
    [
        (Plain(), [0], r"one class per image, got 1 classes for 2 images"),
        (Plain(), [0, 4], r"a class must be 0 to 3, got 4"),
        (nn.Linear(3, 4), [0, 1], r"Linear has no forward_features and forward_head"),
    ],
)
def test_wrong_calls(model, classes, text):
    with pytest.raises(ValueError, match=text):
        class_activation(model, torch.randn(2, 3, 8, 8), classes)


def test_network_without_a_map_is_refused():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    with pytest.raises(ValueError, match=r"has no feature map before its head, but a tensor of"):
        class_activation(model, torch.randn(1, 3, 32, 32), [0])


class Squared(Plain):
    """The gradient of this head differs from place to place."""

    def forward_head(self, features):
        return self.fc(features.square().mean((2, 3)))


def test_gradient_is_averaged_over_the_places():
    torch.manual_seed(0)
    model, images = Squared(), torch.randn(1, 3, 8, 6)
    (found,) = class_activation(model, images, [2]).maps
    (features,) = model.conv(images).relu().detach()
    gradient = 2 * features * model.fc.weight[2].detach()[:, None, None] / features[0].numel()
    alpha = gradient.mean((1, 2), keepdim=True)
    torch.testing.assert_close(found, (alpha * features).sum(0).relu())
