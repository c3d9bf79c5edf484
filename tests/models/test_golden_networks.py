"""Every recorded network of the papers' authors, through `load_published`."""

import pytest
import torch

from tests.models.golden_networks import FOLDER, NETWORKS, GoldenNetwork, build_golden
from visgraft.blocks import load_published


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_network(name):
    case = GoldenNetwork(name)
    network = build_golden(case).eval()
    assert sum(p.numel() for p in network.parameters()) == case.record["params"]
    report = load_published(network, case.weights())
    assert (report.skipped, report.ignored) == ((), ())
    stages = {}
    recorded = list(case.record["stages"])
    modules = [info["module"] for info in network.feature_info][-len(recorded) :]
    if name.startswith("swin"):  # the authors merge patches at the end of a stage
        modules = [*(f"{path}.downsample" for path in modules[1:]), modules[-1]]
    if name.startswith("mbv2"):  # recorded are four of five stages: not the second
        modules = [network.feature_info[0]["module"], *modules[1:]]
    for stage, path in zip(recorded, modules if recorded else (), strict=True):
        network.get_submodule(path).register_forward_hook(
            lambda _, __, out, stage=stage: stages.update({stage: out})
        )
    with torch.no_grad():
        case.check("logits", network(case.input()))
        pooled = network.forward_head(network.forward_features(case.input()), pre_logits=True)
        case.check("pooled", pooled)
    for stage, recorded in case.record["stages"].items():
        value = stages[stage]
        if value.ndim == 4 and len(recorded["shape"]) == 3:  # channels last in ours: (B, H, W, C)
            value = value.flatten(1, 2)
        assert list(value.shape) == recorded["shape"]
        case.check(f"{stage}_first64", value.flatten()[:64])
        torch.testing.assert_close(value.mean().item(), recorded["mean"], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(value.std().item(), recorded["std"], rtol=1e-3, atol=1e-4)


def test_every_recorded_network_is_compared():
    elsewhere = {"timm_skresnext50_32x4d", "yolov5n_spd", "yolov5s_spd"}  # other test files
    assert {path.stem for path in FOLDER.glob("*.json")} == NETWORKS.keys() | elsewhere
