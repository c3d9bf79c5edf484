"""The images that a recipe names, and how they become the input of a network."""

from collections.abc import Callable

from PIL import Image
from torch import Tensor

from visgraft.data import ImageData, build_transforms, load_data
from visgraft.tasks.checkpoint import InputSpec
from visgraft.tasks.progress import counting_bar
from visgraft.tasks.recipe import Recipe

__all__ = ["evaluation_transform", "load_images", "training_transform"]

Transform = Callable[[Image.Image], Tensor]


def load_images(recipe: Recipe, progress: bool) -> ImageData:
    """Loads the data of a recipe, with a bar where it takes a while."""
    with counting_bar("reading images") as count:
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
