"""The blocks export through the tracing exporter, which ultralytics uses, with a free size."""

import pytest
import torch

from tests.offline_ultralytics import ultralytics  # noqa: F401
from tests.tasks.yolo_data import quiet_export
from visgraft.blocks import block_info, create_block, list_blocks
from visgraft.tasks.yolo._exporting import teach_exporter

ort = pytest.importorskip("onnxruntime")
FREE = {0: "batch", 2: "height", 3: "width"}
OWN = [n for n in list_blocks() if block_info(n).cls.__module__.startswith("visgraft.")]
VARIANTS = [
    *((name, {}) for name in OWN),  # without those that other tests register
    ("deform_conv", {"modulated": False, "stride": 2, "offset_groups": 2, "groups": 4}),
    ("deform_conv", {"dilation": 2, "bias": True, "out_channels": 16}),
    ("acmix", {"stride": 2, "num_heads": 8, "dilation": 2}),
    ("bottleneck_attention", {"position": "absolute", "feature_size": (9, 5)}),
    ("global_context", {"fuse": ("add", "mul")}),
    ("spd_conv", {"groups": 4, "out_channels": 64}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_block_exports_with_a_free_batch_and_size(name, options, tmp_path):
    teach_exporter()
    block = create_block(name, 32, **options).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    with quiet_export():
        torch.onnx.export(
            block,
            (torch.randn(1, 32, 12, 12),),
            str(tmp_path / "block.onnx"),
            input_names=["x"],
            opset_version=20,
            dynamo=False,
            dynamic_axes={"x": FREE},
        )
    session = ort.InferenceSession(tmp_path / "block.onnx")
    for shape in ((1, 32, 12, 12), (2, 32, 7, 10), (1, 32, 24, 17), (3, 32, 2, 3)):
        x = torch.randn(shape)
        made = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        with torch.no_grad():
            torch.testing.assert_close(made, block(x), rtol=1e-4, atol=1e-4)
