"""`visgraft env`: what this machine has and which forms of the operations are active."""

import os
import platform
from argparse import Namespace, _SubParsersAction
from importlib.metadata import PackageNotFoundError, version

__all__ = ["add_command"]

_PACKAGES = (
    "torch", "torchvision", "timm", "pytorch-lightning", "torchmetrics", "numpy", "safetensors",
    "pydantic", "scipy", "plotly", "onnx", "onnxruntime", "onnxscript",
)  # fmt: skip
_VARIABLES = (
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "GLIBC_TUNABLES",
    "VISGRAFT_NATIVE", "CC",
)  # fmt: skip


def add_command(commands: _SubParsersAction) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "env",
        help="show versions, devices and which implementations are active",
        description="Shows versions, devices, thread settings, and which implementation of each "
        "operation is used on this machine and why. Paste it into a bug report.",
        epilog="example: visgraft env",
    )
    parser.set_defaults(run=_run, parser=parser)


def _run(args: Namespace) -> None:  # noqa: ARG001
    import torch

    from visgraft import __version__
    from visgraft.ops import explain

    print(f"visgraft {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print("\nPackages")
    for package in _PACKAGES:
        print(f"  {package:18} {_version(package)}")
    print("\nDevices")
    print(f"  {'cpu':18} {os.cpu_count()} cores, {torch.get_num_threads()} threads used by torch")
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        print(f"  {f'cuda:{i}':18} {device.name}, {device.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.device_count():
        print(f"  {'cuda':18} none")
    print("\nEnvironment")
    for name in _VARIABLES:
        print(f"  {name:18} {os.environ.get(name, 'not set')}")
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    for device in devices:
        print(f"\nOperations on {device}, 64 channels, 14 x 14 (the first that says ok is used)")
        for name, answers in explain(device).items():
            for implementation, answer in answers.items():
                print(f"  {name:22} {implementation:10} {answer}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
