"""Costs of whole networks against counts by hand and against other counters."""

import logging

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.models.golden_networks import NETWORKS, GoldenNetwork
from visgraft.blocks import create_block
from visgraft.inspect import cost
from visgraft.ops import window_attention

by_scripts = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
# One of each family whose operations are all published; the rest is in test_catalogue.py.
BY_HAND = ("cotnet50", "mbv2_ca_0.5", "gcresnet50_r4_c3c5", "resnet50_dcnv2_c3c5", "swin_acmix_t")


@pytest.mark.parametrize("name", BY_HAND)
def test_networks_counted_by_hand(name):
    record = GoldenNetwork(name).record
    counted = cost(timm.create_model(NETWORKS[name][0], device="meta"), record["macs_input"])
    assert counted.params == record["params"]
    elementwise = record["macs_elementwise_aggregation"]
    assert counted.macs == record["macs_conv_matmul"] + elementwise
    assert bool(elementwise) == (name in ("cotnet50", "resnet50_dcnv2_c3c5"))


def test_deformable_layers_make_up_the_elementwise_column():
    record = GoldenNetwork("resnet50_dcnv1_c3c5").record
    counted = cost(timm.create_model("dcn_resnet50", device="meta"), (1, 3, 224, 224))
    plain = cost(timm.create_model("resnet50", device="meta"), (1, 3, 224, 224))
    layers = [f"layer{s}.{u}.conv2" for s, n in ((2, 4), (3, 6), (4, 3)) for u in range(n)]
    at_offsets = [path for path in counted.by_module if path.endswith("conv2.offset")]
    assert len(layers) == 13
    sampled = sum(counted.by_module[path][1] for path in layers)
    sampled -= sum(counted.by_module[path][1] for path in at_offsets)
    assert sampled == record["macs_elementwise_aggregation"] == 1_502_871_552
    assert sampled == sum(plain.by_module[path][1] for path in layers)


def test_deformable_convolution_of_torchvision():
    class Deformed(nn.Module):
        def __init__(self):
            super().__init__()
            self.offset = nn.Conv2d(8, 2 * 2 * 9, 3, stride=2, padding=1)
            self.conv = torchvision.ops.DeformConv2d(8, 12, 3, stride=2, padding=1, groups=4)

        def forward(self, x):
            return self.conv(x, self.offset(x))

    counted = cost(Deformed(), (2, 8, 9, 11))
    assert counted.by_module["conv"] == (12 * 2 * 9 + 12, 2 * 12 * 2 * 9 * 5 * 6)
    assert counted.by_module["offset"][1] == 2 * 36 * 8 * 9 * 5 * 6
    assert counted.macs == counted.by_module["conv"][1] + counted.by_module["offset"][1]
    ours = cost(create_block("deform_conv", 8, out_channels=12, stride=2), (1, 8, 9, 11))
    layer = torchvision.ops.DeformConv2d(8, 12, 3, stride=2, padding=1)
    offset, mask = torch.zeros(1, 18, 5, 6), torch.zeros(1, 9, 5, 6)
    theirs = cost(layer, (torch.zeros(1, 8, 9, 11), offset, mask))
    to_offsets = 27 * 8 * 9 * 5 * 6  # the block's own convolution, to 18 offsets and 9 masks
    assert ours.macs == theirs.macs + to_offsets


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "test_cotnet", "test_sknet"])
def test_torchs_counter_gives_twice_as_much(name):
    model = timm.create_model(name).eval()
    size = (2, *model.pretrained_cfg["input_size"])
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(torch.zeros(size))
    assert flops.get_total_flops() == 2 * cost(model, size).macs


def counted_by_fvcore(model, arguments):
    from fvcore.nn import FlopCountAnalysis  # warns when it is imported

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    analysis = FlopCountAnalysis(model, arguments)
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)


@by_scripts
def test_fvcore_adds_normalisation_and_pooling():
    model = timm.create_model("resnet18").eval()
    by_operator = counted_by_fvcore(model, torch.zeros(1, 3, 224, 224)).by_operator()
    assert by_operator["conv"] + by_operator["linear"] == cost(model, (1, 3, 224, 224)).macs
    assert by_operator.keys() == {"conv", "linear", "batch_norm", "adaptive_avg_pool2d"}


@by_scripts
def test_fvcore_gives_deformable_convolution_nothing():
    layer = torchvision.ops.DeformConv2d(4, 4, 3, padding=1)
    arguments = (torch.zeros(1, 4, 5, 5), torch.zeros(1, 18, 5, 5))
    assert counted_by_fvcore(layer, arguments).total() == 0
    assert cost(layer, arguments).macs == 4 * 4 * 9 * 25


@pytest.mark.parametrize("native", ["0", "1"])
def test_window_attention_counts_its_windows_with_and_without_a_compiler(native, monkeypatch):
    class Attention(nn.Module):
        def forward(self, x):
            return window_attention(x, x, x, 7)

    monkeypatch.setenv("VISGRAFT_NATIVE", native)
    assert cost(Attention(), (1, 2, 16, 20, 30)).macs == 2 * (2 * 16) * (20 * 30) * 7**2
