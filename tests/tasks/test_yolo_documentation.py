"""The page on YOLO shows what works, and numbers that are tested elsewhere."""

import re
from pathlib import Path

from tests.offline_ultralytics import ultralytics  # noqa: F401
from tests.tasks.test_yolo_yaml import TRANSFERRED
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
    ]


def test_the_table():
    for name, (tensors, kept) in TRANSFERRED.items():
        numbers = [*kept.values(), tensors]
        row = f"| {name}, of {tensors} | {' | '.join(map(str, numbers))} |"
        assert row in PAGE
