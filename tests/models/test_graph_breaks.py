"""A training step of a network is one graph: nothing in it sends the compiler back to Python."""

import pytest
import timm
import torch

import visgraft.models  # noqa: F401

NAMES = (
    "test_botnet",
    "test_cotnet",
    "test_cotnext",
    "test_dcn_resnet",
    "test_gc_resnet",
    "test_mobilenetv2_ca",
    "test_resnet_acmix",
    "test_se_cotnetd",
    "test_sknet",
    "test_spd_resnet",
    "test_swin_acmix",
)


@pytest.mark.parametrize("name", NAMES)
def test_training_step_is_one_graph(name):
    model = timm.create_model(name, drop_rate=0.0, drop_path_rate=0.0)
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    torch.compiler.reset()
    explained = torch.compile(model, fullgraph=True, backend="eager")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    parameters = list(model.parameters())
    ours = torch.autograd.grad(explained(x).sum(), parameters, allow_unused=True)
    model.load_state_dict(state)
    plain = torch.autograd.grad(model(x).sum(), parameters, allow_unused=True)
    for one, other in zip(ours, plain, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
