"""Native code is compiled once, kept safely, and missed without harm."""

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tests.ops.native_checks import needs
from visgraft.ops import local_aggregation
from visgraft.ops._native import NativeLibrary, _cache, _compiler
from visgraft.ops.local_aggregation import LOCAL_AGGREGATION, native

SOURCE = """
#include <stdint.h>
int times(void *const *tensors, const int64_t *numbers) {
    float *x = tensors[0];
    for (int64_t i = 0; i < numbers[0]; i++) x[i] *= FACTOR;
    return tensors[1] != 0;
}
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache of its own, and a compiler if the machine has one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("VISGRAFT_NATIVE", raising=False)
    monkeypatch.delenv("CC", raising=False)
    reason = NativeLibrary("probe", write(tmp_path / "probe.c")).refusal()
    if reason == "no C compiler was found; install gcc or clang":
        pytest.skip(reason)
    assert reason is None
    for path in (tmp_path / "cache").rglob("*.so"):
        path.unlink()
    return tmp_path


def write(path, factor=2):
    path.write_text(SOURCE.replace("FACTOR", str(factor)))
    return path


def doubled(library):
    x = torch.ones(3)
    library.call("times", [x, None], 3)
    return x.tolist()


def kept(home):
    return sorted((home / "cache" / "visgraft" / "native").iterdir())


def compilations(monkeypatch):
    """Returns the list of compilations from now on."""
    made, compile_file = [], _compiler._compile
    monkeypatch.setattr(
        _compiler, "_compile", lambda *args: made.append(args) or compile_file(*args)
    )
    return made


def test_compiles_once_and_keeps_it_for_the_next_process(home, monkeypatch):
    made = compilations(monkeypatch)
    source = write(home / "a.c")
    for _ in range(2):
        library = NativeLibrary("a", source)
        assert library.refusal() is None
        assert doubled(library) == [2.0, 2.0, 2.0]
    assert len(made) == 1
    (file,) = kept(home)
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_a_new_text_flag_or_processor_is_compiled_anew(home, monkeypatch):
    source = write(home / "a.c")
    assert doubled(NativeLibrary("a", source)) == [2.0, 2.0, 2.0]
    assert doubled(NativeLibrary("a", write(source, 3))) == [3.0, 3.0, 3.0]
    (home / "beside.h").write_text("")
    assert NativeLibrary("a", source).refusal() is None
    monkeypatch.setattr(_compiler, "_processor", lambda: "another")
    assert NativeLibrary("a", source).refusal() is None
    monkeypatch.setattr(_compiler, "_FLAGS", (*_compiler._FLAGS, "-DX"))
    assert NativeLibrary("a", source).refusal() is None
    assert len(kept(home)) == 5


def test_a_damaged_file_is_replaced_and_never_loaded(home, monkeypatch):
    source = write(home / "a.c")
    assert NativeLibrary("a", source).refusal() is None
    (file,) = kept(home)
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-1] + b"x", b"text"):
        file.unlink()  # this process has it open, and would crash with it
        file.write_bytes(damaged)
        loaded = []
        monkeypatch.setattr(ctypes, "CDLL", lambda path, seen=loaded: seen.append(path))
        assert NativeLibrary("a", source).refusal() is None
        monkeypatch.undo()
        monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        assert [Path(p).read_bytes() for p in loaded] == [whole]
        assert kept(home) == [file]


def test_no_compiler(home, monkeypatch):
    source = write(home / "a.c")
    monkeypatch.setenv("PATH", "")
    library = NativeLibrary("a", source)
    assert library.refusal() == "no C compiler was found; install gcc or clang"
    with pytest.raises(RuntimeError, match=r"^a: the native form cannot run here: no C compiler"):
        doubled(library)


def test_operations_work_without_a_compiler(home, monkeypatch):
    monkeypatch.setenv("PATH", "")
    missing = NativeLibrary("local_aggregation", native._LIBRARY._source)
    monkeypatch.setattr(native, "_LIBRARY", missing)
    x, weight = torch.randn(1, 8, 5, 4), torch.randn(1, 1, 1, 9, 5, 4)
    answers = LOCAL_AGGREGATION.explain(x, weight, 3, 1, 1, 1)
    assert answers["native"] == "no C compiler was found; install gcc or clang"
    expected = local_aggregation(x, weight, 3, backend="shifted")
    assert torch.equal(local_aggregation(x, weight, 3), expected)
    with pytest.raises(ValueError, match=r"'native' cannot run here: no C compiler was found"):
        local_aggregation(x, weight, 3, backend="native")


def make_compiler(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exit 3", r"the C compiler .*/broken does not run: it said nothing"),
        ('[ "$1" = --version ] && exit 0; echo "a.c:1: error: no" >&2; exit 1', r"failed: .* no$"),
        ('[ "$1" = --version ] && exit 0; exit 0', r"cannot be made or loaded: .*"),
        (r"printf '\377\200'; printf '\377 error' >&2; exit 1", r"does not run: \\xff error$"),
        (r"printf '\377'; [ $1 = --version ] || { printf '\377' >&2; exit 1; }", r": \\xff$"),
    ],
)
def test_a_broken_compiler_is_named(home, monkeypatch, text, message):
    monkeypatch.setenv("CC", make_compiler(home / "broken", text))
    library = NativeLibrary("a", write(home / "a.c"))
    with pytest.raises(RuntimeError, match=message):
        doubled(library)
    assert not [path for path in kept(home) if path.suffix != ".so"]


def test_a_library_of_another_architecture_is_refused(home, monkeypatch):
    """An ELF file for a machine that this is not."""
    script = 'for last; do [ "$o" = 1 ] && out=$last; o=0; [ "$last" = -o ] && o=1; done\n'
    text = 'if [ "$1" = --version ]; then exit 0; fi\n' + script
    text += "printf '\\177ELF\\002\\001\\001' > \"$out\""
    monkeypatch.setenv("CC", make_compiler(home / "foreign", text))
    reason = NativeLibrary("a", write(home / "a.c")).refusal()
    assert reason.startswith("the compiled library cannot be made or loaded: ")


def test_cc_is_used_with_its_options_and_must_exist(home, monkeypatch):
    source = write(home / "a.c")
    source.write_text(source.read_text().replace("*= 2", "*= GIVEN"))
    monkeypatch.setenv("CC", "cc -DGIVEN=7")
    assert doubled(NativeLibrary("a", source)) == [7.0, 7.0, 7.0]
    monkeypatch.setenv("CC", "no-such-compiler")
    reason = NativeLibrary("a", source).refusal()
    assert reason == "the C compiler that CC names was not found: no-such-compiler"
    monkeypatch.setenv("CC", "'cc -O1")
    reason = NativeLibrary("a", source).refusal()
    assert reason == "CC cannot be split into words: No closing quotation: 'cc -O1"


def test_switched_off_by_the_environment(home, monkeypatch):
    library = NativeLibrary("a", write(home / "a.c"))
    assert doubled(library) == [2.0, 2.0, 2.0]
    monkeypatch.setenv("VISGRAFT_NATIVE", "0")
    assert library.refusal() == "VISGRAFT_NATIVE=0 switches native forms off"
    x, weight = torch.randn(1, 8, 5, 4), torch.randn(1, 1, 1, 9, 5, 4)
    answers = LOCAL_AGGREGATION.explain(x, weight, 3, 1, 1, 1)
    assert answers["native"] == "VISGRAFT_NATIVE=0 switches native forms off"
    monkeypatch.delenv("VISGRAFT_NATIVE")
    assert doubled(library) == [2.0, 2.0, 2.0]


def test_a_folder_of_another_user_is_refused(home, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    reason = NativeLibrary("a", write(home / "a.c")).refusal()
    assert reason.endswith("visgraft/native belongs to another user")


def test_a_folder_that_others_can_write_is_refused(home):
    folder = home / "cache" / "visgraft" / "native"
    folder.chmod(0o770)
    reason = NativeLibrary("a", write(home / "a.c")).refusal()
    assert reason.endswith("can be written by others; chmod 700 it or remove it")
    folder.chmod(0o700)


@pytest.mark.parametrize("obstacle", ["file", "no home", "no permission"])
def test_without_a_cache_a_temporary_folder_is_used(home, monkeypatch, obstacle):
    if obstacle == "file":
        (home / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    elif obstacle == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", raise_no_home)
    else:
        monkeypatch.setattr(os, "access", lambda *_: False)
    folder = _cache.cache_folder()
    assert folder.name.startswith("visgraft-native-")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert doubled(NativeLibrary("a", write(home / "a.c"))) == [2.0, 2.0, 2.0]


def raise_no_home():
    raise RuntimeError("no home")


def test_a_relative_cache_folder_is_no_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _cache.cache_folder() == tmp_path / ".cache" / "visgraft" / "native"


def test_temporary_folder_goes_with_the_process(home):
    code = (
        f"import runpy; p = runpy.run_path({_cache.__file__!r})['cache_folder']()"
        "; (p / 'a').write_text(''); print(p)"
    )
    (home / "file").write_text("")
    environment = {**os.environ, "XDG_CACHE_HOME": str(home / "file")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "visgraft-native-" in done.stdout
    assert not Path(done.stdout.strip()).exists()


def test_concurrent_first_use(home):
    """Four threads of one library and, each as its own process would, four libraries."""
    source = write(home / "a.c")
    shared = NativeLibrary("a", source)
    libraries = [shared] * 4 + [NativeLibrary("a", source) for _ in range(4)]
    results, start = [], threading.Barrier(len(libraries))

    def use(library):
        start.wait()
        results.append(doubled(library))

    workers = [threading.Thread(target=use, args=(library,)) for library in libraries]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [[2.0, 2.0, 2.0]] * len(libraries)
    assert {path.suffix for path in kept(home)} == {".so"}


def test_first_use_while_a_graph_is_compiled(home, monkeypatch):
    fresh = NativeLibrary("local_aggregation", native._LIBRARY._source)
    made = compilations(monkeypatch)
    monkeypatch.setattr(native, "_LIBRARY", fresh)
    graphs = []

    def keep(module, _):
        graphs.append(str(module.graph))
        return module.forward

    x, weight = torch.randn(1, 8, 5, 4), torch.randn(1, 1, 1, 9, 5, 4)
    run = torch.compile(local_aggregation, fullgraph=True, backend=keep)
    run(x, weight, 3)
    assert len(made) == 1
    assert "local_aggregation_native" in graphs[0]
    torch._dynamo.reset()
    monkeypatch.setenv("VISGRAFT_NATIVE", "0")
    run(x, weight, 3)
    assert "visgraft" not in graphs[1]


def test_importing_compiles_nothing(home):
    code = "import visgraft; visgraft.create_block('cot', 16)"
    environment = {**os.environ, "PATH": "", "CC": "false"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert kept(home) == []


def test_a_failed_call_is_an_error(home):
    library = NativeLibrary("a", write(home / "a.c"))
    x = torch.ones(3)
    with pytest.raises(MemoryError, match=r"^a: not enough memory for the native form$"):
        library.call("times", [x, x], 3)


def test_a_forked_child_computes():
    x, weight = torch.randn(2, 8, 9, 9), torch.randn(2, 1, 1, 9, 9, 9)
    needs(native.NATIVE, x, weight, 3, 1, 1, 1)
    expected = local_aggregation(x, weight, 3)
    child = os.fork()
    if child == 0:
        same = torch.equal(local_aggregation(x, weight, 3), expected)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
