"""The fields of a recipe: name, type, default and description of each."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from visgraft.tasks import legal_names
from visgraft.tasks.field_types import (
    Arguments,
    Chance,
    Pair,
    PathText,
    Rate,
    Sides,
    as_tuple,
    from_text,
    split_words,
)
from visgraft.tasks.graft_spec import GraftSpec
from visgraft.tasks.validation import Checked

__all__ = ["RecipeFields"]


class RecipeFields(Checked):
    """What a recipe may say; `Recipe` checks it."""

    task: Literal["classification", "detection", "instance_segmentation"] = Field(
        "classification", description="What the network learns to do."
    )
    # Data.
    data: PathText = Field(
        description="fashion_mini, or a folder of images: train/ and val/ (or test/) with a folder "
        "per class each, or the class folders alone. For detection fashion_scenes, a COCO json, a "
        "YOLO data.yaml, or a folder with COCO jsons, a data.yaml or VOC's xml files."
    )
    val_data: PathText | None = Field(
        None,
        description="For detection: what to validate on, where data names what to train on alone.",
    )
    images: PathText | None = Field(
        None,
        description="For detection: folder of the pictures of a COCO json, where its place does "
        "not tell.",
    )
    val_images: PathText | None = Field(
        None, description="For detection: the same for val_data; None takes images."
    )
    val_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Part of the images, 0 to 1, for validation where the folder has no split.",
    )
    split_seed: int = Field(0, ge=0, description="Seed of that split.")
    on_bad_image: Literal["error", "skip"] = Field(
        "error",
        description="What to do about a file that cannot be read as an image, or an annotation "
        "that cannot be used.",
    )
    train_limit: int | None = Field(
        None,
        gt=0,
        description="Train on this many images, balanced over the classes in classification.",
    )
    val_limit: int | None = Field(
        None,
        gt=0,
        description="Validate on this many images, balanced over the classes in classification.",
    )
    # Network.
    model: str = Field(description="Name of a network in timm's registry, visgraft's included.")
    model_args: Arguments = Field({}, description="Further arguments of the network's constructor.")
    pretrained: bool = Field(False, description="Start from timm's pretrained weights (download).")
    checkpoint: PathText | None = Field(
        None, description="Start from the weights in this file (safetensors, .pth or .ckpt)."
    )
    image_size: int | None = Field(
        None,
        gt=0,
        description="Side in pixels of the square images that the network sees; None takes the "
        "pretrained network's own, else the data's. Detectors have min_size and max_size.",
    )
    detector: Literal[legal_names.DETECTORS] | None = Field(  # pyright: ignore[reportInvalidTypeForm]
        None,
        validate_default=True,
        description="What of torchvision finds the objects in the network's features; None takes "
        "faster_rcnn for detection and mask_rcnn for instance segmentation.",
    )
    detector_args: Arguments = Field({}, description="Further arguments of the detector.")
    frozen_stages: int = Field(
        0,
        ge=0,
        description="The stem and so many stages of a detector's network do not learn, except for "
        "grafts in them; 0 freezes nothing.",
    )
    frozen_norm: bool = Field(
        False,
        description="Keep statistics and weights of the batch normalisation of a detector's "
        "network as they were loaded.",
    )
    min_size: Sides = Field(
        (800,),
        description="Shorter side in pixels of the images that a detector sees; of several, each "
        "training image takes one at random, and evaluation the last.",
    )
    max_size: int = Field(
        1333, gt=0, description="Longest side in pixels of the images that a detector sees."
    )
    channels_last: bool = Field(
        False, description="Keep the channels of an image next to each other in memory."
    )
    grafts: Annotated[
        tuple[GraftSpec, ...], BeforeValidator(as_tuple), BeforeValidator(from_text)
    ] = Field((), description="Blocks to put into the network, in this order: block, at, ...")
    # Optimisation.
    epochs: int = Field(10, gt=0, description="Passes over the training images.")
    batch_size: int = Field(64, gt=0, description="Images per update, on all devices together.")
    optimizer: str = Field("adamw", description="Name of an optimizer of timm.")
    lr: float = Field(1e-3, gt=0, description="Highest learning rate, per update.")
    weight_decay: float = Field(
        0.05, ge=0, description="Weight decay of all weights except biases and normalisation."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum, for optimizers that have one.")
    opt_args: Arguments = Field({}, description="Further arguments of the optimizer.")
    schedule: Literal[legal_names.SCHEDULES] = Field(  # pyright: ignore[reportInvalidTypeForm]
        "cosine", description="How the learning rate changes over the run; a schedule of timm."
    )
    schedule_on: Literal["update", "epoch"] = Field(
        "update", description="Whether the learning rate moves after every update or every epoch."
    )
    schedule_args: Arguments = Field({}, description="Further arguments of the schedule.")
    warmup_epochs: float = Field(
        0.0, ge=0, description="Epochs, or a part of one, in which the learning rate rises."
    )
    warmup_updates: int = Field(
        0, ge=0, description="Updates in which the learning rate rises, instead of warmup_epochs."
    )
    min_lr: float = Field(0.0, ge=0, description="Lowest learning rate of the schedule.")
    clip_grad: float | None = Field(
        None, gt=0, description="Largest norm of the gradient; a longer one is scaled down to it."
    )
    # Regularisation and augmentation.
    label_smoothing: Rate = Field(
        0.0, description="Probability, 0 to 1, that the target spreads over all classes."
    )
    mixup: float = Field(0.0, ge=0, description="Mixup's alpha; 0 is off.")
    cutmix: float = Field(0.0, ge=0, description="CutMix' alpha; 0 is off.")
    drop_rate: Rate = Field(0.0, description="Dropout before the classifier, 0 to 1.")
    drop_path_rate: Rate = Field(0.0, description="Stochastic depth, 0 to 1.")
    hflip: Chance = Field(0.5, description="Probability, 0 to 1, of mirroring left and right.")
    crop_padding: int | None = Field(
        None,
        ge=0,
        description="Pad the image by so many pixels and cut it to size at random; None takes an "
        "eighth of the side for small images.",
    )
    crop_scale: Pair | None = Field(
        None,
        description="Cut out a part of the image, of an area between these fractions of it; None "
        "takes 0.08 to 1 for large images.",
    )
    scale_jitter: Pair | None = Field(
        None,
        description="For detection: enlarge or shrink each training image by a factor between "
        "these, and cut a larger one to size at random.",
    )
    auto_augment: str | None = Field(None, description="A policy of timm, such as rand-m9-mstd0.5.")
    color_jitter: float = Field(
        0.0, ge=0, description="Strength of random brightness, contrast and saturation."
    )
    random_erase: Chance = Field(0.0, description="Probability, 0 to 1, of erasing a rectangle.")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Keep a moving average of the weights with this decay, and evaluate and "
        "deliver that instead of the last weights.",
    )
    # Machine.
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="fp32, or bf16 for mixed precision with bfloat16."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto takes the GPU where there is one."
    )
    devices: int = Field(
        1,
        gt=0,
        description="GPUs that share the work, or processes where there are none; each takes an "
        "equal part of every batch and of the validation. Batch normalisation sees a part at a "
        "time, so that results depend on the number.",
    )
    workers: int = Field(
        0, ge=0, description="Processes that load images, per device; 0 loads in this one."
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="Seed of weights, data order and augmentation."
    )
    loggers: Annotated[
        tuple[Literal["tensorboard", "wandb", "mlflow"], ...], BeforeValidator(split_words)
    ] = Field(
        ("tensorboard",),
        description="Where metrics go beside metrics.csv, which is always written: tensorboard, "
        "wandb, mlflow or none.",
    )
