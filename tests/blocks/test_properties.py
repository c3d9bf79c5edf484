"""A random configuration works as documented or is refused with a sentence when it is built.

The blocks that are not here have such a test, with more options, in the file of their own.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visgraft.blocks import block_info, create_block

Options = dict[str, Any]

# Values that are never a number of anything
WRONG = (0, -3, 2.0, True, "3", None, (3,))


@dataclass(frozen=True)
class Space:
    """The configurations of a block, and the rules of its documentation."""

    options: dict[str, st.SearchStrategy[Any]]
    legal: Callable[[int, Options], bool]
    channels: st.SearchStrategy[int] = st.integers(1, 40)  # noqa: RUF009
    refuses_map: Callable[[Options, int, int], bool] = lambda *_: False


def one_of(*values: Any, wrong: tuple[Any, ...] = WRONG) -> st.SearchStrategy[Any]:
    """Draws one of the values, or, in about one of eight draws, something that is wrong."""
    return st.sampled_from([*values * (7 * len(wrong) // len(values) + 1), *wrong])


def positive(value: Any) -> bool:
    return type(value) is int and value >= 1


def odd(value: Any) -> bool:
    return positive(value) and value % 2 == 1


def pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(positive, value))


SIZE = one_of(
    (14, 14), (4, 5), [7, 3], (1, 1), wrong=((7,), (3, 3, 3), 7, "77", (0, 3), (2.0, 3), None)
)
FUSE = one_of(
    ("add",),
    "mul",
    ["add", "mul"],
    ("mul", "add"),
    wrong=((), ("add", "add"), "both", ("add", 3), 1, None),
)
KERNELS = one_of(
    (1, 3, 5, 7),
    (3, 5),
    [3, 3],
    (1, 9, 3),
    wrong=((), (3,), 3, "35", (2, 3), (3, 0), (3, 5.0), (3, True), ((3, 1), (3, 2)), None),
)
SPACES = {
    "cot": Space(
        {
            "kernel_size": one_of(1, 3, 5, wrong=(*WRONG, 4)),
            "groups": one_of(1, 2, wrong=(*WRONG, 4)),
            "stride": one_of(1, 2, 3),
        },
        lambda channels, o: (
            odd(o["kernel_size"])
            and positive(o["groups"])
            and o["groups"] <= 2
            and positive(o["stride"])
            and channels % (8 * o["groups"]) == 0
        ),
        channels=st.sampled_from([8, 16, 24, 32, 40]) | st.integers(1, 40),
    ),
    "cot_attention": Space(
        {"kernel_size": one_of(1, 3, 5, 7, wrong=(*WRONG, 2))},
        lambda channels, o: odd(o["kernel_size"]) and channels % 4 == 0,
        channels=st.integers(1, 10).map(lambda n: 4 * n) | st.integers(1, 40),
    ),
    "global_context": Space(
        {
            "reduction": one_of(1, 2, 4, 16),
            "pool": one_of("attention", "average", wrong=("max", "", None, 0, ["average"])),
            "fuse": FUSE,
        },
        lambda channels, o: (
            positive(o["reduction"])
            and channels // o["reduction"] >= 2
            and o["pool"] in ("attention", "average")
            and o["fuse"] in (("add",), "mul", ["add", "mul"], ("mul", "add"))
        ),
    ),
    "coord_attention": Space(
        {"reduction": one_of(1, 2, 32, 100), "min_hidden": one_of(1, 8, 50)},
        lambda _, o: positive(o["reduction"]) and positive(o["min_hidden"]),
    ),
    "mhsa": Space(
        {
            "feature_size": SIZE,
            "num_heads": one_of(1, 2, 4, 5),
            "use_position": one_of(True, False, wrong=(1, "no", None)),
        },
        lambda channels, o: (
            pair(o["feature_size"])
            and positive(o["num_heads"])
            and channels % o["num_heads"] == 0
            and isinstance(o["use_position"], bool)
        ),
        # Documented: with a position table, no more positions than it has
        refuses_map=lambda o, h, w: (
            o["use_position"] and h * w > o["feature_size"][0] * o["feature_size"][1]
        ),
    ),
    "sk_attention": Space(
        {
            "kernels": KERNELS,
            "reduction": one_of(1, 4, 16, 100),
            "groups": one_of(1, 2, 4),
            "min_hidden": one_of(1, 8, 32),
        },
        lambda channels, o: (
            isinstance(o["kernels"], list | tuple)
            and len(o["kernels"]) >= 2
            and all(map(odd, o["kernels"]))
            and all(positive(o[name]) for name in ("reduction", "groups", "min_hidden"))
            and channels % o["groups"] == 0
        ),
    ),
}


@pytest.mark.parametrize("name", SPACES)
def test_any_configuration_works_or_is_refused(name):
    space, ends = SPACES[name], Counter()
    owner = block_info(name).cls.__name__

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(space.channels, st.fixed_dictionaries(space.options), *[st.integers(1, 12)] * 2)
    def check(channels, options, height, width):
        if not space.legal(channels, options):
            with pytest.raises(ValueError, match=rf"^{owner}: \S.* must .+, got .+") as refused:
                create_block(name, channels, **options)
            assert re.fullmatch(r"[^\n]{20,200}", str(refused.value))
            ends["refused"] += 1
            return
        block, x = create_block(name, channels, **options), torch.randn(2, channels, height, width)
        if space.refuses_map(options, height, width):
            with pytest.raises(ValueError, match=rf"^{owner}: the map has {height} x {width} "):
                block(x)
            ends["map refused"] += 1
            return
        stride = options.get("stride", 1)
        for training in (True, False):
            y = block.train(training)(x)
            assert y.shape == (2, channels, -(-height // stride), -(-width // stride))
            assert torch.isfinite(y).all()
        ends["works"] += 1

    check()
    expected = {"works", "refused"} | ({"map refused"} if name == "mhsa" else set())
    assert ends.keys() == expected
    assert min(ends.values()) >= 3, ends


def test_options_are_all_of_the_blocks():
    for name, space in SPACES.items():
        assert set(space.options) == set(block_info(name).options) - {"device", "dtype"}
