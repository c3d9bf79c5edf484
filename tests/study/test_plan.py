import pytest
import yaml

from visgraft.study.changes import changes
from visgraft.study.errors import StudyError
from visgraft.study.plan import list_studies, load_study, trials

RECIPE = {"data": "fashion_mini", "model": "resnet10_small"}
COT = {"block": "cot", "at": "stage4/conv3x3"}


def study(**fields):
    return load_study({"recipe": RECIPE, "variants": {"cot": COT}} | fields)


def test_errors_come_all_at_once_with_their_places():
    with pytest.raises(StudyError) as raised:
        load_study(
            {
                "sead": 3,
                "recipe": RECIPE | {"lr": -1, "epocs": 3},
                "seeds": [1, 1],
                "metric": "top2",
                "variants": {
                    "cot": {"block": "cott", "at": "stage4/conv3x3"},
                    "ca": {"grafts": [COT, {"block": "cot", "att": "block_end"}]},
                    "wide": {"model": "resnet10_smal"},
                },
            }
        )
    first, *lines = str(raised.value).splitlines()
    assert first == "study: 9 errors"
    told = {line.split(": ", 1)[0].strip(): line.split(": ", 1)[1] for line in lines}
    assert told["sead"] == "there is no such field; did you mean seeds?"
    assert told["recipe.lr"] == "must be greater than 0, got -1"
    assert told["recipe.epocs"] == "there is no such field; did you mean epochs?"
    assert told["seeds"] == "must differ from each other, got [1, 1]"
    assert told["metric"].startswith("must be one of top1, top5, loss, AP, ")
    assert "got 'top2'; did you mean top" in told["metric"]
    assert "no block 'cott'" in told["variants.cot.block"]  # as written: short form
    assert told["variants.ca.grafts[1].at"].startswith("is required")
    assert told["variants.ca.grafts[1].att"] == "there is no such field; did you mean at?"
    assert "did you mean resnet10_small" in told["variants.wide.model"]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"variants": {"cot": COT | {"lr": 1}}}, "variants.cot.lr: a variant may change the netw"),
        ({"variants": {"cot": {"grafts": [], "epochs": 9}}}, "variants.cot.epochs: a variant may"),
        ({"variants": {"cot": None}}, "variants.cot: says nothing"),
        ({"variants": {"cot": {}}}, "variants.cot: says nothing"),
        ({"variants": {}}, "variants: there must be at least one beside the baseline"),
        ({"variants": [COT]}, "variants: must be 'name: change' lines"),
        ({"variants": {"a/b": COT}}, "'a/b' cannot be the name of a folder"),
        ({"variants": {True: COT}}, "the name True is no text; put it in quotes"),
        ({"variants": {"cot": COT, "Cot": COT}}, "cot and Cot differ only in capitals"),
        ({"variants": {"baseline": COT}}, "baseline: there is a variant 'baseline'"),
        ({"variants": {"plain": COT}, "baseline": "plain"}, "there is a variant 'plain'"),
        ({"recipe": RECIPE | {"seed": 3}}, "recipe: seed is set by the study"),
        ({"recipe": RECIPE | {"grafts": [COT]}}, "recipe: grafts belong to the variants"),
        ({"recipe": "cpu_smal"}, "did you mean cpu_small"),
        ({"seeds": 0}, "seeds: must be at least 1, got 0"),
        ({"seeds": True}, "seeds: must be a number of seeds or a list of seeds"),
        ({"seeds": [0, -1]}, r"seeds\[1\]: must be greater than or equal to 0, got -1"),
        ({"epochs": 3}, "epochs: there is no such field at the top; set recipe.epochs"),
    ],
)
def test_refusals(fields, text):
    with pytest.raises(StudyError, match=text):
        study(**fields)


def test_trials_go_seed_by_seed_and_differ_in_network_and_seed_alone():
    wide = {"model_args": {"channels": [24, 48, 96, 192]}}
    plan = study(variants={"cot": COT, "wide": wide}, seeds=[5, 7], baseline="plain")
    specs = trials(plan)
    names = [(spec.variant, spec.seed) for spec in specs]
    assert names == [(v, s) for s in (5, 7) for v in ("plain", "cot", "wide")]
    for spec in specs:
        assert spec.recipe.seed == spec.seed
        network = {"grafts": (), "model": "resnet10_small", "model_args": {}, "seed": 0}
        assert spec.recipe.model_copy(update=network) == plan.recipe
    assert specs[0].recipe.grafts == specs[2].recipe.grafts == ()
    assert [g.block for g in specs[1].recipe.grafts] == ["cot"]
    assert specs[2].recipe.model_args == wide["model_args"]


def test_number_and_text_of_seeds():
    assert study(seeds=3).seeds == study(seeds="3").seeds == (0, 1, 2)
    assert study(seeds="[4, 2]").seeds == (4, 2)


def test_fields_of_the_recipe_at_the_top_and_as_overrides():
    plan = study(model="resnet18_small", data="fashion_mini", recipe={"base": "cpu_small"})
    assert plan.recipe.model == "resnet18_small"
    changed = load_study(plan, epochs=2, seeds=[3], model="resnet10_small")
    assert (changed.recipe.epochs, changed.seeds) == (2, (3,))
    assert changed.recipe.model == "resnet10_small"
    assert changed.recipe.lr == plan.recipe.lr
    assert load_study({"recipe": "cpu_small", "variants": {"a": COT}}, epochs=2).recipe.epochs == 2


def test_file_and_recipe_beside_it(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(RECIPE | {"epochs": 7}))
    file = tmp_path / "study.yaml"
    file.write_text("recipe: mine.yaml\nvariants: {cot: {block: cot, at: block_end}}\n")
    plan = load_study(file)
    assert plan.recipe.epochs == 7
    file.write_text("variants:\n  cot: {block: cot}\n  cot: {block: cot}\n")
    with pytest.raises(StudyError, match=r"study\.yaml, line 3: the key 'cot' was already given"):
        load_study(file)
    with pytest.raises(StudyError, match=r"study demmo is neither a file nor .*mean demo\?"):
        load_study("demmo")


@pytest.mark.parametrize("name", list_studies())
def test_shipped_studies_load_and_survive_being_resolved(name):
    plan = load_study(name)
    text = yaml.safe_dump(plan.model_dump(mode="json"))
    assert load_study(yaml.safe_load(text)) == plan


def test_changes_name_what_differs():
    old = study(variants={"cot": COT}, seeds=2)
    more = study(variants={"cot": COT, "ca": COT}, seeds=3, name="other", metric="loss")
    assert changes(old, more) == []
    other = study(
        variants={"cot": COT | {"at": "block_end"}}, seeds=[1], recipe=RECIPE | {"lr": 0.5}
    )
    lr, cot, seeds = changes(old, other)
    assert lr == "recipe.lr was 0.001 and is 0.5"
    assert cot.startswith("variants.cot was {'grafts': [{'block': 'cot', 'at': ['stage4/conv3x3']")
    assert seeds == "seeds 0 are missing"
    assert "variants.cot is missing" in changes(old, study(variants={"x": COT}))
    assert changes(old, study(baseline="b")) == ["baseline was 'baseline' and is 'b'"]
