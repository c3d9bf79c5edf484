"""Exporting a network to a file that is proved to compute the same, at other sizes, too."""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from visgraft._shapes import Example, first_line, like_of
from visgraft._version import __version__
from visgraft.inspect._export_files import FILES, ExportedFile, reason_of
from visgraft.inspect._kept import keeping_process
from visgraft.inspect.fusion import fuse as fuse_model

__all__ = ["ExportReport", "check_export_path", "export"]

_FREE = {"all": (0, 2, 3), "batch": (0,), "none": ()}
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 5e-2  # of the largest value


@dataclass(frozen=True)
class ExportReport:
    """A file, and what its proof found.

    Attributes:
        path: Of the file.
        size: In bytes.
        free: What callers may change from call to call: ``all``, ``batch`` or ``none``.
        folded: Normalisations that were folded away.
        differences: Shape of the input to the largest difference of the file's output to the
            model's, as a fraction of the largest value; the shape that was recorded comes first.
    """

    path: Path
    size: int
    free: str
    folded: int
    differences: Mapping[tuple[int, ...], float] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.size / 1e6:.1f} MB, free: {_WORDS[self.free]}, {self.folded} "
            "normalisations folded"
        ]
        lines += [
            f"  {' x '.join(map(str, shape))}: differs by {difference:.1e} of the largest value"
            for shape, difference in self.differences.items()
        ]
        return "\n".join(lines)


_WORDS = {"all": "batch, height and width", "batch": "the batch", "none": "nothing"}


def export(
    model: nn.Module,
    example: Any,
    path: str | Path,
    *,
    free: Literal["all", "batch", "none"] = "all",
    fuse: bool = True,
    half: bool = False,
    shapes: Sequence[tuple[int, ...]] | None = None,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> ExportReport:
    """Exports a network, and proves that the file computes what the network computes.

    The file is loaded again and run on noise, at the recorded shape and, as far as the batch, the
    height and the width are free, at two others; only a file that agrees at all of them is put in
    place. Input and output stay where the network has them: preparing images is the caller's.

    Args:
        model: Takes one tensor ``(B, C, H, W)``, in eval mode; it stays as it is. What it returns
            may be a tensor or any nest of tensors, whose order the file keeps.
        example: A tensor or its shape; its values do not matter.
        path: Of the file. ``.onnx`` needs the extra ``visgraft[export]`` and is run by onnxruntime;
            ``.pt2`` is a program of ``torch.export``, for PyTorch without this library.
        free: What callers may change: ``all`` (batch, height and width), ``batch``, or ``none``.
        fuse: Fold batch normalisation into the layers before it, as `visgraft.fuse`.
        half: Weights, input and output of the file in float16.
        shapes: To prove the file at, beside the recorded one; None chooses two that fit ``free``.
        about: Plain values that the file carries: in an ONNX file as metadata, JSON by name, in a
            ``.pt2`` file as ``visgraft.json``. The version is added.

    Returns:
        The report.

    Raises:
        ValueError: An argument is wrong, the model is in training mode, does not run at one of the
            shapes, or cannot be exported with so much left free.
        RuntimeError: The file computes something else than the model; nothing was written.
        ImportError: A package is missing.
        OSError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export(net, (1, 3, 32, 32), folder + "/net.pt2")
        >>> report.folded, [*report.differences]
        (1, [(1, 3, 32, 32), (2, 3, 64, 32), (3, 3, 32, 96)])
    """
    path = Path(path)
    file = check_export_path(path)
    if free not in _FREE:
        raise ValueError(f"export: free must be 'all', 'batch' or 'none', got {free!r}")
    if model.training:
        raise ValueError("export: the model is in training mode; call eval() first")
    shape = _shape_of(example)
    checked = [shape, *(_others(shape, free) if shapes is None else map(tuple, shapes))]
    _check_shapes(checked, free)
    reference = _on_cpu(model)
    inputs = [_noise(each) for each in dict.fromkeys(checked)]
    with keeping_process(None, torch.device("cpu")), torch.no_grad():
        wanted = [_run(reference, x) for x in inputs]
        prepared, folded = reference, 0
        if fuse:
            fused = fuse_model(reference, inputs[0])
            prepared, folded = fused.model, len(fused.folded)
        if half:
            prepared, inputs = prepared.half(), [x.half() for x in inputs]
        recorded = inputs[0]
        if (
            0 in _FREE[free] and len(recorded) == 1
        ):  # a batch of one would be recorded as always one
            recorded = torch.cat([recorded, recorded])
        content = _written(file, prepared, recorded, free, about)
        found = _run_again(file, content, inputs)
    differences = {
        tuple(x.shape): _largest(mine, theirs)
        for x, mine, theirs in zip(inputs, found, wanted, strict=True)
    }
    tolerance = _HALF_TOLERANCE if half else _TOLERANCE
    for each, difference in differences.items():
        if not difference <= tolerance:
            raise RuntimeError(
                f"export: the file differs from the model by {difference:.1e} of the largest value "
                f"at {each}, more than {tolerance:.0e}; nothing was written"
            )
    _put(path, content)
    return ExportReport(path, len(content), free, folded, differences)


def check_export_path(path: Path) -> ExportedFile:
    """Returns the kind of file that a path's ending asks for.

    Raises:
        ValueError: There is no such kind, or the path's folder is not there.
        ImportError: A package is missing.
    """
    file = FILES.get(path.suffix)
    if file is None:
        raise ValueError(f"export: the file must end in {' or '.join(FILES)}, got {str(path)!r}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "is a folder" if path.is_dir() else "lies in a folder that is not there"
        raise ValueError(f"export: {path} {what}; name a file in an existing folder")
    if missing := file.needs():
        raise ImportError(f"export: {path.suffix} files need more packages: {missing}")
    return file


def _shape_of(example: Any) -> tuple[int, ...]:
    shape = Example.of("export", example).only_shape
    if shape is None or len(shape) != 4 or 0 in shape:
        raise ValueError(
            "export: takes models of one tensor (B, C, H, W), all of it at least 1; got an example "
            + ("of several arguments" if shape is None else f"of shape {shape}")
        )
    return shape


def _others(shape: tuple[int, ...], free: str) -> list[tuple[int, ...]]:
    """Returns two more shapes for the proof, with sides that divide as those of ``shape`` do."""
    b, c, h, w = shape
    down, right = ((n & -n) if n % 32 else 32 for n in (h, w))
    if free == "all":
        return [(b + 1, c, h + down, w), (b + 2, c, h, w + 2 * right)]
    return [(b + 1, c, h, w), (b + 2, c, h, w)] if free == "batch" else []


def _check_shapes(shapes: Sequence[tuple[int, ...]], free: str) -> None:
    first = shapes[0]
    for shape in shapes:
        fixed = [i for i in range(4) if i not in _FREE[free]]
        if len(shape) != 4 or 0 in shape or any(shape[i] != first[i] for i in fixed):
            raise ValueError(
                f"export: the shape {shape} cannot be checked: with free={free!r} it must be "
                f"{tuple(n if i in fixed else 'any' for i, n in enumerate(first))}"
            )


def _on_cpu(model: nn.Module) -> nn.Module:
    device, dtype = like_of([model])
    if device.type == "meta":
        raise ValueError("export: the model is on the meta device and has no values")
    if dtype != torch.float32:
        raise ValueError(f"export: needs a float32 model (half=True makes float16), got {dtype}")
    return copy.deepcopy(model).cpu().requires_grad_(False)


def _noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _run(model: nn.Module, images: Tensor) -> list[Tensor]:
    try:
        result = model(images.clone())
    except Exception as error:
        raise ValueError(
            f"export: {type(model).__name__} does not run on {tuple(images.shape)} "
            f"({type(error).__name__}: {first_line(error)}); give an example or shapes that it "
            "takes, or free='batch' if its height and width are fixed"
        ) from error
    return [t for t in tree_leaves(result) if isinstance(t, Tensor)]


def _written(
    file: ExportedFile, model: nn.Module, images: Tensor, free: str, about: Mapping[str, Any]
) -> bytes:
    facts = {"visgraft": __version__, **about}
    try:
        return file.write(model, images, _FREE[free], facts)
    except Exception as error:
        less = {"all": "; free='batch' fixes height and width", "batch": "; try free='none'"}
        raise ValueError(
            f"export: {type(model).__name__} cannot be exported with {_WORDS[free]} free "
            f"({reason_of(error)}){less.get(free, '')}"
        ) from error


def _run_again(file: ExportedFile, content: bytes, inputs: list[Tensor]) -> list[list[Tensor]]:
    try:
        return file.run(content, inputs)
    except Exception as error:
        raise RuntimeError(
            f"export: the file that was made does not run ({reason_of(error)}); nothing was written"
        ) from error


def _largest(found: list[Tensor], wanted: list[Tensor]) -> float:
    if [t.shape for t in found] != [t.shape for t in wanted]:
        return float("inf")
    pairs = zip(found, wanted, strict=True)
    return max(((a.double() - b.double()).abs().max() / _scale(b)).item() for a, b in pairs)


def _scale(tensor: Tensor) -> Tensor:
    return tensor.double().abs().max().clamp(min=1e-6)


def _put(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
