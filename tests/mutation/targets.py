"""Which tests are asked, one stage after the other, about a wrong edit of a block."""

from dataclasses import dataclass

from tests.mutation.edits import EDITS

__all__ = ["STAGES", "TARGETS", "Selection"]

STAGES = ("golden values", "contract", "own tests", "contract, compiled and exported")

_BLOCKS = "tests/blocks"
_CONTRACT = f"{_BLOCKS}/test_contract.py"
_COMMON = ("published", "properties", "circulating_defects")


@dataclass(frozen=True)
class Selection:
    """Files of tests, and the expression that selects from them as ``pytest -k`` does."""

    files: tuple[str, ...]
    expression: str = ""


# Families of recorded values, and the files of tests of the block and of its operation
_OF_BLOCK: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "acmix": (("acmix",), ("blocks/test_acmix", "ops/test_window_attention")),
    "bottleneck_attention": (
        ("mhsa-lucidrains", "mhsa-timm"),
        ("blocks/test_bottleneck_attention", "ops/test_relative_attention"),
    ),
    "coord_attention": (("ca",), ("blocks/test_coord_attention", "ops/test_strip_gate")),
    "cot": (
        ("cot-official", "coxt-official", "localagg"),
        ("blocks/test_cot", "ops/test_local_aggregation"),
    ),
    "cot_attention": (("cot-seed",), ("blocks/test_cot",)),
    "deform_conv": (("dcn",), ("blocks/test_deform_conv", "ops/test_deformable_convolution")),
    "global_context": (("gc",), ("blocks/test_global_context", "ops/test_attention_pooling")),
    "mhsa": (("mhsa-seed",), ("blocks/test_bottleneck_attention",)),
    "selective_kernel": (("sk-caffe", "sk-timm"), ("blocks/test_selective_kernel",)),
    "sk_attention": (("sk-seed",), ("blocks/test_selective_kernel",)),
    "spd_conv": (("spd",), ("blocks/test_spd_conv", "ops/test_space_to_depth")),
}


def _stages(block: str) -> tuple[Selection, ...]:
    families, own = _OF_BLOCK[block]
    files = tuple(f"tests/{name}.py" for name in own)
    operation = tuple(file for file in files if "/ops/" in file)
    recorded = " or ".join(f"{family}-" for family in families)
    traced = "compiles or exports"
    return (
        Selection((f"{_BLOCKS}/test_golden.py", *operation), f"golden and ({recorded})"),
        Selection((_CONTRACT,), f"[{block}- and not ({traced})"),
        Selection((*files, *(f"{_BLOCKS}/test_{name}.py" for name in _COMMON))),
        Selection((_CONTRACT,), f"[{block}- and ({traced})"),
    )


TARGETS: dict[str, tuple[Selection, ...]] = {block: _stages(block) for block in EDITS}
