"""A detector gets to know four scenes."""

import pytest

from tests.tasks.detection.tiny_run import HEADS, tiny_recipe
from visgraft.data.detection import DetectionParts, load_detection
from visgraft.tasks import train


@pytest.mark.slow
def test_the_learning_is_real(tmp_path):
    known = load_detection("fashion_scenes", train_limit=4, val_limit=1).train
    data = DetectionParts("known", known.subset([*range(4)] * 10), known)
    wider = {
        "channels": 32,
        "box_channels": 128,
        "mask_channels": [32],
        "box_batch_size_per_image": 32,
        "box_detections_per_img": 20,
        "rpn_post_nms_top_n_train": 100,
        "rpn_post_nms_top_n_test": 100,
    }
    recipe = tiny_recipe(
        model_args={"channels": [16, 32, 32, 64]},
        detector_args=HEADS | wider,
        min_size=96,
        max_size=192,
        hflip=0,
        epochs=4,
        lr=3e-3,
        warmup_updates=20,
    )
    result = train(recipe, tmp_path, progress=False, data=data)
    first, last = result.metrics[0], result.final
    assert last["train_loss"] < 0.7 * first["train_loss"]
    assert last["train_loss_mask"] < 0.8 * first["train_loss_mask"]
    assert last["AP50"] > 15
    assert last["mask_AP50"] > 15
