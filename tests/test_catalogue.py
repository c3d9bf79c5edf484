"""Each block file is imported, registered, documented, tested, and compared with golden values."""

import ast
import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import visgraft.blocks as blocks
from tests.blocks.test_contract import CASES
from tests.golden_table import TABLE, golden_cases
from visgraft.blocks import _registry

FILES = sorted(
    path.stem for path in Path(blocks.__file__).parent.glob("*.py") if not path.stem.startswith("_")
)
TESTS = Path(__file__).parent
NAMES = blocks.list_blocks()
HEADINGS = ("Args:", "Shape:", "Raises:", "Example:")


@pytest.mark.parametrize("stem", FILES)
def test_block_file_is_complete(stem):
    module = importlib.import_module(f"visgraft.blocks.{stem}")
    infos = [blocks.block_info(name) for name in NAMES]
    ours = [info for info in infos if info.cls.__module__ == module.__name__]
    assert ours, f"nothing in {stem}.py is registered, or blocks/__init__.py does not import it"
    assert (TESTS / "blocks" / f"test_{stem}.py").exists()
    assert "Paper: " in module.__doc__
    assert set(module.__all__) <= set(blocks.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_block_is_compared_with_published_code(name):
    families = [family for family, (block, _) in TABLE.items() if block == name]
    if name == "spd_conv":  # what is recorded is its operation
        families = ["spd-official", "spd-seed"]
    assert families, f"tests/golden_table.py has no family for {name}"
    assert golden_cases(*families), f"tests/golden has no case of {', '.join(families)}"
    assert blocks.layouts_of(blocks.block_info(name).cls)


@pytest.mark.parametrize("name", NAMES)
def test_block_is_under_the_contract(name):
    assert name in {case.block for case in CASES}, "tests/blocks/test_contract.py has no case"


@pytest.mark.parametrize("name", NAMES)
def test_block_is_documented(name):
    info = blocks.block_info(name)
    text = inspect.getdoc(info.cls)
    assert [heading for heading in HEADINGS if f"\n{heading}\n" in text] == list(HEADINGS)
    described = re.findall(r"^    (\w+): ", text.split("Args:")[1].split("Shape:")[0], re.MULTILINE)
    assert described == ["channels", *info.options]
    assert info.summary.endswith(".")
    assert isinstance(info.cls(64).starts_as_identity, bool)


@pytest.mark.parametrize("name", NAMES)
def test_paper_and_source_stand_in_the_header_too(name):
    info = blocks.block_info(name)
    header = inspect.getmodule(info.cls).__doc__
    assert info.paper is not None
    assert info.source is not None
    for text in (info.paper.title, info.paper.url, info.source.repository, info.source.commit):
        assert " ".join(text.split()) in " ".join(header.split())


@pytest.mark.parametrize("name", NAMES)
def test_arguments_after_the_channels_are_keywords(name):
    first, *others = inspect.signature(blocks.block_info(name).cls).parameters.values()
    assert first.name == "channels"
    assert all(p.kind is p.KEYWORD_ONLY for p in others)
    assert [p.name for p in others][-2:] == ["device", "dtype"]


@pytest.mark.parametrize("name", NAMES)
def test_constructor_names_the_class_in_its_errors(name):
    cls = blocks.block_info(name).cls
    for channels in (0, -8, 8.0, True, "8"):
        message = (
            rf"^{cls.__name__}: channels must be an integer >= 1, got {re.escape(repr(channels))}"
        )
        with pytest.raises(ValueError, match=message):
            cls(channels)


@pytest.mark.parametrize("stem", [f"blocks.{s}" for s in (*FILES, "_registry", "_published")])
def test_examples_run(stem, monkeypatch):
    monkeypatch.setattr(_registry, "_BLOCKS", dict(_registry._BLOCKS))  # one registers a block
    monkeypatch.setattr(_registry, "_ALIASES", dict(_registry._ALIASES))
    module = importlib.import_module(f"visgraft.{stem}")
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted > 0


def test_the_imports_are_the_catalogue():
    """No block registers itself from a file that the list of imports does not show."""
    tree = ast.parse(Path(blocks.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {f"visgraft.blocks.{stem}" for stem in FILES} <= imported
