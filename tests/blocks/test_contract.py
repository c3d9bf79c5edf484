"""The contract, block by block and property by property."""

import pytest

from tests.contract import PROPERTIES, SLOW_PROPERTIES, Case
from visgraft.blocks import list_blocks

SOFTMAX = frozenset({"attend.bias"})  # a constant added in front of a softmax over positions
POSITION = frozenset({"position.bias"})  # moves all keys alike
CASES = [
    Case("acmix", 8, without_effect=POSITION),
    Case(
        "acmix",
        6,
        {"out_channels": 12, "num_heads": 3, "attention_size": 5, "kernel_size": 5, "stride": 2},
        stride=2,
        out_channels=12,
        without_effect=POSITION,
    ),
    Case(
        "acmix",
        8,
        {"num_heads": 8, "attention_size": 3, "kernel_size": 1, "dilation": 2},
        without_effect=POSITION,
    ),
    Case("bottleneck_attention", 8, {"feature_size": (4, 6), "num_heads": 2}),
    Case(
        "bottleneck_attention",
        8,
        {"out_channels": 12, "num_heads": 3, "head_dim": 8, "bias": True, "stride": 2},
        stride=2,
        out_channels=12,
    ),
    Case("bottleneck_attention", 8, {"position": "absolute"}),
    Case("bottleneck_attention", 8, {"position": None, "head_dim": 3}),
    Case("mhsa", 8, without_effect=frozenset({"key.bias"})),
    Case(
        "mhsa",
        8,
        {"feature_size": (65, 65), "use_position": True},
        without_effect=frozenset({"key.bias"}),
    ),
    Case("cot", 16),
    Case("cot", 32, {"groups": 2}),
    Case("cot", 16, {"kernel_size": 5, "stride": 2}, stride=2),
    Case("cot_attention", 8, without_effect=frozenset({"gate_expand.bias"})),
    Case("cot_attention", 8, {"kernel_size": 1}, without_effect=frozenset({"gate_expand.bias"})),
    Case("global_context", 32, without_effect=SOFTMAX),
    Case("global_context", 16, {"reduction": 4, "fuse": ("add", "mul")}, without_effect=SOFTMAX),
    Case("global_context", 16, {"reduction": 4, "pool": "average", "fuse": ("mul",)}),
    Case("coord_attention", 16),
    Case("spd_conv", 8, stride=2),
    Case(
        "spd_conv",
        8,
        {"scale": 3, "groups": 2, "out_channels": 12, "kernel_size": 1, "bias": True},
        stride=3,
        out_channels=12,
    ),
    Case("deform_conv", 8),
    Case("deform_conv", 8, {"kernel_size": 5, "dilation": 2, "mask_scale": 2.0}),
    Case(
        "deform_conv",
        8,
        {
            "out_channels": 12,
            "modulated": False,
            "bias": True,
            "stride": 2,
            "groups": 2,
            "offset_groups": 4,
        },
        stride=2,
        out_channels=12,
    ),
    Case("selective_kernel", 32),
    Case(
        "selective_kernel",
        16,
        {"kernels": ((3, 1), (3, 2), (5, 1)), "groups": 4, "out_channels": 32, "stride": 2},
        stride=2,
        out_channels=32,
    ),
    Case("sk_attention", 8),
    Case("sk_attention", 8, {"kernels": (3, 5), "groups": 2}),
]


@pytest.mark.parametrize("check", PROPERTIES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_contract(case, check):
    PROPERTIES[check](case)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("check", SLOW_PROPERTIES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_slow_contract(case, check):
    SLOW_PROPERTIES[check](case)


def test_every_block_is_under_the_contract():
    assert {case.block for case in CASES} == set(list_blocks())
