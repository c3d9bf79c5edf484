"""Hand-written models, and blocks made for the tests."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from visgraft.blocks import BlockInfo


def alive(model):
    """Gives numbers, vectors and running statistics random values: no branch is worth zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.numel() == max(tensor.shape, default=1):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def conv(channels_in, channels_out, stride=1):
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1)


class FunctionalSkip(nn.Module):
    """Residual blocks written as functions, without a module of their own."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 32)
        self.first = conv(32, 32)
        self.second = conv(32, 32)
        self.down = conv(32, 64, stride=2)
        self.third = conv(64, 64)
        self.fourth = conv(64, 64)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = functional.relu(x + 0.5 * self.second(functional.relu(self.first(x))))
        x = functional.relu(self.down(x))
        x = functional.relu(self.fourth(functional.relu(self.third(x))) + x)
        return self.head(x.mean((2, 3)))


class SharedLayer(nn.Module):
    """One convolution under two names, called three times on two sizes of map."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 32)
        self.first = conv(32, 32)
        self.second = self.first
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x).relu()).relu()
        x = self.second(self.pool(x)).relu()
        return self.head(self.first(x).mean((2, 3)))


class Containers(nn.Module):
    """Layers in a Sequential, a ModuleList and a ModuleDict."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(3, 32), nn.Sequential(conv(32, 32), nn.ReLU()))
        self.many = nn.ModuleList([conv(32, 32), conv(32, 32)])
        self.named = nn.ModuleDict({"only": conv(32, 32)})
        self.unused = conv(32, 32)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x)
        for layer in self.many:
            x = x + layer(x)
        return {name: layer(x) for name, layer in self.named.items()}


class ReadsItsChildren(nn.Module):
    """Runs whatever children it has, without being a container."""

    def __init__(self):
        super().__init__()
        self.first = conv(3, 32)
        self.inner = RunsAll(conv(32, 32), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.first(x))


class RunsAll(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        for i, layer in enumerate(layers):
            self.add_module(f"layer{i}", layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


class Pyramid(nn.Module):
    """A backbone and the lateral additions of a feature pyramid."""

    def __init__(self):
        super().__init__()
        self.fine = conv(3, 16, stride=2)
        self.coarse = conv(16, 32, stride=2)
        self.merge = Merge()

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        return self.merge(fine, self.coarse(fine))


class Merge(nn.Module):
    def __init__(self):
        super().__init__()
        self.lateral = nn.Conv2d(16, 8, 1)
        self.top = nn.Conv2d(32, 8, 1)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        return self.lateral(fine) + functional.interpolate(self.top(coarse), fine.shape[2:])


class ChannelsLastBlock(nn.Module):
    """A residual block on (B, H, W, C) maps, whose addition is no site."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.mix = nn.Linear(32, 32)
        self.act = nn.ReLU()
        self.back = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        return self.back((x + self.act(x * self.mix(x))).permute(0, 3, 1, 2))


class Gate(nn.Module):
    """Halves its input."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.sigmoid()


class StartsAsIdentity(nn.Module):
    """Adds nothing at first, and does not say so."""

    def __init__(self, channels):
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.mix(x)


class Transplant(nn.Conv2d):
    """Holds a convolution's weights and a new tensor, as a deformable convolution would."""

    def __init__(self, channels, *, out_channels=None, stride=1, device=None, dtype=None):
        super().__init__(channels, out_channels or channels, 3, stride, padding=1)
        self.shift = nn.Parameter(torch.zeros(self.out_channels, 1, 1))

    @classmethod
    def from_conv(cls, layer, *, shift=True):
        if layer.kernel_size != (3, 3) or layer.groups != 1:
            raise ValueError("Transplant: takes over plain 3 x 3 convolutions")
        block = cls(layer.in_channels, out_channels=layer.out_channels, stride=layer.stride)
        state = {**block.state_dict(), **layer.state_dict()}
        if layer.bias is None:
            block.bias = None
            del state["bias"]
        block.load_state_dict(state)
        if not shift:
            block.shift = None
        return block

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.shift is None else y + self.shift


class Pooled(nn.Module):
    """Keeps channels and size."""

    def __init__(self, channels, *, groups=1, device=None, dtype=None):
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)


TOY_BLOCKS = {
    "transplant": BlockInfo(
        "transplant",
        Transplant,
        "mixer",
        "Holds a convolution's weights.",
        aliases={"bottomless": {"shift": False}},
    ),
    "pooled": BlockInfo("pooled", Pooled, "mixer", "Has no stride of its own."),
}
