"""The kinds of files that a network is exported to: how each is made, and run again."""

import io
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from visgraft._shapes import first_line

__all__ = ["FILES", "ExportedFile"]

INPUT = "images"
_OPSET = 20  # the first with a deformable convolution that all of onnxruntime's devices know is 19
_KEY = "visgraft.json"


class ExportedFile(ABC):
    """One kind of file."""

    @abstractmethod
    def needs(self) -> str | None:
        """Says what has to be installed, or None."""

    @abstractmethod
    def write(
        self, model: nn.Module, images: Tensor, free: tuple[int, ...], about: Mapping[str, Any]
    ) -> bytes:
        """Returns the content of the file.

        Args:
            model: In eval mode, on the CPU.
            images: What it is run on while it is recorded.
            free: Dimensions of ``images`` that stay free.
            about: What the file says of itself, plain values.
        """

    @abstractmethod
    def run(self, content: bytes, images: list[Tensor]) -> list[list[Tensor]]:
        """Loads the content and returns the output's tensors for each input."""


class OnnxFile(ExportedFile):
    """ONNX, run by onnxruntime on the CPU; ``about`` is in the model's metadata, JSON by name."""

    def needs(self) -> str | None:
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            return f"pip install 'visgraft[export]' (there is no {error.name})"
        return None

    def write(
        self, model: nn.Module, images: Tensor, free: tuple[int, ...], about: Mapping[str, Any]
    ) -> bytes:
        from onnx.helper import set_model_props

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's exporter uses what it warns of
            warnings.simplefilter("ignore", DeprecationWarning)
            made = torch.onnx.export(
                model,
                (images,),
                dynamo=True,
                dynamic_shapes=_free(free),
                input_names=[INPUT],
                opset_version=_OPSET,
                verbose=False,
            )
        if made is None:
            raise RuntimeError("torch.onnx.export returned nothing")
        proto = made.model_proto
        set_model_props(proto, {name: json.dumps(value) for name, value in about.items()})
        return proto.SerializeToString()

    def run(self, content: bytes, images: list[Tensor]) -> list[list[Tensor]]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        results = [session.run(None, {INPUT: x.numpy()}) for x in images]
        return [[torch.from_numpy(each) for each in result] for result in results]


class TorchFile(ExportedFile):
    """A program of ``torch.export``, run by PyTorch; ``about`` is in its file ``visgraft.json``."""

    def needs(self) -> str | None:
        return None

    def write(
        self, model: nn.Module, images: Tensor, free: tuple[int, ...], about: Mapping[str, Any]
    ) -> bytes:
        program = torch.export.export(model, (images,), dynamic_shapes=_free(free))
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={_KEY: json.dumps(dict(about))})
        return buffer.getvalue()

    def run(self, content: bytes, images: list[Tensor]) -> list[list[Tensor]]:
        program = torch.export.load(io.BytesIO(content)).module()
        with torch.no_grad():
            results = [program(x) for x in images]
        return [[t for t in tree_leaves(result) if isinstance(t, Tensor)] for result in results]


def _free(dimensions: tuple[int, ...]) -> tuple[dict[int, Any]]:
    return (dict.fromkeys(dimensions, torch.export.Dim.DYNAMIC),)


def reason_of(error: BaseException) -> str:
    """Returns what an exporter says, from its innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"


FILES: dict[str, ExportedFile] = {".onnx": OnnxFile(), ".pt2": TorchFile()}
