import subprocess
import sys

import pytest

from visgraft.cli.main import main


def run(capsys, *argv):
    status = main(argv)
    return status, *capsys.readouterr()


def refuse(capsys, *argv):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_unknown_command_names_the_nearest(capsys):
    assert "did you mean study?" in refuse(capsys, "sudy")


def test_unknown_option_names_the_nearest(capsys):
    error = refuse(capsys, "blocks", "--chanels", "8")
    assert "visgraft blocks: error: unknown option --chanels; did you mean --channels?" in error


def test_options_are_not_abbreviated(capsys):
    assert "unknown option --chan" in refuse(capsys, "blocks", "--chan", "8")


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("visgraft 0.")


def test_blocks_lists_the_catalogue_with_costs(capsys):
    status, out, _ = run(capsys, "blocks", "--channels", "64", "--size", "14")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert status == 0
    assert "26.7 k" in lines["cot"]  # 26 744 parameters, counted by hand
    assert lines["coord_attention"].split()[1] == "gate"


def test_blocks_of_one_role(capsys):
    _, out, _ = run(capsys, "blocks", "--role", "gate")
    assert "coord_attention" in out
    assert "\ncot " not in out


def test_one_block_in_full(capsys):
    _, out, _ = run(capsys, "blocks", "CB2d")
    assert out.startswith("global_context: GlobalContext(channels")
    for line in ("Paper: ", "Source: ", "Role: gate", "Aliases: "):
        assert f"\n{line}" in out


def test_unknown_block(capsys):
    status, _, error = run(capsys, "blocks", "cord_attention")
    assert status == 2
    assert error.startswith("visgraft: no block 'cord_attention'; nearest: coord_attention")


def test_sites_of_a_model(capsys):
    _, out, _ = run(capsys, "sites", "resnet10_small", "--kind", "conv3x3")
    rows = [line.split() for line in out.splitlines()[2:]]
    assert rows[-1][:9] == ["layer4.0.conv2", "conv3x3", "4", "128", "->", "128", "3", "x", "3"]
    assert {row[1] for row in rows} == {"conv3x3"}


def test_sites_of_an_unknown_model(capsys):
    status, _, error = run(capsys, "sites", "resnet181")
    assert status == 2
    assert "visgraft: model 'resnet181' is not registered" in error
    assert "resnet18" in error


def test_sites_of_an_unknown_kind(capsys):
    status, _, error = run(capsys, "sites", "resnet18", "--kind", "conv5x5")
    assert status == 2
    assert "resnet18 has no sites of kind 'conv5x5'; it has block_end, conv3x3" in error


def test_env_names_versions_and_implementations(capsys):
    _, out, _ = run(capsys, "env")
    assert "local_aggregation" in out
    assert "torch " in out


def test_traceback_on_request():
    with pytest.raises(ValueError, match="no block"):
        main(["--traceback", "blocks", "nothing_like_it"])


@pytest.mark.parametrize(
    ("argv", "package"),
    [
        (("train", "--data", "photos"), "pydantic"),
        (("study", "demo"), "pydantic"),
        (("sites", "resnet18"), "timm"),
    ],
)
def test_missing_package_is_named(argv, package):
    """In a process of its own, since the packages are imported here already."""
    code = (
        f"import sys; sys.modules['{package}'] = None; from visgraft.cli.main import main; "
        f"sys.exit(main({list(argv)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"needs the package '{package}', which is not installed; pip install" in done.stderr


def test_catalogue_needs_torch_alone():
    packages = ["timm", "torchvision", "pydantic", "yaml", "PIL", "pytorch_lightning", "rich"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({packages!r})); "
        "from visgraft.cli.main import main; sys.exit(main(['blocks']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
