"""Deformable convolution for ultralytics' ONNX exporter, which has no operator for it."""

from importlib import import_module
from typing import Any

from torch.onnx import symbolic_helper

__all__ = ["teach_exporter"]

OPSET = 19  # the first with DeformConv


def teach_exporter() -> None:
    """Registers the operator with torch's tracing exporter; again is no change."""
    # Imported while the exporter traces, torchvision would leave operators of its own in the graph.
    import_module("torchvision")
    onnx: Any = import_module("torch.onnx")
    onnx.register_custom_op_symbolic("torchvision::deform_conv2d", _deform_conv2d, OPSET)


def _deform_conv2d(
    graph: Any,
    x: Any,
    weight: Any,
    offset: Any,
    mask: Any,
    bias: Any,
    *numbers: Any,
) -> Any:
    """Arguments of torchvision's operator: tensors, then strides, paddings, dilations, groups."""
    *pairs, groups, offset_groups, use_mask = (
        symbolic_helper._get_const(n, "i", "number") for n in numbers
    )
    stride, padding, dilation = pairs[:2], pairs[2:4], pairs[4:]
    sizes: Any = symbolic_helper._get_tensor_sizes(weight)
    inputs = [x, weight, offset, bias, *([mask] if use_mask else [])]
    return graph.op(
        "DeformConv",
        *inputs,
        dilations_i=dilation,
        group_i=groups,
        kernel_shape_i=sizes[2:],
        offset_group_i=offset_groups,
        pads_i=[*padding, *padding],
        strides_i=stride,
    )
