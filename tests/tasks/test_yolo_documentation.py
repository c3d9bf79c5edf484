"""The page on YOLO shows what works, and numbers that are tested elsewhere."""

import re
from pathlib import Path

import pytest
import torch

from tests.offline_ultralytics import ENVIRONMENT, ultralytics  # noqa: F401
from tests.tasks.test_yolo_yaml import TRANSFERRED
from tests.tasks.yolo.exercise import BLOCKS, READY
from tests.tasks.yolo.table import between
from visgraft.tasks import yolo

PAGE = (Path(__file__).parents[2] / "docs" / "yolo.md").read_text()


def fenced(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_examples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    try:
        for code in fenced("python"):
            if ".train(" not in code:
                exec(code, namespace)
    finally:
        yolo.unregister()
    assert namespace["graft"].max_difference == 0
    (shown,) = fenced("text")
    assert shown.strip() in capsys.readouterr().out
    names = namespace["again"].model.state_dict()
    assert sum("graft" in name for name in names) == 60


def test_the_rows_build():
    import yaml

    (text,) = fenced("yml")
    rows = yaml.safe_load(text)["backbone"]
    tasks = __import__("ultralytics.nn.tasks", fromlist=["tasks"])
    yolo.register()
    try:
        layers, _ = tasks.parse_model({"nc": 3, "backbone": rows, "head": []}, 3, verbose=False)
    finally:
        yolo.unregister()
    assert [type(layer).__name__ for layer in layers[3:]] == [
        "CoordAttention",
        "NormalisedBlock",
        "ContextualTransformer",
        "C2f",
    ]
    assert layers[6].m[0].cv2.conv.num_heads == 8


def test_the_settings_are_those_the_tests_run_with():
    settings = re.findall(r"^export (\w+)=", PAGE, re.MULTILINE)
    assert {*settings, "YOLO_VERBOSE"} == set(ENVIRONMENT)


def test_every_layer_name_is_explained():
    rows = PAGE.partition("| name | arguments")[2].partition("\n\n")[0]
    named = {n for row in rows.splitlines() for n in re.findall(r"`(\w+)`", row.split("|")[1:2][0])}
    assert named == set(yolo.layer_names())


@pytest.mark.parametrize("name", READY)
def test_the_table_of_networks(name):
    """Parameters at size n, and what fits of the plain network, counted on shapes alone."""
    tasks = __import__("ultralytics.nn.tasks", fromlist=["tasks"])
    stem = name[:6] + name[7:]
    (row,) = re.findall(rf"^\| `{stem}` .*$", between("networks", PAGE), re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")]
    states = []
    try:
        for file in (yolo.network_file(name), f"{name[:7]}.yaml"):
            with torch.device("meta"):
                layers, _ = tasks.parse_model(tasks.yaml_model_load(file), 3, verbose=False)
            states.append(layers.state_dict())
            counted = sum(p.numel() for p in layers.parameters())
            if len(states) == 1:
                assert cells[2].split(" / ")[0] == f"{counted:,}"
    finally:
        yolo.unregister()
    own, plain = states
    fit = sum(own[n].shape == t.shape for n, t in plain.items() if n in own)
    assert cells[6] == f"{fit} of {len(plain)}"


def test_the_table_of_blocks():
    rows = between("blocks", PAGE).splitlines()[2:]
    named = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in rows]
    assert named[: len(BLOCKS)] == [[block] for block in BLOCKS]
    assert {n for names in named[len(BLOCKS) :] for n in names} == set(READY)
    for row in rows:
        onnx, half = (list(map(float, row.split("|")[at : at + 2])) for at in (3, 5))
        assert max(onnx) < 1e-3
        assert max(half) < 1e-2


def test_the_table():
    for name, (tensors, kept) in TRANSFERRED.items():
        numbers = [*kept.values(), tensors]
        row = f"| {name}, of {tensors} | {' | '.join(map(str, numbers))} |"
        assert row in PAGE
