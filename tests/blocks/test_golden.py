"""Every recorded case of the published code, through `load_published`."""

import pytest

from tests.contract import check_golden
from tests.golden_table import TABLE, golden_cases
from visgraft.blocks import list_blocks


@pytest.mark.parametrize("case", golden_cases(*TABLE), ids=lambda case: case.name)
def test_golden(case):
    check_golden(case)


def test_every_recorded_family_is_compared():
    elsewhere = {"localagg-official", "spd-official", "spd-seed"}  # tests/ops
    assert {case.family for case in golden_cases()} == TABLE.keys() | elsewhere


def test_every_block_has_a_case():
    elsewhere = {"spd_conv"}  # its operation, in tests/ops; the rest is a convolution
    assert {name for name, _ in TABLE.values()} | elsewhere == set(list_blocks())
