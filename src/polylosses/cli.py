"""Command line interface."""

import errno
import inspect
import io
import json
import os
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import polylosses
from polylosses import catalogue, two_sided
from polylosses.named import named
from polylosses.polynomial import Polynomial

try:
    import typer
    from rich.console import Console, Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text
    from typer.exceptions import TyperException

    from polylosses.progress import progress as _progress
except ImportError as error:
    raise SystemExit(f"polylosses: the command needs {error.name}: pip install 'polylosses[tune]'") from error

app = typer.Typer(
    help="PolyLoss for people who train classifiers.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Options of `tune` for a training function.
FUNCTION: dict[str, Any] = {"rich_help_panel": "For a training function"}

# Options of `tune` for reading a table.
TABLE: dict[str, Any] = {"rich_help_panel": "For a table"}

# What `tune` takes by name; these are the keys of tune.data.BUNDLED, whose import takes seconds.
DATA_SETS = ("digits", "breast_cancer", "wine", "iris")

# More columns than these, with something to say about each, are left to the report.
MOST_COLUMNS = 20

# Longer words are broken in the columns of a table.
WORD = 24

INTERRUPTED = 130  # a shell's exit code for a command ended by Ctrl-C


def main() -> None:
    """Run the command line; a user error gives one line on stderr and exit code 2."""
    warnings.showwarning = lambda message, *_: _print_error(f"warning: {message}")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files and columns, where only ASCII can be shown
    try:
        code = app(_each_with_its_option(sys.argv[1:]), standalone_mode=False)
        if code == INTERRUPTED:  # typer catches Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has enough. What is left is written when Python ends, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (TyperException, ValueError, OSError, ImportError) as error:
        message = error.format_message() if isinstance(error, TyperException) else str(error)
        _print_error(" ".join(message.split()))
        code = 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):  # torch says it so
            raise
        _print_error(" ".join(f"not enough memory. {error}".split()))
        code = 2
    except KeyboardInterrupt:
        _print_error("interrupted.")
        code = INTERRUPTED
    sys.exit(code)


def _each_with_its_option(words: Sequence[str]) -> list[str]:
    """Words of a command with one ``--losses`` for each loss, since the parser takes one value for it."""
    given: list[str] = []
    among_losses = False
    for word in words:
        is_loss = _is_loss(word)
        if is_loss and among_losses and given[-1] != "--losses":
            given.append("--losses")
        among_losses = word == "--losses" or word.startswith("--losses=") or (is_loss and among_losses)
        given.append(word)
    return given


def _is_loss(word: str) -> bool:
    return word.partition("(")[0].strip() in {**catalogue.ALL, **two_sided.ALL}


def _losses_that_begin(incomplete: str) -> list[str]:
    return [name for name in catalogue.ALL if name.startswith(incomplete)]


def _data_sets_that_begin(incomplete: str) -> list[str]:
    return [name for name in DATA_SETS if name.startswith(incomplete)]


def _numbers(option: str, text: str) -> list[float]:
    """Parse a comma-separated list such as ``"-1,0,2"``."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"{option} {text} is not a list of numbers: write them with commas, such as 0.5,1,2."
        ) from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number.") from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number.") from None


@app.callback(invoke_without_command=True)
def polylosses_(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False
) -> None:
    """PolyLoss for people who train classifiers."""
    if version:
        print(polylosses.__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def tune(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            help="digits, breast_cancer, wine, iris, a table's file; or your training function, as FILE.py:FUNCTION.",
            show_default=False,
            autocompletion=_data_sets_that_begin,
        ),
    ],
    target: Annotated[str | None, typer.Option(help="The column of a file that holds the labels.")] = None,
    separator: Annotated[
        str | None,
        typer.Option(metavar="C", help="Character between the fields; by default it is found.", **TABLE),
    ] = None,
    decimal: Annotated[
        str | None, typer.Option(metavar="C", help="Decimal sign, . or ,; by default it is found.", **TABLE)
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of a text file; by default UTF-8, UTF-16 or Windows-1252.", **TABLE)
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option(
            "--header/--no-header",
            help="Whether the first line has the names of the columns; by default it is found.",
            show_default=False,
            **TABLE,
        ),
    ] = None,
    sheet: Annotated[str | None, typer.Option(help="Sheet of an Excel file; by default the first.", **TABLE)] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Leave out this column; may be given several times.", **TABLE),
    ] = None,
    drop_missing_labels: Annotated[
        bool, typer.Option("--drop-missing-labels", help="Leave out rows without a label.", **TABLE)
    ] = False,
    rare: Annotated[
        str | None,
        typer.Option(
            metavar="drop|merge",
            help="Leave out classes of too few rows, or make one class of them: drop or merge.",
            **TABLE,
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column whose rows with one value are never split, such as a patient.",
            **TABLE,
        ),
    ] = None,
    epsilons: Annotated[
        str, typer.Option(help="Values to compare, separated by commas; 0 is always included.")
    ] = "-1,0,1,2,5,10",
    losses: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LOSS ...",
            help='Also compare these losses, such as "focal(2)" "taylor_cross_entropy(4)".',
            autocompletion=_losses_that_begin,
        ),
    ] = None,
    max_rows: Annotated[
        int | None,
        typer.Option(parser=_whole, metavar="N", help="Use so many rows at most, drawn at random.", **TABLE),
    ] = None,
    time_budget: Annotated[
        float | None,
        typer.Option(parser=_number, metavar="S", help="Seconds it should take, with fewer rows if need be.", **TABLE),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="What to train: network, xgboost, lightgbm or catboost.", **TABLE)
    ] = "network",
    device: Annotated[
        str | None, typer.Option(help="Device of networks; by default cuda if there is one, else cpu.", **TABLE)
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=RANGE",
            help="Another hyper-parameter: lr=1e-4:1e-1:log, width=16:64, dropout=0.0,0.1,0.3.",
            **FUNCTION,
        ),
    ] = None,
    points: Annotated[
        int, typer.Option(parser=_whole, metavar="K", help="Points of these, the same for every loss.", **FUNCTION)
    ] = 8,
    maximize: Annotated[
        bool, typer.Option("--maximize/--minimize", help="Whether higher scores are better.", **FUNCTION)
    ] = True,
    fixed: Annotated[
        bool, typer.Option("--fixed", help="Take all seeds of the confirmation, whatever the answer.", **FUNCTION)
    ] = False,
    workers: Annotated[
        int, typer.Option(parser=_whole, metavar="N", help="Processes on this machine.", **FUNCTION)
    ] = 1,
    timeout: Annotated[
        float | None,
        typer.Option(parser=_number, metavar="S", help="Seconds that a training may take.", **FUNCTION),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="A database for several machines, such as postgresql+psycopg://user@host/name; else a file in --out.",
            show_default=False,
            **FUNCTION,
        ),
    ] = None,
    learning_rates: Annotated[
        str | None,
        typer.Option(
            help="Candidates for every epsilon, separated by commas; by default 0.0003,0.001,0.003,0.01,0.03, or, with "
            "a boosting library 0.01,0.03,0.1,0.3,1.",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="accuracy, balanced_accuracy, macro_f1, or log_loss after poly_softmax.")
    ] = "accuracy",
    repeats: Annotated[
        int, typer.Option(parser=_whole, metavar="N", help="Splits and seeds; the confirmation has twice as many.")
    ] = 10,
    imbalance: Annotated[
        float,
        typer.Option(parser=_number, metavar="R", help="Make a long tail: ratio of the largest to the smallest class."),
    ] = 1.0,
    label_noise: Annotated[
        float, typer.Option(parser=_number, metavar="P", help="Share of training labels to replace by another class.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(parser=_whole, metavar="N", help="Seed of all random numbers.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The directory for the report; by default polylosses-DATA.", show_default=False
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the verdict only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json only.")] = False,
) -> None:
    """Find out whether another loss beats cross-entropy: on your data, or in your own training code."""
    values = _numbers("--epsilons", epsilons) if _is_given(context, "epsilons") or not losses else None
    if ".py:" in data or data.endswith(".py"):
        reading = ("separator", "decimal", "encoding", "header", "sheet")
        rows = ("drop", "drop_missing_labels", "rare", "group", "max_rows", "time_budget", "model", "device")
        training = ("learning_rates", "metric", "imbalance", "label_noise")
        _check_options(context, ("target", *reading, *rows, *training), "tables")
        given = {
            "losses": losses,
            "epsilons": values,
            "parameters": dict(_assignment(text) for text in param or ()),
            "points": points,
            "repeats": repeats,
            "seed": seed,
            "maximize": maximize,
            "fixed": fixed,
        }
        _tune_function(data, given, workers, timeout, storage, out, quiet, as_json)
        return
    rates = None if learning_rates is None else _numbers("--learning-rates", learning_rates)
    _check_options(
        context,
        ("param", "points", "maximize", "fixed", "workers", "timeout", "storage"),
        "training functions",
    )
    # By default, torch's threads spin while they wait for each other: next to another busy process on 2 cores, this
    # command was 3 to 5 times slower (iris: 35 to 60 s instead of 12 s). Read when torch is imported, hence set here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with _progress(silent=quiet or as_json) as progress:
        progress(0.0, "loading")
        from polylosses import tune as tuning  # noqa: PLC0415 (takes seconds, shown by the progress bar)
        from polylosses.tune.tabular import check_model  # noqa: PLC0415

        check_model(model, device)  # before a large table is read
        options = {"separator": separator, "decimal": decimal, "encoding": encoding, "header": header, "sheet": sheet}
        X, y, groups, how = _load(data, target, group, options)
        name, stem = ("standard input", "stdin") if data == "-" else (Path(data).name, Path(data).stem)
        directory = Path(f"polylosses-{stem}") if out is None else out
        source = name if data in (*DATA_SETS, "-") else _seen_from(directory, Path(data))
        if out is None:
            _check_that_it_is_ours(directory, source)
    with _directory(directory), _terminated_like_interrupted():
        with _progress(silent=quiet or as_json) as progress:
            try:
                result = tuning.sweep(
                    X,
                    y,
                    groups=groups,
                    drop=drop or (),
                    drop_missing_labels=drop_missing_labels,
                    rare=rare,
                    losses=losses,
                    epsilons=values,
                    model=model,
                    learning_rates=rates,
                    metric=metric,
                    repeats=repeats,
                    imbalance=imbalance,
                    label_noise=label_noise,
                    seed=seed,
                    max_rows=max_rows,
                    time_budget=time_budget,
                    device=device,
                    storage=directory,
                    name=name,
                    settings={"source": source, **({"read": how} if how else {})},
                    progress=progress,
                )
            except tuning.SweepInterrupted as interrupt:
                if not len(interrupt.runs):
                    raise KeyboardInterrupt from None
                kept = f"{len(interrupt.runs)} finished runs are kept in {directory}"
                _print_error(f"interrupted; {kept}: the same command goes on.")
                sys.exit(INTERRUPTED)
        _deliver(result, directory, quiet, as_json)


def _load(data: str, target: str | None, group: str | None, options: dict[str, Any]) -> tuple[Any, Any, Any, list[str]]:
    """Features, labels, groups or None, and sentences on how the file was read."""
    from polylosses.tune import load  # noqa: PLC0415 (takes seconds)
    from polylosses.tune.data import BUNDLED, separate  # noqa: PLC0415
    from polylosses.tune.tables import read  # noqa: PLC0415

    if data in BUNDLED and group is not None:
        raise ValueError(f"{data} has no groups, so --group {group} has no meaning: leave it out.")
    # For what is neither a data set nor a file, an error that names the data sets.
    if data in BUNDLED or (data != "-" and not Path(data).exists()):
        return *load(data, target, **options), None, []
    table = read(data, **options)
    X, y = separate(table, target, data)
    if group is None:
        return X, y, None, table.how
    if group == target:
        raise ValueError(f"--group {group} is the column of the labels: give another one.")
    if group not in X.columns:
        shown = ", ".join(map(str, X.columns[:10])) + (", ..." if len(X.columns) > 10 else "")
        raise ValueError(f"{data} has no column {group!r}: give --group one of: {shown}.")
    return X.drop(columns=group), y, X[group], table.how


def _columns(columns: Sequence[Mapping[Any, Any]]) -> list[str]:
    """A line for each column that was left out or has a warning, and one for all others."""
    lines, numbers, text = [], 0, 0
    for column in columns:
        if column["warning"] or column["read"].startswith("left out"):
            lines.append(
                f"  {column['name']}: {'; '.join(part for part in (column['read'], column['warning']) if part)}"
            )
        elif column["read"] == "number":
            numbers += 1
        else:
            text += 1
    if len(lines) > MOST_COLUMNS:
        lines[MOST_COLUMNS:] = [f"  and {len(lines) - MOST_COLUMNS} more, see the report"]
    if numbers or text or not lines:
        others = "All others: " if lines else ""
        lines.append(
            f"{others}{numbers} number{'' if numbers == 1 else 's'}, {text} text column{'' if text == 1 else 's'}"
        )
    return lines


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _check_options(context: typer.Context, names: Sequence[str], of: str) -> None:
    """Raises for options that have no meaning here."""
    for name in names:
        if _is_given(context, name):
            raise ValueError(f"--{name.replace('_', '-')} is for {of}: leave it out.")


def _assignment(text: str) -> tuple[str, str]:
    name, equals, given = text.partition("=")
    if not name.strip() or not equals or not given.strip():
        raise ValueError(f"--param {text} is no NAME=RANGE: write it such as lr=1e-4:1e-1:log.")
    return name.strip(), given.strip()


def _tune_function(
    code: str,
    given: dict[str, Any],
    workers: int,
    timeout: float | None,
    storage: str | None,
    out: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    if workers < 1:
        raise ValueError(f"--workers must be at least 1; got {workers}.")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"--timeout is a number of seconds above 0; got {timeout:g}.")
    if storage is not None and storage.startswith("sqlite") and workers > 1:
        raise ValueError(
            "SQLite locks the whole database for every write, and its file can't be shared by workers: leave --storage "
            "out for a file that can, or give a PostgreSQL database."
        )
    silent = quiet or as_json
    with _progress(silent) as progress:
        progress(0.0, "loading")
        from polylosses.tune import workers as processes  # noqa: PLC0415 (takes seconds)
        from polylosses.tune.studies import Progress as Now  # noqa: PLC0415
        from polylosses.tune.studies import design, result  # noqa: PLC0415
        from polylosses.tune.worker import parted  # noqa: PLC0415

    path, function = parted(code)
    directory = Path(f"polylosses-{path.stem}") if out is None else out
    # In a folder, so that no other file of that name goes on with it; in a database, so that other machines do.
    name = f"{_seen_from(directory, path) if storage is None else path.name}:{function}"
    place = directory if storage is None else storage
    if out is None:
        _check_that_it_is_ours(directory, name)

    def show(now: Now) -> None:
        running = f", {now.running} running" if now.running > 1 else ""
        failed = f", {now.failed} failed" if now.failed else ""
        so_far = ""
        if now.confirmation is not None:
            end = now.confirmation.looks[-1]
            so_far = f", {end.difference:+.3g} ({end.low:+.3g} to {end.high:+.3g}) after {end.seeds} seeds"
        stage = f"{now.stage}: {now.done} of {now.total}{running}{failed}{so_far}"
        if now.total:  # else the verdict follows
            progress(now.done / now.total, stage)

    with _directory(directory), _terminated_like_interrupted():
        designed = design(**given)
        with _progress(silent) as progress:
            state = processes.run(designed, code, place, name, workers, timeout, directory / "logs", show)
        found = result(designed, state, name)
        _deliver(found, directory, quiet, as_json)


def _deliver(found: Any, directory: Path, quiet: bool, as_json: bool) -> None:
    """Print a result, and then write it, in case that it can't be written."""
    try:
        if as_json:
            print(json.dumps(found.to_dict(), indent=2, allow_nan=False))
        elif quiet:
            print(found.sentence)
        else:
            _print_result(found, directory)
        sys.stdout.flush()
    finally:  # even if the reader of a pipe has gone
        found.write(directory)


def _seen_from(directory: Path, path: Path) -> str:
    """Where a file is, for what is stored in a directory: the same when both are moved."""
    try:
        return os.path.relpath(path.resolve(), directory.resolve())
    except ValueError:  # another drive of Windows
        return str(path.resolve())


def _check_that_it_is_ours(directory: Path, source: str) -> None:
    """Raises if a directory has the results of another source, as of a file of the same name in another folder."""
    try:
        theirs = str(json.loads((directory / "results.json").read_text(encoding="utf-8"))["settings"]["source"])
    except (OSError, ValueError, LookupError, TypeError):  # there are none, or not of this command
        return
    if theirs != source:
        shown = os.path.normpath(directory / theirs) if theirs.startswith(os.pardir) else theirs
        raise ValueError(f"{directory} has the results of {shown}: give another directory with --out.")


@app.command()
def report(
    storage: Annotated[
        str,
        typer.Argument(
            metavar="DIR|DATABASE",
            help="The results of a study, or its database, such as postgresql+psycopg://user@host/name.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(help="Which study, if there are several: FILE.py:FUNCTION.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The directory for the report; by default DIR, or polylosses-FILE.", show_default=False
        ),
    ] = None,
) -> None:
    """Write the report of a study again, finished or not, from its storage alone."""
    from polylosses.tune import studies  # noqa: PLC0415 (takes seconds)
    from polylosses.tune.store import read  # noqa: PLC0415

    is_database = "://" in storage
    kept = read(storage if is_database else Path(storage), name)
    found: Any
    if kept.table is None:
        found = studies.stored(kept)
    else:
        from polylosses.tune import tabular  # noqa: PLC0415 (imports torch)

        found = tabular.stored(kept)
    stem = re.sub(r"[^\w.-]+", "-", kept.name.partition(".py:")[0])
    directory = out or (Path(f"polylosses-{stem}") if is_database else Path(storage))
    with _directory(directory):
        _deliver(found, directory, quiet=False, as_json=False)


def _print_result(found: Any, directory: Path) -> None:
    console = Console(highlight=False)
    if hasattr(found, "columns"):  # of a table
        console.print("[bold]How your columns were read[/bold]")
        for line in (*found.settings.get("read", ()), *_columns(found.columns.to_dict("records"))):
            console.print(line, markup=False)
        console.print()
    if len(found.table):
        console.print(_table({str(name): list(cells) for name, cells in found.formatted_table().items()}))
    console.print(f"\n[bold]{escape(found.sentence)}[/bold]")
    for note in found.notes:
        console.print(f"Note: {note}", markup=False)
    console.print(f"\nReport: {directory / 'report.html'}", soft_wrap=True, markup=False)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, as from a cluster's scheduler, does what Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="As JSON, with all defaults.")] = False) -> None:
    """Show the named losses."""
    if as_json:
        print(json.dumps(_described_losses(), indent=2))
        return
    rows: dict[str, list[str]] = {"loss": [], "formula": [], "series": []}
    for name, function in catalogue.ALL.items():
        polynomial = function()
        rows["loss"].append(_call(name, function))
        rows["formula"].append(str(polynomial))
        rows["series"].append(", ".join(f"{c:.3g}" for c in polynomial.series(3)))
    console = Console(highlight=False)
    console.print(_table(rows))
    console.print("Of sigmoids, with a polynomial for positives and one for negatives:")
    sides: dict[str, list[str]] = {"loss": [], "formulas": []}
    for name, two_sided_loss in two_sided.ALL.items():
        sides["loss"].append(_call(name, two_sided_loss))
        sides["formulas"].append(str(two_sided_loss()))
    console.print(_table(sides))


def _described_losses() -> list[dict[str, Any]]:
    """Names, parameters with their defaults, formulas and series of all named losses."""

    def described(polynomial: Polynomial) -> dict[str, Any]:
        return {"formula": str(polynomial), "series": polynomial.series(3)}

    found: list[dict[str, Any]] = [
        {"name": name, "parameters": _defaults(function), **described(function())}
        for name, function in catalogue.ALL.items()
    ]
    for name, function in two_sided.ALL.items():
        loss = function()
        sides = {"positive": described(loss.positive), "negative": described(loss.negative)}
        found.append({"name": name, "parameters": _defaults(function), **sides})
    return found


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: [] if p.kind == p.VAR_POSITIONAL else p.default for p in parameters}


def _call(name: str, function: Callable[..., Any]) -> str:
    parameters = inspect.signature(function).parameters.values()
    return f"{name}({', '.join(str(p.replace(annotation=p.empty)) for p in parameters)})"


@app.command("plot")
def plot_(
    losses: Annotated[
        list[str],
        typer.Argument(help='Such as "poly1(2)" "focal(2)".', show_default=False, autocompletion=_losses_that_begin),
    ],
    out: Annotated[Path, typer.Option(help="An .html, .png, .svg or .pdf file.", show_default=False)],
) -> None:
    """Plot value, gradient factor and series coefficients of losses."""
    from polylosses import plot  # noqa: PLC0415 (takes seconds, not needed by `list`)

    try:
        plot.write(plot.polynomials({text: named(text) for text in losses}), out)
    except RuntimeError as error:  # no browser for images
        raise ValueError(str(error)) from error
    print(f"Wrote {out}")


@contextmanager
def _directory(path: Path) -> Iterator[None]:
    """Create a directory and check that it is writable; directories created here are removed again if left empty.

    Raises:
        ValueError: it can't be written, or what is done within leaves no space on its disk.
    """
    made: list[Path] = []
    try:
        try:
            for directory in (*reversed(path.parents), path):
                if not directory.is_dir():
                    directory.mkdir()
                    made.append(directory)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise ValueError(f"--out {path} can't be written ({error.strerror}): give another directory.") from error
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ValueError(f"--out {path}: there is no space left for it; make room, and run it again.") from error
    finally:
        for directory in reversed(made):
            with suppress(OSError):  # not empty: it has the report or other files
                directory.rmdir()


def _table(columns: dict[str, list[str]]) -> Table | Group:
    """A table; or, in a terminal that is too narrow for it, a block of lines for each row."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for heading, cells in columns.items():
        if all(cell[:1] in "+-0123456789" for cell in cells):
            # Wrapped headings let the table of `tune` fit into 80 columns.
            narrow = re.sub(" (?!%)", "\n", heading)
            width = max(map(len, (*narrow.split("\n"), *cells)))
            table.add_column(Text(narrow), justify="right", no_wrap=True, vertical="bottom", min_width=width)
        else:
            words = " ".join((heading, *cells)).split()
            table.add_column(Text(heading), overflow="fold", min_width=min(max(map(len, words)), WORD))
    rows = list(zip(*columns.values(), strict=True))
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    if console.measure(table, options=console.options.update(width=1000)).minimum <= console.width:
        return table
    blocks = []
    for row in rows:
        first, *others = [f"{heading}: {cell}" for heading, cell in zip(columns, row, strict=True) if cell]
        blocks += [Text(first, "bold"), *map(Text, others), Text("")]
    return Group(*blocks[:-1])


def _print_error(message: Any) -> None:
    print(f"polylosses: {message}", file=sys.stderr, flush=True)
