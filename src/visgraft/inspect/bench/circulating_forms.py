"""The blocks as they circulate in articles: what a newcomer would otherwise run.

Written anew from their formulas, operation by operation, with the names of their tensors, so that
ours can take their weights and be compared on the same numbers. They are baselines of benchmarks
and nothing else: no checks, no options. Where a circulating copy does not run as printed (missing
functions, misspelt attributes), the evident meaning is taken.

Sources: the copies of https://github.com/xmu-xiaoma666/External-Attention-pytorch and of articles
that print them; for the contextual transformer and ACmix the authors' own modules, whose kernel
for CUDA is replaced by unfolding, as ports to other devices do.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from visgraft.inspect.bench.circulating_ops import unfolded_aggregation

__all__ = [
    "MHSA",
    "ACmix",
    "CB2d",
    "CoTAttention",
    "CoordAtt",
    "CotLayer",
    "SKAttention",
    "SPDConv",
]


class CotLayer(nn.Module):
    """The contextual transformer with the aggregation unfolded."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        share, hidden = 8, max(dim // 2, 32)
        self.key_embed = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(dim), nn.ReLU()
        )
        self.embed = nn.Sequential(
            nn.Conv2d(2 * dim, dim // 2, 1, bias=False),
            nn.BatchNorm2d(dim // 2),
            nn.ReLU(),
            nn.Conv2d(dim // 2, 9 * dim // share, 1),
            nn.GroupNorm(dim // share, 9 * dim // share),
        )
        self.conv1x1 = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim))
        self.bn = nn.BatchNorm2d(dim)
        self.se = nn.Sequential(
            nn.Conv2d(dim, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, 2 * dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Computes the block."""
        k = self.key_embed(x)
        b, c, h, w = x.shape
        weights = self.embed(torch.cat([x, k], 1)).view(b, 1, -1, 9, h, w)
        y = functional.silu(self.bn(unfolded_aggregation(self.conv1x1(x), weights)))
        both = torch.cat([y.view(b, c, 1, h, w), k.view(b, c, 1, h, w)], 2)
        attention = self.se(both.sum(2).mean((2, 3), keepdim=True)).view(b, c, 2)
        attention = functional.softmax(attention, 2).view(b, c, 2, 1, 1)
        return (both * attention).sum(2).contiguous()


class CoTAttention(nn.Module):
    """The simplified contextual transformer, with k * k gates per channel that are averaged."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.key_embed = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(dim), nn.ReLU()
        )
        self.value_embed = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim))
        self.attention_embed = nn.Sequential(
            nn.Conv2d(2 * dim, dim // 2, 1, bias=False),
            nn.BatchNorm2d(dim // 2),
            nn.ReLU(),
            nn.Conv2d(dim // 2, 9 * dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Computes the block."""
        b, c, h, w = x.shape
        k1 = self.key_embed(x)
        v = self.value_embed(x).view(b, c, -1)
        gates = self.attention_embed(torch.cat([k1, x], 1)).reshape(b, c, 9, h, w)
        gates = gates.mean(2).view(b, c, -1)
        return k1 + (functional.softmax(gates, -1) * v).view(b, c, h, w)


class MHSA(nn.Module):
    """Multi-head attention over all positions, without position term or scale."""

    def __init__(self, dim: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Conv2d(dim, dim, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Computes the block."""
        b, c, h, w = x.shape
        q, k, v = (
            layer(x).view(b, self.heads, c // self.heads, -1)
            for layer in (self.query, self.key, self.value)
        )
        attention = torch.matmul(q.permute(0, 1, 3, 2), k).softmax(-1)
        return torch.matmul(v, attention.permute(0, 1, 3, 2)).view(b, c, h, w)


class ACmix(nn.Module):
    """ACmix with the windows of keys, of positions and of values unfolded."""

    def __init__(self, dim: int, kernel_att: int = 7, head: int = 4) -> None:
        super().__init__()
        self.head, self.kernel_att, depth = head, kernel_att, dim // head
        self.rate1, self.rate2 = (nn.Parameter(torch.full((1,), 0.5)) for _ in range(2))
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(dim, dim, 1) for _ in range(3))
        self.conv_p = nn.Conv2d(2, depth, 1)
        self.pad_att = nn.ReflectionPad2d((kernel_att - 1) // 2)
        self.unfold = nn.Unfold(kernel_att)
        self.fc = nn.Conv2d(3 * head, 9, 1, bias=False)
        self.dep_conv = nn.Conv2d(9 * depth, dim, 3, padding=1, groups=depth, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the block."""
        b, _, h, w = x.shape
        q, k, v = self.conv1(x), self.conv2(x), self.conv3(x)
        heads, depth, taps = self.head, q.shape[1] // self.head, self.kernel_att**2
        column = torch.linspace(-1, 1, w, device=x.device).to(x.dtype).expand(h, w)
        row = torch.linspace(-1, 1, h, device=x.device).to(x.dtype)[:, None].expand(h, w)
        pe = self.conv_p(torch.stack([column, row]).unsqueeze(0))

        def windows(t: Tensor, batch: int) -> Tensor:
            return self.unfold(self.pad_att(t)).view(batch, depth, taps, h, w)

        queries = q.view(b * heads, depth, h, w) * depth**-0.5
        keys = windows(k.view(b * heads, depth, h, w), b * heads)
        places = windows(pe, 1)
        logits = (queries.unsqueeze(2) * (keys + pe.unsqueeze(2) - places)).sum(1)
        attention = logits.softmax(1)
        values = windows(v.view(b * heads, depth, h, w), b * heads)
        out_att = (attention.unsqueeze(1) * values).sum(2).view(b, -1, h, w)
        maps = [t.view(b, heads, depth, h * w) for t in (q, k, v)]
        f_all = self.fc(torch.cat(maps, 1))
        f_conv = f_all.permute(0, 2, 1, 3).reshape(b, -1, h, w)
        return self.rate1 * out_att + self.rate2 * self.dep_conv(f_conv)


class CB2d(nn.Module):
    """The context block that adds and multiplies."""

    def __init__(self, inplanes: int) -> None:
        super().__init__()
        planes = inplanes // 4
        self.conv_mask = nn.Conv2d(inplanes, 1, 1)
        self.channel_add_conv, self.channel_mul_conv = (
            nn.Sequential(
                nn.Conv2d(inplanes, planes, 1),
                nn.LayerNorm([planes, 1, 1]),
                nn.ReLU(),
                nn.Conv2d(planes, inplanes, 1),
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Computes the block."""
        b, c, h, w = x.shape
        mask = self.conv_mask(x).view(b, 1, h * w).softmax(2).unsqueeze(-1)
        context = torch.matmul(x.view(b, 1, c, h * w), mask).view(b, c, 1, 1)
        out = x * torch.sigmoid(self.channel_mul_conv(context))
        return out + self.channel_add_conv(context)


class CoordAtt(nn.Module):
    """Coordinate attention with pooling layers and the swish of the authors' code."""

    def __init__(self, inp: int, reduction: int = 32) -> None:
        super().__init__()
        mip = max(8, inp // reduction)
        self.conv1 = nn.Conv2d(inp, mip, 1)
        self.bn1 = nn.BatchNorm2d(mip)
        self.conv_h = nn.Conv2d(mip, inp, 1)
        self.conv_w = nn.Conv2d(mip, inp, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the block."""
        h, w = x.shape[2:]
        rows = functional.adaptive_avg_pool2d(x, (h, 1))
        columns = functional.adaptive_avg_pool2d(x, (1, w)).permute(0, 1, 3, 2)
        y = self.bn1(self.conv1(torch.cat([rows, columns], 2)))
        y = y * (functional.relu6(y + 3) / 6)
        rows, columns = y.split([h, w], 2)
        a_h = self.conv_h(rows).sigmoid()
        a_w = self.conv_w(columns.permute(0, 1, 3, 2)).sigmoid()
        return x * a_w * a_h


class SPDConv(nn.Module):
    """Four slices, joined, and a convolution of stride 1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4 * dim, dim, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the block."""
        parts = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return self.conv(torch.cat(parts, 1))


class SKAttention(nn.Module):
    """The selective kernel whose loop evaluates each branch twice, once to print its shape."""

    def __init__(self, channel: int, reduction: int = 16, least: int = 32) -> None:
        super().__init__()
        hidden, kernels = max(least, channel // reduction), (1, 3, 5, 7)
        self.convs = nn.ModuleList(_Branch(channel, k) for k in kernels)
        self.fc = nn.Linear(channel, hidden)
        self.fcs = nn.ModuleList(nn.Linear(hidden, channel) for _ in kernels)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the block."""
        outputs = []
        for branch in self.convs:
            branch(x)  # its shape was printed here
            outputs.append(branch(x))
        stacked = torch.stack(outputs, 0)
        z = self.fc(stacked.sum(0).mean(-1).mean(-1))
        b, c = x.shape[:2]
        weights = torch.stack([fc(z).view(b, c, 1, 1) for fc in self.fcs], 0).softmax(0)
        return (weights * stacked).sum(0)


class _Branch(nn.Module):
    def __init__(self, channel: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channel, channel, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm2d(channel)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))
