"""The study of a table: a small network, trained for every loss and learning rate, many at once."""

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import sklearn
import torch
from optuna.distributions import FloatDistribution
from plotly.graph_objects import Figure

import polylosses
from polylosses.polynomial import Polynomial, epsilon_of
from polylosses.tune import analysis, boosted, data, figures, splits, statistics, studies, study_figures
from polylosses.tune.analysis import Selection
from polylosses.tune.boosted import Boosted
from polylosses.tune.columns import Column
from polylosses.tune.experiment import RUN_COLUMNS, Experiment, Run
from polylosses.tune.labelled import Labelled
from polylosses.tune.plan import (
    CONFIRMATION,
    CROSS_ENTROPY,
    LARGEST,
    SELECTION,
    Outcome,
    Plan,
    Trial,
    arms,
    shown,
)
from polylosses.tune.result import Result, describe, score, size, with_model
from polylosses.tune.sequential import Confirmation
from polylosses.tune.store import Store, Stored, read
from polylosses.tune.studies import Design, StudyResult

EPSILONS = (-1.0, 0.0, 1.0, 2.0, 5.0, 10.0)
MODELS = ("network", *boosted.LIBRARIES)

# Of the network; those of the others are in :mod:`polylosses.tune.boosted`.
LEARNING_RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)

# Repeats of the confirmation, as a multiple of those of the selection.
CONFIRMATION_FACTOR = 2

MOST_REPEATS = 10_000

UNDECIDED = "undecided"

# Learning rates that are added at most, where the best is the smallest or the largest.
MOST_ADDED = 6

# The smallest learning rate: a smaller one changes no float32 weight.
SMALLEST = 1e-30

# Share of a time budget that is planned for training; the rest is for evaluation and for learning rates that are added.
TRAINING_SHARE = 0.7


class SweepInterrupted(KeyboardInterrupt):
    """Raised by Ctrl-C during a sweep; ``runs`` is the data frame of the finished runs."""

    def __init__(self, runs: pd.DataFrame) -> None:
        super().__init__(f"{len(runs)} runs had finished")
        self.runs = runs


def sweep(
    X: Any,
    y: Any,
    *,
    groups: Any = None,
    drop: Sequence[str] = (),
    drop_missing_labels: bool = False,
    rare: str | None = None,
    losses: Mapping[str, Polynomial] | Sequence[Polynomial | str] | None = None,
    epsilons: Sequence[float] | None = None,
    model: str = "network",
    learning_rates: Sequence[float] | None = None,
    metric: str = "accuracy",
    repeats: int = 10,
    imbalance: float = 1.0,
    label_noise: float = 0.0,
    seed: int = 0,
    max_rows: int | None = None,
    time_budget: float | None = None,
    device: str | None = None,
    storage: Path | None = None,
    name: str = "your data",
    settings: Mapping[str, Any] = MappingProxyType({}),
    progress: Callable[[float, str], None] = lambda done, stage: None,
) -> Result:
    """Does a loss beat cross-entropy on a table, at the same tuning budget?

    By default, Poly-1 losses are compared: ``-log p + epsilon (1 - p)``.

    1. Test split: 30 % of the rows are held out.
    2. Selection: each repeat splits the remaining rows into training and validation rows, and trains a model, by
       default a small network, for every loss and learning rate, all with the same rows, order of rows and initial
       weights. Each loss takes the learning rate with its best mean score on validation rows: a positive epsilon also
       increases the step size, which at a fixed learning rate is easily mistaken for a gain. Where cross-entropy or the
       best other loss did best with the smallest or largest learning rate, one beyond it is added for all losses, up to
       six times.
    3. Confirmation: the best loss other than cross-entropy, and cross-entropy, are trained with fresh seeds on twice as
       many fresh splits, and compared on the test rows, since the validation score of the best of many is biased
       upwards.

    Args:
        X: features, rows x features: a DataFrame (numbers, text or categories, with or without missing values) or an
            array. The absolute values of numbers are at most 1e150.
        y: class labels, one per row, with at least 8 rows per class.
        groups: group of each row, such as a patient, one value per row. Rows of one group are never split between
            training, validation and test rows, whose shares are approximate then, and the interval of the verdict is
            for new groups rather than new rows. Each class needs rows in several groups.
        drop: names of columns of X to leave out.
        drop_missing_labels: leave out rows without a label, which are refused otherwise.
        rare: ``"drop"`` leaves out the rows of classes of fewer than 8 rows, ``"merge"`` makes one class of them all;
            by default they are refused.
        losses: losses to compare with cross-entropy, by name, or as a list, of text such as ``"focal(2)"``, too.
        epsilons: losses of Poly-1 to compare, too, at most 1e30 in absolute value. Default, if there are no ``losses``:
            -1, 1, 2, 5 and 10.
        model: what is trained: ``"network"``; or ``"xgboost"``, ``"lightgbm"`` or ``"catboost"``, with a classifier of
            :mod:`polylosses.boosting` of 100 rounds, on one thread of the CPU, with the library's defaults beside that.
            It gets the columns as they are: numbers may be missing, text is categories.
        learning_rates: candidates for every loss, positive and at most 1e30. A single one is never added to. Default:
            0.0003, 0.001, 0.003, 0.01 and 0.03 for the network, 0.01, 0.03, 0.1, 0.3 and 1 for the others.
        metric: ``"accuracy"``, ``"balanced_accuracy"``, ``"macro_f1"`` or ``"log_loss"`` (of the probabilities from
            :func:`polylosses.torch.poly_softmax`). Unlike the training loss, none depends on epsilon itself.
        repeats: number of splits and seeds in the selection, 2 to 10000.
        imbalance: ratio of the largest to the smallest class in a long tail made of the training rows; 1 for none.
        label_noise: share of the training labels to replace by another class, in [0, 1).
        seed: seed of all random numbers, a nonnegative integer.
        max_rows: how many rows to use at most, drawn within classes, or as whole groups. Default: all.
        time_budget: seconds that it should take at most, with fewer rows if need be. Default: any.
        device: torch device that networks are trained on. Default: ``"cuda"`` if there is one, else ``"cpu"``.
        storage: a folder where the runs are kept as they finish. The same call goes on where it stopped. Default: none.
        name: name of the data in the report.
        settings: more to keep with :attr:`Result.settings`, in JSON types, such as how the data were read.
        progress: callback with the share of the work done, 0 to 1, and the stage; and, where it takes over a minute,
            about how long.

    Raises:
        TypeError, ValueError: an argument or the data are invalid; ``time_budget`` is too short for the fewest rows; or
            the storage has another sweep, or one at work.
        ImportError: the library of ``model`` is missing or too old.
        SweepInterrupted: on Ctrl-C, with the finished ``runs``.

    Warns:
        UserWarning: an epsilon is below -1, where the loss is not monotone.

    Source: Leng et al., ICLR 2022 (arXiv 2204.12511), who tune epsilon for every task (section 5).

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> result = sweep(X, y, epsilons=[2.0], learning_rates=[0.01], repeats=2)
        >>> result.table.epsilon.tolist()
        [0.0, 2.0]
        >>> result.verdict in ("better", "worse", "no detectable difference")
        True
    """
    check_model(model, device)
    compared = _ordered(arms(losses, epsilons, EPSILONS))
    if learning_rates is None:
        learning_rates = LEARNING_RATES if model == "network" else boosted.LEARNING_RATES
    rates = sorted(set(_rates(learning_rates)))
    if metric not in statistics.METRICS:
        raise ValueError(f"metric must be one of {', '.join(statistics.METRICS)}; got {metric!r}.")
    if not isinstance(repeats, Integral) or not 2 <= repeats <= MOST_REPEATS:
        raise ValueError(f"repeats must be a whole number, at most {MOST_REPEATS} and at least 2; got {repeats!r}.")
    if not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0; got {seed!r}.")
    if max_rows is not None and (not isinstance(max_rows, Integral) or max_rows < 1):
        raise ValueError(f"max_rows must be a whole number of rows; got {max_rows!r}.")
    if time_budget is not None and not (isinstance(time_budget, Real) and 0 < time_budget < math.inf):
        raise ValueError(f"time_budget must be a number of seconds above 0; got {time_budget!r}.")
    splits.check(imbalance, label_noise)
    checked = data.check(
        X,
        y,
        splits.MINIMUM_ROWS,
        drop=drop,
        drop_missing_labels=drop_missing_labels,
        rare=rare,
        most_categories=data.MAX_CATEGORIES if model == "network" else None,
    )
    # NumPy's numbers are not JSON serializable.
    repeats, seed = int(repeats), int(seed)
    table = _Table(
        checked=checked,
        groups=None if groups is None else data.group_numbers(groups, len(y), checked.rows),
        plan=Plan(compared, [{"learning_rate": r} for r in rates], repeats, CONFIRMATION_FACTOR * repeats, seed),
        metric=metric,
        imbalance=float(imbalance),
        label_noise=float(label_noise),
        model=model,
        device=_device(device) if model == "network" else "",
        name=name,
        settings=settings,
    )
    if max_rows is not None:
        table = table.of_rows(int(max_rows))
    if time_budget is not None:
        table = table.within(float(time_budget), _rows_before(storage, name))
    return table.run(storage, progress)


@dataclass(frozen=True)
class _Table:
    """A sweep that is designed, and not yet run."""

    checked: data.Checked
    groups: np.ndarray | None
    plan: Plan
    metric: str
    imbalance: float
    label_noise: float
    model: str
    device: str
    name: str
    settings: Mapping[str, Any]

    @cached_property
    def experiment(self) -> Experiment | Boosted:
        labelled = Labelled(
            self.checked.labels,
            self.checked.classes,
            self.groups,
            self.metric,
            self.imbalance,
            self.label_noise,
            self.plan.seed,
        )
        if self.model == "network":
            return Experiment(data.encode(self.checked.frame), labelled, self.device)
        return Boosted(self.checked.frame, labelled, self.model)

    @cached_property
    def design(self) -> Design:
        """The study that this is a case of; the confirmation is a small part of the work, and takes all its seeds."""
        labelled = self.experiment.labelled
        data = {**self.experiment.identity, **labelled.identity, "version": polylosses.__version__}
        rates = FloatDistribution(SMALLEST, LARGEST, log=True)
        return Design(self.plan, {"learning_rate": rates}, labelled.maximize, fixed=True, data=data)

    def about(self) -> dict[str, Any]:
        """What a report needs besides the runs, in JSON types."""
        checked, labelled = self.checked, self.experiment.labelled
        train, _, validation, _ = labelled.split(SELECTION, 0)
        test = labelled.split(CONFIRMATION, 0)[2]
        return {
            "columns": [column._asdict() for column in checked.columns],
            "notes": checked.notes,
            "classes": checked.classes,
            "settings": {
                "data": self.name,
                "rows": len(checked.labels),
                "features": checked.frame.shape[1],
                "classes": len(checked.classes),
                **({} if self.groups is None else {"groups": len(np.unique(self.groups))}),
                "training_rows": len(train),
                "validation_rows": len(validation),
                "test_rows": len(test),
                "metric": self.metric,
                "always_guessing": labelled.always_guessing,
                "repeats": self.plan.repeats,
                "confirmation_repeats": self.plan.most_seeds,
                "imbalance": self.imbalance,
                "label_noise": self.label_noise,
                "seed": self.plan.seed,
                **self.experiment.about,
                "versions": {
                    "polylosses": polylosses.__version__,
                    "python": platform.python_version(),
                    **self.experiment.versions,
                    "scikit-learn": sklearn.__version__,
                },
                **self.settings,
            },
        }

    def of_rows(self, most: int) -> "_Table":
        """The same for a part of the rows, if there are more than ``most``."""
        total = len(self.checked.labels)
        if most >= total:
            return self
        rows = splits.sample(self.checked.labels, most, self.plan.seed, self.groups)
        checked = self.checked._replace(
            frame=self.checked.frame.iloc[rows].reset_index(drop=True),
            labels=self.checked.labels[rows],
            rows=self.checked.rows[rows],
            notes=[*self.checked.notes, f"{len(rows)} of {total} rows are used, drawn at random."],
        )
        return replace(self, checked=checked, groups=None if self.groups is None else self.groups[rows])

    def within(self, budget: float, before: int | None) -> "_Table":
        """The same for as many rows as can be trained on in ``budget`` seconds; ``before``, if it has been begun."""
        if before is not None:
            return self.of_rows(before)
        table = self
        while (seconds := table.experiment.seconds(table._models())) > TRAINING_SHARE * budget:
            total = len(table.checked.labels)
            training_rows = len(table.experiment.labelled.split(SELECTION, 0)[0])
            fewest = math.ceil(total * table.experiment.fewest_rows / training_rows)
            # Steps of fewer rows are not as much faster: again until it fits.
            table = self.of_rows(max(fewest, int(total * TRAINING_SHARE * budget / seconds)))
            if len(table.checked.labels) >= total:
                least = seconds / TRAINING_SHARE
                raise ValueError(
                    f"time_budget {budget:g} is too short: about {least:.0f} s are needed, and it takes no fewer than "
                    f"these {total} rows. Give more, or fewer losses, learning_rates or repeats."
                )
        return table

    def run(self, storage: Path | None, progress: Callable[[float, str], None]) -> Result:
        self.experiment.labelled.check(self.plan.repeats + self.plan.most_seeds)
        store = self.design.open(storage, self.name)
        outcomes: dict[str, Outcome] = {}
        try:
            store.alone()
            about = store.describe(self.about())
            outcomes |= store.outcomes(store.records())
            self._run(outcomes, store, progress)
        except KeyboardInterrupt:
            raise SweepInterrupted(_records(self.plan, outcomes, self.design.maximize)) from None
        finally:
            store.close()
        return result(about, self.plan, outcomes)

    def _run(self, outcomes: dict[str, Outcome], store: Store, progress: Callable[[float, str], None]) -> None:
        """Adds the outcomes of all that is yet to be run."""
        share, done = 0.0, float(len(outcomes))
        about = ""
        if (seconds := self._long(self._models(outcomes))) is not None:
            about = f": about {seconds / 60:.0f} min in all"
            progress(0.0, f"{SELECTION}{about}")
        while True:
            plan = widened(self.plan, outcomes, self.design.maximize)
            trials = analysis.next_trials(plan, outcomes, self.design.maximize, fixed=True)[0]
            if not trials:
                return
            total = len(plan.selection()) + 2 * plan.most_seeds
            if added := len(plan.points) - len(self.plan.points):
                about = f": {added} learning rate{'s' if added > 1 else ''} added"
            for batch in self.experiment.batches([trial for trial in trials if trial.key not in outcomes]):

                def advance(
                    epochs: int, batch: Sequence[Trial] = batch, total: int = total, about: str = about
                ) -> None:
                    nonlocal share, done
                    done += len(batch) / epochs
                    share = max(share, min(done / total, 1.0))  # learning rates that are added are more work
                    progress(share, f"{batch[0].stage}{about}")

                for trial, outcome in self.experiment.run(batch, advance):
                    store.add(trial, outcome)
                    outcomes[trial.key] = outcome

    def _models(self, outcomes: Mapping[str, Outcome] = MappingProxyType({})) -> list[Trial]:
        """What is planned and not done, to estimate its time: which two losses are confirmed is not known yet."""
        some = self.plan.selection()
        fresh = [
            self.plan.trial(CONFIRMATION, loss, 0, self.plan.repeats + k)
            for k in range(self.plan.most_seeds)
            for loss in list(self.plan.losses)[:2]
        ]
        return [trial for trial in [*some, *fresh] if trial.key not in outcomes]

    def _long(self, trials: Sequence[Trial]) -> float | None:
        """About how many seconds the trials take, if that is more than a minute."""
        if self.experiment.is_short(trials):
            return None
        seconds = self.experiment.seconds(trials)
        return seconds if seconds > 60 else None


def stored(kept: Stored) -> Result | StudyResult:
    """The result of a sweep as it was read from its storage; of one that has not finished, that of any study."""
    plan, maximize = Plan.from_json(kept.plan), not statistics.lower_is_better(kept.plan["metric"])
    wide = widened(plan, kept.outcomes, maximize)
    if kept.table is None or analysis.next_trials(wide, kept.outcomes, maximize, fixed=True)[0]:
        return studies.stored(kept._replace(plan=kept.plan | wide.to_json()))
    return result(kept.table, plan, kept.outcomes)


def widened(plan: Plan, outcomes: Mapping[str, Outcome], maximize: bool) -> Plan:
    """The plan with learning rates beyond the others, while cross-entropy or the best other loss does best there."""
    for _ in range(MOST_ADDED):
        if any(trial.key not in outcomes for trial in plan.selection()):
            break
        edge = _edge(plan, analysis.select(plan, outcomes, maximize), maximize)
        if edge is None or not SMALLEST <= edge.beyond <= LARGEST:
            break
        plan = replace(plan, points=[*plan.points, {"learning_rate": edge.beyond}])
    return plan


class _Edge(NamedTuple):
    """A loss that did best with the smallest or largest learning rate, and one beyond it."""

    loss: str
    which: str
    rate: float
    beyond: float


def _edge(plan: Plan, selection: Selection, maximize: bool) -> _Edge | None:
    rates = [point["learning_rate"] for point in plan.points]
    if len(rates) == 1:
        return None
    for loss in (CROSS_ENTROPY, selection.candidate):
        means = selection.scores[list(plan.losses).index(loss)].mean(1) * (1 if maximize else -1)
        for which, ordered in (("smallest", np.argsort(rates)), ("largest", np.argsort(rates)[::-1])):
            outer, inner = ordered[:2]
            if selection.chosen[loss] == outer and means[outer] > means[inner]:
                return _Edge(loss, which, rates[outer], float(f"{rates[outer] * rates[outer] / rates[inner]:.3g}"))
    return None


def result(about: Mapping[str, Any], plan: Plan, outcomes: Mapping[str, Outcome]) -> Result:
    """The result of a finished sweep.

    Args:
        about: what is stored beside the runs.
        plan: without the learning rates that were added.
        outcomes: of all trials, by key.
    """
    settings = dict(about["settings"])
    metric, guessing = settings["metric"], settings["always_guessing"]
    maximize, given = not statistics.lower_is_better(metric), len(plan.points)
    plan = widened(plan, outcomes, maximize)
    _, selection, confirmation = analysis.next_trials(plan, outcomes, maximize, fixed=True)
    if selection is None or confirmation is None:
        raise ValueError("the sweep has not finished.")
    selected = {
        loss: [
            Run.of(trial, outcomes[trial.key])
            for trial in (plan.trial(SELECTION, loss, selection.chosen[loss], k) for k in range(plan.repeats))
        ]
        for loss in _displayed(plan.losses)
    }
    candidate = selection.candidate
    pair = analysis.paired(plan, outcomes, selection, plan.most_seeds)
    means = (float(pair[0].mean()), float(pair[1].mean()))
    edge = _edge(plan, selection, maximize)
    verdict = UNDECIDED if edge else analysis.verdict_of(confirmation, maximize)
    added = [point["learning_rate"] for point in plan.points[given:]]
    settings |= {
        "losses": list(selected),
        "learning_rates": sorted(point["learning_rate"] for point in plan.points),
        "learning_rates_added": added,
    }
    table = _table(selected, metric)
    notes = list(about["notes"])
    if note := analysis.about_nothing(_label(candidate, plan), means, guessing, metric, score(metric, guessing)):
        notes.insert(0, note)
    if added:
        notes.append(
            f"Learning rates beyond those given were needed, and tried with every loss: {', '.join(map(shown, added))}."
        )
    if edge is None and len(plan.points) == 1 and any(c > 0 for c in plan.losses[candidate].coefficients):
        larger = (
            ". A positive epsilon also makes larger steps, by 1 + epsilon p" if settings["model"] == "network" else ""
        )
        notes.append(f"One learning rate was tried{larger}: a difference may be that of another learning rate.")
    epsilons = sorted(epsilon for loss in plan.losses.values() if (epsilon := epsilon_of(loss)) is not None)
    best = epsilon_of(plan.losses[candidate])
    score_of = {float(row["epsilon"]): row["score"] for row in table.to_dict("records")}
    others = [score_of[epsilon] for epsilon in epsilons[:-1]]
    if best == epsilons[-1] and (score_of[best] > max(others) if maximize else score_of[best] < min(others)):
        notes.append(f"The largest epsilon, {best:g}, did best on validation rows: try larger ones.")
    if verdict not in (analysis.BETTER, UNDECIDED):
        other = "epsilon" if len(epsilons) == len(plan.losses) else "loss"
        notes.append(f"Nothing speaks for another {other} here: use cross-entropy.")
    return Result(
        table=table,
        runs=_records(plan, outcomes, maximize),
        columns=pd.DataFrame(about["columns"], columns=Column._fields),
        verdict=verdict,
        sentence=_sentence(verdict, confirmation, plan, candidate, edge, means, settings),
        candidate=candidate,
        best_epsilon=math.nan if best is None else best,
        confirmation=confirmation,
        notes=notes,
        settings=settings,
        figures=_figures(selected, table, plan, selection, confirmation, settings, about["classes"]),
    )


def _figures(
    selected: Mapping[str, Sequence[Run]],
    table: pd.DataFrame,
    plan: Plan,
    selection: Selection,
    confirmation: Confirmation,
    settings: Mapping[str, Any],
    classes: Sequence[str],
) -> dict[str, tuple[Figure, str]]:
    losses, candidate = {loss: plan.losses[loss] for loss in selected}, selection.candidate
    confirmed = {"loss": candidate, **{name: getattr(confirmation, name) for name in ("difference", "low", "high")}}
    metric, every = settings["metric"], 1 if settings["model"] == "network" else boosted.EVERY
    found = figures.captioned(selected, table, losses, classes, metric, confirmed, every)
    if len(plan.points) == 1:
        return found
    rates = [{"learning rate": point["learning_rate"]} for point in plan.points]
    scores = pd.DataFrame(
        {"loss": loss, "point": point, "score": one}
        for loss, of_loss in zip(plan.losses, selection.scores, strict=True)
        for point, repeats in enumerate(of_loss)
        for one in repeats
    )
    values = [rate for point in rates for rate in point.values()]
    response = study_figures.response(
        study_figures.points(scores, rates, {loss: rates[point] for loss, point in selection.chosen.items()}),
        {"learning rate": {"attributes": {"log": True, "low": min(values), "high": max(values)}}},
        losses,
        f"mean {statistics.METRICS[metric]}",
        figures.highlighted_of(losses, candidate),
    )
    caption = "Mean score on validation rows with each learning rate; a star is the one that a loss chose."
    first = next(iter(found))
    return {first: found.pop(first), "What the learning rate does": (response, caption), **found}


def _rates(given: Sequence[float]) -> list[float]:
    rates = []
    for rate in [given] if isinstance(given, Real) else given:
        if not isinstance(rate, Real):
            raise TypeError(f"learning_rates must be numbers; got {rate!r}.")
        if not math.isfinite(rate):
            raise ValueError(f"learning_rates must be finite; got {rate!r}.")
        rates.append(float(rate))
        if rates[-1] > LARGEST:
            raise ValueError(f"learning_rates of more than {LARGEST:g} overflow in training; got {rate!r}.")
    if not rates or min(rates) < SMALLEST:
        raise ValueError(f"learning_rates need to be one or more numbers above 0; got {given!r}.")
    return rates


def check_model(model: str, device: str | None = None) -> None:
    """Checks that a model can be trained here.

    Raises:
        ValueError: it is none, or is given a device.
        ImportError: its library is missing or too old.
    """
    if model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}; got {model!r}.")
    if model != "network":
        if device is not None:
            raise ValueError(f"the device {device!r} is for networks, and {model} trains on the CPU: leave it out.")
        boosted.check(model)


def _device(given: str | None) -> str:
    if given is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=given) + 1
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split()[:30])
        raise ValueError(f"the device {given!r} can't be used ({reason}): leave it out, or give cpu.") from error
    return given


def _rows_before(storage: Path | None, name: str) -> int | None:
    """The number of rows of a sweep that was begun."""
    if storage is not None:
        with suppress(ValueError):
            return int(read(storage, name).plan["rows"])
    return None


def _ordered(losses: Mapping[str, Polynomial]) -> dict[str, Polynomial]:
    """Cross-entropy first, then the closest to it, since ties go to the first."""
    distance = {
        name: (math.inf, 0.0) if (epsilon := epsilon_of(loss)) is None else (abs(epsilon), -epsilon)
        for name, loss in losses.items()
    }
    return dict(sorted(losses.items(), key=lambda pair: distance[pair[0]]))


def _displayed(losses: Mapping[str, Polynomial]) -> list[str]:
    """The names of the losses: those with an epsilon by it, then the others."""
    return sorted(losses, key=lambda name: math.inf if (e := epsilon_of(losses[name])) is None else e)


def _label(loss: str, plan: Plan) -> str:
    epsilon = epsilon_of(plan.losses[loss])
    return loss if epsilon is None else f"epsilon = {shown(epsilon)}"


def _records(plan: Plan, outcomes: Mapping[str, Outcome], maximize: bool) -> pd.DataFrame:
    """One row for each run, in the order of the plan."""
    plan = widened(plan, outcomes, maximize)
    trials, selection, _ = analysis.next_trials(plan, outcomes, maximize, fixed=True)
    if selection is not None:
        trials = analysis.trials(plan, selection)
    runs = [Run.of(trial, outcomes[trial.key]).record() for trial in trials if trial.key in outcomes]
    return pd.DataFrame(runs, columns=RUN_COLUMNS)


def _table(selected: Mapping[str, Sequence[Run]], metric: str) -> pd.DataFrame:
    baseline = np.array([run.scores[metric] for run in selected[CROSS_ENTROPY]])
    rows = []
    for loss, runs in selected.items():
        scores = np.array([run.scores[metric] for run in runs])
        # Equal in all repeats, except with groups.
        training_rows = round(float(np.mean([run.training_rows.sum() for run in runs])))
        scored_rows = round(float(np.mean([run.scored_rows for run in runs])))
        low, high = statistics.resampled_interval(scores - baseline, training_rows, scored_rows)
        records = pd.DataFrame([run.record() for run in runs])
        rows.append(
            {
                "loss": loss,
                "epsilon": records.epsilon[0],
                "learning_rate": runs[0].learning_rate,
                "score": scores.mean(),
                "difference": (scores - baseline).mean(),
                "difference_low": low,
                "difference_high": high,
                **records[["mean_p_t", "calibration_error", "calibration_error_poly_softmax"]].mean(),
            }
        )
    return pd.DataFrame(rows)


def _sentence(
    verdict: str,
    confirmation: Confirmation,
    plan: Plan,
    candidate: str,
    edge: _Edge | None,
    means: tuple[float, float],
    settings: Mapping[str, Any],
) -> str:
    metric, label = settings["metric"], _label(candidate, plan)
    baseline = f"plain cross-entropy{with_model(settings['model'])}"
    evidence = (
        f"{describe(confirmation, metric, *means)} over {plan.most_seeds} fresh seeds and {settings['test_rows']} "
        "untouched test rows"
    )
    if edge is not None:
        who = "cross-entropy" if edge.loss == CROSS_ENTROPY else label
        return (
            f"Undecided between {label} and {baseline}: {who} did best with the {edge.which} learning rate, "
            f"{edge.rate:g}, and may do better beyond it; with those tried, {evidence}."
        )
    if verdict == analysis.NO_DIFFERENCE:
        return (
            f"No detectable difference between {label} and {baseline}: {evidence}. "
            f"The smallest that this run could have seen is {size(metric, confirmation.smallest_detectable)}."
        )
    return f"{label} is {verdict} than {baseline}: {evidence}."
