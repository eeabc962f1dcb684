"""Optuna's storage as the queue of a study's trials, and the store of their outcomes.

Workers take waiting trials from it, on one machine or on many. An outcome is one attribute of a trial, so that it is
there whole or not at all, and a trial that has one is done. What a dead worker held is added again: workers on this
machine are known to be dead by a lock that they held on a file, which the system takes back however they end; others by
Optuna's heartbeats in a database.
"""

import base64
import json
import math
import random
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, event, inspect
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    PendingRollbackError,
    ProgrammingError,
)

from polylosses.tune.locks import Presence, journal_lock
from polylosses.tune.plan import Outcome, Trial

T = TypeVar("T")

# Raised where a trial has been ended already; a name of its own since Optuna 4.3.
_FINISHED: type[Exception] = getattr(optuna.exceptions, "UpdateFinishedTrialError", RuntimeError)

JOURNAL = "study.journal"

# How often a trial is run that fails by itself, and one whose workers die.
TRIES, DEATHS = 2, 5

# Seconds between a worker's signs of life in a database, and after how many without one it is dead.
HEARTBEAT, GRACE = 30, 120

# Seconds after which a running trial is dead that has no worker's name yet, which follows within milliseconds.
UNNAMED = 10

# How many trials wait at most. The storage gives all of them again at every look.
QUEUE = 32

# Seconds for which a worker takes trials from one look at those that wait. Reading them takes a database 10 ms.
GLANCE = 0.5

# Seconds for which a database may be away, and its errors then.
PATIENCE = 600.0
_AWAY = (OperationalError, InterfaceError, PendingRollbackError)

# Raised for an address of no database, or of one that can't be reached.
_UNUSABLE = (ArgumentError, NoSuchModuleError, ImportError, OperationalError, InterfaceError)


_NOTHING = "nothing"


class Store:
    """A study in a storage.

    Args:
        storage: the address of a database; a folder, for a journal file in it; or None, for the memory of this process.
        name: the study's name in the storage.
        plan: all that decides which trials there are, in JSON types.
        space: the distributions of the trials' parameters, and of their loss.
        maximize: whether higher scores are better.
        patient: whether to wait for a database that is away, as for one that goes away later.

    Raises:
        ValueError: the storage can't be used, or its study of that name has another plan.
    """

    def __init__(
        self,
        storage: str | Path | None,
        name: str,
        plan: Mapping[str, Any],
        space: Mapping[str, BaseDistribution],
        maximize: bool,
        patient: bool = False,
    ) -> None:
        self._storage = _patiently(lambda: _database(str(storage))) if patient else _storage(storage)
        self._place = storage
        self._presence = Presence(storage if isinstance(storage, Path) else None)
        self._space = dict(space)
        self._without_worker_since: dict[int, float] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._waiting: list[tuple[FrozenTrial, Sequence[FrozenTrial]]] = []
        self._looked = -math.inf
        with _quietly():
            self._study = _patiently(
                lambda: optuna.create_study(
                    storage=self._storage,
                    study_name=name,
                    direction="maximize" if maximize else "minimize",
                    load_if_exists=True,
                )
            )
        self._id = _patiently(lambda: self._storage.get_study_id_from_name(name))
        _patiently(lambda: self._check(json.loads(json.dumps(plan))))

    def _check(self, plan: Mapping[str, Any]) -> None:
        stored = self._study.user_attrs.get("plan")
        if stored is None:
            self._study.set_user_attr("plan", plan)
            return
        if differences := list(_differences(stored, plan)):
            more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
            raise ValueError(
                f"the study {self._study.study_name!r} exists, with another plan: {'; '.join(differences[:5])}{more}. "
                "Give the same plan to go on with it, or another storage (--out or --storage) to start anew."
            )

    def alone(self) -> None:
        """Checks that no other worker is at work in the folder.

        Raises:
            ValueError: there is one.
        """
        if others := self._presence.others():
            raise ValueError(
                f"another command is at work on {self._study.study_name!r} in the same folder ({others[0]}): wait for "
                "it, or give another folder."
            )

    def describe(self, table: Mapping[str, Any]) -> Mapping[str, Any]:
        """Keeps what a report needs to know of a table beside the plan, in JSON types; gives what was kept first."""
        kept: Mapping[str, Any] = self._study.user_attrs.get("table", table)
        if kept is table:
            _patiently(lambda: self._study.set_user_attr("table", table))
        return kept

    def add(self, trial: Trial, outcome: Outcome) -> None:
        """Stores a trial that was run without having waited here."""
        started = datetime.now().astimezone() - timedelta(seconds=outcome.seconds)
        times = {"started": started.isoformat(), "seconds": outcome.seconds}
        template = optuna.trial.create_trial(
            state=TrialState.FAIL if outcome.error else TrialState.COMPLETE,
            value=None if outcome.error else outcome.score,
            params={"loss": trial.loss, **trial.parameters},
            distributions=self._space,
            user_attrs={
                "trial": _attributes(trial),
                "worker": self._presence.worker,
                "outcome": _encoded(outcome) | times,
            },
        )
        _patiently(lambda: self._storage.create_new_trial(self._id, template))
        self._outcomes[trial.key] = outcome

    def records(self) -> list[FrozenTrial]:
        """All trials in the storage, in the order in which they were added."""
        return _patiently(lambda: self._study.get_trials(deepcopy=False))

    def outcomes(self, records: Sequence[FrozenTrial]) -> dict[str, Outcome]:
        """The outcomes of all trials that have one, by key."""
        tries = by_key(records)
        for key, found in tries.items():
            if key not in self._outcomes and (outcome := outcome_of(found)) is not None:
                self._outcomes[key] = outcome
        return {key: self._outcomes[key] for key in tries if key in self._outcomes}

    def enqueue(self, trials: Sequence[Trial], records: Sequence[FrozenTrial]) -> None:
        """Adds trials that have no outcome, and are neither waiting nor running, until ``QUEUE`` trials wait."""
        records_of = by_key(records)
        waiting = sum(record.state == TrialState.WAITING for record in records)
        for trial in trials:
            if waiting >= QUEUE:
                break
            if trial.key in self._outcomes or any(_is_pending(record) for record in records_of.get(trial.key, [])):
                continue
            template = optuna.trial.create_trial(
                state=TrialState.WAITING,
                params={"loss": trial.loss, **trial.parameters},
                distributions=self._space,
                user_attrs={"trial": _attributes(trial)},
            )
            _patiently(lambda template=template: self._storage.create_new_trial(self._id, template))  # type: ignore[misc]
            waiting += 1

    def run_one(self, run: Callable[[Mapping[str, Any]], Outcome]) -> Outcome | None:
        """Takes a waiting trial, runs it and stores its outcome; None if none is waiting.

        Trials that have failed come first, so that a training function that always fails is found out soon.

        Args:
            run: is given the stage, loss, point and repeat of a trial, and returns the outcome.
        """
        if time.monotonic() - self._looked > GLANCE:
            self._waiting.clear()
        record = self._first_taken()
        if record is None:
            self._look()
            record = self._first_taken()
        if record is None:
            return None
        trial = record._trial_id
        self._set(trial, "worker", self._presence.worker)
        started, start = datetime.now().astimezone(), time.monotonic()
        try:
            with self._heartbeat(trial):
                outcome = run(record.user_attrs["trial"])
        except (KeyboardInterrupt, OSError):  # a full disk
            self._set(trial, "interrupted", True)
            self._end(trial, TrialState.FAIL)
            raise
        times = {"started": started.isoformat(), "seconds": time.monotonic() - start}
        self._set(trial, "outcome", _encoded(outcome) | times)
        self._end(trial, TrialState.FAIL if outcome.error else TrialState.COMPLETE, outcome.score)
        if outcome.error:
            self._waiting.clear()  # its next try comes first
        return outcome

    def _look(self) -> None:
        """Reads which trials wait, each with all records of it."""
        self._looked = time.monotonic()
        records = self.records()
        same = by_key(records)
        waiting = [(record, same[_key(record)]) for record in records if record.state == TrialState.WAITING]
        self._waiting = sorted(waiting, key=lambda pair: pair[1][0].number == pair[0].number)

    def _first_taken(self) -> FrozenTrial | None:
        """The first of the waiting trials that is this worker's now."""
        while self._waiting:
            record, same = self._waiting.pop(0)
            if self._takes(record, same):
                return record
        return None

    def _takes(self, record: FrozenTrial, same: Sequence[FrozenTrial]) -> bool:
        """Whether a waiting trial is this worker's now; ``same`` are all records of it, as they were."""
        trial = record._trial_id
        earlier = [other for other in same if other.number < record.number]
        if any(_is_pending(other) or outcome_of([other]) is not None for other in earlier):
            self._end(trial, TrialState.PRUNED)  # two processes have added it at once
            return False
        with suppress(_FINISHED):
            return _patiently(lambda: self._storage.set_trial_state_values(trial, TrialState.RUNNING))
        return False

    def _set(self, trial: int, name: str, value: Any) -> None:
        with suppress(_FINISHED):  # others have taken this worker for dead, and run the trial again
            _patiently(lambda: self._storage.set_trial_user_attr(trial, name, value))

    def _end(self, trial: int, state: TrialState, score: float | None = None) -> None:
        values = None if score is None or state != TrialState.COMPLETE else [score]
        with suppress(_FINISHED):
            _patiently(lambda: self._storage.set_trial_state_values(trial, state, values))

    @contextmanager
    def _heartbeat(self, trial: int) -> Iterator[None]:
        """Signs of life in a database, for workers on other machines."""
        storage = self._storage
        if not isinstance(storage, RDBStorage):
            yield
            return
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT):
                _patiently(lambda: storage.record_heartbeat(trial))

        _patiently(lambda: storage.record_heartbeat(trial))
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def bury(self, records: Sequence[FrozenTrial], ended: Mapping[str, str] | None = None) -> None:
        """Ends the running trials of dead workers.

        Args:
            records: all trials.
            ended: workers that have ended, as host and process, and why their training failed; "" if it is not its
                fault.
        """
        for record in records:
            if record.state != TrialState.RUNNING:
                self._without_worker_since.pop(record.number, None)
                continue
            worker = record.user_attrs.get("worker")
            if worker is None:
                since = self._without_worker_since.setdefault(record.number, time.monotonic())
                if time.monotonic() - since > UNNAMED:
                    self._end(record._trial_id, TrialState.FAIL)
                continue
            process = process_of(record)
            if process in (ended or {}) or self._presence.is_dead(worker):
                error = (ended or {}).get(process)
                if error and "outcome" not in record.user_attrs:
                    self._set(record._trial_id, "outcome", _encoded(Outcome(math.nan, error=error)))
                self._end(record._trial_id, TrialState.FAIL)
        if isinstance(self._storage, RDBStorage):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                _patiently(lambda: optuna.storages.fail_stale_trials(self._study))

    def close(self) -> None:
        """Ends this worker, and its connections; removes the journal of a study of which nothing was run."""
        if isinstance(self._place, Path) and not self._presence.others() and not self.records():
            (self._place / JOURNAL).unlink(missing_ok=True)
        self._presence.close()
        if isinstance(self._storage, RDBStorage):
            self._storage.remove_session()
            self._storage.engine.dispose()


class Stored(NamedTuple):
    """A study as it is in a storage.

    Attributes:
        name: its name there.
        plan: all that decides which trials there are, in JSON types.
        table: what :meth:`Store.describe` has kept of a table, or None.
        outcomes: of the trials that have one, by key.
    """

    name: str
    plan: dict[str, Any]
    table: dict[str, Any] | None
    outcomes: dict[str, Outcome]


def read(storage: str | Path, name: str | None) -> Stored:
    """Reads a study. Creates and changes nothing in the storage.

    Args:
        storage: as for :class:`Store`.
        name: the study's; None if there is only one.

    Raises:
        ValueError: there is no such study, or there are several and no name.
    """
    found = _existing(storage)
    place = storage if isinstance(storage, Path) else make_url(storage).render_as_string(hide_password=True)
    try:
        studies = [study for study in found.get_all_studies() if "points" in study.user_attrs.get("plan", {})]
        plans = {study.study_name: study for study in studies}
        listed = ", ".join(map(repr, plans))
        if not plans:
            raise ValueError(f"{place} has no study of polylosses.")
        if name is None and len(plans) > 1:
            raise ValueError(f"{place} has several studies: give a name (--name), one of {listed}.")
        if name is not None and name not in plans:
            raise ValueError(f"{place} has no study {name!r}; it has {listed}.")
        study = plans[name or next(iter(plans))]
        records = found.get_all_trials(study._study_id, deepcopy=False)
    finally:
        if isinstance(found, RDBStorage):
            found.remove_session()
            found.engine.dispose()
    outcomes = {key: one for key, same in by_key(records).items() if (one := outcome_of(same)) is not None}
    return Stored(study.study_name, study.user_attrs["plan"], study.user_attrs.get("table"), outcomes)


def _existing(storage: str | Path) -> BaseStorage:
    """A storage to read from, if there is one."""
    if isinstance(storage, Path):
        journal = storage / JOURNAL
        if not journal.is_file():
            files = sorted(path.name for path in storage.iterdir()) if storage.is_dir() else []
            there = f"it has {', '.join(files[:5])}{', ...' if len(files) > 5 else ''}" if files else "it is empty"
            raise ValueError(
                f"{storage} has no {JOURNAL}: {there}." if storage.is_dir() else f"there is no folder {storage}."
            )
        return JournalStorage(JournalFileBackend(str(journal), lock_obj=journal_lock(str(journal))))
    try:
        address = make_url(storage)
        # SQLite makes a file of what it is told to read.
        if address.get_backend_name() == "sqlite" and not Path(address.database or "").is_file():
            raise ValueError(f"there is no database {address.database}.")
        engine = create_engine(address)
        try:
            tables = inspect(engine).get_table_names()
        finally:
            engine.dispose()
        if "studies" not in tables or "version_info" not in tables:
            there = f"other tables, such as {min(tables)}" if tables else "no tables"
            raise ValueError(f"{address.render_as_string(hide_password=True)} has no study: it has {there}.")
        return RDBStorage(storage, skip_table_creation=True)
    except _UNUSABLE as error:
        raise _unusable(error) from error


def _attributes(trial: Trial) -> dict[str, Any]:
    """What a trial is, as one attribute, since each takes a database 2 ms."""
    return {name: getattr(trial, name) for name in ("key", "stage", "loss", "point", "repeat", "seed")}


def _differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """What differs between two plans in JSON types."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys([*there, *here]):
            yield from _differences(there.get(key, _NOTHING), here.get(key, _NOTHING), f"{name} {key}".strip())
    elif isinstance(there, list) and isinstance(here, list) and len(there) != len(here):
        yield f"{name} are {len(there)} there, and {len(here)} here"
    elif isinstance(there, list) and isinstance(here, list):
        for number, (one, other) in enumerate(zip(there, here, strict=True), start=1):
            yield from _differences(one, other, f"{name} {number}")
    elif there != here:
        first, second = (one if one is _NOTHING else repr(one) for one in (there, here))
        yield f"{name} is {first} there, and {second} here"


def process_of(record: FrozenTrial) -> str:
    """The host and process that a trial was last run by, or ""."""
    return str(record.user_attrs.get("worker", "")).rpartition(":")[0]


def by_key(records: Sequence[FrozenTrial]) -> dict[str, list[FrozenTrial]]:
    """The records of every trial of the plan."""
    found: dict[str, list[FrozenTrial]] = {}
    for record in records:
        found.setdefault(_key(record), []).append(record)
    return found


def _key(record: FrozenTrial) -> str:
    return str(record.user_attrs["trial"]["key"])


def outcome_of(records: Sequence[FrozenTrial]) -> Outcome | None:
    """The outcome of a trial from all its records; None as long as there is none, and it may be run again."""
    stored = [(record, record.user_attrs["outcome"]) for record in records if "outcome" in record.user_attrs]
    errors = [pair for pair in stored if pair[1]["error"]]
    for record, outcome in stored:
        if not outcome["error"]:
            return _decoded(outcome, record, tries=len(errors) + 1)
    if len(errors) >= TRIES:
        record, outcome = errors[-1]
        return _decoded(outcome, record, tries=len(errors))
    died = [record for record in records if record.state == TrialState.FAIL and not _ended_otherwise(record)]
    if len(died) >= DEATHS:
        error = f"the processes that ran it died, {len(died)} times (killed, perhaps for want of memory)"
        return Outcome(math.nan, error=error, tries=len(died), worker=died[-1].user_attrs.get("worker", ""))
    return None


def _ended_otherwise(record: FrozenTrial) -> bool:
    return "outcome" in record.user_attrs or "interrupted" in record.user_attrs


def _is_pending(record: FrozenTrial) -> bool:
    return record.state in (TrialState.WAITING, TrialState.RUNNING) and "outcome" not in record.user_attrs


def _encoded(outcome: Outcome) -> dict[str, Any]:
    rows = None
    if outcome.rows is not None:
        numbers = np.ascontiguousarray(outcome.rows, dtype="<f8")
        rows = base64.b64encode(zlib.compress(numbers.tobytes(), 1)).decode()
    score = outcome.score if math.isfinite(outcome.score) else None
    return {
        "score": score,
        "rows": rows,
        "measures": dict(outcome.measures),
        "error": outcome.error,
        "software": dict(outcome.software),
    }


def _decoded(stored: Mapping[str, Any], record: FrozenTrial, tries: int) -> Outcome:
    rows = stored["rows"]
    return Outcome(
        score=math.nan if stored["score"] is None else stored["score"],
        rows=None if rows is None else np.frombuffer(zlib.decompress(base64.b64decode(rows)), dtype="<f8"),
        measures=stored["measures"],
        error=stored["error"],
        tries=tries,
        worker=record.user_attrs.get("worker", ""),
        started=datetime.fromisoformat(stored["started"]) if "started" in stored else record.datetime_start,
        seconds=stored.get("seconds", 0.0),
        software=stored["software"],
    )


def _storage(storage: str | Path | None) -> BaseStorage:
    if storage is None:
        return InMemoryStorage()
    if isinstance(storage, Path):
        storage.mkdir(parents=True, exist_ok=True)
        path = str(storage / JOURNAL)
        return JournalStorage(JournalFileBackend(path, lock_obj=journal_lock(path)))
    try:
        kind = make_url(storage).get_backend_name()
        if kind not in ("postgresql", "sqlite"):
            # MySQL's columns of text hold 64 KB, the scores of some 8000 rows.
            raise ValueError(f"the storage is to be a PostgreSQL database, not {kind}: give another address.")
        return _database(storage)
    except _UNUSABLE as error:
        raise _unusable(error) from error


def _unusable(error: Exception) -> ValueError:
    reason = " ".join(str(error).split())
    return ValueError(
        f"the storage can't be used ({reason}): give a database's address, such as "
        "postgresql+psycopg://user@host/name, and install its driver, for PostgreSQL pip install psycopg[binary]."
    )


def _database(address: str) -> RDBStorage:
    tries = 0
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                storage = RDBStorage(address, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
            if storage.engine.dialect.name == "postgresql":
                event.listen(storage.engine, "connect", _in_utc)
                storage.engine.dispose()
            return storage
        except (IntegrityError, ProgrammingError):
            # Several processes create the tables of a new database at once, and all but one fail.
            tries += 1
            if tries == 10:
                raise
        time.sleep(random.uniform(0.1, 1.0))


def _in_utc(connection: Any, _: Any) -> None:
    """Optuna compares signs of life by PostgreSQL's clock, but in the time zone of each connection (``PGTZ``), where
    workers seem to be dead, too, when summer time begins.
    """
    with connection.cursor() as cursor:
        cursor.execute("SET TIME ZONE 'UTC'")
    connection.commit()


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Optuna's messages on every trial."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _patiently(act: Callable[[], T]) -> T:
    """Does what needs a database, again as long as that is away.

    Raises:
        ConnectionError: it has been away for too long.
    """
    wait, until = 0.1, time.monotonic() + PATIENCE
    while True:
        try:
            return act()
        except (*_AWAY, StorageInternalError) as error:
            cause = error.__cause__ if isinstance(error, StorageInternalError) else error
            if not isinstance(cause, _AWAY):
                raise
            if time.monotonic() > until:
                raise ConnectionError(
                    f"the database has been away for {PATIENCE / 60:g} minutes ({' '.join(str(cause).split())}): start "
                    "it, and the same call goes on."
                ) from error
        time.sleep(wait)
        wait = min(2 * wait, 5.0)
