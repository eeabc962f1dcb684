"""Runs a study in worker processes: starts them, and ends and replaces those that hang or die."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from polylosses.tune.locks import WORKERS
from polylosses.tune.store import JOURNAL, process_of
from polylosses.tune.studies import Design, Progress, State, TrainingError, lead
from polylosses.tune.trials import PAUSE
from polylosses.tune.worker import NOT_LOADED, NOT_WRITTEN

# Seconds that a worker has to end in order.
GENTLY = 10.0

# As many workers one after another that end before they take a trial never will take one.
IN_VAIN = 3


class NotLoadedError(TrainingError):
    """The training function can't be loaded."""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    number: int
    running: dict[int, float] = field(default_factory=dict)
    """When each trial that it runs was first seen, by number."""
    began: bool = False
    """Whether it has ever taken a trial."""

    @property
    def name(self) -> str:
        return f"{socket.gethostname()}:{self.process.pid}"


def run(
    design: Design,
    code: str,
    storage: str | Path,
    name: str,
    workers: int,
    timeout: float | None,
    logs: Path,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> State:
    """Runs a study in processes until it is finished.

    Args:
        design: the study's.
        code: the training function, as ``FILE.py:FUNCTION``.
        storage, name: as for :func:`polylosses.tune.study`.
        workers: how many processes there are on this machine.
        timeout: seconds after which a training is ended, and has failed.
        logs: a folder for what the workers print.
        progress: callback several times a second.

    Raises:
        NotLoadedError: the training function can't be loaded. Nothing is left behind.
        TrainingError: it fails with every loss.
        OSError: a worker could not write, as on a full disk. The same call goes on.
    """
    new = not logs.exists() and not (isinstance(storage, Path) and (storage / JOURNAL).exists())
    store = design.open(storage, name)
    described = {
        "code": code,
        "identity": design.identity,
        "storage": {"folder": str(storage)} if isinstance(storage, Path) else {"address": storage},
        "name": name,
    }
    logs.mkdir(parents=True, exist_ok=True)
    pool: list[_Worker] = []
    devices, threads = _devices(), max(1, (os.cpu_count() or 1) // workers)
    in_vain = 0
    in_use = True
    try:
        while True:
            before = list(pool)
            ended = _ended(pool, store.records(), timeout, logs)
            for worker in before:
                in_vain = 0 if worker.began else in_vain + bool(ended.get(worker.name))
            if in_vain >= IN_VAIN:
                why = next(iter(ended.values()), "")
                raise TrainingError(f"the processes that are to run it end at once: {why}. What they say is in {logs}.")
            state = lead(design, store, ended)
            progress(state.progress)
            if state.finished:
                return state
            while len(pool) < workers:
                number = min(set(range(workers)) - {worker.number for worker in pool})
                device = devices[number % len(devices)] if devices else None
                pool.append(_started(described, number, threads, device, logs))
            time.sleep(PAUSE)
    except NotLoadedError:
        in_use = not new or any(record.state != TrialState.WAITING for record in store.records())
        raise
    finally:
        _stop(pool)
        store.close()
        if not in_use:
            _remove(storage, logs)


def _remove(storage: str | Path, logs: Path) -> None:
    """Takes away what a study leaves in which nothing has run."""
    with suppress(OSError):
        if isinstance(storage, Path) and not (storage / WORKERS).exists():  # no other command has begun there
            (storage / JOURNAL).unlink()
        for log in logs.glob("worker-*.log"):
            log.unlink()
        logs.rmdir()


def _started(described: Mapping[str, Any], number: int, threads: int, device: str | None, logs: Path) -> _Worker:
    # Threads that spin while they wait take the processors of others: two workers on 2 cores took 8 times as long.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads), **os.environ}
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    with (logs / f"worker-{number}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "polylosses.tune.worker"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # so that what it starts can be ended with it, and Ctrl-C comes here alone
        )
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(described).encode())
            process.stdin.close()
    return _Worker(process, number)


def _ended(pool: list[_Worker], records: Sequence[FrozenTrial], timeout: float | None, logs: Path) -> dict[str, str]:
    """Takes ended workers out of the pool, and ends those that take too long; gives why, for :meth:`Store.bury`."""
    found: dict[str, str] = {}
    now = time.monotonic()
    for worker in list(pool):
        mine = {
            record.number
            for record in records
            if record.state == TrialState.RUNNING
            and "outcome" not in record.user_attrs
            and process_of(record) == worker.name
        }
        worker.running = {number: worker.running.get(number, now) for number in mine}
        worker.began = worker.began or any(process_of(record) == worker.name for record in records)
        late = timeout is not None and any(now - since > timeout for since in worker.running.values())
        if late:
            _kill(worker, signal.SIGKILL)
            worker.process.wait()
        code = worker.process.poll()
        if code is None:
            continue
        pool.remove(worker)
        _kill(worker, signal.SIGKILL)  # what it has started
        log = logs / f"worker-{worker.number}.log"
        if code == NOT_LOADED:
            lines = log.read_text(errors="replace").strip().splitlines()
            raise NotLoadedError(lines[-1] if lines else "the training function can't be loaded.")
        if code == NOT_WRITTEN:
            raise OSError(
                f"a worker can't write; is the disk full? ({log} may say.) When it can, run it again to go on."
            )
        if late:
            found[worker.name] = f"it took longer than {timeout:g} s"
        elif code == -signal.SIGKILL:
            found[worker.name] = ""
        elif code < 0:
            found[worker.name] = f"the process crashed ({signal.Signals(-code).name})"
        else:
            found[worker.name] = f"it ended the process, with code {code}"
    return found


def _kill(worker: _Worker, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.process.pid, number)


def _stop(pool: Sequence[_Worker]) -> None:
    """Ends all workers; at once, if Ctrl-C is pressed again."""
    try:
        for worker in pool:
            with suppress(ProcessLookupError):
                worker.process.terminate()
        until = time.monotonic() + GENTLY
        for worker in pool:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, until - time.monotonic()))
    finally:
        for worker in pool:
            _kill(worker, signal.SIGKILL)
        for worker in pool:
            worker.process.wait()


def _devices() -> list[str]:
    """The CUDA devices that workers are spread over."""
    if given := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [device.strip() for device in given.split(",") if device.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(number) for number, _ in enumerate(listed.stdout.splitlines())]
