"""docs/contract.md says what the tests do, and names tests that exist."""

import pytest

from tests.contract_table import DEFECTS, MEANINGS, PAGE, RANDOM, exists, page
from visgraft.blocks import list_blocks

NODES = sorted({node for tests in DEFECTS.values() for nodes in tests.values() for node in nodes})


def test_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run python -m tests.contract_table"


def test_no_cell_is_empty():
    rows = [line for line in page().splitlines() if line.startswith("|")]
    assert len(rows) > 60
    for row in rows:
        assert all(cell.strip() for cell in row.strip("|").split("|")), row
    assert all(MEANINGS.values())


@pytest.mark.parametrize("node", NODES)
def test_named_tests_exist(node):
    assert exists(node)


def test_every_defect_has_a_test():
    assert all(nodes for tests in DEFECTS.values() for nodes in tests.values())


def test_random_configurations_of_every_block():
    assert RANDOM.keys() == set(list_blocks())
    assert all(exists(f"tests/blocks/{node}") for node in RANDOM.values())


@pytest.mark.parametrize(
    "node",
    [
        "tests/blocks/test_contract.py::test_contract[cot-any_sizes]",
        "tests/blocks/test_contract.py::test_slow_contract[cot-any_size]",
        "tests/blocks/test_cot.py::test_of_nothing",
        "tests/blocks/test_cot.py::test_rejects_inputs[0]",
        "tests/blocks/test_nothing.py::test_contract",
    ],
)
def test_missing_tests_are_noticed(node):
    assert not exists(node)
