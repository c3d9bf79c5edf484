"""Who imports whom, what `import visgraft` costs, and what the files look like."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "visgraft"
FILES = sorted(SOURCE.rglob("*.py"))
FORBIDDEN_NAMES = {"utils", "common", "core", "helpers", "misc"}


def test_imports_point_downwards_only():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=SOURCE.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_import_visgraft_needs_torch_alone():
    heavy = ["timm", "torchvision", "pytorch_lightning", "ray", "ultralytics", "PIL", "yaml"]
    heavy += ["pydantic", "scipy", "plotly", "onnx"]
    code = f"import sys, visgraft; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_file_is_in_house_style(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module docstring says what the file holds"
    assert not {path.stem, *path.relative_to(SOURCE).parts[:-1]} & FORBIDDEN_NAMES
    names = [
        t.id for n in tree.body if isinstance(n, ast.Assign | ast.AnnAssign) for t in _targets(n)
    ]
    assert "__all__" in names or path.name == "__main__.py"
    assert len(path.read_text().splitlines()) <= 400


def _targets(node):
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [t for t in targets if isinstance(t, ast.Name)]
