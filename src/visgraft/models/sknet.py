"""SKNets: ResNeXt-like networks whose 3 x 3 convolutions are selective kernels.

Paper: Li, Wang, Hu and Yang, "Selective Kernel Networks", CVPR 2019,
    https://arxiv.org/abs/1903.06586, sections 3.2 and 4.1 and table 1.
Layouts and weights: https://github.com/implus/SKNet (models/sknet50.prototxt at 5d319b2 and
    models/sknet101.prototxt at 17dd708, Caffe); timm's skresnext50_32x4d (Apache-2.0), the same
    network with another pool.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from visgraft.blocks import Layout, Paper, SelectiveKernel, Source, register_layouts
from visgraft.models._building import build_network, imagenet_cfg
from visgraft.models._catalogue import Published, describe_networks
from visgraft.models._resnet import PaperResNet

__all__ = ["SKNet", "sknet26", "sknet50", "sknet101", "test_sknet"]

_logger = logging.getLogger(__name__)

_STAGES = 4
_DEEPEST = (3, 4, 23, 3)  # blocks of the authors' deepest network, for their layers' names


class SKNet(PaperResNet):
    """timm's ResNet with a selective kernel for the 3 x 3 convolution of each bottleneck.

    Bottlenecks are twice as wide as a ResNet's. A selective kernel ends in the weighted sum of its
    branches, each normalised and rectified, and no normalisation or activation follows it.

    The authors' networks pool after the first convolution as Caffe does, with windows that start at
    the first row and column (``stem_pool='caffe'``); timm's skresnext50_32x4d, otherwise the same
    as SKNet-50, pads by one (``'torch'``). Weights trained with one give other results with the
    other. On maps of odd size, Caffe's pool returns one row and column less.

    Differs from the source: any image size, where Caffe's last pool is 7 x 7; batch normalisation
    keeps timm's momentum. Initialisation is the source's, fan in, the gates close to equal shares.

    Args:
        min_hidden: Lower bound of the channels in the selective kernels' bottlenecks, for all
            stages or for each of the four. The formula of the paper is ``max(min_hidden, C // 16)``
            with 32; the authors' SKNet-101 has 16 in the second stage.
        stem_pool: ``'caffe'`` or ``'torch'``; of no effect with timm's other stem pools.
        cardinality: Groups of the selective kernels' convolutions.
        base_width: Channels of one group, in the first stage and where ``channels`` starts at 64.
        zero_init_last: Whether residual branches start at zero, as in timm's ResNets.
        device: Of the parameters.
        dtype: Of the parameters.
        kwargs: As timm's ``ResNet`` takes them, except ``block``; ``norm_layer`` and ``act_layer``
            do not reach inside the selective kernels.

    Raises:
        ValueError: ``min_hidden`` is neither a positive integer nor four of them, or ``stem_pool``
            is unknown.
    """

    def __init__(
        self,
        *,
        min_hidden: int | Sequence[int] = 32,
        stem_pool: Literal["caffe", "torch"] = "caffe",
        cardinality: int = 32,
        base_width: int = 4,
        zero_init_last: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        if stem_pool not in ("caffe", "torch"):
            raise ValueError(f"SKNet: stem_pool must be 'caffe' or 'torch', got {stem_pool!r}")
        hidden = (min_hidden,) * _STAGES if isinstance(min_hidden, int) else tuple(min_hidden)
        if len(hidden) != _STAGES or any(type(each) is not int or each < 1 for each in hidden):
            raise ValueError(
                "SKNet: min_hidden must be a positive integer, or one for each of the four stages, "
                f"got {min_hidden!r}"
            )
        super().__init__(
            block=Bottleneck,  # pyright: ignore[reportArgumentType]
            cardinality=cardinality,
            base_width=base_width,
            zero_init_last=zero_init_last,
            device=device,
            dtype=dtype,
            **kwargs,
        )
        for stage, minimum in enumerate(hidden, 1):
            for block in self.get_submodule(f"layer{stage}").children():
                _select_kernels(block, minimum, device=device, dtype=dtype)
        if stem_pool == "caffe" and isinstance(self.maxpool, nn.MaxPool2d):
            self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)

    def init_weights(self, zero_init_last: bool = False) -> None:
        """Draws the weights as the authors do: He (fan in), gates and classifier 0.01."""
        _draw_weights(self)
        if zero_init_last:
            for module in self.modules():
                if isinstance(module, Bottleneck):
                    module.zero_init_last()


def _select_kernels(block: Any, min_hidden: int, **dd: Any) -> None:
    """Puts a selective kernel where a bottleneck has its convolution."""
    conv = block.conv2
    block.conv2 = SelectiveKernel(
        conv.in_channels,
        out_channels=conv.out_channels,
        kernels=((3, conv.dilation[0]), (3, 2 * conv.dilation[0])),
        groups=conv.groups,
        min_hidden=min_hidden,
        stride=conv.stride[0],
        **dd,
    )
    block.bn2 = nn.Identity()
    block.act2 = nn.Identity()
    _draw_weights(block.conv2)


def _draw_weights(root: nn.Module) -> None:
    for module in root.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    for module in root.modules():
        if isinstance(module, SelectiveKernel):
            nn.init.normal_(module.reduce.weight, std=0.01)
            nn.init.normal_(module.expand.weight, std=0.01)


def _caffe_names() -> Iterator[tuple[str, str]]:
    """Yields each layer's name in the authors' definitions, and its name here."""
    yield "conv1/7x7_s2/bn", "bn1"
    yield "conv1/7x7_s2", "conv1"
    yield "classifier", "fc"
    for stage, depth in enumerate(_DEEPEST, 1):
        for index in range(depth):
            there, here = f"conv{stage + 1}_{index + 1}", f"layer{stage}.{index}"
            for layer, (conv, norm) in {
                "1x1_reduce": ("conv1", "bn1"),
                "1x1_increase": ("conv3", "bn3"),
                "1x1_proj": ("downsample.0", "downsample.1"),
            }.items():
                yield f"{there}/{layer}", f"{here}.{conv}"
                yield f"{there}/{layer}/bn", f"{here}.{norm}"
            for layer in ("3x3g32", "3x3g32d2", "B_fc1", "B_fc2"):  # translated by the block
                yield f"{there}/{layer}", f"{here}.conv2.{there}/{layer}"
                yield f"{there}/{layer}/bn", f"{here}.conv2.{there}/{layer}/bn"


def _made_for(pool: str, sign: str) -> Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]:
    """Returns a check of the network's pool against the one that the weights were made for.

    Args:
        pool: What they were made for.
        sign: What is in the names of such weights.
    """

    def check(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        own = "torch" if getattr(network.get_submodule("maxpool"), "padding", 1) else "caffe"
        if own != pool and any(sign in key for key in state):
            _logger.warning(
                "SKNet: these weights are made for stem_pool=%r and give other results with %r",
                pool,
                own,
            )
        return state

    return check


def _refuse(_: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Says of PytorchInsight's weights what they are."""
    if any(".conv2g." in key for key in state) and any(".conv_fc1." in key for key in state):
        raise ValueError(
            "SKNet: these are weights of implus/PytorchInsight's sk_resnet, another network (a "
            "dense next to a grouped convolution, neither dilated, at half the width), which "
            "cannot be loaded here; take those of implus/SKNet or of timm's skresnext50_32x4d"
        )
    return state


register_layouts(
    SKNet,
    Layout("implus/SKNet", dict(_caffe_names()), _made_for("caffe", "/3x3g32")),
    Layout(
        "timm",
        {
            "layer*.*.conv1.conv": "layer*.*.conv1",
            "layer*.*.conv1.bn": "layer*.*.bn1",
            "layer*.*.conv3.conv": "layer*.*.conv3",
            "layer*.*.conv3.bn": "layer*.*.bn3",
        },
        _made_for("torch", ".conv2.paths."),
    ),
    Layout("implus/PytorchInsight", adapt=_refuse),
)

default_cfgs = generate_default_cfgs(
    {
        "sknet26.untrained": imagenet_cfg(interpolation="bilinear"),
        "sknet50.untrained": imagenet_cfg(interpolation="bilinear"),
        "sknet101.untrained": imagenet_cfg(interpolation="bilinear"),
        "test_sknet.untrained": imagenet_cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> SKNet:
    return build_network(SKNet, variant, pretrained, **kwargs)


@register_model
def sknet26(pretrained: bool = False, **kwargs: Any) -> SKNet:
    """SKNet-26: two blocks in each stage."""
    return _create("sknet26", pretrained, **({"layers": (2, 2, 2, 2)} | kwargs))


@register_model
def sknet50(pretrained: bool = False, **kwargs: Any) -> SKNet:
    """SKNet-50, as the authors' definition has it."""
    return _create("sknet50", pretrained, **({"layers": (3, 4, 6, 3)} | kwargs))


@register_model
def sknet101(pretrained: bool = False, **kwargs: Any) -> SKNet:
    """SKNet-101, as the authors' definition has it: with narrower gates in the second stage."""
    args = {"layers": (3, 4, 23, 3), "min_hidden": (32, 16, 32, 32)}
    return _create("sknet101", pretrained, **(args | kwargs))


@register_model
def test_sknet(pretrained: bool = False, **kwargs: Any) -> SKNet:
    """A tiny SKNet, for tests at 64 x 64 pixels."""
    width = {"channels": (8, 16, 16, 32), "cardinality": 4, "base_width": 32, "min_hidden": 8}
    return _create("test_sknet", pretrained, **({"layers": (1, 1, 1, 2)} | width | kwargs))


describe_networks(
    {
        "sknet26": Published(
            params=16.8, note="The authors' repository does not define this depth."
        ),
        "sknet50": Published(params=27.5, gmacs=4.47, top1=79.21),
        "sknet101": Published(
            params=48.9,
            gmacs=8.46,
            top1=79.81,
            note="The published definition has 48.69 M parameters, with narrower gates in its "
            "second stage than the paper's formula.",
        ),
    },
    paper=Paper(
        title="Selective Kernel Networks",
        authors="Li, Wang, Hu and Yang",
        venue="CVPR 2019",
        url="https://arxiv.org/abs/1903.06586",
    ),
    source=Source("https://github.com/implus/SKNet", "models/sknet50.prototxt", "5d319b2", None),
    figures_from="README.md of implus/SKNet at 17dd708; SKNet-26: the paper's section 4.1",
    weights=(
        "The authors link .caffemodel files of SKNet-50 and SKNet-101 in their README. Save the "
        "blobs as safetensors named LAYER.weight, .bias, .running_mean and .running_var, then: "
        "visgraft convert FILE --model sknet50 -o out.safetensors. Their images are likely BGR, "
        "which no published file states."
    ),
    recipe="sknet",
)
