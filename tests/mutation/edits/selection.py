"""Wrong edits of the selective kernel and its circulating form."""

from tests.mutation.edits._edit import Table

__all__ = ["EDITS"]

BLOCK = "blocks/selective_kernel.py"
EDITS: Table = {
    "selective_kernel": {
        BLOCK: [
            (
                "two branches swapped",
                "(logits[1] - logits[0]).sigmoid()",
                "(logits[0] - logits[1]).sigmoid()",
            ),
            (
                "two gates in place of a softmax",
                "(logits[1] - logits[0]).sigmoid()",
                "logits[1].sigmoid()",
            ),
            (
                "softmax over the channels",
                "torch.stack(list(logits)).softmax(0)",
                "torch.stack(list(logits)).softmax(2)",
            ),
            (
                "logits branch by branch of each channel",
                "self.expand(hidden).chunk(len(maps), 1)",
                "self.expand(hidden).unflatten(1, (-1, len(maps))).unbind(2)",
            ),
            (
                "mean of the branches in place of their sum",
                "return sum(means[1:], means[0])",
                "return sum(means[1:], means[0]) / len(means)",
            ),
            ("first branch alone is pooled", "return sum(means[1:], means[0])", "return means[0]"),
            (
                "no ReLU in the bottleneck",
                "functional.relu(self.norm(self.reduce(_pooled(maps))))",
                "self.norm(self.reduce(_pooled(maps)))",
            ),
            (
                "padding ignores the dilation",
                "padding=dilation * (kernel_size // 2)",
                "padding=kernel_size // 2",
            ),
            (
                "stride ignored",
                "stride=stride,\n                padding",
                "stride=1,\n                padding",
            ),
            (
                "groups ignored",
                "groups=groups,\n                bias",
                "groups=1,\n                bias",
            ),
            (
                "bottleneck of the input's width",
                "hidden = max(min_hidden, out_channels // reduction)",
                "hidden = max(min_hidden, channels // reduction)",
            ),
            (
                "bottleneck without a least width",
                "hidden = max(min_hidden, out_channels // reduction)",
                "hidden = out_channels // reduction",
            ),
            (
                "bias in the bottleneck",
                "nn.Conv2d(out_channels, hidden, 1, bias=False, **dd)",
                "nn.Conv2d(out_channels, hidden, 1, **dd)",
            ),
            (
                "epsilon of the normalisation",
                "nn.BatchNorm2d(hidden, **dd)",
                "nn.BatchNorm2d(hidden, eps=1e-3, **dd)",
            ),
            (
                "normalisation on the default device",
                "nn.BatchNorm2d(hidden, **dd)",
                "nn.BatchNorm2d(hidden)",
            ),
            (
                "default branches",
                "((3, 1), (3, 2)),\n        groups",
                "((3, 1), (5, 1)),\n        groups",
            ),
            ("default groups", "groups: int = 32,", "groups: int = 16,"),
            (
                "training on one image is not refused",
                'check_statistics("SelectiveKernel", self.norm, x.shape[0], "one per image")',
                "",
            ),
            (
                "branches swapped in the layout",
                '"*/3x3g32d2": "branches.1.conv"',
                '"*/3x3g32d2": "branches.0.conv"',
            ),
            (
                "share in float32",
                "return torch.lerp(maps[0], maps[1], share.to(dtype))",
                "return torch.lerp(maps[0], maps[1], share)",
            ),
        ],
    },
    "sk_attention": {
        BLOCK: [
            (
                "ReLU in the bottleneck",
                "self.reduce(_pooled(maps).flatten(1))",
                "self.reduce(_pooled(maps).flatten(1)).relu()",
            ),
            (
                "softmax over the channels",
                "torch.stack(list(logits)).softmax(0)",
                "torch.stack(list(logits)).softmax(2)",
            ),
            (
                "shares of other branches",
                "zip(maps[1:], shares[1:], strict=True)",
                "zip(maps[1:], shares[:-1], strict=True)",
            ),
            (
                "last layers in reverse",
                "for layer in self.expand]",
                "for layer in self.expand[::-1]]",
            ),
            (
                "maximum in place of average",
                "mean_over(each, 2, 3, keepdim=True)",
                "each.amax((2, 3), keepdim=True)",
            ),
            (
                "epsilon of the branches",
                "nn.BatchNorm2d(out_channels, **dd)",
                "nn.BatchNorm2d(out_channels, eps=1e-3, **dd)",
            ),
            ("padding fits kernels of 3 alone", "padding=size // 2", "padding=1"),
            (
                "no bias in the branches",
                "padding=size // 2, groups=groups",
                "padding=size // 2, bias=False, groups=groups",
            ),
            ("groups ignored", "padding=size // 2, groups=groups, **dd", "padding=size // 2, **dd"),
            (
                "each branch evaluated twice",
                '{w}")\n        maps = [branch(x)',
                '{w}")\n        maps = [(branch(x), branch(x))[1]',
            ),
            (
                "no ReLU in the branches",
                "functional.relu(self.norm(self.conv(x)), inplace=True)",
                "self.norm(self.conv(x))",
            ),
            (
                "normalisation behind ReLU",
                "functional.relu(self.norm(self.conv(x)), inplace=True)",
                "self.norm(functional.relu(self.conv(x)))",
            ),
            (
                "bottleneck without a least width",
                "hidden = max(min_hidden, channels // reduction)",
                "hidden = channels // reduction",
            ),
            (
                "default reduction",
                "reduction: int = 16,\n        groups: int = 1,",
                "reduction: int = 8,\n        groups: int = 1,",
            ),
            ("default groups", "groups: int = 1,", "groups: int = 2,"),
            (
                "a layer on the default device",
                "nn.Linear(channels, hidden, **dd)",
                "nn.Linear(channels, hidden)",
            ),
            (
                "training on one value is not refused",
                'check_statistics("SKAttention", norm, b * h * w, f"batch {b}, map {h} x {w}")',
                "",
            ),
            (
                "shares in float32",
                "torch.stack(list(logits)).softmax(0).to(dtype)",
                "torch.stack(list(logits)).softmax(0)",
            ),
            (
                "layers of the layout swapped",
                '"convs.*.bn": "branches.*.norm",\n            "fc"',
                '"convs.*.bn": "branches.*.conv",\n            "fc"',
            ),
        ],
    },
}
