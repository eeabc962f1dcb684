"""Tuning of epsilon, with a test of whether the best one improves on plain cross-entropy."""

try:
    import pandas as _pandas  # noqa: F401
    import plotly as _plotly  # noqa: F401
    import scipy as _scipy  # noqa: F401
    import sklearn as _sklearn  # noqa: F401
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(f"polylosses.tune needs {error.name}: pip install 'polylosses[tune]'") from error

from polylosses.tune.data import load
from polylosses.tune.result import Result, write_runs
from polylosses.tune.sweep import SweepInterrupted, sweep

__all__ = ["Result", "SweepInterrupted", "load", "sweep", "write_runs"]
