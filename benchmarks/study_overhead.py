"""Measures what a trial of a study costs without its training: the store, the queue and the analysis.

    python benchmarks/study_overhead.py --out benchmarks/results/study_overhead.json

The training function returns at once. Studies of several sizes, since all trials are read again and again; in a journal
file and in PostgreSQL, in this process and in worker processes. A trial's time is that from the start of the first to
the end of the last, divided by their number. CPU time is that of this process, which leads the study. Without
``--storage``, a PostgreSQL server is started here, if there is one, with its settings as they come.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from polylosses.tune import StudyResult, Trial, study, workers
from polylosses.tune.studies import design, result

TRIALS = (100, 300, 1000)
PROCESSES = (0, 1, 2)  # 0: the study in this process


def train(trial: Trial) -> dict[str, float]:
    """Stands for a training."""
    validation, test = np.random.default_rng([trial.seed, trial.point, len(trial.loss)]).normal(size=2)
    return {"validation": validation, "test": test}


def run(storage: str | Path, processes: int, trials: int) -> StudyResult:
    """A study of so many trials: for each of its repeats 6 of the selection, and 4 of the confirmation."""
    name = uuid.uuid4().hex
    options: dict[str, Any] = {"epsilons": [1.0], "parameters": {"lr": "0:1"}, "points": 3, "repeats": trials // 10}
    if not processes:
        return study(train, storage=storage, name=name, fixed=True, **options)
    designed = design(fixed=True, **options)
    with tempfile.TemporaryDirectory() as logs:
        state = workers.run(designed, f"{__file__}:train", storage, name, processes, None, Path(logs))
    return result(designed, state)


def measured(storage: str | Path, processes: int, trials: int) -> dict[str, Any]:
    """The times of one study."""
    before = time.process_time()
    done = run(storage, processes, trials).trials
    used = time.process_time() - before
    starts = done.started.map(lambda start: start.timestamp())
    wall = (starts + done.seconds).max() - starts.min()
    return {
        "storage": "journal" if isinstance(storage, Path) else "PostgreSQL",
        "processes": processes,
        "trials": len(done),
        "ms": 1e3 * wall / len(done),
        "cpu_ms": 1e3 * used / len(done),
    }


def main() -> None:
    """Measure all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", help="a PostgreSQL database, such as postgresql+psycopg://user@host/name")
    parser.add_argument("--trials", type=int, nargs="+", default=TRIALS, help="sizes of studies, multiples of 10")
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    options = parser.parse_args()
    # Not above, since workers import this file, and need neither torch nor the tests.
    from measuring import machine  # noqa: PLC0415

    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    from postgresql import Server, needs_postgresql  # noqa: PLC0415

    described = machine("cpu") | {name: version(name) for name in ("optuna", "SQLAlchemy", "psycopg")}
    rows = []
    with ExitStack() as stack:
        address = options.storage
        if address is None and not needs_postgresql.args[0]:
            server = Server(fsync=True)
            stack.callback(server.stop)
            address = server.address
        print(f"{described['device']}, {platform.node()}, commit {described['commit']}")
        print(f"{'storage':12s} {'workers':12s} {'trials':>7s} {'ms a trial':>11s} {'CPU ms':>7s}")
        for processes in PROCESSES:
            for trials in options.trials:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                for storage in (folder, address):
                    if storage is None:
                        continue
                    row = measured(storage, processes, trials)
                    rows.append(row)
                    shown = str(processes) if processes else "this process"
                    print(
                        f"{row['storage']:12s} {shown:12s} {trials:7d} {row['ms']:11.1f} {row['cpu_ms']:7.1f}",
                        flush=True,
                    )
    if options.out:
        options.out.write_text(json.dumps({"machine": described, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
