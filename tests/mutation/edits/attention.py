"""Wrong edits of bottleneck attention, its circulating form and relative attention."""

from tests.mutation.edits._edit import Table

__all__ = ["EDITS"]

BLOCK = "blocks/bottleneck_attention.py"
TABLES = "blocks/_position_tables.py"
RELATIVE = "ops/relative_attention"
SCALED = "q = as_positions(query) * query.shape[2] ** -0.5"
EDITS: Table = {
    "bottleneck_attention": {
        BLOCK: [
            (
                "tables swapped",
                "relative_attention(query, key, value, *self._offsets(x))",
                "relative_attention(query, key, value, *self._offsets(x)[::-1])",
            ),
            (
                "query and key swapped",
                "query, key, value = (\n            part.reshape",
                "key, query, value = (\n            part.reshape",
            ),
            (
                "channels of a head lie apart",
                "part.reshape(x.shape[0], heads, width // heads, h, w)",
                "part.reshape(x.shape[0], width // heads, heads, h, w).transpose(1, 2)",
            ),
            (
                "widths of key and value swapped",
                "[inner, inner, out_channels]",
                "[inner, out_channels, inner]",
            ),
            (
                "absolute attention not scaled",
                "_attend(query, key, value, self.head_dim**-0.5)",
                "_attend(query, key, value, 1.0)",
            ),
            ("absolute position turned", ".permute(2, 0, 1)", ".permute(2, 1, 0)"),
            (
                "absolute position on the values",
                "key = key + (rows[:, None]",
                "value = value + (rows[:, None]",
            ),
            (
                "tables drawn at unit size",
                "nn.init.normal_(table, std=head_dim**-0.5)",
                "nn.init.normal_(table)",
            ),
            (
                "a table in the default dtype",
                "torch.empty(2 * width - 1, head_dim, **dd)",
                "torch.empty(2 * width - 1, head_dim)",
            ),
            ("last average dropped", "ceil_mode=True", "ceil_mode=False"),
            (
                "average counts the padding",
                ", count_include_pad=False",
                "",
                "there is no padding, and a window is cut at the end of the map",
            ),
            (
                "rows loaded as columns",
                '"pos_embed.width_rel": "offset_columns"',
                '"pos_embed.width_rel": "offset_rows"',
            ),
            (
                "tables of lucidrains swapped",
                'rel_height": "offset_rows",\n            "pos_emb.rel_width": "offset_columns"',
                'rel_height": "offset_columns",\n            "pos_emb.rel_width": "offset_rows"',
            ),
            (
                "joined projections have heads and depth swapped",
                "state.pop(name).flatten(1).T",
                "state.pop(name).mT.flatten(1).T",
            ),
        ],
        TABLES: [
            (
                "interpolation holds the ends",
                "((entry + 0.5) * (len(table) / entries) - 0.5)",
                "(entry * ((len(table) - 1) / max(entries - 1, 1)))",
            ),
            (
                "interpolation in the dtype of the table",
                "wide = torch.promote_types(table.dtype, torch.float32)",
                "wide = table.dtype",
            ),
            (
                "exported graph keeps the tables of the example",
                "if not exporting() and len(table) == entries",
                "if len(table) == entries",
            ),
        ],
        f"{RELATIVE}/_logits.py": [
            (
                "position of the query minus the key",
                "position - position[:, None] + length - 1",
                "position[:, None] - position + length - 1",
            ),
        ],
        f"{RELATIVE}/direct.py": [
            ("not scaled", SCALED, "q = as_positions(query)"),
            (
                "position not scaled",
                "offset_logits(q, rows",
                "offset_logits(as_positions(query), rows",
            ),
            ("softmax over the queries", "logits.softmax(2)", "logits.softmax(1)"),
        ],
        f"{RELATIVE}/chunked.py": [
            ("not scaled on large maps", SCALED, "q = as_positions(query)"),
            (
                "gradients of the tables swapped",
                "[1][heads, some] = logits.sum(3)\n        grads[2][heads, some] = logits.sum(2)",
                "[2][heads, some] = logits.sum(3)\n        grads[1][heads, some] = logits.sum(2)",
            ),
            (
                "gradient without the softmax's common term",
                ".sub_(common[heads, some])",
                "",
            ),
            (
                "only the last chunk counts for the key",
                "grad_key[heads] += logits.mT @ q",
                "grad_key[heads] = logits.mT @ q",
            ),
        ],
    },
    "mhsa": {
        BLOCK: [
            (
                "scaled",
                "_attend(query, key, value, 1.0)",
                "_attend(query, key, value, query.shape[2] ** -0.5)",
            ),
            ("softmax over the queries", ".softmax(3)", ".softmax(2)"),
            (
                "attention turned",
                "value.flatten(3) @ _weights(query, key).transpose(2, 3)",
                "value.flatten(3) @ _weights(query, key)",
            ),
            ("position meets the key", "torch.cat([key, query], 2)", "torch.cat([key, key], 2)"),
            (
                "position of the query's own place",
                "torch.cat([query, position], 2), torch.cat([key, query], 2)",
                "torch.cat([query, query], 2), torch.cat([key, position], 2)",
            ),
            (
                "position turned",
                "(self.rows + self.columns).flatten(2)",
                "(self.rows + self.columns).mT.flatten(2)",
            ),
            (
                "corner of the table in place of its start",
                ".flatten(2).index_select(2, start).unflatten(2, (h, w))",
                "[..., :h, :w]",
            ),
            (
                "query and key swapped on large maps",
                "return _attend(query, key, value, 1.0)",
                "return _attend(key, query, value, 1.0)",
            ),
            (
                "padding of the depth stays",
                "mixed[..., : value.shape[2]].transpose(2, 3)",
                "mixed.transpose(2, 3)",
            ),
            (
                "table of zeros",
                "torch.randn(num_heads, depth, height, 1, **dd)",
                "torch.zeros(num_heads, depth, height, 1, **dd)",
            ),
            (
                "table on the default device",
                "torch.randn(num_heads, depth, 1, width, **dd)",
                "torch.randn(num_heads, depth, 1, width)",
            ),
            (
                "refuses by side, not by positions",
                "if h * w > height * width:",
                "if h > height or w > width:",
            ),
            (
                "rows and columns of the table swapped",
                'height, width = checked_size("MHSA", feature_size)',
                'width, height = checked_size("MHSA", feature_size)',
            ),
            (
                "rows and columns swapped in the layout",
                '{"rel_w": "rows", "rel_h": "columns"}',
                '{"rel_w": "columns", "rel_h": "rows"}',
            ),
            (
                "position in the dtype of the table",
                "self._position(x).to(query.dtype)",
                "self._position(x)",
                "only autocast tells them apart, and it rounds the operands of the product itself",
            ),
            (
                "the way is fixed by the example of an export",
                "if self.use_position and (exporting() or x.shape[2]",
                "if self.use_position and (x.shape[2]",
            ),
        ],
    },
}
