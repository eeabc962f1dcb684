"""Tuning of the loss, with a test of whether the best one improves on plain cross-entropy."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polylosses.tune.analysis import Comparison, compare
    from polylosses.tune.data import load
    from polylosses.tune.plan import Trial
    from polylosses.tune.result import Result
    from polylosses.tune.studies import StudyResult, study
    from polylosses.tune.tabular import SweepInterrupted, sweep

__all__ = [
    "Comparison",
    "Result",
    "StudyResult",
    "SweepInterrupted",
    "Trial",
    "compare",
    "load",
    "study",
    "sweep",
]

_MODULES = {
    "analysis": ("Comparison", "compare"),
    "data": ("load",),
    "plan": ("Trial",),
    "result": ("Result",),
    "studies": ("StudyResult", "study"),
    "tabular": ("SweepInterrupted", "sweep"),
}


def __getattr__(name: str) -> Any:
    """Imports what is used: all of it takes 5 s of a processor, which every worker process of a study would pay."""
    for module, names in _MODULES.items():
        if name in names:
            try:
                found = getattr(import_module(f"polylosses.tune.{module}"), name)
            except ImportError as error:
                raise ImportError(f"polylosses.tune needs {error.name}: pip install 'polylosses[tune]'") from error
            globals()[name] = found
            return found
    raise AttributeError(f"module 'polylosses.tune' has no attribute {name!r}")
