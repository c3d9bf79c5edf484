"""Writes docs/contract.md from the tests themselves: ``python -m tests.contract_table``."""

import importlib
from collections import Counter
from pathlib import Path

from tests.blocks import test_contract, test_distributed, test_properties
from tests.blocks.test_contract import CASES
from tests.contract import PROPERTIES, SLOW_PROPERTIES, Case
from tests.golden_table import TABLE, golden_cases
from tests.mutation.edits import EDITS
from tests.mutation.results import read
from tests.mutation.targets import STAGES
from visgraft.blocks import block_info, list_blocks

__all__ = ["DEFECTS", "PAGE", "exists", "page"]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "contract.md"

MEANINGS = {
    "any_size": "maps from 1 x 1 to 33 x 65, rectangles too, give the documented shape and finite "
    "values of the map's dtype",
    "trains_every_parameter": "every parameter gets a gradient, except those that cancel in the "
    "published formula",
    "images_are_independent": "a batch gives what its images give one by one",
    "keeps_its_input": "the input is not written to, in training and evaluation",
    "empty_and_single_batch": "batches of no image and of one",
    "memory_formats": "contiguous, channels-last and transposed maps, values and gradients",
    "state_dict_round_trip": "saved weights load strictly and give the same values to the last bit",
    "copies_and_pickles": "`copy.deepcopy` and `pickle`",
    "placement": "construction on `meta` and in float64, materialisation, tensors on the right "
    "device",
    "frozen": "frozen parameters, with a gradient for the input alone",
    "lower_precision": "bfloat16 and float16, parameters and map",
    "autocast": "autocast to bfloat16, gradients in the dtype of the parameters",
    "gradients_are_right": "gradients against finite differences in float64",
    "compiles": "`torch.compile(fullgraph=True)`, values and gradients",
    "exports": "`torch.export` with dynamic batch, height and width, at three shapes",
    "compiles_for_all_sizes": "`torch.compile(fullgraph=True, dynamic=True)`, values and gradients "
    "at three sizes",
    "exports_to_onnx": "ONNX with dynamic batch, height and width, in onnxruntime at the traced "
    "and at two other shapes",
    "distributed": "`DistributedDataParallel` in two processes, two steps, gradients and "
    "statistics equal to those computed by hand",
}
ELSEWHERE: dict[tuple[str, str], str] = {}  # (block, option) of no case: the test that sets it
WHY_NOT: dict[tuple[str, str], str] = {}  # (case, property): a sentence for a cell without a test

# Blocks whose random configurations are tested in a file of their own
RANDOM = {
    "acmix": "test_acmix.py::test_any_configuration_works_or_is_refused",
    "bottleneck_attention": (
        "test_bottleneck_attention.py::test_any_configuration_works_or_is_refused"
    ),
    "deform_conv": "test_deform_conv.py::test_either_works_or_says_what_is_wrong",
    "selective_kernel": "test_selective_kernel.py::test_either_works_or_says_what_is_wrong",
    "spd_conv": "test_spd_conv.py::test_either_works_or_says_what_is_wrong",
} | dict.fromkeys(
    test_properties.SPACES, "test_properties.py::test_any_configuration_works_or_is_refused"
)

_BLOCKS = "tests/blocks/"
_CONTRACT = f"{_BLOCKS}test_contract.py::test_contract"
_SLOW = f"{_BLOCKS}test_contract.py::test_slow_contract"
_BOT = f"{_BLOCKS}test_bottleneck_attention.py::"
_ACMIX = f"{_BLOCKS}test_acmix.py::"
_DEFORM = f"{_BLOCKS}test_deform_conv.py::"
_COPIES = f"{_BLOCKS}test_circulating_defects.py::"

DEFECTS: dict[str, dict[str, list[str]]] = {
    "CoT": {
        "a softmax over the whole map in place of local kernels: no position reads its "
        "neighbours": [f"{_BLOCKS}test_cot.py::test_a_value_reaches_exactly_its_neighbourhood"],
        "one kernel per channel, or the wrong channels under a kernel": [
            f"{_BLOCKS}test_cot.py::test_channels_that_share_a_kernel"
        ],
        "the dynamic context fades as the map grows": [
            f"{_COPIES}test_dynamic_context_does_not_fade_as_the_map_grows"
        ],
        "static and dynamic context are added, not selected": [
            f"{_BLOCKS}test_cot.py::test_selection_follows_its_logits"
        ],
        "runs on one kind of device and in float32 and float64 only": [
            f"{_CONTRACT}[cot-lower_precision]",
            f"{_CONTRACT}[cot-autocast]",
        ],
        "a kernel is compiled anew for each map size": [
            f"{_COPIES}test_one_compiled_graph_serves_all_sizes"
        ],
        "cannot be exported": [f"{_SLOW}[cot-exports_to_onnx]"],
    },
    "Bottleneck attention and MHSA": {
        "the position term reads a variable before it exists": [
            f"{_CONTRACT}[mhsa-feature_size=(65,65)-use_position=True-any_size]"
        ],
        "no position at all by default": [
            f"{_BOT}test_defaults_are_the_papers",
            f"{_BOT}test_position_matters_and_none_does_not",
        ],
        "absolute position where the paper has relative, transposed against the content": [
            f"{_BOT}test_relative_position_is_of_the_key_minus_the_query"
        ],
        "logits are not divided by the root of the depth": [f"{_BOT}test_formula"],
        "runs on the map size it was built for and on no other": [
            f"{_CONTRACT}[bottleneck_attention-feature_size=(4,6)-num_heads=2-any_size]",
            f"{_BOT}test_resized_tables_equal_a_block_built_for_the_map",
        ],
        "another map size ends in an error without a text": [
            f"{_BOT}test_circulating_form_refuses_maps_beyond_its_table"
        ],
        "all logits are in memory, however large the map": [
            f"{_BOT}test_large_maps_keep_no_square"
        ],
        "an exported file knows one map size": [
            f"{_SLOW}[bottleneck_attention-feature_size=(4,6)-num_heads=2-exports_to_onnx]"
        ],
    },
    "ACmix": {
        "an initialiser without a result takes the place of what it initialises": [
            f"{_ACMIX}test_shifts_start_as_shifts",
            f"{_BLOCKS}test_golden.py::test_golden",
        ],
        "channels that the heads do not divide fail in the first call": [
            f"{_ACMIX}test_rejects_arguments",
            f"{_ACMIX}test_any_configuration_works_or_is_refused",
        ],
        "odd maps with a stride, a dilation, or a convolution other than 3 x 3 fail": [
            f"{_ACMIX}test_equals_the_unfolded_form",
            f"{_ACMIX}test_what_the_window_reaches",
        ],
        "maps of up to three pixels fail": [f"{_ACMIX}test_small_maps_repeat_their_edge"],
        "half precision fails": [f"{_CONTRACT}[acmix-lower_precision]"],
        "positions are made on the first device, wherever the map is": [
            f"{_COPIES}test_tensors_are_made_where_the_map_is",
            f"{_CONTRACT}[acmix-placement]",
        ],
        "keys and values are unfolded to 49 copies": [
            "tests/ops/test_window_attention.py::test_tiles_keep_no_gathered_keys"
        ],
        "an export fails or fixes the map size": [f"{_SLOW}[acmix-exports_to_onnx]"],
    },
    "Global context": {
        "multiplies by default, so that a new block halves its input": [
            f"{_BLOCKS}test_global_context.py::test_defaults_are_the_papers",
            f"{_BLOCKS}test_global_context.py::test_a_new_block_returns_its_input",
        ],
        "a ratio as a float, rounded to no channel at all": [
            f"{_BLOCKS}test_global_context.py::test_rejects_arguments"
        ],
    },
    "Coordinate attention": {
        "the exported file pools over the traced size, and is wrong at any other": [
            f"{_SLOW}[coord_attention-exports_to_onnx]",
            f"{_BLOCKS}test_coord_attention.py::test_gates_survive_an_enlargement_of_the_map",
        ],
        "put into a trained network, it takes three quarters of the signal": [
            "tests/surgery/test_graft.py::"
            "test_every_block_of_the_catalogue_starts_from_the_same_output",
            "tests/surgery/test_identity.py::test_outputs_are_equal_in_every_precision_and_layout",
        ],
    },
    "SPD-Conv": {
        "odd sizes fail": [
            f"{_BLOCKS}test_spd_conv.py::test_is_space_to_depth_and_then_a_convolution"
        ],
    },
    "Deformable convolution": {
        "imports names that do not exist": [f"{_DEFORM}test_is_in_the_catalogue"],
        "offsets do not start at zero": [
            f"{_DEFORM}test_fresh_block_is_a_convolution_scaled_by_half_of_the_mask"
        ],
        "bfloat16 and autocast fail on the CPU": [
            f"{_DEFORM}test_lower_precision_on_the_cpu",
            f"{_DEFORM}test_autocast_on_the_cpu",
        ],
        "cannot be exported": [f"{_SLOW}[deform_conv-exports_to_onnx]"],
        "counters give it no operations": [
            "tests/ops/test_deformable_convolution.py::test_flops_are_those_of_the_convolution"
        ],
    },
    "Selective kernel": {
        "each branch is evaluated twice, and batch statistics move twice in a step": [
            f"{_BLOCKS}test_selective_kernel.py::test_each_branch_is_evaluated_once"
        ],
        "shapes are printed in each call": [f"{_COPIES}test_nothing_is_printed"],
    },
}


def tested() -> dict[str, set[str]]:
    """Returns the ids of the tests of the contract, by the name of the test function."""
    found = {}
    for name, test in vars(test_contract).items():
        marks = getattr(test, "pytestmark", [])
        varied = {mark.args[0]: mark.args[1] for mark in marks if mark.name == "parametrize"}
        if varied.keys() == {"case", "check"}:
            found[name] = {f"{c}-{check}" for c in varied["case"] for check in varied["check"]}
    return found


def exists(node: str) -> bool:
    """Whether there is a test of this id; one with ``[...]`` is a test of the contract."""
    path, _, test = node.partition("::")
    function, _, case = test.removesuffix("]").partition("[")
    if not (ROOT / path).is_file():
        return False
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    if case:
        return module is test_contract and case in tested().get(function, ())
    return callable(getattr(module, function, None))


def page() -> str:
    """Returns the text of docs/contract.md."""
    return "\n".join([*_introduction(), *_cases(), *_blocks(), *_defects(), *_mutation()]) + "\n"


def _introduction() -> list[str]:
    return [
        "# What the tests hold every block to",
        "",
        "Written by `python -m tests.contract_table` from the tests themselves; a test compares "
        "the two.",
        "",
        "## Properties",
        "",
        *(
            f"{number}. **{name.replace('_', ' ')}**: {MEANINGS[name]}"
            for number, name in enumerate(_properties(), 1)
        ),
        "",
    ]


def _properties() -> list[str]:
    return [*PROPERTIES, *SLOW_PROPERTIES, "distributed"]


def _cases() -> list[str]:
    names = _properties()
    rows = [
        [f"`{case.block}`", _options(case), *(_cell(case, name) for name in names)]
        for case in CASES
    ]
    heads = ["block", "options", *map(str, range(1, len(names) + 1))]
    return ["## Cases", "", *_table(heads, rows), ""]


def _options(case: Case) -> str:
    options = (f"{key}={value!r}" for key, value in case.options.items())
    return f"`{', '.join(options)}`" if case.options else "defaults"


def _cell(case: Case, name: str) -> str:
    if name == "distributed":
        done = str(case) in map(str, test_distributed.CASES)
    else:
        done = any(f"{case}-{name}" in ids for ids in tested().values())
    return "yes" if done else WHY_NOT[str(case), name]


def _blocks() -> list[str]:
    counts = Counter(TABLE[case.family][0] for case in golden_cases(*TABLE))
    rows = []
    for name in list_blocks():
        strided = any(case.stride > 1 for case in CASES if case.block == name)
        widened = any(case.out_channels for case in CASES if case.block == name)
        rows.append(
            [
                f"`{name}`",
                str(counts[name] or "its operation, in `tests/ops`"),
                "yes" if strided else _not_varied(name, "stride", "has no stride"),
                "yes" if widened else _not_varied(name, "out_channels", "keeps its channels"),
                f"`{RANDOM[name]}`",
            ]
        )
    heads = ["block", "recorded cases of published code", "stride", "other channels"]
    return ["## Blocks", "", *_table([*heads, "random configurations"], rows), ""]


def _not_varied(block: str, option: str, reason: str) -> str:
    """Returns why no case of a block sets an option: it has none, or another test does."""
    return f"`{ELSEWHERE[block, option]}`" if option in block_info(block).options else reason


def _defects() -> list[str]:
    rows = [
        [block, defect, "<br>".join(f"`{node}`" for node in nodes)]
        for block, defects in DEFECTS.items()
        for defect, nodes in defects.items()
    ]
    heads = ["block", "what copies in circulation do", "test that ours does not"]
    return ["## Defects of circulating copies", "", *_table(heads, rows), ""]


def _mutation() -> list[str]:
    found = read()
    columns = {stage: Counter() for stage in (*STAGES, None)}
    for block, edits in found.items():
        for edit in edits.values():
            columns[edit["stage"]].update([block, "all"])
    rows = [
        [
            f"`{block}`" if block != "all" else block,
            str(sum(column[block] for column in columns.values())),
            *(str(column[block]) for column in columns.values()),
        ]
        for block in (*list_blocks(), "all")
    ]
    return [
        "## Mutation check",
        "",
        "Each block and its operation are broken on purpose, one wrong edit at a time, in a copy "
        "of the source: swapped axes, a missing scale, another channel's share, a forgotten "
        "activation, a default, an initialisation, a dtype. An edit counts where it is first "
        "noticed: by values recorded from published code; by the properties above, without those "
        "that compile or export; by the tests of the block and of its operation; by the properties "
        "that compile or export. `python -m tests.mutation BLOCK` repeats it, "
        "`tests/mutation/edits` holds the edits and `tests/mutation/results.json` the first test "
        "that fails for each.",
        "",
        *_table(["block", "edits", *STAGES, "survived"], rows),
        "",
        "Edits that survive change no value:",
        "",
        *(
            f"- `{block}`, {edit.name}: {edit.equivalent}"
            for block, edits in EDITS.items()
            for edit in edits
            if edit.equivalent
        ),
    ]


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    PAGE.write_text(page())
