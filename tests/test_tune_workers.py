"""Studies in worker processes, on a journal file and on PostgreSQL, while processes and servers are killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.trial import FrozenTrial
from sqlalchemy.pool import NullPool

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


def start(
    code: Path, *options: str, command: Sequence[str] = (sys.executable, "-m", "polylosses"), **environment: str
) -> subprocess.Popen[str]:
    """The command, as the leader of a process group of its own."""
    # A shell starts what runs in its background, perhaps these tests, with Ctrl-C ignored.
    return subprocess.Popen(
        ["env", "--default-signal=INT", *command, "tune", f"{code}:train", *OPTIONS, *options],
        cwd=code.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str], seconds: float = 300) -> dict[str, Any]:
    out, errors = process.communicate(timeout=seconds)
    assert process.returncode == 0, errors
    return without_versions(json.loads(out))


def without_versions(found: dict[str, Any]) -> dict[str, Any]:
    del found["settings"]["versions"]
    found["settings"].pop("source", None)  # of commands
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
    assert trials(out).tries.tolist() == [1] * len(trials(out))  # that they were killed is no fault of the training


def test_a_worker_that_ends_before_its_first_trial_is_replaced(
    code: Path, tmp_path: Path, right: dict[str, Any]
) -> None:
    once = (
        "\nif not os.path.exists(os.environ['TRIED']):\n    open(os.environ['TRIED'], 'w').close()\n    os._exit(5)\n"
    )
    code.write_text(CODE + once)
    process = start(code, "--out", str(tmp_path / "out"), TRIED=str(tmp_path / "tried"))
    assert finished(process) == right


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


def ended_with_one_line(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, ""), errors
    assert errors.count("\n") == 1, errors
    return errors


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk."""
    path = tmp_path / "disk"
    path.mkdir()
    if shutil.which("mount") is None or not mount(path, "size=40k"):
        pytest.skip("disks can't be mounted here")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def mount(path: Path, options: str) -> bool:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, check=False)
    return done.returncode == 0


def test_a_study_goes_on_when_a_full_disk_has_space_again(
    code: Path, tmp_path: Path, right: dict[str, Any], disk: Path
) -> None:
    out = disk / "out"
    assert "is the disk full?" in (errors := ended_with_one_line(start(code, "--workers", "2", "--out", str(out)))) or (
        f"--out {out}: there is no space left" in errors
    )
    before = (out / store.JOURNAL).read_text().count('"outcome"')
    assert before
    assert mount(disk, "remount,size=10m")
    assert finished(start(code, "--out", str(out))) == right
    assert (out / store.JOURNAL).read_text().count('"outcome"') == len(trials(out)) > before
    assert trials(out).tries.tolist() == [1] * len(trials(out))  # a full disk is no fault of a training


def test_a_study_goes_on_when_files_may_be_larger(code: Path, tmp_path: Path, right: dict[str, Any]) -> None:
    """The same where no disk can be mounted; at some lengths, a line of the journal is cut in two."""
    out = tmp_path / "out"
    python = (sys.executable, "-m", "polylosses")
    for size in (9000, 17000, 17100):
        limited = ("prlimit", f"--fsize={size}", *python)
        ended_with_one_line(start(code, "--workers", "2", "--out", str(out), command=limited))
    assert finished(start(code, "--out", str(out))) == right
    assert trials(out).tries.tolist() == [1] * len(trials(out))


def test_a_training_that_finds_a_full_disk_stops_the_study(code: Path, tmp_path: Path, right: dict[str, Any]) -> None:
    out, tried = tmp_path / "out", tmp_path / "tried"
    full = "open('/dev/full', 'wb', buffering=0).write(b'a checkpoint')"
    errors = ended_with_one_line(start(code, "--out", str(out), FAULT=full, TRIED=str(tried)))
    assert "is the disk full?" in errors
    assert "No space left" in (out / "logs" / "worker-0.log").read_text()
    assert finished(start(code, "--out", str(out))) == right
    assert tried.read_text() == "once\n"


def test_an_out_that_is_read_only_is_one_line(code: Path, disk: Path) -> None:
    assert mount(disk, "remount,ro")
    errors = ended_with_one_line(start(code, "--out", str(disk / "out")))
    assert f"--out {disk}/out can't be written (Read-only file system): give another directory" in errors


def test_the_verdict_is_shown_even_if_it_can_not_be_written(code: Path, tmp_path: Path, right: dict[str, Any]) -> None:
    (tmp_path / "out" / "results.csv" / "mine").mkdir(parents=True)
    process = start(code, "--out", str(tmp_path / "out"))
    out, errors = process.communicate(timeout=60)
    assert without_versions(json.loads(out)) == right
    assert process.returncode == 2
    assert errors.count("\n") == 1


# A training that can't be interrupted, and has started a process.
STUBBORN = """
import os, signal, subprocess, time
def train(trial):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "1000"])
    with open(os.environ["TRIED"], "a") as tried:
        tried.write(f"{os.getpid()}\\n{child.pid}\\n")
    time.sleep(1000)
"""


def test_the_second_ctrl_c_ends_at_once(code: Path, tmp_path: Path) -> None:
    code.write_text(STUBBORN)
    tried = tmp_path / "tried"
    patient = "import polylosses.cli; from polylosses.tune import workers; workers.GENTLY = 1e6; polylosses.cli.main()"
    command = (sys.executable, "-c", patient)
    process = start(code, "--workers", "2", "--out", str(tmp_path / "out"), command=command, TRIED=str(tried))
    until = time.monotonic() + 60
    while time.monotonic() < until and (not tried.exists() or tried.read_text().count("\n") < 4):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "polylosses: interrupted.\n")
    pids = tried.read_text().split()
    assert len(pids) == 4
    states = subprocess.run(["ps", "-o", "stat=", "-p", ",".join(pids)], capture_output=True, text=True, check=False)
    assert all(state.startswith("Z") for state in states.stdout.split())  # none, or not yet waited for


def test_files_of_one_name_do_not_share_results(code: Path, tmp_path: Path) -> None:
    """Nor does one go on with the trials of the other."""
    others = code.parent.parent / "others" / "train.py"
    others.parent.mkdir()
    others.write_text(CODE.replace("0.02 * trial.epsilon", "0.5 - 0.02 * trial.epsilon"))

    def run(file: Path, *options: str) -> subprocess.Popen[str]:
        command = ("env", f"--chdir={tmp_path}", sys.executable, "-m", "polylosses")
        return start(file, *options, command=command)

    mine = finished(run(code))
    assert (tmp_path / "polylosses-train" / "results.json").exists()
    errors = ended_with_one_line(run(others))
    assert "polylosses-train has the results of mine/train.py:train: give another directory with --out" in errors
    assert finished(run(code)) == mine
    theirs = finished(run(others, "--out", "polylosses-train"))
    assert theirs["losses"][0]["score"] > mine["losses"][0]["score"] + 0.4


# Sets the clock of a process, and has it give signs of life more often.
CLOCK = """
import datetime, os, time
import optuna.storages._rdb.storage
from polylosses.tune import store

ahead, now = float(os.environ.get("AHEAD", "0")), time.time

class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(now() + ahead, tz)

time.time = lambda: now() + ahead
optuna.storages._rdb.storage.datetime = store.datetime = Clock
store.HEARTBEAT, store.GRACE = 1, 5
"""
CLOCKS = {
    "an hour ahead": {"AHEAD": "3600"},
    "of Tokyo": {"TZ": "Asia/Tokyo", "PGTZ": "Asia/Tokyo"},
}


@needs_postgresql
@pytest.mark.parametrize("clock", CLOCKS)
def test_clocks_of_machines_may_differ(
    code: Path, tmp_path: Path, right: dict[str, Any], server: Server, clock: str
) -> None:
    """No living worker is taken for dead, and no dead one for living."""
    (code.parent / "clock.py").write_text(CLOCK)
    code.write_text(f"import clock\n{CODE}")
    command = (sys.executable, "-c", "import clock; from polylosses import cli; cli.main()")
    address = server.create(clock.replace(" ", "_"))

    def machine(name: str, **environment: str) -> subprocess.Popen[str]:
        out = tmp_path / name
        out.mkdir()
        options = ("--storage", address, "--out", str(out))
        # With a folder of its own for temporary files, it is not seen from elsewhere which processes are alive.
        return start(code, *options, command=command, TMPDIR=str(out), **environment)

    here, there = machine("here", SECONDS="0.5"), machine("there", SECONDS="2", **CLOCKS[clock])
    until = time.monotonic() + 60
    while not {"COMPLETE", "RUNNING"} <= {trial.state.name for trial in taken(there, tmp_path / "there", address)}:
        assert time.monotonic() < until
        time.sleep(0.1)
    end(there)
    assert finished(here, seconds=100) == right
    done = trials(tmp_path / "here")
    assert done.tries.tolist() == [1] * len(done)
    assert done.seconds.between(0.5, 60).all()
    records = optuna.load_study(study_name="train.py:train", storage=optuna_storage(address)).get_trials()
    assert sum(record.state.name == "FAIL" for record in records) == 1  # what was running there
    started = pd.to_datetime(done.started, utc=True)
    assert (started.max() - started.min() > pd.Timedelta("50min")) == ("AHEAD" in CLOCKS[clock])


def taken(process: subprocess.Popen[str], out: Path, address: str) -> list[FrozenTrial]:
    """The trials in a database that workers of a command have taken."""
    if not (out / "logs").exists():  # the command is still looking for the database
        return []
    study = optuna.load_study(study_name="train.py:train", storage=optuna_storage(address))
    pids = {str(pid) for pid in children(process)}
    return [trial for trial in study.get_trials() if store.process_of(trial).rpartition(":")[2] in pids]


def optuna_storage(address: str) -> optuna.storages.RDBStorage:
    """A storage that keeps no connections."""
    return optuna.storages.RDBStorage(address, engine_kwargs={"poolclass": NullPool})


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
            with suppress(ProcessLookupError):  # it has just ended
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
        [sys.executable, "-m", "polylosses", "tune", f"{code}:{name}", "--out", str(tmp_path / "out"), "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert error in process.stderr
    assert process.stderr.count("\n") == 1
    assert process.stdout == ""
    if not ("every loss failed" in error or "end at once" in error):  # these leave logs
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
