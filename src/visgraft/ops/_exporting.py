"""Whether a graph is being recorded that must serve every size of its inputs."""

import torch

__all__ = ["exporting"]


def exporting() -> bool:
    """Whether an exporter is at work: a choice by size would then hold for one size only.

    ``torch.compile`` is not meant: it guards such a choice, and compiles again where it differs.
    """
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
