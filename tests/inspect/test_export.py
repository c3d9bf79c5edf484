"""An exported file computes what the model does, at other sizes too, or it is not written."""

import json

import pytest
import torch
from torch import nn

import visgraft as vg
from visgraft.inspect.export import export

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


def _network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1)
    )
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    vg.graft(net, "coord_attention", at="3")
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net.eval()


class WrongElsewhere(nn.Module):
    """Is recorded as another function than it computes, which agrees at one size only."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.side = side

    def forward(self, x):
        area = x.shape[2] * x.shape[3] if torch.compiler.is_exporting() else self.side**2
        return self.weight * x * area


class OneSize(nn.Module):
    """Knows one position for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 3, 8, 8))

    def forward(self, x):
        return {"sum": x + self.position, "pair": (x.mean((2, 3)), x.amax((2, 3)))}


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_file_computes_the_same_at_sizes_that_were_not_tried(ending, tmp_path):
    net, path = _network(), tmp_path / f"net{ending}"
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    report = export(net, (1, 3, 16, 24), path, about={"classes": ["a", "b"]})
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not net.training
    assert [*report.differences] == [(1, 3, 16, 24), (2, 3, 32, 24), (3, 3, 16, 40)]
    assert max(report.differences.values()) < 1e-5
    assert (report.folded, report.size, report.free) == (2, path.stat().st_size, "all")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    x = torch.randn(5, 3, 9, 40)
    if ending == ".onnx":
        session = ort.InferenceSession(path)
        y = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
        props = {p.key: json.loads(p.value) for p in onnx.load(path).metadata_props}
    else:
        files = {"visgraft.json": ""}
        y = torch.export.load(path, extra_files=files).module()(x)
        props = json.loads(files["visgraft.json"])
    torch.testing.assert_close(y, net(x), rtol=1e-4, atol=1e-5)
    assert props == {"visgraft": vg.__version__, "classes": ["a", "b"]}


def test_half_and_unfused_files(tmp_path):
    net = _network()
    report = export(net, (2, 3, 16, 16), tmp_path / "half.pt2", half=True)
    assert 1e-5 < max(report.differences.values()) < 2e-2
    y = torch.export.load(tmp_path / "half.pt2").module()(torch.randn(1, 3, 16, 16).half())
    assert y.dtype == torch.float16
    assert all(p.dtype == torch.float32 and p.requires_grad for p in net.parameters())
    report = export(net, (2, 3, 16, 16), tmp_path / "net.pt2", fuse=False)
    assert report.folded == 0


def test_a_file_that_is_wrong_at_another_size_is_not_written(tmp_path):
    path = tmp_path / "net.pt2"
    path.write_text("the old one")
    with pytest.raises(RuntimeError, match=r"differs .* at \(2, 3, 16, 8\), more than 1e-03; noth"):
        export(WrongElsewhere(8).eval(), (1, 3, 8, 8), path)
    assert path.read_text() == "the old one"
    report = export(WrongElsewhere(8).eval(), (1, 3, 8, 8), path, free="none")
    assert report.differences == {(1, 3, 8, 8): 0.0}


def test_a_model_of_one_size_keeps_its_batch_free(tmp_path):
    net, path = OneSize().eval(), tmp_path / "net.onnx"
    with pytest.raises(ValueError, match=r"does not run on \(2, 3, 16, 8\).* or free='batch' if"):
        export(net, torch.zeros(1, 3, 8, 8), path)
    with pytest.raises(ValueError, match=r"cannot be exported with batch, height and width free"):
        export(net, (1, 3, 8, 8), path, shapes=[])
    assert not path.exists()
    report = export(net, (1, 3, 8, 8), path, free="batch")
    assert [*report.differences] == [(1, 3, 8, 8), (2, 3, 8, 8), (3, 3, 8, 8)]
    x = torch.randn(4, 3, 8, 8)
    found = ort.InferenceSession(path).run(None, {"images": x.numpy()})
    wanted = net(x)
    for mine, theirs in zip(found, [wanted["sum"], *wanted["pair"]], strict=True):
        torch.testing.assert_close(torch.from_numpy(mine), theirs.detach())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "net.bin"}, r"must end in \.onnx or \.pt2, got '.*net\.bin'"),
        ({"path": "no/net.pt2"}, r"lies in a folder that is not there; name a file in an existing"),
        ({"free": "size"}, r"free must be 'all', 'batch' or 'none', got 'size'"),
        ({"example": (3, 8, 8)}, r"\(B, C, H, W\), all of it at least 1; got an example of shape"),
        ({"example": (0, 3, 8, 8)}, r"got an example of shape \(0, 3, 8, 8\)"),
        ({"example": (torch.zeros(1), torch.zeros(1))}, r"got an example of several arguments"),
        ({"shapes": [(1, 4, 8, 8)]}, r"\(1, 4, 8, 8\) cannot .* \('any', 3, 'any', 'any'\)"),
        ({"free": "batch", "shapes": [(1, 3, 9, 8)]}, r"it must be \('any', 3, 8, 8\)"),
        ({"model": nn.Conv2d(3, 3, 1)}, r"is in training mode; call eval\(\) first"),
        ({"model": nn.Conv2d(3, 3, 1).double().eval()}, r"needs a float32 model .* torch\.float64"),
        ({"model": nn.Conv2d(3, 3, 1, device="meta").eval()}, r"on the meta device"),
    ],
)
def test_what_cannot_be_exported_is_said(change, message, tmp_path):
    given = {"model": nn.Conv2d(3, 3, 1).eval(), "example": (1, 3, 8, 8), "path": "net.pt2"}
    given |= change
    with pytest.raises(ValueError, match=rf"^export: .*{message}"):
        export(given.pop("model"), given.pop("example"), tmp_path / given.pop("path"), **given)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"^export: \.onnx files .*pip install 'visgraft\[export"):
        export(nn.Conv2d(3, 3, 1).eval(), (1, 3, 8, 8), tmp_path / "net.onnx")
