"""The list of wrong edits stays true to the source, and has been tried."""

from pathlib import Path

import pytest

from tests.mutation.driver import PACKAGE
from tests.mutation.edits import EDITS
from tests.mutation.results import read
from tests.mutation.targets import STAGES, TARGETS
from visgraft.blocks import list_blocks

ROOT = Path(__file__).parents[1]


def test_every_block_has_ten_edits_with_names_of_their_own():
    assert EDITS.keys() == TARGETS.keys() == set(list_blocks())
    for block, edits in EDITS.items():
        assert len({edit.name for edit in edits}) == len(edits) >= 10, block


@pytest.mark.parametrize("block", EDITS)
def test_every_edit_applies_once_and_leaves_python(block):
    for edit in EDITS[block]:
        text = edit.apply(PACKAGE)
        assert text != (PACKAGE / edit.file).read_text(), edit
        compile(text, edit.file, "exec")


def test_an_edit_of_a_text_that_is_gone_is_noticed(tmp_path):
    edit = EDITS["cot"][0]
    (tmp_path / "blocks").mkdir()
    for text, places in (("", 0), (2 * edit.old, 2)):
        (tmp_path / edit.file).write_text(text)
        with pytest.raises(ValueError, match=rf"^blocks/cot\.py: edit .* replaces {places} places"):
            edit.apply(tmp_path)


def test_targets_are_files_that_exist():
    for selections in TARGETS.values():
        assert len(selections) == len(STAGES)
        for selection in selections:
            assert all((ROOT / file).is_file() for file in selection.files)


def test_every_edit_has_been_tried_and_was_caught():
    tried = {(b, name): one for b, found in read().items() for name, one in found.items()}
    listed = {(block, edit.name): edit for block, edits in EDITS.items() for edit in edits}
    assert tried.keys() == listed.keys(), "run python -m tests.mutation --missing"
    survived = {key for key, one in tried.items() if one["stage"] is None}
    assert survived == {key for key, edit in listed.items() if edit.equivalent}
    assert {one["stage"] for one in tried.values()} <= {*STAGES, None}
