"""Grafting of blocks into models that were not written for them."""

from visgraft.surgery.graft import Graft, graft
from visgraft.surgery.plans import apply_plan
from visgraft.surgery.report import GraftRow
from visgraft.surgery.sites import Site, find_sites

__all__ = ["Graft", "GraftRow", "Site", "apply_plan", "find_sites", "graft"]
