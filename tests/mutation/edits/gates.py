"""Wrong edits of global context and coordinate attention."""

from tests.mutation.edits._edit import Table

__all__ = ["EDITS"]

EDITS: Table = {
    "global_context": {
        "blocks/global_context.py": [
            (
                "bottleneck rounded up",
                "hidden = channels // reduction\n        if",
                "hidden = -(-channels // reduction)\n        if",
            ),
            (
                "epsilon of the layer norm",
                "nn.LayerNorm([hidden, 1, 1], **dd)",
                "nn.LayerNorm([hidden, 1, 1], eps=1e-6, **dd)",
            ),
            (
                "layer norm in the default dtype",
                "nn.LayerNorm([hidden, 1, 1], **dd)",
                "nn.LayerNorm([hidden, 1, 1])",
            ),
            (
                "no ReLU in the bottleneck",
                "functional.relu(self.norm(self.reduce(context)))",
                "self.norm(self.reduce(context))",
            ),
            (
                "ReLU in front of the layer norm",
                "functional.relu(self.norm(self.reduce(context)))",
                "self.norm(functional.relu(self.reduce(context)))",
            ),
            ("no sigmoid", "self.mul(context).sigmoid()", "self.mul(context)"),
            (
                "addition before multiplication",
                "(x * scale).add_(self.add(context))",
                "(x + self.add(context)) * scale",
            ),
            ("writes to its input", "return x * scale if", "return x.mul_(scale.detach()) if"),
            (
                "maximum in place of average",
                "mean_over(x, 2, 3, keepdim=True)",
                "x.amax((2, 3), keepdim=True)",
            ),
            (
                "last layer not zero at the start",
                "        nn.init.zeros_(self.expand.weight)\n",
                "",
            ),
            (
                "last bias not zero at the start",
                "nn.init.zeros_(self.expand.bias)",
                "nn.init.ones_(self.expand.bias)",
            ),
            (
                "attention drawn for its outputs",
                'nn.init.kaiming_normal_(self.attend.weight, nonlinearity="relu")',
                'nn.init.kaiming_normal_(self.attend.weight, mode="fan_out", nonlinearity="relu")',
            ),
            ("default reduction", "reduction: int = 16,", "reduction: int = 8,"),
            ("claims to start as identity", "return self.mul is None", "return True"),
            (
                "ways swapped in the layout",
                '"channel_add_conv.3": "add.expand"',
                '"channel_add_conv.3": "mul.expand"',
            ),
        ],
        "ops/attention_pooling.py": [
            ("softmax over the one channel", "logits.softmax(2)", "logits.softmax(1)"),
            ("positions in another order", "(x.flatten(2) @", "(x.mT.flatten(2) @"),
            (
                "gradient of the softmax not centred",
                "(of_attention - (of_attention * attention).sum(2, keepdim=True)) * attention",
                "of_attention * attention",
            ),
            (
                "gradient of the map lost",
                "torch.baddbmm(of_map.flatten(2), channels",
                "torch.bmm(channels",
            ),
            (
                "gradient of the weight of one image",
                "transpose(1, 2)).sum(0)",
                "transpose(1, 2))[0]",
            ),
        ],
    },
    "coord_attention": {
        "blocks/coord_attention.py": [
            ("strips cut at the width", "strips.split([h, w], 2)", "strips.split([w, h], 2)"),
            ("one layer for both axes", "self.expand_h(rows)", "self.expand_w(rows)"),
            (
                "layers of the axes swapped",
                "self.expand_h(rows), self.expand_w(columns)",
                "self.expand_w(rows), self.expand_h(columns)",
            ),
            ("SiLU in place of hard swish", "functional.hardswish", "functional.silu"),
            ("gate of the columns not turned", "(columns).transpose(2, 3)", "(columns)"),
            (
                "columns from the end",
                "(columns).transpose(2, 3)",
                "(columns).flip(2).transpose(2, 3)",
            ),
            (
                "sigmoid twice",
                "return self.expand_h(rows),",
                "return self.expand_h(rows).sigmoid(),",
            ),
            (
                "epsilon of the normalisation",
                "nn.BatchNorm2d(hidden, **dd)",
                "nn.BatchNorm2d(hidden, eps=1e-3, **dd)",
            ),
            (
                "momentum of the normalisation",
                "nn.BatchNorm2d(hidden, **dd)",
                "nn.BatchNorm2d(hidden, momentum=0.01, **dd)",
            ),
            (
                "normalisation on the default device",
                "nn.BatchNorm2d(hidden, **dd)",
                "nn.BatchNorm2d(hidden)",
            ),
            (
                "each strip normalised by itself",
                "self.norm(self.reduce(means))",
                "torch.cat([self.norm(self.reduce(s)) for s in means.split([h, w], 2)], 2)",
            ),
            (
                "upper bound of the bottleneck",
                "hidden = max(min_hidden, channels",
                "hidden = min(min_hidden, channels",
            ),
            ("default reduction", "reduction: int = 32,", "reduction: int = 16,"),
            ("default bound", "min_hidden: int = 8,", "min_hidden: int = 4,"),
            (
                "axes swapped in the layout",
                '"conv_h": "expand_h", "conv_w": "expand_w"',
                '"conv_h": "expand_w", "conv_w": "expand_h"',
            ),
            (
                "axes swapped in the other layout",
                '"conv2": "expand_h", "conv3": "expand_w"',
                '"conv2": "expand_w", "conv3": "expand_h"',
            ),
        ],
        "ops/strip_gate/reference.py": [
            (
                "strips swapped",
                "[mean_over(x, 3), mean_over(x, 2)]",
                "[mean_over(x, 2), mean_over(x, 3)]",
            ),
            (
                "strips swapped in channels_last",
                "[mean_over(last, 2), mean_over(last, 1)]",
                "[mean_over(last, 1), mean_over(last, 2)]",
            ),
            (
                "gate of the columns not turned in channels_last",
                "columns.permute(0, 2, 3, 1)",
                "columns.permute(0, 3, 2, 1)",
            ),
            ("no gate of the columns", "gated = x * columns", "gated = x"),
            ("gates added", "gated * rows if keeps else gated.mul_(rows)", "gated + x * rows"),
            (
                "no sigmoid on the rows",
                "rows.sigmoid(), columns.sigmoid()",
                "rows, columns.sigmoid()",
            ),
            ("maximum in place of average", "[mean_over(x, 3), ", "[x.amax(3), "),
        ],
        "ops/strip_gate/_derivatives.py": [
            ("gradient of the means lost", "spread(grad, of_map, of_map)", "pass"),
            (
                "gradient of the map lost",
                "spread(grad, of_map, of_map)",
                "spread(grad, None, of_map)",
            ),
        ],
        "ops/strip_gate/native.py": [
            ("gradient of the columns turned", "(rows.dtype), grads[2]", "(rows.dtype), -grads[2]"),
        ],
    },
}
