"""The kinds of jobs, in the order in which an experiment runs them."""

from sftn_fast.config import Config
from sftn_fast.experiment.kinds.base import Contents, Kind
from sftn_fast.experiment.kinds.collaborate import Collaborate
from sftn_fast.experiment.kinds.distill import Distill
from sftn_fast.experiment.kinds.early import Early
from sftn_fast.experiment.kinds.sftn import SFTN
from sftn_fast.experiment.kinds.soteacher import SoTeacher
from sftn_fast.experiment.kinds.student import Student
from sftn_fast.experiment.kinds.teacher import Teacher

_KINDS = (Teacher(), Early(), SoTeacher(), SFTN(), Student(), Distill(), Collaborate())
KINDS: dict[str, Kind] = {kind.name: kind for kind in _KINDS}


def teachers(config: Config) -> list[str]:
    """Return the names of the jobs whose networks teach, in the order of their training."""
    return [kind.name for kind in KINDS.values() if kind.teaches and kind.is_planned(config)]


__all__ = ["KINDS", "Contents", "Kind", "teachers"]
