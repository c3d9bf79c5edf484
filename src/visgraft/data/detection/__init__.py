"""Data for detection: COCO, YOLO and VOC annotations, the embedded scenes, and their check."""

from visgraft.data.detection.annotations import AnnotatedImage, AnnotatedObject, DetectionData
from visgraft.data.detection.check import CheckedPart, check_detection
from visgraft.data.detection.coco import load_coco
from visgraft.data.detection.dataset import DetectionDataset, per_object, stack_samples
from visgraft.data.detection.scenes import fashion_scenes
from visgraft.data.detection.voc import load_voc
from visgraft.data.detection.writing import write_coco
from visgraft.data.detection.yolo_txt import load_yolo

__all__ = [
    "AnnotatedImage",
    "AnnotatedObject",
    "CheckedPart",
    "DetectionData",
    "DetectionDataset",
    "check_detection",
    "fashion_scenes",
    "load_coco",
    "load_voc",
    "load_yolo",
    "per_object",
    "stack_samples",
    "write_coco",
]
