"""Studies: variants of a network, compared fairly over several seeds and reported honestly.

Each name is imported when first used: a report needs no training library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visgraft.study.control import Control
    from visgraft.study.errors import StudyError
    from visgraft.study.execution import StudyInterrupted, StudyResult, run_study
    from visgraft.study.placement.placing import Placement, place
    from visgraft.study.placement.plan import PlacementPlan, plan_placement
    from visgraft.study.plan import Study, TrialSpec, Variant, list_studies, load_study, trials
    from visgraft.study.planning import SeedPlan, plan_seeds
    from visgraft.study.reports.comparing import StudyComparison, compare_studies
    from visgraft.study.reports.writing import report, study_data, terminal_table
    from visgraft.study.store import Store, TrialRecord

__all__ = [
    "Control",
    "Placement",
    "PlacementPlan",
    "SeedPlan",
    "Store",
    "Study",
    "StudyComparison",
    "StudyError",
    "StudyInterrupted",
    "StudyResult",
    "TrialRecord",
    "TrialSpec",
    "Variant",
    "compare_studies",
    "list_studies",
    "load_study",
    "place",
    "plan_placement",
    "plan_seeds",
    "report",
    "run_study",
    "study_data",
    "terminal_table",
    "trials",
]

_HOMES = {
    "reports.comparing": ("StudyComparison", "compare_studies"),
    "control": ("Control",),
    "errors": ("StudyError",),
    "execution": ("StudyInterrupted", "StudyResult", "run_study"),
    "placement.placing": ("Placement", "place"),
    "placement.plan": ("PlacementPlan", "plan_placement"),
    "plan": ("Study", "TrialSpec", "Variant", "list_studies", "load_study", "trials"),
    "planning": ("SeedPlan", "plan_seeds"),
    "reports.writing": ("report", "study_data", "terminal_table"),
    "store": ("Store", "TrialRecord"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
