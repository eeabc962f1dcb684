"""Running the trials of a study: from what a training function returns or raises to an outcome.

Nothing slow is imported here, since every worker process does.
"""

import errno
import inspect
import math
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import polylosses
from polylosses.tune.plan import CONFIRMATION, SELECTION, Outcome, Plan, Trial
from polylosses.tune.store import Store

if TYPE_CHECKING:
    from polylosses.tune.labelled import Labelled

# Seconds between two looks into the storage for trials that others have added or finished.
PAUSE = 0.5

# A full disk is no fault of the loss whose training finds it so: the study stops.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

# The error of a training that diverged. It may be the point's fault, so that it does not stop a study alone.
NOT_FINITE = "it returned nan or infinity"


def run(
    plan: Plan, train: Callable[[Trial], Any], attributes: Mapping[str, Any], labelled: "Labelled | None" = None
) -> Outcome:
    """Runs one trial, and turns what it returns or raises into an outcome.

    Args:
        plan: the study's.
        train: the user's function.
        attributes: those of the trial in the storage.
        labelled: labels and metric, if the study draws the splits.

    Raises:
        OSError: the disk is full.
    """
    trial = plan.trial(*(attributes[name] for name in ("stage", "loss", "point", "repeat")))
    process = os.getpid()
    try:
        if labelled is not None:
            trial = labelled.drawn(trial)
        returned = train(trial)
        if os.getpid() != process:
            os._exit(0)  # a process that the function has forked, and that would run trials as if it were this one
        outcome = labelled.scored(trial, returned) if labelled else outcome_of_scores(returned, trial.stage)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if os.getpid() != process:
            os._exit(1)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        outcome = Outcome(math.nan, error=_described(error))
    return replace(outcome, software=software() | revision(Path(inspect.getsourcefile(train) or ".").parent))


def _described(error: BaseException) -> str:
    """The error with the line of the user's code where it was raised."""
    if isinstance(error, SystemExit):
        return f"it ended the process, with code {error.code!r}"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (line {frames[-1].lineno} of {Path(frames[-1].filename).name})" if frames else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}{where}" if text else f"{type(error).__name__}{where}"


def outcome_of_scores(returned: Any, stage: str) -> Outcome:
    """The outcome of a training that returned its scores.

    Raises:
        ValueError: it returned something else.
    """
    scores = returned if isinstance(returned, Mapping) else {"validation": returned, "test": returned}
    if set(scores) != {"validation", "test"}:
        raise ValueError(f"a training must return a number, or a dict of 'validation' and 'test'; got {scores!r}.")
    found = {}
    for name, given in scores.items():
        array = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
        if array.dtype.kind not in "fiub" or array.ndim > 1 or array.size == 0:
            text = repr(given) if len(repr(given)) < 80 else f"{type(given).__name__} of shape {array.shape}"
            raise ValueError(f"a score must be a number, or an array of the scores of rows; got {text} for {name!r}.")
        found[name] = array.astype(float)
        if not np.isfinite(found[name]).all():
            return Outcome(math.nan, error=NOT_FINITE)
    chosen = found["validation" if stage == SELECTION else "test"]
    has_test = isinstance(returned, Mapping)
    rows = chosen if chosen.ndim and stage == CONFIRMATION else None
    return Outcome(float(chosen.mean()), rows, {"test": has_test})


def software() -> dict[str, str]:
    """Versions of Python and of the packages that a training may depend on, as far as they are loaded."""
    found = {"python": platform.python_version(), "polylosses": polylosses.__version__}
    for name in ("torch", "jax", "keras", "lightning", "transformers", "lightgbm", "xgboost", "catboost", "sklearn"):
        if name in sys.modules:
            found[name] = str(getattr(sys.modules[name], "__version__", "?"))
    return found


@lru_cache
def revision(folder: Path) -> dict[str, str]:
    """The commit of the repository that a folder is in, and whether anything was changed since; nothing without one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        return {"commit": git("rev-parse", "--short", "HEAD") + changed}
    except (OSError, subprocess.SubprocessError):
        return {}


def work(plan: Plan, train: Callable[[Trial], Any], store: Store, stopped: Callable[[], bool]) -> None:
    """Runs waiting trials until ``stopped`` says so."""
    while not stopped():
        if store.run_one(lambda attributes: run(plan, train, attributes)) is None:
            time.sleep(PAUSE)
