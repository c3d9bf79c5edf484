"""A study file that changes after trials have begun: every field of it, allowed or refused."""

import re

import pytest

from tests.study.tiny import FIELDS, study
from visgraft.study.claims import claim_next
from visgraft.study.errors import StudyError
from visgraft.study.plan import Study
from visgraft.study.store import Store
from visgraft.tasks.recipe import Recipe

CA = FIELDS["variants"]["ca"]
COT = {"block": "cot", "at": "layer4.*.conv2"}
PLAN = {
    "variants": {"ca": CA, "cot": COT},
    "controls": {
        "same": {"kind": "identity", "of": "ca"},
        "wide": {"kind": "widened", "of": "ca", "model_args": {"channels": [9, 9, 9, 9]}},
    },
    "seeds": [0, 1, 2],
}
BEGUN = ("baseline", "ca", "same", "wide")

ALLOWED = {
    "another name": {"name": "Blocks, compared"},
    "another metric": {"metric": "loss"},
    "a variant more": {"variants": {"gc": {"block": "global_context", "at": "block_end"}}},
    "a variant that was not begun, changed": {"variants": {"cot": COT | {"at": "layer3.*.conv2"}}},
    "a variant that was not begun, dropped": {"variants": {"cot": None}},
    "a control more": {"controls": {"frozen_cot": {"kind": "identity", "of": "cot"}}},
    "a seed more": {"seeds": [0, 1, 2, 7]},
    "the seeds in another order": {"seeds": [2, 0, 1]},
    "a seed that was not begun, dropped": {"seeds": [0, 1]},
    "processes that load images": {"recipe": {"workers": 2}},
    "loggers": {"recipe": {"loggers": "tensorboard"}},
}
REFUSED = {
    "a begun variant, changed": (
        {"variants": {"ca": CA | {"at": "stage4/block_end"}}},
        "variants.ca was {'grafts': [{'block': 'coord_attention', 'at': ['block_end']}]} and is "
        "{'grafts': [{'block': 'coord_attention', 'at': ['stage4/block_end']}]}",
    ),
    "a begun variant, dropped": (
        {"variants": {"ca": None}, "controls": {"same": None, "wide": None}},
        "variants.ca is missing; controls.same is missing; controls.wide is missing",
    ),
    "a begun control, changed": (
        {"controls": {"same": {"kind": "identity", "of": "cot"}}},
        "controls.same was {'kind': 'identity', 'of': 'ca'} and is "
        "{'kind': 'identity', 'of': 'cot'}",
    ),
    "another width": (
        {"controls": {"wide": PLAN["controls"]["wide"] | {"model_args": {"channels": [8] * 4}}}},
        "controls.wide was {'kind': 'widened', 'of': 'ca', "
        "'model_args': {'channels': [9, 9, 9, 9]}} and is ",
    ),
    "a begun control, dropped": ({"controls": {"same": None}}, "controls.same is missing"),
    "a variant that becomes the baseline": (
        {"baseline": "plain"},
        "baseline was 'baseline' and is 'plain'",
    ),
    "a begun seed, dropped": ({"seeds": [1, 2]}, "seeds 0 are missing"),
    "two things at once": (
        {"seeds": [1, 2], "recipe": {"epochs": 9}},
        "recipe.epochs was 2 and is 9; seeds 0 are missing",
    ),
}
FREE = {"workers", "loggers"}
OF_THE_STUDY = {"grafts", "seed"}  # refused in a study's recipe from the start


def changed(**parts):
    """The plan with parts merged in; None drops an entry."""
    fields = FIELDS | PLAN
    for name, value in parts.items():
        if isinstance(value, dict):
            merged = fields[name] | value
            value = {key: entry for key, entry in merged.items() if entry is not None}
        fields = fields | {name: value}
    return study(**fields)


@pytest.fixture
def store(tmp_path):
    """All networks but cot have begun, with seed 0."""
    store = Store.prepare(tmp_path / "study", changed())
    for _ in range(5):
        claim = claim_next(store)
        if claim.variant in BEGUN:
            claim.fail("Traceback")
    with store.transaction(write=True) as connection:
        connection.execute("UPDATE trials SET status = 'waiting', token = NULL")
        connection.execute("UPDATE trials SET attempts = 0 WHERE variant = 'cot'")
    return store


def files(store):
    return {name: (store.folder / name).read_bytes() for name in ("study.sqlite", "study.yaml")}


@pytest.mark.parametrize("what", ALLOWED)
def test_what_may_change(store, what):
    new = changed(**ALLOWED[what])
    assert new != store.study
    Store.prepare(store.folder, new)
    assert store.study == new
    begun = {t.variant for t in store.trials() if t.attempts}
    assert begun == set(BEGUN)


@pytest.mark.parametrize("what", REFUSED)
def test_what_may_not_change(store, what):
    change, text = REFUSED[what]
    before = files(store)
    for call in (Store.prepare, Store.resolve):
        with pytest.raises(StudyError, match=re.escape(f"holds another study ({text}")) as told:
            call(store.folder, changed(**change))
        assert str(told.value).endswith(
            "variants, controls and seeds may be added to a study, anything else needs a new "
            "folder."
        )
    assert files(store) == before


@pytest.mark.parametrize("field", sorted(Recipe.model_fields.keys() - OF_THE_STUDY))
def test_every_field_of_the_recipe(store, field):
    old = store.study.recipe
    other = f"not {getattr(old, field)!r}"  # legal or not: what counts is that it differs
    new = store.study.model_copy(update={"recipe": old.model_copy(update={field: other})})
    if field in FREE:
        assert Store.resolve(store.folder, new) == new
        return
    with pytest.raises(StudyError, match=rf"recipe\.{field} was .* and is .*needs a new folder"):
        Store.resolve(store.folder, new)


def test_no_field_is_forgotten():
    named = {name for change in ALLOWED.values() for name in change}
    named |= {name for change, _ in REFUSED.values() for name in change}
    assert named == set(Study.model_fields)
