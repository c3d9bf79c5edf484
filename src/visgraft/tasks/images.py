"""The images that a recipe names, and how they become the input of a network."""

from collections.abc import Callable

from PIL import Image
from torch import Tensor

from visgraft.data import ImageData, build_transforms, load_data
from visgraft.data.detection import DetectionParts, load_detection
from visgraft.tasks.checkpoint import InputSpec
from visgraft.tasks.progress import counting_bar
from visgraft.tasks.recipe import Recipe

__all__ = ["RunData", "evaluation_transform", "load_images", "training_transform"]

RunData = ImageData | DetectionParts
"""What a recipe learns from and is measured on: images with a class, or with objects."""

Transform = Callable[[Image.Image], Tensor]


def load_images(recipe: Recipe, progress: bool) -> RunData:
    """Loads the data of a recipe, with a bar where it takes a while.

    Raises:
        DataError: They cannot be used.
    """
    with counting_bar("reading images") as count:
        if recipe.finds_objects:
            return load_detection(
                recipe.data,
                val_source=recipe.val_data,
                images=recipe.images,
                val_images=recipe.val_images,
                val_fraction=recipe.val_fraction,
                split_seed=recipe.split_seed,
                on_problem="error" if recipe.on_bad_image == "error" else "mend",
                train_limit=recipe.train_limit,
                val_limit=recipe.val_limit,
                masks=recipe.finds_masks,
                progress=count if progress else None,
            )
        return load_data(
            recipe.data,
            val_fraction=recipe.val_fraction,
            split_seed=recipe.split_seed,
            on_bad_image=recipe.on_bad_image,
            train_limit=recipe.train_limit,
            val_limit=recipe.val_limit,
            progress=count if progress else None,
        )


def training_transform(data: ImageData, recipe: Recipe, spec: InputSpec) -> Transform:
    """Returns what happens to a training image, with the recipe's random changes."""
    return build_transforms(
        data,
        spec.size,
        training=True,
        hflip=recipe.hflip,
        crop_padding=recipe.crop_padding,
        crop_scale=recipe.crop_scale,
        auto_augment=recipe.auto_augment,
        color_jitter=recipe.color_jitter,
        random_erase=recipe.random_erase,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
    )


def evaluation_transform(data: ImageData, spec: InputSpec) -> Transform:
    """Returns what happens to an image that is measured on."""
    return build_transforms(
        data,
        spec.size,
        training=False,
        crop_pct=spec.crop_pct,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
    )
