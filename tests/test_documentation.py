"""What README and docs show works: Python runs, commands parse, YAML loads, links lead on."""

import re
import shlex
from pathlib import Path

import pytest

from visgraft.cli.main import build_parser
from visgraft.study import load_study
from visgraft.tasks import load_recipe
from visgraft.tasks.yaml_mapping import parse_yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [page.name for page in PAGES]


def fenced(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page):
    text = "".join(fenced(page, "sh")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "visgraft"]


def test_examples_of_the_readme():
    namespace = {}
    for code in fenced(ROOT / "README.md", "python"):
        exec(code, namespace)
    assert namespace["graft"].max_difference == 0


def test_examples_of_grafting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    *examples, own_block = fenced(ROOT / "docs" / "grafting.md", "python")
    for code in examples:
        exec(code, namespace)
    assert "MyBlock" in own_block


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_are_understood(page):
    for argv in commands(page):
        build_parser().parse(argv)


def test_there_are_commands():
    assert sum(len(commands(page)) for page in PAGES) > 8


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_yaml_is_legal(page):
    for text in fenced(page, "yaml"):
        fields = parse_yaml(text)
        if "variants" in fields:
            assert load_study(fields).variants
        else:
            assert load_recipe(fields, data="photos").epochs


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target
