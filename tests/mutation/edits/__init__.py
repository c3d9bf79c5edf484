"""Wrong edits of each block and of its operation, as exact replacements in one file."""

from tests.mutation.edits import attention, context, gates, sampling, selection
from tests.mutation.edits._edit import Edit

__all__ = ["EDITS", "Edit"]

# Per block and file: what is wrong, the text, and what takes its place
TABLES = (context.EDITS, gates.EDITS, attention.EDITS, sampling.EDITS, selection.EDITS)
EDITS: dict[str, list[Edit]] = {
    block: [Edit(file, *edit) for file, edits in files.items() for edit in edits]
    for table in TABLES
    for block, files in table.items()
}
