"""The command line: output, written files, and a one-line message for every user error."""

import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from polylosses import catalogue, cli, progress, two_sided
from polylosses import tune as tuning
from polylosses.tune import Trial, batched
from polylosses.tune.data import BUNDLED
from polylosses.tune.result import Result

COMMAND = Path(sys.executable).with_name("polylosses")
QUICK = ["--epsilons", "2", "--learning-rates", "0.01", "--repeats", "2"]


# The command, with a shortened training.
SHORT = [
    sys.executable,
    "-c",
    "from polylosses import cli; from polylosses.tune import batched; batched.MINIMUM_STEPS = 20; cli.main()",
]


def run(*arguments: str, cwd: Path, command: Sequence[str | Path] = (COMMAND,)) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


# Runs the command, and returns the exit code, stdout and stderr.
Call = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs the command in this process, to save the imports, with a shortened training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # main() sets it
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # likewise
    monkeypatch.setattr(batched, "MINIMUM_STEPS", 20)
    monkeypatch.setattr(progress, "EVERY", math.inf)  # on a busy machine, too

    def called(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["polylosses", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capfd.readouterr()

    return called


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV file with a categorical column, missing values, and labels that depend on both kinds of column."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"size": rng.normal(size=120), "colour": rng.choice(["red", "green", "blue"], 120)})
    score = frame["size"] + 2 * (frame["colour"] == "red") + rng.normal(0, 0.5, 120)
    frame["kind"] = np.where(score > 1, "large, <b>red</b>", "small")
    frame.loc[::9, "size"] = np.nan
    frame.loc[::11, "colour"] = None
    path = tmp_path_factory.mktemp("data") / "table.csv"
    frame.to_csv(path, index=False)
    return path


def test_tune_shows_a_table_and_a_verdict_and_writes_three_files(table: Path, tmp_path: Path, call: Call) -> None:
    code, shown, errors = call("tune", str(table), "--target", "kind", *QUICK)
    assert not code
    assert errors == ""
    output = " ".join(shown.split())
    for expected in (
        "epsilon",
        "accuracy",
        "interval",
        "calibration",
        "poly_softmax",
        "cross-entropy",
        "Report: polylosses-table/report.html",
    ):
        assert expected in output, output
    found = json.loads((tmp_path / "polylosses-table" / "results.json").read_text())
    assert found["sentence"] in output
    assert {path.name for path in (tmp_path / "polylosses-table").iterdir()} == {
        "results.csv",
        "results.json",
        "report.html",
        "study.journal",
    }


def test_a_table_is_read_as_said_and_tune_tells_how(tmp_path: Path, call: Call) -> None:
    rng = np.random.default_rng(0)
    size = rng.normal(size=90).round(2)
    kinds = np.where(size > 0, "large", "small")
    # "/" is neither found as a separator, nor "[/b]" markup.
    kinds[5], kinds[88:] = "", "odd"
    lines = [f"{i}/{str(size[i]).replace('.', ',')}/{i // 3}/{i % 2}/gr\xfcn/{kinds[i]}" for i in range(90)]
    (tmp_path / "t.csv").write_bytes("\n".join(lines).encode("cp1252"))
    options = "--separator / --decimal , --encoding cp1252 --no-header --drop-missing-labels --rare drop"
    columns = "--target column6 --group column3 --drop column4"
    code, shown, errors = call("tune", "t.csv", *options.split(), *columns.split(), *QUICK, "-o", "new")
    assert not code, errors
    assert errors == ""
    found = json.loads((tmp_path / "new" / "results.json").read_text())
    assert [(one["name"], one["read"], one["example"]) for one in found["columns"]][1:] == [
        ("column2", "number", str(size[0])),
        ("column4", "left out, as you asked", "0"),
        ("column5", "text: 1 category", "gr\xfcn"),
    ]
    assert found["settings"]["groups"] == 30
    assert found["settings"]["rows"] == 87
    assert found["settings"]["read"][0] == "separated by '/', decimal comma, cp1252, no line of column names"
    part, verdict = shown.split("\n\n", 1)
    output = " ".join(part.split())
    assert output.startswith(f"How your columns were read {found['settings']['read'][0]} empty fields")
    assert output.endswith(
        "column4: left out, as you asked column5: text: 1 category; the same in every row All others: 1 number, 0 text "
        "columns"
    )
    assert " column1: left out: whole numbers that rise" in output
    assert "column2" not in output
    assert found["notes"][0] in " ".join(verdict.split())
    assert "separated by" in (tmp_path / "new" / "report.html").read_text()


def test_names_of_columns_are_no_markup(tmp_path: Path, call: Call) -> None:
    frame = pd.DataFrame({"[/b]": np.arange(60), "size": np.arange(60) % 7 / 3, "kind": ["[red]", "[/i]"] * 30})
    frame.to_csv(tmp_path / "t.csv", index=False)
    code, shown, _ = call("tune", "t.csv", "--target", "kind", *QUICK)
    assert not code
    assert "  [/b]: left out: " in shown
    assert "The largest class, [" in shown


def test_a_table_with_much_to_say_is_left_to_the_report() -> None:
    odd = [{"name": f"c{k}", "read": "number", "warning": "odd"} for k in range(50)]
    lines = cli._columns([*odd, {"name": "x", "read": "text: 2 categories", "warning": ""}])
    assert len(lines) == cli.MOST_COLUMNS + 2
    assert lines[-2:] == ["  and 30 more, see the report", "All others: 0 numbers, 1 text column"]


def test_h_is_help(tmp_path: Path, call: Call) -> None:
    for words in ([], ["tune"], ["plot"]):
        assert call(*words, "-h") == call(*words, "--help")
    assert "--drop-missing-labels" in call("tune", "-h")[1]


@pytest.mark.slow
def test_quiet_prints_the_verdict_and_json_the_results(tmp_path: Path, call: Call) -> None:
    """Also, results are the same in this process and in another one."""
    quiet = call("tune", "iris", *QUICK, "--quiet", "--out", "a")
    as_json = run("tune", "iris", *QUICK, "--json", "--out", "b", cwd=tmp_path, command=SHORT)
    assert (quiet[0] or 0, as_json.returncode) == (0, 0)
    assert (quiet[2], as_json.stderr) == ("", "")
    found = json.loads(as_json.stdout)
    assert quiet[1] == found["sentence"] + "\n"
    assert found == json.loads((tmp_path / "b" / "results.json").read_text())
    assert (tmp_path / "a" / "results.csv").read_bytes() == (tmp_path / "b" / "results.csv").read_bytes()


@pytest.mark.filterwarnings("default")
def test_an_epsilon_below_minus_1_is_warned_of(call: Call) -> None:
    code, _, errors = call("tune", "iris", *QUICK[2:], "--epsilons", "-2", "--quiet")
    assert not code
    assert errors.count("\n") == 1
    assert errors.startswith("polylosses: warning: epsilon = -2 ")
    assert "-1" in errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["tune"], "Missing argument", id="nothing to tune on"),
        pytest.param(["tune", "no.csv", "--target", "kind"], "there is no file no.csv", id="missing file"),
        pytest.param(["tune", "dgits"], "there is no file dgits, .* digits", id="misspelt data set"),
        pytest.param(["tune", "TABLE"], "Add --target with one of: size, colour, kind", id="no target"),
        pytest.param(["tune", "TABLE", "--target", "knd"], "no column 'knd'", id="unknown target"),
        pytest.param(["tune", "TABLE", "--target", "size"], "14 of 120 labels are missing", id="no class"),
        pytest.param(["tune", "iris", "--epsilons", "1,two"], "--epsilons 1,two is not a list", id="epsilons"),
        pytest.param(["tune", "iris", "--epsilons", "1,,2"], "--epsilons 1,,2 is not a list", id="epsilons gap"),
        pytest.param(["tune", "iris", "--epsilons", "nan"], "epsilons must be finite; got nan", id="epsilon nan"),
        pytest.param(["tune", "iris", "--epsilons", "0"], "other than 0", id="epsilon 0 only"),
        pytest.param(["tune", "iris", "--learning-rates", "x"], "--learning-rates x is not a list", id="rates"),
        pytest.param(["tune", "iris", "--learning-rates", "-1"], "above 0", id="negative rate"),
        pytest.param(["tune", "no.csv", "--model", "forest"], "model must be one of network, .*'forest'", id="model"),
        pytest.param(["tune", "iris", "--model", "xgboost", "--device", "cpu"], "device 'cpu' is for net", id="device"),
        pytest.param(["tune", "iris", "--metric", "auc"], "metric must be one of accuracy.*got 'auc'", id="metric"),
        pytest.param(["tune", "iris", "--repeats", "many"], "--repeats.*'many' is not a whole number", id="repeats"),
        pytest.param(["tune", "iris", "--repeats", "1"], "repeats must be .* got 1", id="one repeat"),
        pytest.param(["tune", "iris", "--repeats", "9" * 20], "at most 10000 and at least 2; got 99", id="too many"),
        pytest.param(["tune", "iris", "--epsilons", "1e300"], "of more than 1e.30 overflow", id="epsilon 1e300"),
        pytest.param(["plot", f"poly1({'-' * 9000}1)", "--out", "a.html"], "is no loss", id="too deep"),
        pytest.param(["tune", "iris", "--imbalance", "x"], "--imbalance.*'x' is not a number", id="imbalance"),
        pytest.param(["tune", "iris", "--imbalance", "500"], "imbalance 500 needs", id="too long a tail"),
        pytest.param(["tune", "iris", "--label-noise", "40"], "label_noise is a share", id="per cent"),
        pytest.param(["tune", "iris", "--seed", "-1"], "seed must be", id="seed"),
        pytest.param(["tune", "iris", "--out", "FILE/below"], "--out .* can't be written", id="out below a file"),
        pytest.param(["tune", "iris", "--out", "FILE"], "--out .* can't be written", id="out is a file"),
        pytest.param(["tune", "iris", "--out", "/proc/x"], "--out /proc/x can't be written", id="unwritable"),
        pytest.param(["tune", "iris", "--frobnicate"], "No such option", id="unknown option"),
        pytest.param(["frobnicate"], "No such command 'frobnicate'", id="unknown command"),
        pytest.param(["tune", "TABLE", "--target", "kind", "--separator", ";"], "no column 'kind'", id="separator"),
        pytest.param(["tune", "TABLE", "--target", "kind", "--decimal", "x"], "decimal must .* got 'x'", id="decimal"),
        pytest.param(["tune", "TABLE", "--target", "kind", "--encoding", "x"], "'x' is not known", id="encoding"),
        pytest.param(["tune", "TABLE", "--target", "kind", "--no-header"], "column1, column2", id="no header"),
        pytest.param(["tune", "TABLE", "--target", "kind", "--sheet", "x"], "sheet='x' has no meaning", id="sheet"),
        pytest.param(["tune", "TABLE", "--target", "kind", "--drop", "x"], "no column 'x' to drop", id="drop"),
        pytest.param(["tune", "TABLE", "--target", "kind", "--rare", "x"], "rare must be .* got 'x'", id="rare"),
        pytest.param(
            ["tune", "TABLE", "--target", "kind", "--group", "x"], "'x': give --group one of: size, c", id="group"
        ),
        pytest.param(["tune", "TABLE", "--target", "kind", "--group", "kind"], "--group kind is the col", id="labels"),
        pytest.param(
            ["tune", "TABLE", "--target", "kind", "--group", "colour"], "11 of 120 groups .* line 2", id="gap"
        ),
        pytest.param(["tune", "iris", "--group", "x"], "iris has no groups, so --group x", id="group of a data set"),
        pytest.param(["tune", "iris", "--no-header"], "iris brings its own labels, so header False", id="data set"),
        *(
            pytest.param(["tune", "my.py:train", *words], f"{words[0].replace('no-', '')} is for tables", id=words[0])
            for words in (
                ["--separator", ";"],
                ["--decimal", ","],
                ["--encoding", "utf-8"],
                ["--no-header"],
                ["--sheet", "x"],
                ["--drop", "x"],
                ["--drop-missing-labels"],
                ["--rare", "drop"],
                ["--group", "x"],
                ["--model", "xgboost"],
            )
        ),
        pytest.param(
            ["tune", "--losses", "poly1", "focal", "no.py:train"], "no.py:train is no training f", id="no file"
        ),
        pytest.param(["plot", "poly1(2)"], "Missing option '--out'", id="plot without a file"),
        pytest.param(["plot", "poly2(2)", "--out", "a.html"], "'poly2\\(2\\)' is no loss", id="unknown loss"),
        pytest.param(["plot", "poly1(x)", "--out", "a.html"], "'poly1\\(x\\)' is no loss", id="no number"),
        pytest.param(["plot", "poly1(1, 2)", "--out", "a.html"], "'poly1\\(1, 2\\)': ", id="too many numbers"),
        pytest.param(["plot", "poly1('a')", "--out", "a.html"], "must be a number", id="text"),
        pytest.param(["plot", "__import__('os')", "--out", "a.html"], "is no loss", id="code"),
        pytest.param(["plot", "focal(-1)", "--out", "a.html"], "gamma must be at least 0", id="gamma"),
        pytest.param(["plot", "poly1(2)", "--out", "a.doc"], "a.doc", id="unknown picture"),
        pytest.param(["plot", "poly1(2)", "--out", "no/where.html"], "no", id="no directory"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    said: str,
    table: Path,
    tmp_path: Path,
    call: Call,
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    given = [a.replace("TABLE", str(table)).replace("FILE", str(file)) for a in arguments]
    code, output, errors = call(*given)
    assert code == 2
    assert output == ""
    assert errors.startswith("polylosses: ")
    assert errors.count("\n") == 1, errors
    assert re.search(said, errors), errors
    assert list(tmp_path.iterdir()) == [file], "nothing half-written"
    assert file.read_text() == "mine"


def test_a_library_that_is_missing_is_one_line_before_the_table_is_read(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    (tmp_path / "t.csv").write_text("not a table")
    code, output, errors = call("tune", "t.csv", "--target", "kind", "--model", "lightgbm")
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("polylosses: ")
    assert re.search("lightgbm .*pip install 'lightgbm>=", errors)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("Unable to allocate 7 TiB"), "polylosses: not enough memory. Unable to allocate 7 TiB\n"),
        (
            RuntimeError("can't allocate memory: 9 bytes"),
            "polylosses: not enough memory. can't allocate memory: 9 bytes\n",
        ),
        (
            OSError(28, "No space left"),
            "polylosses: --out x: there is no space left for it; make room, and run it again.\n",
        ),
    ],
)
def test_a_machine_that_is_too_small_is_one_line(
    error: Exception,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tune("x", {}, error) == 2
    assert capsys.readouterr() == ("", said)
    assert not tree(tmp_path)


def test_a_table_of_the_same_name_does_not_overwrite_results(tmp_path: Path, call: Call) -> None:
    frame = pd.DataFrame({"size": np.arange(60) % 7 / 3, "kind": ["a", "b"] * 30})
    for name in ("a/data.csv", "b/data.csv", "a/data.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        frame.to_csv(tmp_path / name, sep="\t" if name.endswith("tsv") else ",", index=False)

    def tuned(*arguments: str) -> tuple[Any, str]:
        code, _, errors = call("tune", *arguments, "--target", "kind", "--quiet", *QUICK)
        return code or 0, errors

    assert tuned("a/data.csv") == (0, "")
    written = (tmp_path / "polylosses-data" / "results.json").read_bytes()
    for other in ("b/data.csv", "a/data.tsv"):
        said = "polylosses: polylosses-data has the results of a/data.csv: give another directory with --out.\n"
        assert tuned(other) == (2, said)
    assert tuned(str(tmp_path / "a" / "data.csv")) == (0, "")
    assert (tmp_path / "polylosses-data" / "results.json").read_bytes() == written
    assert tuned("b/data.csv", "--out", "polylosses-data") == (0, "")


REPORT = {"results.csv": "epsilon\n0.0\n", "results.json": "{}\n", "report.html": "<p>"}


class Finished:
    """Stands for the result of a sweep, with the attributes that are written."""

    runs = pd.DataFrame({"epsilon": [0.0]})
    sentence = "no detectable difference"
    write = Result.write

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}

    def to_dict(self) -> dict[str, Any]:
        return {}

    def to_html(self) -> str:
        return "<p>"


class Unwritable(Finished):
    def to_html(self) -> str:
        raise RuntimeError("no page")


# A directory tree: a string is the text of a file, None a directory, and a path a symbolic link to it.
Tree = dict[str, str | Path | None]


def tree(root: Path) -> Tree:
    def what(path: Path) -> str | Path | None:
        return path.readlink() if path.is_symlink() else path.read_text() if path.is_file() else None

    return {str(path.relative_to(root)): what(path) for path in root.rglob("*")}


def put(root: Path, given: Tree) -> None:
    for name, what in given.items():
        path = root / name
        (path if what is None else path.parent).mkdir(parents=True, exist_ok=True)
        if isinstance(what, str):
            path.write_text(what)
        elif isinstance(what, Path):
            if path.exists():
                path.rmdir()
            path.symlink_to(what)


def old_report(directory: str) -> Tree:
    return {f"{directory}/{name}": "old" for name in REPORT}


# (--out, the files before, the files that other processes write during the sweep)
OUTS: dict[str, tuple[str, Tree, Tree]] = {
    "new": ("x", {}, {}),
    "two new": ("res/a", {}, {}),
    "beside a report": ("res/a", old_report("res/b"), {}),
    "in the place of a report": ("res/a", old_report("res/a"), {}),
    "below a report": ("res/a", old_report("res"), {}),
    "there and empty": ("res/a", {"res/a": None}, {}),
    "a link": ("x", {"y": None, "x": Path("y")}, {}),
    "through a link": ("x/a", {"y": None, "x": Path("y")}, {}),
    "another run beside it": ("res/a", {}, old_report("res/b")),
    "another run that has only begun": ("res/a", {}, {"res/b": None}),
    "another run in it": ("res/a", {}, old_report("res/a")),
    "another file above it": ("res/a", {}, {"res/notes": "mine"}),
    "replaced by a link": ("res/a", {}, {"y": None, "res/a": Path("../y")}),
}
# How a sweep ends: an error, a result, or (an error, the number of the file at whose writing it is raised).
FAILURES: dict[str, Any] = {
    "a mistake": ValueError("no"),
    "an accident": RuntimeError("no"),
    "Ctrl-C": KeyboardInterrupt(),
    "no page": Unwritable(),
    **{f"{type(e).__name__} at file {k}": (e, k) for e in (OSError(28, "full"), KeyboardInterrupt()) for k in range(3)},
}


def tune(out: str, meanwhile: Tree, outcome: Any) -> object:
    """Runs the command in the current directory, and returns its exit code or the exception that it raises."""
    files, write_text = itertools.count(), Path.write_text

    def sweep(*_: Any, **__: Any) -> Any:
        with pytest.MonkeyPatch.context() as others:
            others.setattr(Path, "write_text", write_text)
            put(Path.cwd(), meanwhile)
        if isinstance(outcome, BaseException):
            raise outcome
        return Finished() if isinstance(outcome, tuple) else outcome

    def write_or_fail(path: Path, text: str, encoding: str | None = None, errors: str | None = None) -> int:
        if isinstance(outcome, tuple) and next(files) == outcome[1]:
            write_text(path, "half")
            raise outcome[0]
        return write_text(path, text, encoding, errors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "load", lambda *_, **__: (None, None))
        patch.setattr(tuning, "sweep", sweep)
        patch.setattr(Path, "write_text", write_or_fail)
        patch.setattr(sys, "argv", ["polylosses", "tune", "iris", "--quiet", "--out", out])
        patch.setattr(warnings, "showwarning", warnings.showwarning)  # main() replaces it
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # likewise
        try:
            cli.main()
        except SystemExit as end:
            return end.code or 0
        except RuntimeError as error:
            return error
    return None


@pytest.mark.parametrize("case", OUTS)
def test_a_sweep_takes_away_nothing_but_what_it_made(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before, meanwhile = OUTS[case]
    without = tmp_path / "without"
    without.mkdir()
    put(without, before | meanwhile)
    for number, (name, failure) in enumerate(FAILURES.items()):
        there = tmp_path / str(number)
        there.mkdir()
        monkeypatch.chdir(there)
        put(there, before)
        assert tune(out, meanwhile, failure) not in (0, None), name
        assert tree(there) == tree(without), name
    there = tmp_path / "whole"
    there.mkdir()
    monkeypatch.chdir(there)
    put(there, before)
    assert tune(out, meanwhile, Finished()) == 0
    put(without, {f"{out}/{name}": text for name, text in REPORT.items()})
    assert tree(there) == tree(without)


@pytest.mark.parametrize("report", [False, True])
def test_an_interrupted_sweep_leaves_a_finished_report_alone(
    report: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, old_report("x") if report else {})
    before = tree(tmp_path)
    assert tune("x", {}, tuning.SweepInterrupted(Finished.runs)) == cli.INTERRUPTED
    assert tree(tmp_path) == before
    assert "interrupted; 1 finished runs are kept in x: the same command goes on." in capsys.readouterr().err


@pytest.mark.parametrize("before", [{}, {"x/results.csv": "mine", "x/interrupted.csv": "mine"}], ids=["new", "there"])
def test_an_interrupt_before_the_first_run_writes_nothing(
    before: dict[str, str | Path | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, before)
    there = tree(tmp_path)
    for interrupt in (tuning.SweepInterrupted(Finished.runs[:0]), KeyboardInterrupt()):
        assert tune("x", {}, interrupt) == cli.INTERRUPTED
        assert tree(tmp_path) == there
        assert capsys.readouterr().err == "polylosses: interrupted.\n"


# The command, with a sweep in small batches that reports when the first of them is finished.
NOTING = """
from pathlib import Path
from polylosses import cli
from polylosses.tune import batched, experiment

batched.MINIMUM_STEPS, experiment.MODELS_AT_ONCE = 20, 2
run = experiment.Experiment.run

def noted(*given):
    if Path("x/study.journal").read_text().count('"outcome"'):
        Path("finished").touch()
    return run(*given)

experiment.Experiment.run = noted
cli.main()
"""


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    # Long enough to be still training when the signal arrives.
    long = "tune iris --repeats 5000 --learning-rates 0.001 --epsilons 1 --out x"
    # If a shell runs the tests in the background, they ignore SIGINT, and child processes would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [sys.executable, "-c", NOTING, *long.split()],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        signal.signal(signal.SIGINT, before)
        while process.poll() is None and not (tmp_path / "finished").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert output == ""
    assert errors.count("\n") == 1, errors
    kept = (tmp_path / "x" / "study.journal").read_text().count('"outcome"')
    assert kept > 0
    assert f"interrupted; {kept} finished runs are kept in x: the same command goes on." in errors
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["study.journal"]


def test_list_shows_every_loss(tmp_path: Path) -> None:
    done = run("list", cwd=tmp_path)
    assert done.returncode == 0
    for name in catalogue.ALL:
        assert name in done.stdout
    assert re.search(r"-log p \+ \(1 - p\) +2, 0\.5, 0\.333", done.stdout)


def test_list_as_json_has_every_loss_and_its_defaults(call: Call) -> None:
    code, shown, errors = call("list", "--json")
    assert (code or 0, errors) == (0, "")
    found = {loss["name"]: loss for loss in json.loads(shown)}
    assert set(found) == {*catalogue.ALL, *two_sided.ALL}
    assert found["poly1"] == {
        "name": "poly1",
        "parameters": {"epsilon": 1.0},
        "formula": "-log p + (1 - p)",
        "series": [2.0, 0.5, 1 / 3],
    }
    assert found["poly_n"]["parameters"] == {"epsilons": []}
    assert found["asymmetric"]["parameters"] == {"gamma_neg": 4.0, "gamma_pos": 1.0, "margin": 0.05}
    assert found["asymmetric"]["positive"]["formula"] == "(1 - p) (-log p)"
    assert found["asymmetric"]["negative"]["formula"] == "(1 - p)^4 (-log p)"


@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["--help"]])
def test_a_reader_that_has_enough_is_no_error(words: list[str], tmp_path: Path) -> None:
    """As in ``polylosses list | head -1``."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [COMMAND, *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("words", "begun", "completed"),
    [("tune", "i", {"iris"}), ("tune iris --losses", "poly1", {"poly1", "poly1_focal"}), ("plot", "foc", {"focal"})],
)
def test_words_are_completed(words: str, begun: str, completed: set[str], tmp_path: Path) -> None:
    typed = ["polylosses", *words.split(), begun]
    asked = {"_POLYLOSSES_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(typed), "COMP_CWORD": str(len(typed) - 1)}
    done = subprocess.run([COMMAND], env=os.environ | asked, capture_output=True, text=True, timeout=60, check=False)
    assert set(done.stdout.split()) == completed
    assert set(cli.DATA_SETS) == set(BUNDLED)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tune --losses focal(2) t.py:f", "tune --losses focal(2) t.py:f"),
        ("tune --losses focal(2) poly_n(1,2) t.py:f", "tune --losses focal(2) --losses poly_n(1,2) t.py:f"),
        ("tune t.py:f --losses=focal poly1 --json", "tune t.py:f --losses=focal --losses poly1 --json"),
        ("tune focal --losses poly1 --losses focal", "tune focal --losses poly1 --losses focal"),
        ("plot poly1 focal --out a.html", "plot poly1 focal --out a.html"),
    ],
)
def test_several_losses_may_follow_one_option(words: str, expected: str) -> None:
    assert cli._each_with_its_option(words.split()) == expected.split()


@pytest.mark.parametrize("columns", [40, 80])
def test_a_narrow_terminal_of_ascii_shows_everything(columns: int, tmp_path: Path) -> None:
    size = np.arange(200) % 7 / 3
    frame = pd.DataFrame({"gr\xf6\xdfe": np.arange(200), "size": size, "kind": np.where(size > 1, "\u9f8d", "b")})
    frame.to_csv(tmp_path / "\xfc\u9f8d.csv", index=False)
    environment = {**os.environ, "COLUMNS": str(columns), "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    for words in (["list"], ["tune", "\xfc\u9f8d.csv", "--target", "kind", *QUICK], ["tune", "no\xfc.csv"]):
        done = subprocess.run(
            [*SHORT, *words], cwd=tmp_path, env=environment, capture_output=True, timeout=300, check=False
        )
        shown = done.stdout.decode("ascii")
        said = done.stderr.decode("ascii")
        assert done.returncode == (2 if "no\xfc.csv" in words else 0), said
        assert "Traceback" not in said
        assert "\\u2026" not in shown
        assert "\\xa0" not in shown
        one_line = " ".join(shown.split())
        if words == ["list"]:
            assert all(name in shown for name in (*catalogue.ALL, *two_sided.ALL))
        elif "--target" in words:
            assert "gr\\xf6\\xdfe: left out" in one_line
            assert ("epsilon: 2" in shown) == (columns == 40)
            assert "calibration" in one_line
            assert "Report: polylosses-\\xfc\\u9f8d/report.html" in shown
        else:
            assert "there is no file no\\xfc.csv" in said
        # Of what is escaped, the terminal breaks the lines.
        assert all(len(line) <= columns for line in shown.splitlines() if "\\" not in line)


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    lines: list[str] = []
    tell = progress.Lines(lines.append)  # at 0 s
    for second in range(1, 8):
        tell(second / 20, f"selection: {second} of 20")
    assert not lines
    for second in range(8, 16):
        tell(second / 20, f"selection: {second} of 20, 1 failed")
    assert lines == ["selection: 10 of 20, 1 failed; 0:00:10 elapsed, 0:00:10 left"]
    tell(0.0, "confirmation: 0 of 8")
    assert lines[1:] == ["confirmation: 0 of 8; 0:00:16 elapsed"]
    for _ in range(17, 36001):
        tell(0.5, "confirmation: 4 of 8, +0.1 (-0.1 to +0.3) after 4 seeds")
    assert lines[2] == "confirmation: 4 of 8, +0.1 (-0.1 to +0.3) after 4 seeds; 0:00:26 elapsed, 0:00:10 left"
    assert 40 < len(lines) < 80


def test_list_and_help_and_version_need_no_framework(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['pandas'] = None\n"
        "from polylosses import cli\n"
        "for words in ['list'], ['--help'], ['tune', '--help'], ['--version'], []:\n"
        "    sys.argv = ['polylosses', *words]\n"
        "    try: cli.main()\n"
        "    except SystemExit as end: assert not end.code, words\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--label-noise" in done.stdout


def test_plot_writes_a_page(tmp_path: Path) -> None:
    losses = ["poly1(2)", "focal", "poly_n(1, -0.25)", "symmetric_cross_entropy(alpha=0.5)"]
    done = run("plot", *losses, "--out", "losses.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "losses.html").read_text()
    for loss in losses:
        assert loss in page


def test_the_report_of_a_study_is_written_again(call: Call, tmp_path: Path) -> None:
    def train(trial: Trial) -> float:
        if trial.repeat == 1 and trial.epsilon:
            raise KeyboardInterrupt
        return 0.5

    with pytest.raises(KeyboardInterrupt):
        tuning.study(train, epsilons=[1.0], repeats=3, storage=tmp_path / "mine", name="train.py:train")
    code, output, errors = call("report", "mine")
    assert (code, errors) == (None, "")
    assert "cross-entropy" in output
    assert "Not finished: 3 of 6 trainings of the selection are done." in output
    assert output.endswith("\nReport: mine/report.html\n")
    assert (tmp_path / "mine" / "report.html").stat().st_size > 1e6
    code, output, _ = call("report", "mine", "--name", "train.py:train", "-o", "new/there")
    assert output.endswith("\nReport: new/there/report.html\n")
    for name in ("results.json", "results.csv", "report.html"):
        assert (tmp_path / "new" / "there" / name).read_bytes() == (tmp_path / "mine" / name).read_bytes()
    tuning.study(lambda trial: 0.5, epsilons=[1.0], repeats=2, storage="sqlite:///a.db", name="dir/train.py:train")
    code, output, _ = call("report", "sqlite:///a.db")
    assert code is None
    assert output.endswith("\nReport: polylosses-dir-train/report.html\n")
    for arguments, said in (
        (["report", "nowhere"], "polylosses: there is no folder nowhere.\n"),
        (["report", "mine", "--name", "x"], "polylosses: mine has no study 'x'; it has 'train.py:train'.\n"),
    ):
        assert call(*arguments) == (2, "", said)
