"""Networks and blocks that several files of these tests use."""

import copy

import pytest
import timm

from tests.surgery.models import TOY_BLOCKS, alive
from visgraft.blocks import _registry

_BUILT = {}


@pytest.fixture
def build():
    """Returns a function from the name of a timm model to a fresh copy with weights that count."""

    def build(name):
        if name not in _BUILT:
            _BUILT[name] = alive(timm.create_model(name))
        return copy.deepcopy(_BUILT[name])

    return build


@pytest.fixture
def toy_blocks(monkeypatch):
    """Enters the blocks of this folder in the catalogue while a test runs."""
    for name, info in TOY_BLOCKS.items():
        monkeypatch.setitem(_registry._BLOCKS, name, info)
        for alias in info.aliases:
            monkeypatch.setitem(_registry._ALIASES, alias, name)
