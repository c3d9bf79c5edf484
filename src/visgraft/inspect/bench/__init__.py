"""Benchmarks of operations, blocks and networks, side by side with what they stand for."""

from visgraft.inspect.bench.block_cases import block_cases
from visgraft.inspect.bench.cases import Case, CaseMaker, Form
from visgraft.inspect.bench.document import (
    ALLOCATORS,
    check_target,
    measure_cases,
    measure_in_children,
    read_document,
    unfinished_file,
    write_document,
)
from visgraft.inspect.bench.network_cases import network_cases
from visgraft.inspect.bench.op_cases import op_cases
from visgraft.inspect.bench.picture import check_picture, draw_document
from visgraft.inspect.bench.running import Settings, agreeing_calls, run_case

__all__ = [
    "ALLOCATORS",
    "Case",
    "CaseMaker",
    "Form",
    "Settings",
    "agreeing_calls",
    "block_cases",
    "check_picture",
    "check_target",
    "draw_document",
    "measure_cases",
    "measure_in_children",
    "network_cases",
    "op_cases",
    "read_document",
    "run_case",
    "unfinished_file",
    "write_document",
]
