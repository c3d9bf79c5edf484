"""Leaves out the tests of Triton kernels where Triton is not installed."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("triton") else ["*triton*.py", "*gpu*.py"]
