"""Data for detection: COCO, YOLO and VOC annotations, the embedded scenes, and their check."""

from visgraft.data.detection.annotations import AnnotatedImage, AnnotatedObject, DetectionData
from visgraft.data.detection.check import CheckedPart, check_detection
from visgraft.data.detection.coco import load_coco
from visgraft.data.detection.dataset import DetectionDataset, per_object, stack_samples
from visgraft.data.detection.fingerprint import fingerprint
from visgraft.data.detection.load import DetectionParts, load_detection, load_measured
from visgraft.data.detection.scenes import fashion_scenes
from visgraft.data.detection.seeded import SeededDetection, without_crowds
from visgraft.data.detection.voc import load_voc
from visgraft.data.detection.writing import write_coco
from visgraft.data.detection.yolo_txt import load_yolo

__all__ = [
    "AnnotatedImage",
    "AnnotatedObject",
    "CheckedPart",
    "DetectionData",
    "DetectionDataset",
    "DetectionParts",
    "SeededDetection",
    "check_detection",
    "fashion_scenes",
    "fingerprint",
    "load_coco",
    "load_detection",
    "load_measured",
    "load_voc",
    "load_yolo",
    "per_object",
    "stack_samples",
    "without_crowds",
    "write_coco",
]
