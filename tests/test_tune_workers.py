"""Studies in worker processes, on a journal file and on PostgreSQL, while processes and servers are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from polylosses.tune import store, study, worker
from postgresql import Server, needs_postgresql

pytestmark = pytest.mark.slow

# A training whose numbers depend on the trial alone, and that misbehaves where the environment says so.
CODE = """
import os, time
import numpy as np

def train(trial):
    time.sleep(float(os.environ.get("SECONDS", "0.05")))
    fault = os.environ.get("FAULT")
    if fault and trial.stage == "selection" and trial.loss == "poly1(1)" and trial.repeat == 1 and trial.point == 0:
        with open(os.environ["TRIED"], "a") as tried:
            tried.write("once\\n")
        exec(fault)
    own = np.random.default_rng([trial.seed, trial.point, len(trial.loss)]).normal(0, 0.01, 2)
    mean = np.random.default_rng(trial.seed).normal(0, 0.02) + 0.02 * trial.epsilon + trial.parameters["rate"]
    return {"validation": mean + own[0], "test": mean + own[1]}
"""
OPTIONS = ["--epsilons", "1", "--param", "rate=0:0.01", "--points", "2", "--repeats", "4", "--json"]


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "mine" / "train.py"
    path.parent.mkdir()
    path.write_text(CODE)
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.stop()


def start(code: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """The command, as the leader of a process group of its own."""
    # A shell starts what runs in its background, perhaps these tests, with Ctrl-C ignored.
    return subprocess.Popen(
        [
            "env",
            "--default-signal=INT",
            sys.executable,
            "-m",
            "polylosses",
            "tune",
            f"{code}:train",
            *OPTIONS,
            *options,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return without_versions(json.loads(out))


def without_versions(found: dict[str, Any]) -> dict[str, Any]:
    del found["settings"]["versions"]
    return found


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an undisturbed study in this process finds."""
    folder = tmp_path_factory.mktemp("right")
    (folder / "train.py").write_text(CODE)
    sys.path.insert(0, str(folder))
    os.environ["SECONDS"] = "0"
    options: dict[str, Any] = {"epsilons": [1.0], "parameters": {"rate": "0:0.01"}, "points": 2, "repeats": 4}
    try:
        found = study(worker.load(f"{folder / 'train.py'}:train"), **options).to_dict()
    finally:
        del os.environ["SECONDS"]
        sys.path.remove(str(folder))
        sys.modules.pop("train", None)
    return without_versions(json.loads(json.dumps(found)))


def trials(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "results.csv")


def children(process: subprocess.Popen[str]) -> list[int]:
    """The worker processes of a command."""
    found = subprocess.run(
        ["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in found.stdout.split()]


def wait_for_trials(out: Path, count: int) -> None:
    """Until so many trials of a journal are done."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with_outcome = (out / store.JOURNAL).read_text().count('"outcome"') if (out / store.JOURNAL).exists() else 0
        if with_outcome >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"{count} trials were not done in time")


def end(process: subprocess.Popen[str]) -> None:
    """kill -9 of everything that a command has started."""
    for pid in (*children(process), process.pid):
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    process.communicate()


def test_two_workers_find_the_same(code: Path, tmp_path: Path, right: dict[str, Any]) -> None:
    out = tmp_path / "out"
    assert finished(start(code, "--workers", "2", "--out", str(out))) == right
    assert trials(out).worker.nunique() == 2
    assert not trials(out).duplicated(["stage", "loss", "rate", "repeat"]).any()


@needs_postgresql
def test_two_commands_share_a_database(code: Path, tmp_path: Path, right: dict[str, Any], server: Server) -> None:
    shared = ("--storage", server.address)
    both = [start(code, *shared, "--out", str(tmp_path / f"out{k}"), SECONDS="0.2") for k in (0, 1)]
    assert [finished(process) for process in both] == [right, right]
    done = trials(tmp_path / "out0")
    assert done.worker.nunique() == 2
    assert done.tries.tolist() == [1] * len(done)


def test_two_commands_share_a_folder(code: Path, tmp_path: Path, right: dict[str, Any]) -> None:
    both = [start(code, "--out", str(tmp_path / "out"), SECONDS="0.2") for _ in (0, 1)]
    assert [finished(process) for process in both] == [right, right]
    done = trials(tmp_path / "out")
    assert done.worker.nunique() == 2
    assert (tmp_path / "out" / store.JOURNAL).read_text().count('"outcome"') == len(done)  # none was run twice


def test_a_killed_worker_is_replaced(code: Path, tmp_path: Path, right: dict[str, Any]) -> None:
    out = tmp_path / "out"
    process = start(code, "--workers", "2", "--out", str(out), SECONDS="0.3")
    for done in (2, 5, 9):
        wait_for_trials(out, done)
        os.kill(children(process)[0], signal.SIGKILL)
    assert finished(process) == right
    assert trials(out).worker.nunique() >= 3


@pytest.mark.parametrize("how", ["killed", "terminated", "interrupted"])
def test_a_command_that_ended_goes_on(code: Path, tmp_path: Path, right: dict[str, Any], how: str) -> None:
    """All of its processes at once, in mid-trial or while they write; nothing that was finished is done again."""
    out = tmp_path / "out"
    for done in (1, 4, 8):
        process = start(code, "--workers", "2", "--out", str(out), SECONDS="1")  # so that much is left to do
        wait_for_trials(out, done)
        if how == "killed":
            end(process)
            continue
        process.send_signal(signal.SIGTERM if how == "terminated" else signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "interrupted" in errors
        assert not (out / "results.json").exists()
    text = (out / store.JOURNAL).read_text()
    assert ('"interrupted"' in text) == (how != "killed")
    before = text.count('"outcome"')
    assert finished(start(code, "--out", str(out))) == right
    assert (out / store.JOURNAL).read_text().count('"outcome"') == len(trials(out)) > before
    # Its results stay as they are when it is called again and interrupted.
    written = (out / "results.json").read_bytes()
    assert finished(start(code, "--out", str(out))) == right
    assert (out / "results.json").read_bytes() == written


@needs_postgresql
def test_a_killed_server_loses_nothing(code: Path, tmp_path: Path, right: dict[str, Any]) -> None:
    server = Server()
    try:
        process = start(
            code, "--workers", "2", "--storage", server.address, "--out", str(tmp_path / "out"), SECONDS="0.5"
        )
        until = time.monotonic() + 60
        while not (tmp_path / "out" / "logs" / "worker-1.log").exists():  # the command has found the database
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(3)
        for _ in range(2):
            server.kill()
            time.sleep(1.5)
            server.start()
            time.sleep(2)
        assert finished(process) == right
    finally:
        server.stop()


@needs_postgresql
def test_sixteen_workers_with_random_kills(code: Path, tmp_path: Path, right: dict[str, Any], server: Server) -> None:
    chance = random.Random(0)
    name = ("--storage", server.create("chaos"))
    commands = [
        start(code, *name, "--workers", "4", "--out", str(tmp_path / f"out{k}"), SECONDS="1.5") for k in range(4)
    ]
    until = time.monotonic() + 40
    while time.monotonic() < until and any(command.poll() is None for command in commands):
        time.sleep(3)
        alive = [pid for command in commands for pid in children(command)]
        if alive:
            os.kill(chance.choice(alive), signal.SIGKILL)
    assert [finished(command) for command in commands] == [right] * 4
    done = trials(tmp_path / "out0")
    assert not done.duplicated(["stage", "loss", "rate", "repeat"]).any()


FAULTS = {
    "raise OSError('disk')": "OSError: disk",
    "os._exit(7)": "it ended the process, with code 7",
    "raise SystemExit(2)": "it ended the process, with code 2",
    "import ctypes; ctypes.string_at(0)": r"the process crashed \(SIGSEGV\)",
    "time.sleep(1000)": "it took longer than 3 s",
    "os.abort()": r"the process crashed \(SIGABRT\)",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_is_tried_again_and_then_recorded(code: Path, tmp_path: Path, fault: str) -> None:
    out, tried = tmp_path / "out", tmp_path / "tried"
    process = start(code, "--workers", "2", "--timeout", "3", "--out", str(out), FAULT=fault, TRIED=str(tried))
    found = finished(process)
    assert tried.read_text() == "once\n" * 2
    failed = trials(out)[trials(out).error.notna()]
    assert failed.error.str.contains(FAULTS[fault]).tolist() == [True]
    assert failed.tries.tolist() == [2]
    assert "1 trainings failed" in found["notes"][0]


@pytest.mark.parametrize(
    ("text", "name", "error"),
    [
        ("import nothing_of_that_name", "train", "can't be imported: ModuleNotFoundError: No module named 'nothing_of"),
        ("def tune(trial): ...", "train", "has no function 'train'; it has: tune"),
        (
            "def train(trial): raise OSError('no data')",
            "train",
            "every loss failed: OSError: no data (line 1 of train.py)",
        ),
        ("train = 3", "train", "has no function 'train'; it has: none"),
        ("raise SystemExit('usage')", "train", "can't be imported: SystemExit: usage"),
        ("def train(trial): ...", "", "is no training function: give FILE.py:FUNCTION"),
        ("import os; os._exit(5)", "train", "end at once: it ended the process, with code 5"),
    ],
)
def test_code_that_can_not_run_is_one_line(code: Path, tmp_path: Path, text: str, name: str, error: str) -> None:
    code.write_text(text)
    process = subprocess.run(
        [sys.executable, "-m", "polylosses", "tune", f"{code}:{name}", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert error in process.stderr
    assert process.stderr.count("\n") == 1
    assert process.stdout == ""
    if "is no training function" in error:
        assert not (tmp_path / "out").exists()


def test_it_can_import_what_is_beside_it(code: Path, tmp_path: Path) -> None:
    """As ``python train.py`` can; and start processes that pickle its functions."""
    (code.parent / "beside.py").write_text("OFFSET = 1.0\ndef double(x): return 2 * x\n")
    code.write_text(
        "import multiprocessing\nfrom beside import OFFSET, double\n"
        "def half(x): return x / 2\n"
        "def train(trial):\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        one = pool.map(half, [pool.map(double, [1.0])[0]])[0]\n"
        "    return OFFSET + one + trial.seed / 2**31\n"
    )
    process = start(code, "--points", "1", "--repeats", "2", "--out", str(tmp_path / "out"))
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert json.loads(out)["verdict"] == "no detectable difference"
