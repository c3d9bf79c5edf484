"""What ultralytics is asked to do with one network that has blocks in it."""

import copy
import socket
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from tests.offline_ultralytics import ultralytics
from tests.tasks.yolo_data import QUICK, TRAIN, quiet_export, write_boxes
from visgraft.blocks import block_info, list_blocks
from visgraft.tasks import yolo

__all__ = ["BLOCKS", "NETWORKS", "READY", "Exercise", "no_network"]

NETWORKS = ("yolov5n", "yolov8n")
BLOCKS = [n for n in list_blocks() if block_info(n).cls.__module__.startswith("visgraft.")]
READY = [n for n in yolo.list_networks() if n[6] == "n"]
PLACES = {  # in both networks layer 5 and 7 are strided, 6 and 8 hold bottlenecks
    "gate": ["model.4", "model.6", "model.9"],
    "mixer": ["model.6.m.0.cv2.conv", "model.8.m.0.cv2.conv"],
    "downsample": ["model.5.conv", "model.7.conv"],
}
SMALL = {"imgsz": 64, "batch": 8}
ONNX_SIZES = ((1, 3, 64, 64), (2, 3, 96, 160))
ODD_SIZES = ((1, 3, 160, 160), (1, 3, 96, 192))  # the coarsest map has 5 x 5 and 3 x 6 positions


@contextmanager
def no_network(monkeypatch):
    """Lets no socket be opened and no host be looked up; gives the list of the attempts."""
    attempts = []

    def refuse(name):
        def refused(*args, **kwargs):
            attempts.append((name, args))
            raise OSError(f"no network: {name}{args[1:]}")

        return refused

    with monkeypatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, refuse(name))
        for name in ("create_connection", "getaddrinfo", "gethostbyname"):
            patch.setattr(socket, name, refuse(name))
        yield attempts


class Exercise:
    """One network: trained, validated, exported and run on other sizes."""

    def __init__(self, network: str, block: str | None, folder: Path) -> None:
        self.folder = folder
        self.data = str(write_boxes(folder / "boxes"))
        if block is None:
            self.yolo = ultralytics.YOLO(yolo.network_file(network))
        else:
            self.yolo = ultralytics.YOLO(f"{network}.yaml")
            done = yolo.graft(
                self.yolo, block, PLACES[block_info(block).role], example=(1, 3, 64, 64)
            )
            generator = torch.Generator().manual_seed(2)
            with torch.no_grad():  # as if it had been trained: the block takes part
                for parameter in done.parameters():
                    parameter.add_(0.1 * torch.rand(parameter.shape, generator=generator))
        self.tensors = set(self.yolo.model.state_dict())
        self.start = time.process_time()

    @property
    def seconds(self) -> float:
        return time.process_time() - self.start

    def train(self) -> float:
        """Trains one epoch; returns the mean of the largest changes of the parameters."""
        before = {n: p.detach().clone() for n, p in self.yolo.model.named_parameters()}
        self.yolo.train(
            data=self.data, project=str(self.folder), name="train", **{**TRAIN, **SMALL}
        )
        assert set(self.yolo.model.state_dict()) == self.tensors
        changes = []
        for name, parameter in self.yolo.model.named_parameters():
            assert parameter.isfinite().all(), name
            if parameter.shape == before[name].shape:
                changes.append((parameter - before[name]).abs().max())
        return float(torch.stack(changes).mean())

    def validate(self, **options) -> float:
        """Returns the mean average precision in percent; notes what the network was given."""
        names = {**QUICK, **SMALL, "project": str(self.folder), "name": "val", **options}
        self.seen = []
        hook = self.yolo.model.model[0].register_forward_pre_hook(
            lambda _, given: self.seen.append((tuple(given[0].shape[2:]), given[0].dtype))
        )
        try:
            return 100 * float(self.yolo.val(data=self.data, **names).box.map)
        finally:
            hook.remove()

    def output(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.yolo.model.eval().float()(x)[0]

    def export(self) -> float:
        """Returns the largest difference of ONNX Runtime's output, at two sizes."""
        import onnxruntime

        with quiet_export():
            path = self.yolo.export(format="onnx", dynamic=True, imgsz=64, opset=19, simplify=False)
        session = onnxruntime.InferenceSession(path)
        worst = 0.0
        for shape in ONNX_SIZES:
            x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
            exported = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
            mine = self.output(x)
            assert exported.shape == mine.shape
            worst = max(worst, float((exported - mine).abs().max()))
        return worst

    def in_half(self) -> float:
        """Returns how far float16 is from float32, relative to the largest value."""
        x = torch.rand(ONNX_SIZES[1], generator=torch.Generator().manual_seed(1))
        mine = self.output(x)
        half = copy.deepcopy(self.yolo.model).half()
        with torch.no_grad():
            made = half(x.half())[0]
        assert made.dtype == torch.float16
        return float((made.float() - mine).abs().max() / mine.abs().max())

    def run_on_odd_sizes(self) -> None:
        for shape in ODD_SIZES:
            x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
            assert self.output(x).isfinite().all()
