"""Wrong edits of ACmix, SPD-Conv, deformable convolution and their operations."""

from tests.mutation.edits._edit import Table

__all__ = ["EDITS"]

WINDOW = "ops/window_attention"
ATTENTION = "out = functional.scaled_dot_product_attention"
EDITS: Table = {
    "acmix": {
        "blocks/acmix.py": [
            ("sign of the position", "key - self._encode(x)", "key + self._encode(x)"),
            ("row before column", "torch.stack([column, row])", "torch.stack([row, column])"),
            (
                "positions in the middle of pixels",
                "2 * place / place[-1].clamp(min=1) - 1",
                "(2 * place + 1) / size - 1",
            ),
            (
                "positions in the dtype of the map",
                "wide = torch.promote_types(x.dtype, torch.float32)",
                "wide = x.dtype",
            ),
            (
                "weights of the two ways swapped",
                "convolved * self.convolution_scale + attended * self.attention_scale",
                "convolved * self.attention_scale + attended * self.convolution_scale",
            ),
            (
                "key before query",
                "layers = (self.query, self.key, self.value)",
                "layers = (self.key, self.query, self.value)",
            ),
            (
                "channels of a head lie apart",
                "reshape(b, maps, depth, h, w).transpose(1, 2)",
                "reshape(b, depth, maps, h, w)",
            ),
            (
                "channels of a head lie apart on small maps",
                "view(b, h, w, 3 * maps, depth).permute(0, 4, 3, 1, 2)",
                "view(b, h, w, depth, 3 * maps).permute(0, 3, 4, 1, 2)",
            ),
            (
                "hooks of the projections forgotten on small maps",
                "small and all(map(_is_bare, layers))",
                "small",
            ),
            (
                "queries from the second pixel",
                "query[..., :: self.stride, :: self.stride]",
                "query.roll((-1, -1), (-2, -1))[..., :: self.stride, :: self.stride]",
            ),
            (
                "dilation ignored",
                "self.attention_size, self.stride, self.dilation",
                "self.attention_size, self.stride, 1",
            ),
            (
                "shifts the other way",
                "view(taps, kernel_size, kernel_size)",
                "view(taps, kernel_size, kernel_size).flip(0)",
            ),
            (
                "rows and columns of the shifts swapped",
                "view(taps, kernel_size, kernel_size)",
                "view(taps, kernel_size, kernel_size).mT",
            ),
            (
                "scales start at one",
                "self.attention_scale = nn.Parameter(torch.full((1,), 0.5,",
                "self.attention_scale = nn.Parameter(torch.full((1,), 1.0,",
            ),
            (
                "a scale on the default device",
                "self.convolution_scale = nn.Parameter(torch.full((1,), 0.5, **dd))",
                "self.convolution_scale = nn.Parameter(torch.full((1,), 0.5))",
            ),
            (
                "taps before channels with many heads",
                "mixed.unflatten(2, (depth, -1)).transpose(1, 2)",
                "mixed.unflatten(2, (depth, -1))",
            ),
            (
                "composed kernel has no padding",
                "None, shift.stride, shift.padding",
                "None, shift.stride, 0",
            ),
            (
                "scales swapped in the layout",
                '"rate1": "attention_scale",\n            "rate2": "convolution_scale"',
                '"rate1": "convolution_scale",\n            "rate2": "attention_scale"',
            ),
        ],
        f"{WINDOW}/_geometry.py": [
            (
                "edge repeated in place of reflected",
                "reflected if size > reach else nearest",
                "nearest",
            ),
            (
                "reflects maps as long as the reach",
                "reflected if size > reach else",
                "reflected if size >= reach else",
            ),
            (
                "window one key too long",
                "(ahead < self.kernel_size)",
                "(ahead <= self.kernel_size)",
            ),
            (
                "exported graph repeats the edge",
                "device=positions.device) > reach,",
                "device=positions.device) < 0,",
            ),
        ],
        f"{WINDOW}/dense.py": [
            (
                "repeated positions count once",
                "scatter_add_(1, read, ones)",
                "scatter_(1, read, ones)",
            ),
            (
                "not scaled",
                "positions(value), bias.to(query.dtype)",
                "positions(value), bias.to(query.dtype), scale=1.0",
            ),
        ],
        f"{WINDOW}/tiles.py": [
            (
                "not scaled in tiles",
                f"remakes):\n            {ATTENTION}(*tiles, inside)",
                f"remakes):\n            {ATTENTION}(*tiles, inside, scale=1.0)",
            ),
            (
                "values made again from the keys",
                "partial(_key_tiles, value.detach(), index)",
                "partial(_key_tiles, key.detach(), index)",
            ),
        ],
    },
    "spd_conv": {
        "ops/space_to_depth.py": [
            ("row before column", "order = (-1, -3, -5, -4, -2)", "order = (-3, -1, -5, -4, -2)"),
            ("channels outermost", "order = (-1, -3, -5, -4, -2)", "order = (-5, -3, -1, -4, -2)"),
            (
                "row before column in traced code",
                "for columns in ranges for rows in ranges",
                "for rows in ranges for columns in ranges",
            ),
            ("margin on the left and top", "(0, right, 0, below)", "(right, 0, below, 0)"),
            ("margins of the axes swapped", "below, right = (-n", "right, below = (-n"),
            ("traced code has no margin", "below = right = scale - 1", "below = right = 0"),
        ],
        "blocks/spd_conv.py": [
            (
                "margin of the block on the left and top",
                "self.margin = (0, scale - 1, 0, scale - 1)",
                "self.margin = (scale - 1, 0, scale - 1, 0)",
            ),
            (
                "no margin",
                "self.margin = (0, scale - 1, 0, scale - 1)",
                "self.margin = (0, 0, 0, 0)",
            ),
            (
                "padding fits kernels of 3 alone",
                "padding=kernel_size // 2,\n            groups",
                "padding=1,\n            groups",
            ),
            (
                "groups see pixels of all channels",
                "if self.groups == 1:\n            return",
                "if self.groups >= 1:\n            return",
            ),
            (
                "convolution on the default device",
                "device=device,\n            dtype=dtype,\n        )\n        self.register",
                ")\n        self.register",
            ),
            (
                "kernel laid at the corner",
                "top, left = self.rows.before - pad_h, self.columns.before - pad_w",
                "top, left = 0, 0",
            ),
            (
                "larger kernel not centred",
                "size, before = kernel_size, scale * (kernel_size // 2)",
                "size, before = kernel_size, padding",
            ),
            (
                "margins of a convolution's axes swapped",
                "(columns.before, columns.after, rows.before, rows.after)",
                "(rows.before, rows.after, columns.before, columns.after)",
            ),
            (
                "edges of the axes swapped",
                "edge = (pad_w, pad_w, pad_h, pad_h)",
                "edge = (pad_h, pad_h, pad_w, pad_w)",
            ),
            (
                "bias of the convolution not taken",
                'for name in ("weight", "bias")',
                'for name in ("weight",)',
            ),
            ("default kernel", "kernel_size: int = 3,", "kernel_size: int = 1,"),
            (
                "margin in full where the map ends on a square",
                "            bottom -= min(bottom, (top + h + bottom) % self.scale)\n",
                "",
                "space to depth drops what fills no whole square",
            ),
            ("bias by default", "bias: bool = False,", "bias: bool = True,"),
        ],
    },
    "deform_conv": {
        "blocks/deform_conv.py": [
            (
                "bound of the scales ignored",
                "self.mask_scale * logits.sigmoid()",
                "logits.sigmoid()",
            ),
            ("no sigmoid", "logits.sigmoid()", "logits"),
            (
                "offsets behind the mask",
                "offset, logits = offset.split([moves, offset.shape[1] - moves], 1)",
                "logits, offset = offset.split([offset.shape[1] - moves, moves], 1)",
            ),
            (
                "bias left out",
                "return out if self.bias is None else out + self.bias.to(dtype)[:, None, None]",
                "return out",
            ),
            (
                "offsets do not start at zero",
                "nn.init.zeros_(zero)",
                "nn.init.normal_(zero, std=0.01)",
            ),
            ("weight drawn larger", "a=5**0.5", "a=1"),
            (
                "default padding ignores the dilation",
                "dilations[0] * (kernel[0] // 2), dilations[1] * (kernel[1] // 2)",
                "kernel[0] // 2, kernel[1] // 2",
            ),
            (
                "offsets on the default device",
                "**self.geometry._asdict(),\n            **dd,",
                "**self.geometry._asdict(),",
            ),
            ("fresh block from a convolution halves it", "mask_scale=2.0,", "mask_scale=1.0,"),
            (
                "exported without the mask",
                "stride, padding, dilation, mask)\n        return out.to",
                "stride, padding, dilation, None)\n        return out.to",
            ),
            (
                "exported without the bias",
                "(x, offset, weight, bias, stride, padding",
                "(x, offset, weight, None, stride, padding",
            ),
            ("exported in the wider dtype", "return out.to(dtype)", "return out"),
            (
                "weight loaded as bias",
                '{"conv2_offset": "offset", "conv2.weight": "weight", "conv2.bias": "bias"}',
                '{"conv2_offset": "offset", "conv2.weight": "bias", "conv2.bias": "weight"}',
            ),
        ],
        "ops/deformable_convolution/__init__.py": [
            ("offsets of the axes swapped", "moved[:, :, 1 - axis]", "moved[:, :, axis]"),
            ("gradients of the axes swapped", ".flip(-1).movedim(-1, 2)", ".movedim(-1, 2)"),
            (
                "corners aligned",
                "mul_(2 / size).add_(1 / size - 1)",
                "mul_(2 / max(size - 1, 1)).add_(-1)",
            ),
            (
                "map padded in front",
                "(0, width - w, 0, height - h)",
                "(width - w, 0, height - h, 0)",
            ),
            (
                "numbers of the axes swapped",
                "(numbers[axis] for numbers in call)",
                "(numbers[1 - axis] for numbers in call)",
            ),
            (
                "offset groups innermost",
                "unflatten(1, (self.groups, self.taps, 2)).flatten(0, 1)",
                "unflatten(1, (self.taps, self.groups, 2)).transpose(1, 2).flatten(0, 1)",
            ),
            ("gradient of the weight without the mask", "            values *= scale\n", ""),
            ("gradient of the map without the mask", "            grads *= scale\n", ""),
            (
                "edge repeated beyond the map",
                "torch.grid_sampler_2d(source, grid, 0, 0, False)",
                "torch.grid_sampler_2d(source, grid, 0, 1, False)",
            ),
            (
                "taps placed in the dtype of the map",
                "self.wide = torch.promote_types(x.dtype, torch.float32)",
                "self.wide = x.dtype",
            ),
            (
                "gradient in units of the other axis",
                "[2 / height, 2 / width]",
                "[2 / width, 2 / height]",
            ),
        ],
    },
}
