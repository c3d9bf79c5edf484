"""Wrong edits of the contextual transformer, its circulating form and local aggregation."""

from tests.mutation.edits._edit import Table

__all__ = ["EDITS"]

AGGREGATION = "ops/local_aggregation"
WIDE = "torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)"
EDITS: Table = {
    "cot": {
        "blocks/cot.py": [
            (
                "pooling has no padding",
                "nn.AvgPool2d(3, stride, padding=1)",
                "nn.AvgPool2d(3, stride)",
            ),
            (
                "pooling leaves its padding out of the average",
                "nn.AvgPool2d(3, stride, padding=1)",
                "nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)",
            ),
            (
                "stride is ignored",
                "x = self.pool(x)\n        static, mean_of_static",
                "static, mean_of_static",
            ),
            ("the key has 4 groups in each case", "groups=4 * groups,", "groups=4,"),
            (
                "padding fits kernels of 3 alone",
                "            padding=kernel_size // 2,\n            groups",
                "            padding=1,\n            groups",
            ),
            (
                "static context in front of the map",
                "torch.cat([x, static], 1) if",
                "torch.cat([static, x], 1) if",
            ),
            (
                "two groups read one map each",
                " if g == 1 else torch.stack([x, static], 2).flatten(1, 2)",
                "",
            ),
            (
                "taps and kernels swapped",
                "kernels.reshape(b * g, 1, c // g // _SHARE, self.kernel_size**2, h, w)",
                "kernels.reshape(b * g, 1, self.kernel_size**2, -1, h, w).transpose(2, 3)",
            ),
            (
                "kernels normalised together",
                "nn.GroupNorm(kernels, kernels * taps, **dd)",
                "nn.GroupNorm(1, kernels * taps, **dd)",
            ),
            (
                "no ReLU after the key",
                'normalised_and_pooled(self.key_norm, self.key(x), "relu")',
                'normalised_and_pooled(self.key_norm, self.key(x), "none")',
            ),
            (
                "no ReLU between the kernel's layers",
                'normalised(self.kernel_reduce_norm, self.kernel_reduce(both), "relu")',
                'normalised(self.kernel_reduce_norm, self.kernel_reduce(both), "none")',
            ),
            (
                "ReLU in place of SiLU",
                'normalised_and_pooled(self.norm, mixed, "silu")',
                'normalised_and_pooled(self.norm, mixed, "relu")',
            ),
            (
                "epsilon of the result's normalisation",
                "self.norm = nn.BatchNorm2d(channels, **dd)",
                "self.norm = nn.BatchNorm2d(channels, eps=1e-3, **dd)",
            ),
            ("selection without a least width", "max(channels // 2, 32)", "channels // 2"),
            (
                "selection reads the dynamic context alone",
                "pooled = mean_of_dynamic + mean_of_static",
                "pooled = mean_of_dynamic",
            ),
            (
                "logits in halves, not in pairs",
                "logits.unflatten(1, (self.channels, 2)).unbind(2)",
                "logits.unflatten(1, (2, self.channels)).unbind(1)",
            ),
            (
                "selects the other context",
                "(towards_dynamic - towards_static).sigmoid()",
                "(towards_static - towards_dynamic).sigmoid()",
            ),
            (
                "a layer on the default device",
                "nn.Conv2d(channels, select_hidden, 1, **dd)",
                "nn.Conv2d(channels, select_hidden, 1)",
            ),
            (
                "training on one image is not refused",
                '        check_statistics("ContextualTransformer", self.select_norm, x.shape[0], '
                '"one per image")\n',
                "",
            ),
            (
                "layers of the published layout swapped",
                '"key_embed.1": "key_norm",\n            "embed.0": "kernel_reduce"',
                '"key_embed.1": "value_norm",\n            "embed.0": "kernel_reduce"',
            ),
        ],
        f"{AGGREGATION}/_taps.py": [
            (
                "taps counted column by column",
                "Tap(top * self.kernel_size + left,",
                "Tap(left * self.kernel_size + top,",
            ),
            (
                "columns that wrap around cleared on the wrong side",
                "rows[..., :shift] if shift > 0 else rows[..., shift:]",
                "rows[..., -shift:] if shift > 0 else rows[..., :-shift]",
            ),
        ],
        f"{AGGREGATION}/shifted.py": [
            (
                "c // 8 in place of c mod (C / 8)",
                "return self.rows(block).unflatten(1, (-1, self.groups))",
                "return self.rows(block).unflatten(1, (self.groups, -1)).transpose(1, 2)",
            ),
            (
                "rounded sums are not stored",
                "        _store(sums, out[block])\n",
                "",
            ),
            (
                "gradient of the weight not summed over its channels",
                "torch.sum(by_channel, 1, out=by_group)",
                "by_group.copy_(by_channel[:, 0])",
            ),
            (
                "sums in the dtype of the map",
                f"self.dtype = {WIDE}",
                "self.dtype = torch.promote_types(x.dtype, weight.dtype)",
            ),
        ],
        f"{AGGREGATION}/traced.py": [
            (
                "c // 8 in place of c mod (C / 8) in traced code",
                ".unflatten(1, (1, c // groups, groups))",
                ".unflatten(1, (1, groups, c // groups)).transpose(2, 3)",
            ),
            (
                "stride ignored on one axis of traced code",
                "window[..., ::stride, ::stride]",
                "window[..., ::stride, : 1 + (width - 1)]",
            ),
        ],
        f"{AGGREGATION}/__init__.py": [
            (
                "default padding ignores the dilation",
                "padding = dilation * (kernel_size - 1) // 2",
                "padding = (kernel_size - 1) // 2",
            ),
        ],
    },
    "cot_attention": {
        "blocks/cot.py": [
            ("map and context swapped", "torch.cat([static, x], 1)", "torch.cat([x, static], 1)"),
            (
                "softmax over the channels",
                "gate.flatten(2).softmax(2)",
                "gate.flatten(2).softmax(1)",
            ),
            (
                "softmax over each row",
                "gate.flatten(2).softmax(2).view(b, c, h, w)",
                "gate.softmax(3)",
            ),
            (
                "mean over the channels of each tap",
                "p.unflatten(0, (c, -1)).mean(1)",
                "p.unflatten(0, (-1, c)).mean(0)",
            ),
            ("sum in place of mean", "(c, -1)).mean(1)", "(c, -1)).sum(1)"),
            (
                "gate on the static context",
                "(self._gate(x, static) * value).add_(static)",
                "(self._gate(x, static) * static).add_(value)",
            ),
            (
                "values of the static context",
                "self.value(x))\n        return",
                "self.value(static))\n        return",
            ),
            (
                "no ReLU in the gate",
                "functional.relu(self.gate_norm(self.gate_reduce(torch.cat([static, x], 1))))",
                "self.gate_norm(self.gate_reduce(torch.cat([static, x], 1)))",
            ),
            (
                "no ReLU after the key",
                "static = functional.relu(self.key_norm(self.key(x)))\n        value",
                "static = self.key_norm(self.key(x))\n        value",
            ),
            (
                "padding fits kernels of 3 alone",
                "padding=kernel_size // 2, groups=4",
                "padding=1, groups=4",
            ),
            ("the key has 2 groups", "kernel_size // 2, groups=4", "kernel_size // 2, groups=2"),
            (
                "epsilon of the gate's normalisation",
                "self.gate_norm = nn.BatchNorm2d(hidden, **dd)",
                "self.gate_norm = nn.BatchNorm2d(hidden, eps=1e-3, **dd)",
            ),
            (
                "a layer in the default dtype",
                "self.gate_norm = nn.BatchNorm2d(hidden, **dd)",
                "self.gate_norm = nn.BatchNorm2d(hidden)",
            ),
            (
                "bias of the gate left out",
                "functional.conv2d(gate, weight, bias)",
                "functional.conv2d(gate, weight)",
            ),
            (
                "training on one value is not refused",
                '        check_statistics("CoTAttention", self.key_norm, b * h * w, '
                'f"batch {b}, map {h} x {w}")\n',
                "",
            ),
            (
                "normalisations swapped in the layout",
                '"key_embed.1": "key_norm",\n            "value_embed.0": "value",\n'
                '            "value_embed.1": "value_norm"',
                '"key_embed.1": "value_norm",\n            "value_embed.0": "value",\n'
                '            "value_embed.1": "key_norm"',
            ),
        ],
    },
}
