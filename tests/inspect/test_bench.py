"""What is compared computes the same, and results are what was measured."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from visgraft.blocks import list_blocks
from visgraft.inspect import machine_limits
from visgraft.inspect.bench import (
    Case,
    CaseMaker,
    Form,
    Settings,
    agreeing_calls,
    block_cases,
    check_picture,
    check_target,
    document,
    draw_document,
    measure_cases,
    measure_in_children,
    network_cases,
    op_cases,
    read_document,
    run_case,
    write_document,
)
from visgraft.inspect.bench.cases import STEPS, bytes_moved
from visgraft.inspect.bench.variants import converted, graph_breaks
from visgraft.models import create_model
from visgraft.ops.local_aggregation import LOCAL_AGGREGATION

CPU = torch.device("cpu")
QUICK = Settings(CPU, rounds=1, budget=0.0)
OPS = {maker().name: maker for maker in op_cases(CPU, quick=True)}
BLOCKS = list(block_cases(CPU, quick=True))


@pytest.mark.parametrize("name", OPS)
def test_operations_agree_with_the_circulating_form(name):
    case = OPS[name]()
    for step in STEPS:
        calls, refused = agreeing_calls(case, step, QUICK)
        assert {"visgraft", case.baseline} <= calls.keys()
        assert calls.keys() | refused.keys() == case.forms.keys()
    others = [f for n, f in case.forms.items() if n not in (case.baseline, "conv3x3")]
    assert all(form.same_as == case.baseline for form in others)


def test_every_block_is_measured():
    names = {maker().name.partition(",")[0] for maker in BLOCKS}
    assert names == set(list_blocks())


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_blocks_agree_with_the_circulating_form(index):
    case = BLOCKS[index]()
    for step in STEPS:
        calls, _ = agreeing_calls(case, step, QUICK)
        assert {"visgraft", "conv3x3"} <= calls.keys()
    if "circulating" in calls:
        assert case.forms["circulating"].same_as == "visgraft"


def test_disagreement_is_refused():
    x = torch.ones(2, 2, 2, 2)
    forms = {"one": Form(lambda t: t * 2), "two": Form(lambda t: t * 2.01, same_as="one")}
    case = Case("doubling", (2, 2, 2, 2), (x,), forms, "one")
    with pytest.raises(RuntimeError, match=r"^bench: two and one of doubling .*\(output: 5\.0e-03"):
        agreeing_calls(case, "forward", QUICK)
    wrong = Form(lambda t: t * 2 + (t - t.detach()) * 0.1, same_as="one")
    case = replace(case, forms={**forms, "two": wrong})
    agreeing_calls(case, "forward", QUICK)
    with pytest.raises(RuntimeError, match=r"forward and backward \(gradient 1: 5\.0e-02"):
        agreeing_calls(case, STEPS[1], QUICK)


def test_who_refuses_is_named_and_not_timed():
    x = torch.ones(1, 4, 2, 2)
    conv = nn.Conv2d(4, 4, 1)
    forms = {
        "conv": Form(conv, conv, macs=64),
        "never": Form(conv, refusal=lambda _: "never does"),
        "too large": Form(_out_of_memory),
    }
    case = Case("conv", (1, 4, 2, 2), (x,), forms, "never", ours="conv")
    forward, both = run_case(case, QUICK, machine_limits(rounds=1, small=4096, large=8192, size=8))
    assert forward["refused"] == {"never": "never does", "too large": "out of memory (no room)"}
    assert forward["timings"].keys() == {"conv"}
    assert (forward["baseline"], both["step"]) == ("conv", STEPS[1])
    assert (forward["moved_bytes"], both["moved_bytes"]) == (2 * 64, 5 * 64)
    seconds = forward["timings"]["conv"]["seconds"]
    assert forward["reached"]["conv"]["of_multiply"] >= 0
    assert json.loads(json.dumps(forward)) == forward
    assert seconds > 0


def test_a_form_without_a_kernel_does_not_end_the_rest_but_ours_must_run():
    def no_kernel(_):
        raise NotImplementedError("\"im2col\" not implemented for 'BFloat16'\nmore")

    x = torch.ones(1, 1, 2, 2)
    forms = {"ours": Form(lambda t: t * 2), "theirs": Form(no_kernel, same_as="ours")}
    case = Case("doubling", (1, 1, 2, 2), (x,), forms, "ours")
    calls, refused = agreeing_calls(case, "forward", QUICK)
    assert calls.keys() == {"ours"}
    assert refused == {"theirs": "not implemented (\"im2col\" not implemented for 'BFloat16')"}
    for ours, others in ((None, {"a": forms["theirs"], "b": forms["ours"]}), ("theirs", forms)):
        with pytest.raises(NotImplementedError, match="im2col"):
            agreeing_calls(replace(case, forms=others, ours=ours), "forward", QUICK)


def _out_of_memory(_):
    raise torch.OutOfMemoryError("no room\nsecond line")


def test_modes_and_parameters_follow_the_step():
    seen = []

    class Mode(nn.Linear):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    layer = Mode(3, 2)
    case = Case("mode", (2, 3), (torch.ones(2, 3),), {"m": Form(layer, layer)}, "m")
    calls, _ = agreeing_calls(case, STEPS[0], QUICK)
    assert set(seen) == {(False, False)}
    calls, _ = agreeing_calls(case, STEPS[1], QUICK)
    assert seen[-1] == (True, True)
    out, *grads = calls["m"]()
    assert [tuple(g.shape) for g in grads] == [(2, 3), (2, 3), (2,)]
    assert layer.weight.grad is None
    without, _ = agreeing_calls(replace(case, with_inputs=False), STEPS[1], QUICK)
    assert len(without["m"]()) == 3
    assert bytes_moved(case.tensors, out, STEPS[0]) == 24 + 16


def test_layout_and_dtype_reach_tensors_and_modules():
    def looked(x):
        assert x.dtype == torch.bfloat16
        assert x.is_contiguous(memory_format=torch.channels_last)
        return conv(x)

    conv = nn.Conv2d(4, 4, 1)
    case = Case("c", (1, 4, 3, 3), (torch.ones(1, 4, 3, 3),), {"c": Form(looked, conv)}, "c")
    settings = replace(QUICK, dtype=torch.bfloat16, channels_last=True)
    limits = machine_limits(rounds=1, small=4096, large=8192, size=8)
    record, _ = run_case(case, settings, limits)
    assert (record["dtype"], record["channels_last"]) == ("bfloat16", True)
    assert conv.weight.dtype == torch.bfloat16


def test_forms_as_they_were_stand_beside_another_layout_or_dtype():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    forms = {"visgraft": Form(conv, conv, same_as="double"), "double": Form(lambda t: 2 * conv(t))}
    forms["plain"] = Form(lambda t: t + 1)
    case = Case("c", (2, 4, 5, 6), (torch.randn(2, 4, 5, 6),), forms, "plain", ours="visgraft")
    assert converted(case, torch.float32).forms.keys() == forms.keys()
    last = converted(case, torch.float32, channels_last=True)
    assert last.forms.keys() == {*forms, "plain, contiguous", "visgraft, contiguous"}
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert last.tensors[0].is_contiguous(memory_format=torch.channels_last)
    before = last.forms["visgraft, contiguous"]
    assert before.module.weight.is_contiguous()
    assert before.tensors[0].is_contiguous()
    assert before.same_as == "visgraft"
    agreeing_calls(
        replace(last, forms={n: f for n, f in last.forms.items() if n != "double"}), STEPS[1], QUICK
    )
    with torch.no_grad():
        before.module.weight.mul_(1.5)
    last = replace(last, forms={n: f for n, f in last.forms.items() if n.startswith("vis")})
    with pytest.raises(
        RuntimeError, match=r"visgraft, contiguous and visgraft of c .* give different"
    ):
        agreeing_calls(last, "forward", QUICK)
    half = converted(case, torch.bfloat16, channels_last=True)
    assert half.forms.keys() == {
        *forms,
        "plain, contiguous float32",
        "visgraft, contiguous float32",
    }
    before = half.forms["visgraft, contiguous float32"]
    assert (before.module.weight.dtype, before.tensors[0].dtype) == (torch.float32,) * 2
    assert (conv.weight.dtype, half.tensors[0].dtype) == (torch.bfloat16,) * 2
    assert before.same_as is None


def test_graph_breaks_are_counted():
    def once(t):
        t = t * 2
        torch._dynamo.graph_break()
        return t + 1

    x = torch.ones(2)
    assert graph_breaks(Form(lambda t: t * 2), (x,), STEPS[0]) == 0
    assert graph_breaks(Form(once), (x.requires_grad_(),), STEPS[1]) == 1
    seen = []

    class Mode(nn.Linear):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    layer = Mode(2, 2)
    for step in STEPS:
        graph_breaks(Form(layer, layer), (torch.ones(1, 2),), step)
    assert seen[0] == (False, False)
    assert seen[-1] == (True, True)


def test_cases_are_chosen_before_anything_is_measured():
    def make():
        raise AssertionError("a case was made that nobody asked for")

    makers = [CaseMaker("cot", (8, 64, 56, 56), make), CaseMaker("cot_more", (2, 3), make)]
    assert makers[0].label == "cot 8 x 64 x 56 x 56"
    chosen = {
        pattern: [maker.name for maker in makers if maker.is_meant([pattern])]
        for pattern in ("cot", "cot*", "cot 8 x 64 x *", "cot 4 x *", "* 3")
    }
    assert list(chosen.values()) == [["cot"], ["cot", "cot_more"], ["cot"], [], ["cot_more"]]
    assert all(maker.is_meant([]) for maker in makers)
    with pytest.raises(
        ValueError, match=r"^bench: no case is called 'cut'; there are cot, cot_more"
    ):
        measure_cases(makers, QUICK, only=["cot", "cut"])


def test_compiled_forms_are_added_for_ours_and_the_copy(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda run, **options: seen.append(options) or run)
    forms = {name: Form(lambda t: t * 2) for name in ("ours", "circulating", "conv3x3")}
    case = Case("doubling", (1,), (torch.ones(1),), forms, "conv3x3", ("forward",), ours="ours")
    limits = machine_limits(rounds=1, small=4096, large=8192, size=8)
    (record,) = run_case(case, replace(QUICK, compiled=True), limits)
    assert record["timings"].keys() == {*forms, "ours, compiled", "circulating, compiled"}
    assert record["graph_breaks"] == {"ours, compiled": 0, "circulating, compiled": 0}
    assert seen == [{"dynamic": False}] * 2


def test_networks_with_the_unfolded_operations_agree():
    had = LOCAL_AGGREGATION.implementations
    cases = {c.name: c for c in (make() for make in network_cases(create_model, CPU, quick=True))}
    for name in ("test_cotnet", "test_resnet_acmix"):
        calls, _ = agreeing_calls(cases[name], "forward", QUICK)
        fused = {"test_resnet, fused", f"{name}, fused"}
        assert calls.keys() == {"test_resnet", name, f"{name}, unfolded", *fused}
        calls, refused = agreeing_calls(cases[name], STEPS[1], QUICK)
        assert refused == dict.fromkeys(fused, "folded normalisation is for inference")
    assert LOCAL_AGGREGATION.implementations is had
    assert cases["test_mobilenetv2_ca"].steps == ("forward",)


def test_document(tmp_path):
    told = []
    makers = [OPS["space_to_depth"]]
    done = measure_cases(makers, QUICK, only=["space*"], quick=True, tell=told.append)
    assert told == ["space_to_depth 1 x 32 x 10 x 10"]
    run = done["runs"][0]
    assert [r["step"] for r in run["records"]] == list(STEPS)
    assert {"date", "machine", "device", "quick", "format", "runs"} == done.keys()
    assert run["limits"].keys() == {"copy_small", "copy_large", "multiply", "dtype"}
    write_document(done, tmp_path / "made" / "results.json")
    assert read_document(tmp_path / "made" / "results.json") == done
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["results.json"]
    draw_document(done, tmp_path / "picture.svg")
    text = (tmp_path / "picture.svg").read_text()
    assert text.count("space_to_depth") == 2
    with pytest.raises(ValueError, match=r"no case is called 'nothing'; there are space_to_depth"):
        measure_cases(makers, QUICK, only=["nothing"], quick=True)


def test_files_are_tried_before_they_are_needed(tmp_path, monkeypatch):
    check_target(tmp_path / "new" / "folder" / "r.json")
    check_picture(tmp_path / "r.SVG")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("kept")
    check_target(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
    with pytest.raises(ValueError, match=r"^bench: .* is a folder; name a file$"):
        check_target(tmp_path)
    with pytest.raises(
        ValueError, match=r"^bench: .*r\.json cannot be written: .*/file is not a fol"
    ):
        check_target(tmp_path / "file" / "deeper" / "r.json")
    with pytest.raises(ValueError, match=r"^bench: .*r\.doc is not the name of a picture; .*\.svg"):
        check_picture(tmp_path / "r.doc")
    monkeypatch.setattr(document.tempfile, "TemporaryFile", _read_only)
    for check in (check_target, check_picture):
        with pytest.raises(ValueError, match=r"cannot be written: Read-only file system; name an"):
            check(tmp_path / "new.svg")


def _read_only(dir):
    raise OSError(30, "Read-only file system", str(dir))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", r"is not JSON \(.*\); measure again"), ("{}", "is not a document of this version")],
)
def test_foreign_files_are_refused(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_document(tmp_path / "x.json")


def test_children_get_their_allocator(monkeypatch, tmp_path):
    seen = []

    def run(command, *, env, check):
        seen.append((command, env))
        write_document({"format": 1, "runs": [{"allocator": "?"}]}, document.Path(command[-1]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("GLIBC_TUNABLES", "mine")
    done = measure_in_children(["-c", "pass"], ("tuned", "default"), threads=3)
    assert [r["allocator"] for r in done["runs"]] == ["tuned", "default"]
    assert [command[:3] for command, _ in seen] == [[sys.executable, "-c", "pass"]] * 2
    assert "mmap_threshold" in seen[0][1]["GLIBC_TUNABLES"]
    assert seen[1][1]["GLIBC_TUNABLES"] == ""
    assert {env["OMP_NUM_THREADS"] for _, env in seen} == {"3"}


def test_cases_before_a_failure_are_kept(tmp_path):
    def broken():
        raise RuntimeError("broken")

    kept = []
    good = next(op_cases(CPU, quick=True))
    makers = [good, CaseMaker("broken", (1,), broken)]
    with pytest.raises(RuntimeError, match="broken"):
        measure_cases(makers, QUICK, quick=True, keep=kept.append)
    assert [r["case"] for r in kept[-1]["runs"][0]["records"]] == [good.name] * 2

    write_document(kept[-1], tmp_path / "given.json")
    code = (
        "import shutil, sys; from pathlib import Path; "
        "from visgraft.inspect.bench import unfinished_file; "
        f"shutil.copy({str(tmp_path / 'given.json')!r}, unfinished_file(Path(sys.argv[1]))); "
        "sys.exit(3)"
    )
    found = []
    with pytest.raises(RuntimeError, match="the tuned allocator ended with status 3"):
        measure_in_children(["-c", code], ("tuned", "default"), keep=found.append)
    assert len(found) == 1
    kept[-1]["runs"][0]["allocator"] = "tuned"
    assert found[0] == kept[-1]


def test_a_child_that_fails_is_reported():
    with pytest.raises(RuntimeError, match=r"^bench: the process with the tuned allocator ended w"):
        measure_in_children(["-c", "raise SystemExit(3)"], ("tuned",))
