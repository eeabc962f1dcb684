"""Result of a sweep: data frames, CSV, JSON, and the HTML report."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from polylosses.tune import report, statistics
from polylosses.tune.boosted import LIBRARIES
from polylosses.tune.files import write_files
from polylosses.tune.plan import CROSS_ENTROPY, shown
from polylosses.tune.sequential import Confirmation


@dataclass(frozen=True)
class Result:
    """Result of :func:`polylosses.tune.sweep`."""

    table: pd.DataFrame
    """Validation results, one row per loss: ``loss``, its ``epsilon`` (nan if it has none), the selected
    ``learning_rate``, the mean ``score``, the paired ``difference`` to cross-entropy with its 95 % interval
    ``difference_low`` to ``difference_high``, ``mean_p_t`` (mean probability of the training label at the end of
    training), and the calibration errors ``calibration_error`` of the softmax and ``calibration_error_poly_softmax`` of
    :func:`polylosses.torch.poly_softmax`."""
    runs: pd.DataFrame
    """All trained models, one row each: ``stage`` (selection or confirmation), ``repeat``, ``loss``, ``epsilon``,
    ``learning_rate``, every metric on the validation or test rows of the stage, and the last three columns of
    ``table``."""
    columns: pd.DataFrame
    """How the columns of the features were read, one row each: ``name``, ``read`` (as a number, as text, or why it was
    left out), how many values are ``missing``, the first one as an ``example``, and a ``warning`` if something may be
    wrong with it."""
    verdict: str
    """``"better"``, ``"worse"`` or ``"no detectable difference"``: ``candidate`` compared to cross-entropy; or
    ``"undecided"``, if one of them did best with a learning rate at the edge, however far that was moved."""
    sentence: str
    """The verdict with its numbers, as a sentence."""
    candidate: str
    """The loss, other than cross-entropy, with the best mean score on validation rows."""
    best_epsilon: float
    """Its epsilon; nan if it has none."""
    confirmation: Confirmation
    """Difference in the metric, ``candidate`` minus cross-entropy, on the test rows with fresh seeds."""
    notes: list[str]
    """Caveats to the verdict, and notes about the data."""
    settings: dict[str, Any]
    """Arguments, description of the data, and versions. ``always_guessing`` is the metric of always guessing the
    largest class of the test rows, or for the log loss of giving the shares of their classes. ``read``, if there is
    one, has sentences on how the file was read."""
    figures: dict[str, tuple[go.Figure, str]]
    """Interactive figures with their captions, by heading; the metric against epsilon first."""

    def formatted_table(self) -> pd.DataFrame:
        """``table`` formatted for display: text with headings."""
        metric = self.settings["metric"]
        unit = "" if metric == "log_loss" else " (%)"
        arms = self.table.to_dict("records")
        by_epsilon = not self.table["epsilon"].isna().any()
        names = [shown(arm["epsilon"]) if by_epsilon else arm["loss"] for arm in arms]
        intervals = [
            f"{_signed(metric, arm['difference_low'])}, {_signed(metric, arm['difference_high'])}" for arm in arms
        ]
        return pd.DataFrame(
            {
                "epsilon" if by_epsilon else "loss": names,
                "learning rate": [f"{arm['learning_rate']:g}" for arm in arms],
                f"{statistics.METRICS[metric]}{unit}": [_plain(metric, arm["score"]) for arm in arms],
                "against 0" if by_epsilon else "difference": [_signed(metric, arm["difference"]) for arm in arms],
                "95 % interval": [
                    "" if arm["loss"] == CROSS_ENTROPY else interval
                    for arm, interval in zip(arms, intervals, strict=True)
                ],
                "mean p_t": [f"{arm['mean_p_t']:.3f}" for arm in arms],
                "calibration error": [f"{arm['calibration_error']:.3f}" for arm in arms],
                "after poly_softmax": [f"{arm['calibration_error_poly_softmax']:.3f}" for arm in arms],
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything except runs and figures, in JSON types; non-finite numbers become ``None``."""
        found: dict[str, Any] = {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "candidate": self.candidate,
            "best_epsilon": _finite(self.best_epsilon),
            "confirmation": {**vars(self.confirmation), "looks": [vars(look) for look in self.confirmation.looks]},
            "notes": self.notes,
            "columns": self.columns.to_dict("records"),
            "arms": [
                {str(name): _finite(value) for name, value in row.items()} for row in self.table.to_dict("records")
            ],
            "settings": self.settings,
        }
        return found

    def to_html(self) -> str:
        """Report as a self-contained HTML page that works offline."""
        return report.page(
            title=f"Which {'epsilon' if self.table['epsilon'].notna().all() else 'loss'} for {self.settings['data']}"
            f"{with_model(self.settings['model'])}?",
            verdict=self.verdict,
            sentence=self.sentence,
            table=self.formatted_table(),
            columns=self.columns,
            figures=self.figures,
            settings=self.settings,
            notes=self.notes,
        )

    def write(self, directory: str | Path) -> None:
        """Write ``results.csv`` (the runs), ``results.json`` and ``report.html`` to a directory.

        The directory is created if it does not exist. Existing files are replaced once all three are complete.

        Raises:
            OSError: the directory is not writable.
        """
        files = {
            "results.csv": self.runs.to_csv(index=False),
            "results.json": json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n",
            "report.html": self.to_html(),
        }
        Path(directory).mkdir(parents=True, exist_ok=True)
        write_files(files, Path(directory))


def with_model(model: str) -> str:
    """Says which library's models were trained; nothing, if it was the network."""
    return f" with {LIBRARIES[model].title}" if model in LIBRARIES else ""


def describe(confirmation: Confirmation, metric: str, candidate: float, baseline: float) -> str:
    """Both scores, their difference and its interval, as text."""
    unit, points = ("", "") if metric == "log_loss" else (" %", " points")
    return (
        f"{score(metric, candidate)} against {_plain(metric, baseline)}{unit}, "
        f"a difference of {_signed(metric, confirmation.difference)}{points} (95 % interval "
        f"{_signed(metric, confirmation.low)} to {_signed(metric, confirmation.high)})"
    )


def score(metric: str, value: float) -> str:
    """Value of the metric with its name and unit, as text."""
    return f"{statistics.METRICS[metric]} {_plain(metric, value)}" + ("" if metric == "log_loss" else " %")


def size(metric: str, difference: float) -> str:
    """Size of a difference with its unit, as text."""
    return _plain(metric, difference) + ("" if metric == "log_loss" else " points")


def _plain(metric: str, value: float) -> str:
    return f"{value:.4f}" if metric == "log_loss" else f"{100 * value:.2f}"


def _signed(metric: str, value: float) -> str:
    return f"{value:+.4f}" if metric == "log_loss" else f"{100 * value:+.2f}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
