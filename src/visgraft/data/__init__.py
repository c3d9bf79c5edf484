"""Images for training: image folders, the embedded demo set, transforms and their random order."""

from visgraft.data._errors import DataError
from visgraft.data.augmented import AugmentedSplit
from visgraft.data.load import load_data
from visgraft.data.sampler import EpochSampler
from visgraft.data.splits import ImageData, ImageSplit
from visgraft.data.transforms import build_transforms

__all__ = [
    "AugmentedSplit",
    "DataError",
    "EpochSampler",
    "ImageData",
    "ImageSplit",
    "build_transforms",
    "load_data",
]
