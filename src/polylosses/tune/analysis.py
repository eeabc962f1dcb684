"""From outcomes to a verdict: which loss and parameters were chosen, and what the confirmation found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from polylosses.tune import sequential
from polylosses.tune.plan import CONFIRMATION, CROSS_ENTROPY, Outcome, Plan, Trial
from polylosses.tune.sequential import Confirmation

BETTER, WORSE, NO_DIFFERENCE = "better", "worse", "no detectable difference"
NOT_FINISHED = "not finished"

# The columns of the table of losses; the parameters follow the first.
COLUMNS = ["loss", "score", "difference", "difference_low", "difference_high", "repeats"]


@dataclass(frozen=True)
class Selection:
    """What was chosen on validation data.

    Attributes:
        chosen: the point of every loss, that with the best mean score.
        candidate: the loss, other than cross-entropy, with the best mean score at its point.
        scores: the scores of every loss at every point, losses x points x repeats; nan where the trial failed.
    """

    chosen: Mapping[str, int]
    candidate: str
    scores: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """The verdict on two losses.

    Attributes:
        verdict: ``"better"``, ``"worse"`` or ``"no detectable difference"``.
        sentence: the verdict with its numbers.
        confirmation: the difference, its interval, and the looks at it.
    """

    verdict: str
    sentence: str
    confirmation: Confirmation


def compare(
    candidate: Any,
    baseline: Any,
    *,
    maximize: bool = True,
) -> Comparison:
    """Whether one training is better than another, from scores of both with the same seeds.

    Args:
        candidate, baseline: scores of shape (seeds), or (seeds, rows) for scores of single test rows, whose mean is
            the metric: then the answer holds for other rows, too. Seed by seed the two belong together; nan in
            either leaves the pair out.
        maximize: whether higher scores are better.

    Returns:
        The verdict, a sentence, and the confirmation with its interval.

    Raises:
        ValueError: the shapes differ or are others, or there are fewer than two pairs.

    Example:
        >>> from polylosses.tune import compare
        >>> found = compare([0.91, 0.92, 0.90, 0.93, 0.92], [0.88, 0.90, 0.86, 0.91, 0.89])
        >>> found.verdict
        'better'
    """
    a, b = (np.asarray(scores, dtype=float) for scores in (candidate, baseline))
    if a.shape != b.shape or a.ndim not in (1, 2) or not a.size:
        raise ValueError(
            "candidate and baseline must be scores of the same seeds, of shape (seeds) or (seeds, rows); "
            f"got {a.shape} and {b.shape}."
        )
    if np.isinf(a).any() or np.isinf(b).any():
        raise ValueError("scores must be finite, or nan for a pair to leave out.")
    confirmation = sequential.confirm(a - b, len(a), fixed=True)
    kept = ~np.isnan((a - b).reshape(len(a), -1)).any(1)
    means = tuple(float(scores[kept].mean()) for scores in (a, b))
    verdict = verdict_of(confirmation, maximize)
    names, rows = ("the candidate", "the baseline"), f"{a.shape[1]} test rows" if a.ndim == 2 else ""
    sentence = sentence_of(verdict, confirmation, names, means, rows)
    return Comparison(verdict, sentence[0].upper() + sentence[1:], confirmation)


def verdict_of(confirmation: Confirmation, maximize: bool) -> str:
    """``"better"`` or ``"worse"`` if the interval leaves 0 out, else ``"no detectable difference"``."""
    if confirmation.low <= 0 <= confirmation.high:
        return NO_DIFFERENCE
    return BETTER if (confirmation.low > 0) == maximize else WORSE


def sentence_of(
    verdict: str, confirmation: Confirmation, names: tuple[str, str], means: tuple[float, ...], rows: str
) -> str:
    """The verdict with its numbers; ``rows`` says how many test rows there are, if that is known."""
    of = f" and {rows}" if rows else ""
    end = confirmation.looks[-1]
    evidence = (
        f"{means[0]:.4g} against {means[1]:.4g}, a difference of {confirmation.difference:+.3g} (95 % interval "
        f"{confirmation.low:+.3g} to {confirmation.high:+.3g}) over {end.seeds} fresh seeds{of}"
    )
    if len(confirmation.looks) > 1 or end.information < 1:
        evidence += f", after {len(confirmation.looks)} look{'s' if len(confirmation.looks) > 1 else ''}"
    if verdict == NO_DIFFERENCE:
        return (
            f"No detectable difference between {names[0]} and {names[1]}: {evidence}. The smallest that this study "
            f"could have seen is {confirmation.smallest_detectable:.3g}."
        )
    return f"{names[0]} is {verdict} than {names[1]}: {evidence}."


def about_nothing(candidate: str, means: Sequence[float], guessing: float, metric: str, shown: str) -> str:
    """A note if neither the candidate nor cross-entropy is better than guessing, which scores ``shown``; else empty."""
    sign = -1 if metric == "log_loss" else 1
    # As good as guessing, up to rounding, is not better.
    if max(sign * mean for mean in means) > sign * guessing + 1e-9:
        return ""
    what = "giving the shares of the classes" if metric == "log_loss" else "guessing the largest class"
    return (
        f"Neither {CROSS_ENTROPY} nor {candidate} is better than always {what} ({shown}): the verdict is about nothing."
    )


def select(plan: Plan, outcomes: Mapping[str, Outcome], maximize: bool) -> Selection:
    """Chooses the point of every loss, and the candidate, from the trials that have an outcome.

    A point counts if at least half of its repeats did not fail.

    Raises:
        ValueError: no point of cross-entropy, or of all others, counts.
    """
    shape = (len(plan.losses), len(plan.points), plan.repeats)
    scores, has_run = np.full(shape, np.nan), np.zeros(shape, dtype=bool)
    names = list(plan.losses)
    for trial in plan.selection():
        if trial.key in outcomes:
            at = names.index(trial.loss), trial.point, trial.repeat
            scores[at], has_run[at] = outcomes[trial.key].score, True
    repeats = has_run.sum(2).max()
    counts = np.isfinite(scores).sum(2)
    sums = np.where(np.isfinite(scores), scores, 0.0).sum(2)
    means = np.where((counts > 0) & (2 * counts >= repeats), sums / np.maximum(counts, 1), np.nan)
    objective = np.where(np.isnan(means), -np.inf, means if maximize else -means)
    best = objective.max(1)
    if best[0] == -np.inf or (best[1:] == -np.inf).all():
        failed = CROSS_ENTROPY if best[0] == -np.inf else "every other loss"
        raise ValueError(f"most trainings with {failed} failed: {first_error(outcomes)}")
    chosen = {name: int(objective[k].argmax()) for k, name in enumerate(names) if best[k] > -np.inf}
    return Selection(chosen, names[1 + int(best[1:].argmax())], scores)


def first_error(outcomes: Mapping[str, Outcome]) -> str:
    """The error of the first trial that failed."""
    return next((f"{o.error} ({key})" for key, o in outcomes.items() if o.error), "")


def confirmed(plan: Plan, outcomes: Mapping[str, Outcome], selection: Selection, fixed: bool) -> Confirmation | None:
    """What the confirmation says so far; None before its first look."""
    done = 0
    while done < plan.most_seeds and all(trial.key in outcomes for trial in _pair(plan, selection, done)):
        done += 1
    looks = sequential.seeds_of_looks(plan.most_seeds, fixed)
    if done < looks[0]:
        return None
    differences = paired(plan, outcomes, selection, done)
    return sequential.confirm(
        differences[0] - differences[1], plan.most_seeds, fixed=fixed, test_rows=test_rows(plan, outcomes, selection)
    )


def test_rows(plan: Plan, outcomes: Mapping[str, Outcome], selection: Selection) -> int | None:
    """How many test rows there are, if there is one score for each group of them."""
    for seed in range(plan.most_seeds):
        for trial in _pair(plan, selection, seed):
            if trial.key in outcomes and "test_rows" in outcomes[trial.key].measures:
                return int(outcomes[trial.key].measures["test_rows"])
    return None


def paired(
    plan: Plan, outcomes: Mapping[str, Outcome], selection: Selection, seeds: int
) -> tuple[np.ndarray, np.ndarray]:
    """The scores of the candidate and of cross-entropy, seeds or seeds x rows; nan in both where one failed."""
    pairs = [[outcomes[trial.key] for trial in _pair(plan, selection, k)] for k in range(seeds)]
    lengths = [0 if one.rows is None else len(one.rows) for pair in pairs for one in pair if not one.error]
    rows = max(set(lengths), key=lengths.count) if lengths else 0
    found = np.full((2, seeds, max(rows, 1)), np.nan)
    for k, pair in enumerate(pairs):
        if all(not one.error and (0 if one.rows is None else len(one.rows)) == rows for one in pair):
            found[:, k] = [one.rows if rows else [one.score] for one in pair]
    return (found[0], found[1]) if rows else (found[0, :, 0], found[1, :, 0])


def trials(plan: Plan, selection: Selection | None) -> list[Trial]:
    """All trials that a study may have run."""
    if selection is None:
        return plan.selection()
    return [*plan.selection(), *(trial for k in range(plan.most_seeds) for trial in _pair(plan, selection, k))]


def seeds_of(confirmation: Confirmation) -> int:
    """The number of pairs that were looked at, with those that are left out."""
    return confirmation.looks[-1].seeds + confirmation.seeds_left_out


def _pair(plan: Plan, selection: Selection, seed: int) -> list[Trial]:
    chosen = {loss: selection.chosen[loss] for loss in (selection.candidate, CROSS_ENTROPY)}
    return [plan.trial(CONFIRMATION, loss, point, plan.repeats + seed) for loss, point in chosen.items()]


def table(plan: Plan, selection: Selection, overlap: float = 0.0) -> pd.DataFrame:
    """One row for every loss: the chosen parameters, the mean score, and the paired difference to cross-entropy.

    Args:
        plan: the study's.
        selection: what was chosen.
        overlap: validation rows by training rows, if all repeats split the same rows. Their scores are dependent then:
            the variance has the factor 1/repeats + overlap (Nadeau and Bengio, Machine Learning 52, 2003, section 3.3).
    """
    baseline = selection.scores[0, selection.chosen[CROSS_ENTROPY]]
    rows = []
    for loss, point in selection.chosen.items():
        scores = selection.scores[list(plan.losses).index(loss), point]
        both = np.isfinite(scores) & np.isfinite(baseline)
        low, high = _interval((scores - baseline)[both], overlap)
        rows.append(
            {
                "loss": loss,
                **plan.points[point],
                "score": scores[np.isfinite(scores)].mean(),
                "difference": (scores - baseline)[both].mean() if both.any() else np.nan,
                "difference_low": low,
                "difference_high": high,
                "repeats": int(np.isfinite(scores).sum()),
            }
        )
    return pd.DataFrame(rows)


def _interval(differences: np.ndarray, overlap: float) -> tuple[float, float]:
    n = len(differences)
    if n < 2:
        return np.nan, np.nan
    half = float(stdtrit(n - 1, (1 + sequential.LEVEL) / 2)) * float(differences.std(ddof=1)) * np.sqrt(1 / n + overlap)
    return float(differences.mean()) - half, float(differences.mean()) + half


def next_trials(
    plan: Plan, outcomes: Mapping[str, Outcome], maximize: bool, fixed: bool
) -> tuple[list[Trial], Selection | None, Confirmation | None]:
    """The trials of the stage that the study has come to, none at its end; and what is known by then."""
    trials = plan.selection()
    if any(trial.key not in outcomes for trial in trials):
        return trials, None, None
    selection = select(plan, outcomes, maximize)
    confirmation = confirmed(plan, outcomes, selection, fixed)
    if confirmation is not None and confirmation.looks[-1].decides:
        return [], selection, confirmation
    taken = 0 if confirmation is None else seeds_of(confirmation)
    seeds = next(seeds for seeds in sequential.seeds_of_looks(plan.most_seeds, fixed) if seeds > taken)
    return [trial for k in range(seeds) for trial in _pair(plan, selection, k)], selection, confirmation
