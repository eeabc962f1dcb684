"""The study: plan, run and analyse for the user's own training code."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    distribution_to_json,
    json_to_distribution,
)

from polylosses.polynomial import Polynomial
from polylosses.tune import analysis, space
from polylosses.tune.analysis import Selection
from polylosses.tune.files import write_files
from polylosses.tune.plan import CONFIRMATION, CROSS_ENTROPY, SELECTION, Outcome, Plan, Trial, arms
from polylosses.tune.sequential import Confirmation
from polylosses.tune.store import Store, Stored
from polylosses.tune.trials import NOT_FINITE, PAUSE, run

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from polylosses.tune.labelled import Labelled

EPSILONS = (-1.0, 1.0, 2.0, 5.0)
MOST_REPEATS, MOST_POINTS = 10_000, 10_000

# The columns of the trials; the parameters are in between.
COLUMNS = [
    "stage",
    "loss",
    "point",
    "repeat",
    "seed",
    "score",
    "error",
    "tries",
    "worker",
    "started",
    "seconds",
    "commit",
]

# Seeds of the confirmation, at most, as a multiple of the repeats of the selection.
CONFIRMATION_FACTOR = 2


@dataclass(frozen=True)
class Design:
    """All of a study but the training function and the storage.

    Attributes:
        plan: the losses, points and seeds.
        parameters: the distributions of the other hyper-parameters.
        maximize: whether higher scores are better.
        fixed: whether the confirmation looks once, at the end.
        data: what tells the labels, and what is done with them, from others, if the study draws the splits; else
            empty.
        labelled: the labels themselves, if they are known.
    """

    plan: Plan
    parameters: Mapping[str, BaseDistribution]
    maximize: bool
    fixed: bool
    data: Mapping[str, Any]
    labelled: "Labelled | None" = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What tells the trials of this design from those of another, in JSON types."""
        parameters = {name: json.loads(distribution_to_json(one)) for name, one in self.parameters.items()}
        own = {"parameters": parameters, "maximize": self.maximize, "fixed": self.fixed}
        return {**self.plan.to_json(), **own, **self.data}

    @classmethod
    def from_identity(cls, given: Mapping[str, Any]) -> "Design":
        """The design of an :attr:`identity`, without the labels."""
        plan = Plan.from_json(given)
        parameters = {name: json_to_distribution(json.dumps(one)) for name, one in given["parameters"].items()}
        own = {*plan.to_json(), "parameters", "maximize", "fixed"}
        data = {name: value for name, value in given.items() if name not in own}
        return cls(plan, parameters, given["maximize"], given["fixed"], data)

    def open(self, storage: str | Path | None, name: str) -> Store:
        """The study in a storage: a new one, or the same as before."""
        losses = CategoricalDistribution(list(self.plan.losses))
        return Store(storage, name, self.identity, {"loss": losses, **self.parameters}, self.maximize)


def design(
    *,
    losses: Mapping[str, Polynomial] | Sequence[Polynomial | str] | None = None,
    epsilons: Sequence[float] | None = None,
    parameters: Mapping[str, space.Given] | None = None,
    points: int = 8,
    labels: Any = None,
    groups: Any = None,
    metric: str = "accuracy",
    maximize: bool = True,
    repeats: int = 10,
    imbalance: float = 1.0,
    label_noise: float = 0.0,
    seed: int = 0,
    fixed: bool = False,
) -> Design:
    """The design of a study, checked; arguments and errors as for :func:`study`."""
    for name, number, least, most in (
        ("points", points, 1, MOST_POINTS),
        ("repeats", repeats, 2, MOST_REPEATS),
        ("seed", seed, 0, 2**63),
    ):
        if not isinstance(number, Integral) or isinstance(number, bool) or not least <= number <= most:
            raise ValueError(f"{name} must be a whole number from {least} to {most}; got {number!r}.")
    given = arms(losses, epsilons, EPSILONS)
    distributions = {name: space.distribution(name, one) for name, one in (parameters or {}).items()}
    if taken := [name for name in distributions if name in (*COLUMNS, *analysis.COLUMNS)]:
        raise ValueError(f"a parameter can't be called {taken[0]!r}, which is a column of the results: rename it.")
    labelled: Labelled | None = None
    if labels is not None:
        # Imported here, since it takes 4 s, which no study without labels needs.
        from polylosses.tune.labelled import labelled_by  # noqa: PLC0415

        labelled = labelled_by(labels, groups, metric, imbalance, label_noise, int(seed))
        maximize = labelled.maximize
    elif groups is not None or imbalance != 1.0 or label_noise != 0.0 or metric != "accuracy":
        raise ValueError("groups, metric, imbalance and label_noise are for studies that draw the splits: give labels.")
    found = space.points(distributions, int(points), int(seed))
    plan = Plan(given, found, int(repeats), CONFIRMATION_FACTOR * int(repeats), int(seed))
    if labelled is not None:
        labelled.check(plan.repeats + plan.most_seeds)
    data = {} if labelled is None else labelled.identity
    return Design(plan, distributions, maximize, fixed, data, labelled)


@dataclass(frozen=True)
class Progress:
    """Where a study is.

    Attributes:
        stage: ``"selection"`` or ``"confirmation"``.
        done, running, failed: numbers of trials: of the stage, done; in work now; failed for good so far.
        total: the number of trials of the stage, as far as is known.
        confirmation: what the looks have found so far.
    """

    stage: str
    done: int
    running: int
    failed: int
    total: int
    confirmation: Confirmation | None


@dataclass(frozen=True)
class State:
    """A study as the storage has it.

    Attributes:
        outcomes: of the trials that are done, by key.
        progress: numbers of trials.
        selection, confirmation: what is known.
        finished: whether there is nothing left to run.
    """

    outcomes: Mapping[str, Outcome]
    progress: Progress
    selection: Selection | None
    confirmation: Confirmation | None
    finished: bool


def lead(design: Design, store: Store, ended: Mapping[str, str] | None = None) -> State:
    """Adds the trials that are to be run next, and ends those of dead workers. Any number of processes may do so.

    Args:
        design: the study's.
        store: the study's.
        ended: see :meth:`Store.bury`.

    Raises:
        ValueError: the first trials of every loss failed, or too many.
    """
    records = store.records()
    store.bury(records, ended)
    outcomes = store.outcomes(records)
    _stop_if_all_fail(design.plan, outcomes)
    trials, state = known(design, outcomes, sum(record.state.name == "RUNNING" for record in records))
    store.enqueue(trials, records)
    return state


def known(design: Design, outcomes: Mapping[str, Outcome], running: int = 0) -> tuple[list[Trial], State]:
    """The trials of the stage that a study has come to, none at its end; and what is known by then.

    Raises:
        ValueError: too many trials of the selection failed.
    """
    trials, selection, confirmation = analysis.next_trials(design.plan, outcomes, design.maximize, design.fixed)
    progress = Progress(
        stage=SELECTION if selection is None else CONFIRMATION,
        done=sum(trial.key in outcomes for trial in trials),
        running=running,
        failed=sum(bool(outcome.error) for outcome in outcomes.values()),
        total=len(trials),
        confirmation=confirmation,
    )
    return trials, State(outcomes, progress, selection, confirmation, finished=not trials)


def _stop_if_all_fail(plan: Plan, outcomes: Mapping[str, Outcome]) -> None:
    """Raises if nothing has succeeded, and every loss has failed at its first point, or everywhere by diverging."""
    if any(not outcome.error for outcome in outcomes.values()):
        return
    first = [outcomes.get(plan.trial(SELECTION, loss, 0, 0).key) for loss in plan.losses]
    all_points = [
        outcomes.get(plan.trial(SELECTION, loss, point, 0).key)
        for loss in plan.losses
        for point in range(len(plan.points))
    ]
    if all(one is not None and one.error != NOT_FINITE for one in first) or None not in all_points:
        raise TrainingError(
            f"the first training with every loss failed: {next(o.error for o in first if o is not None)}"
        )


class TrainingError(ValueError):
    """The user's training function fails whatever it is given."""


@dataclass(frozen=True)
class StudyResult:
    """What a study found.

    Attributes:
        table: one row for each loss: ``loss``, the parameters that it chose, its mean ``score`` in the selection, the
            paired ``difference`` to cross-entropy with its 95 % interval ``difference_low`` to ``difference_high``, and
            the number of ``repeats`` that did not fail.
        trials: one row for each training: what it was, its score, and where, when and how long it ran.
        verdict: ``"better"``, ``"worse"`` or ``"no detectable difference"``: ``candidate`` compared with cross-entropy;
            or, of a study read from its storage, ``"not finished"``, and all else is what is known so far.
        sentence: the verdict with its numbers.
        candidate: the loss other than cross-entropy with the best score in the selection.
        parameters: those that each loss chose.
        confirmation: the difference between the two with fresh seeds, and the looks at it.
        notes: caveats.
        settings: the design, and versions.
        name: the study's name in the storage.
    """

    table: pd.DataFrame
    trials: pd.DataFrame
    verdict: str
    sentence: str
    candidate: str
    parameters: Mapping[str, Mapping[str, Any]]
    confirmation: Confirmation
    notes: Sequence[str]
    settings: Mapping[str, Any]
    name: str

    @cached_property
    def figures(self) -> dict[str, tuple["Figure", str]]:
        """Interactive figures with their captions, by heading; the score against the loss first."""
        # Imported here, since it takes seconds, which no study needs.
        from polylosses.tune import study_figures  # noqa: PLC0415

        return study_figures.captioned(
            self.table, self.trials, self.parameters, self.candidate, self.confirmation, self.settings
        )

    def formatted_table(self) -> pd.DataFrame:
        """``table`` as text with headings, for display."""
        rows = self.table.to_dict("records")
        return pd.DataFrame(
            {
                "loss": [row["loss"] for row in rows],
                **{name: [_shown(row[name]) for row in rows] for name in self.settings["parameters"]},
                "score": [f"{row['score']:.4g}" for row in rows],
                "against cross-entropy": [
                    "" if row["loss"] == CROSS_ENTROPY else _signed(row["difference"]) for row in rows
                ],
                "95 % interval": [
                    ""
                    if row["loss"] == CROSS_ENTROPY
                    else f"{_signed(row['difference_low'])}, {_signed(row['difference_high'])}"
                    for row in rows
                ],
                "repeats": [str(row["repeats"]) for row in rows],
            }
        )

    def write(self, directory: str | Path) -> None:
        """Write ``results.csv`` (the trials), ``results.json`` and ``report.html`` to a directory.

        The directory is created if it does not exist. Existing files are replaced once all three are complete.

        Raises:
            OSError: the directory is not writable.
        """
        files = {
            "results.csv": self.trials.to_csv(index=False),
            "results.json": json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n",
            "report.html": self.to_html(),
        }
        Path(directory).mkdir(parents=True, exist_ok=True)
        write_files(files, Path(directory))

    def to_html(self) -> str:
        """Report as a self-contained HTML page that works offline."""
        from polylosses.tune import report  # noqa: PLC0415 (see figures)

        polynomials = Plan.from_json(self.settings).losses
        settings = {
            **self.settings,
            "losses": [f"{name}: {polynomial}" for name, polynomial in polynomials.items()],
            "parameters": [f"{name}: {_range(one)}" for name, one in self.settings["parameters"].items()],
            "points": len(self.settings["points"]),
        }
        return report.page(
            title=f"{PurePath(self.name).name}: does another loss beat cross-entropy?",
            verdict=self.verdict,
            sentence=self.sentence,
            table=self.formatted_table(),
            figures=self.figures,
            settings={name.replace("_", " "): value for name, value in settings.items()},
            notes=self.notes,
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the trials and figures, in JSON types; numbers that are not finite become None."""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "candidate": self.candidate,
            "parameters": {loss: dict(point) for loss, point in self.parameters.items()},
            "confirmation": {
                **_finite(vars(self.confirmation)),
                "looks": [vars(look) for look in self.confirmation.looks],
            },
            "notes": list(self.notes),
            "losses": [_finite(row) for row in self.table.to_dict("records")],
            "settings": dict(self.settings),
        }


def study(
    train: Callable[[Trial], Any],
    *,
    losses: Mapping[str, Polynomial] | Sequence[Polynomial | str] | None = None,
    epsilons: Sequence[float] | None = None,
    parameters: Mapping[str, space.Given] | None = None,
    points: int = 8,
    labels: Any = None,
    groups: Any = None,
    metric: str = "accuracy",
    maximize: bool = True,
    repeats: int = 10,
    imbalance: float = 1.0,
    label_noise: float = 0.0,
    seed: int = 0,
    fixed: bool = False,
    storage: str | Path | None = None,
    name: str = "polylosses",
    progress: Callable[[Progress], None] = lambda progress: None,
) -> StudyResult:
    """Does a loss beat cross-entropy in this training code, at the same tuning budget?

    1. Selection: every loss, cross-entropy included, is trained at the same points of the other hyper-parameters with
       the same seeds, and takes the point with its best mean score on validation data.
    2. Confirmation: the best loss other than cross-entropy, and cross-entropy, each at its point, are trained with
       fresh seeds and compared on test data, since the best validation score of many is biased upwards. It stops early
       where the answer is clear.

    Args:
        train: trains once and returns scores. It is called with a :class:`Trial`, and uses its ``polynomial`` as the
            loss, its ``seed`` for all that is random, and its ``parameters``. It returns ``{"validation": v, "test":
            t}``, each a number, or an array with a number for each row, whose mean is the score; then the answer
            covers new rows, too. A single number is used in both stages. With ``labels``, it trains on
            ``trial.train_rows`` with ``trial.train_labels``, and returns logits or probabilities of
            ``trial.score_rows``, rows x classes.
        losses: losses to compare, by name, or as a list, of text such as ``"focal(2)"``, too. Cross-entropy is always
            one of them.
        epsilons: losses of Poly-1 to compare, too. Default, if there are no ``losses``: -1, 1, 2 and 5.
        parameters: the other hyper-parameters, by name: a range such as ``"1e-4:1e-1:log"``, values to choose from, or
            a distribution of Optuna. Without any, ``train``'s own recipe is used for all losses.
        points: how many points of them every loss tries.
        labels: the label of every row, if the study is to draw the splits: 30 % test rows; the others 3 : 1 into
            training and validation rows anew in each repeat, stratified.
        groups: the group of every row, for rows that belong together and must not be split, such as images of one
            patient.
        metric: with labels: ``"accuracy"``, ``"balanced_accuracy"``, ``"macro_f1"`` or ``"log_loss"``, of the class
            posterior (:func:`polylosses.torch.poly_softmax`).
        maximize: whether higher scores are better; the metric says so, if there are labels.
        repeats: seeds of the selection, at least 2. The confirmation takes up to twice as many.
        imbalance, label_noise: with labels: as for :func:`polylosses.tune.sweep`.
        seed: seed of all others.
        fixed: whether the confirmation takes all its seeds, whatever the answer.
        storage: where the trials are kept: a folder (a :class:`pathlib.Path`), or a database's address such as
            ``"postgresql+psycopg://user@host/name"``. The same call goes on where it stopped; in several processes, or
            on several machines with one database, they share the work. Default: nothing is kept.
        name: the study's name in the storage.
        progress: callback between trials, at most twice a second.

    Raises:
        TypeError, ValueError: an argument is invalid, the storage has another study of that name, or the training
            function fails with every loss.

    Example:
        >>> import numpy as np
        >>> def train(trial):  # stands for a training
        ...     rng = np.random.default_rng([trial.seed, int(trial.epsilon)])
        ...     validation, test = rng.normal(0.9 + 0.02 * trial.epsilon, 0.01, 2)
        ...     return {"validation": validation, "test": test}
        >>> result = study(train, epsilons=[1.0])
        >>> result.verdict
        'better'
    """
    designed = design(
        losses=losses,
        epsilons=epsilons,
        parameters=parameters,
        points=points,
        labels=labels,
        groups=groups,
        metric=metric,
        maximize=maximize,
        repeats=repeats,
        imbalance=imbalance,
        label_noise=label_noise,
        seed=seed,
        fixed=fixed,
    )
    store = designed.open(storage, name)

    def run_trial(attributes: Mapping[str, Any]) -> Outcome:
        return run(designed.plan, train, attributes, designed.labelled)

    try:
        while True:
            state, led = lead(designed, store), time.monotonic()
            progress(state.progress)
            if state.finished:
                return result(designed, state, name)
            outcome = store.run_one(run_trial)
            if outcome is None:
                time.sleep(PAUSE)  # others have all that there is
            # Looking at all trials takes longer than running a short one.
            while outcome is not None and not outcome.error and time.monotonic() - led < PAUSE:
                outcome = store.run_one(run_trial)
    finally:
        store.close()


def result(design: Design, state: State, name: str = "polylosses") -> StudyResult:
    """The result of a study; of one that has not finished, what is known so far.

    Args:
        design, state: the study's.
        name: its name in the storage.
    """
    plan, selection, confirmation = design.plan, state.selection, state.confirmation
    trials = [trial for trial in analysis.trials(plan, selection) if trial.key in state.outcomes]
    failed = sum(bool(outcome.error) for outcome in state.outcomes.values())
    notes: list[str] = []
    overlap = float(design.data.get("overlap", 0.0))
    if state.finished and selection is not None and confirmation is not None:
        seeds = analysis.seeds_of(confirmation)
        pair = analysis.paired(plan, state.outcomes, selection, seeds)
        kept = ~np.isnan(pair[0].reshape(seeds, -1)).any(1)
        means = tuple(float(scores[kept].mean()) for scores in pair)
        verdict = analysis.verdict_of(confirmation, design.maximize)
        rows = f"{pair[0].shape[1]} test rows" if pair[0].ndim == 2 else ""
        if (test_rows := analysis.test_rows(plan, state.outcomes, selection)) is not None:
            rows = f"{test_rows} test rows of {pair[0].shape[1]} groups"
        names = (selection.candidate, CROSS_ENTROPY)
        sentence = analysis.sentence_of(verdict, confirmation, names, means, rows)
        if (guessing := design.data.get("always_guessing")) is not None:
            metric = design.data["metric"]
            shown = f"{metric.replace('_', ' ')} {guessing:.4g}"
            if note := analysis.about_nothing(selection.candidate, means, guessing, metric, shown):
                notes.append(note)
    else:
        verdict, now = analysis.NOT_FINISHED, state.progress
        sentence = f"Not finished: {now.done} of {now.total} trainings of the {now.stage} are done."
        if selection is None:
            with suppress(ValueError):  # nothing can be chosen yet
                selection = analysis.select(plan, state.outcomes, design.maximize)
    return StudyResult(
        table=pd.DataFrame(columns=analysis.COLUMNS) if selection is None else analysis.table(plan, selection, overlap),
        trials=pd.DataFrame(
            [_row(trial, state.outcomes[trial.key]) for trial in trials],
            columns=[*COLUMNS[:3], *design.parameters, *COLUMNS[3:]],
        ),
        verdict=verdict,
        sentence=sentence,
        candidate="" if selection is None else selection.candidate,
        parameters={} if selection is None else {k: dict(plan.points[point]) for k, point in selection.chosen.items()},
        confirmation=confirmation or Confirmation(math.nan, math.nan, math.nan, math.nan, (), 0),
        notes=[*notes, *_notes(design, state, verdict, failed)],
        settings={
            "source": name,
            **design.identity,
            "versions": dict(state.outcomes[trials[0].key].software) if trials else {},
        },
        name=name,
    )


def stored(kept: Stored) -> StudyResult:
    """The result of a study, finished or not, as it was read from its storage."""
    design = Design.from_identity(kept.plan)
    try:
        _, state = known(design, kept.outcomes)
    except ValueError as error:  # most trainings failed
        trials = design.plan.selection()
        failed = sum(bool(outcome.error) for outcome in kept.outcomes.values())
        progress = Progress(SELECTION, len(trials), 0, failed, len(trials), None)
        found = result(design, State(kept.outcomes, progress, None, None, finished=False), kept.name)
        return replace(found, sentence=f"Not finished: {error}.")
    return result(design, state, kept.name)


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _signed(value: float) -> str:
    return f"{round(value, 12) + 0.0:+.3g}"  # a difference of rounding errors is none


def _finite(numbers: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(k): None if isinstance(x, float) and not math.isfinite(x) else x for k, x in numbers.items()}


def _range(described: Mapping[str, Any]) -> str:
    """A distribution as Optuna stores it, as text."""
    given = described["attributes"]
    if "choices" in given:
        return " or ".join(map(str, given["choices"]))
    return f"{given['low']:g} to {given['high']:g}{', log' if given['log'] else ''}"


def _row(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    return {
        "stage": trial.stage,
        "loss": trial.loss,
        "point": trial.point,
        **trial.parameters,
        "repeat": trial.repeat,
        "seed": trial.seed,
        "score": outcome.score,
        "error": outcome.error,
        "tries": outcome.tries,
        "worker": outcome.worker,
        "started": outcome.started,
        "seconds": outcome.seconds,
        "commit": outcome.software.get("commit", ""),
    }


def _notes(design: Design, state: State, verdict: str, failed: int) -> list[str]:
    selection, confirmation = state.selection, state.confirmation
    notes = []
    if failed:
        notes.append(f"{failed} trainings failed. The first: {analysis.first_error(state.outcomes)}.")
    if confirmation is not None and confirmation.seeds_left_out:
        notes.append(
            f"{confirmation.seeds_left_out} pairs of the confirmation are left out: a training failed, or returned "
            "another number of row scores than most."
        )
    if not design.parameters and selection is not None:
        polynomial = design.plan.losses[selection.candidate]
        if any(coefficient > 0 for coefficient in polynomial.coefficients):
            notes.append(
                "No other hyper-parameter was tuned. A positive epsilon also makes larger steps, by 1 + epsilon p: "
                "with a fixed recipe, a difference may be that of another learning rate. Give parameters to find out."
            )
    if (
        not design.data
        and state.outcomes
        and not any(outcome.measures.get("test") for outcome in state.outcomes.values())
    ):
        notes.append(
            "The training returned one score, which chose the loss and its parameters, and also confirmed it. Return "
            "{'validation': v, 'test': t} to compare on data that nothing was chosen on."
        )
    if verdict in (analysis.WORSE, analysis.NO_DIFFERENCE):
        notes.append("Nothing speaks for another loss here: use cross-entropy.")
    return notes
