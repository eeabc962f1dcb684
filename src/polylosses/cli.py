"""Command line interface."""

import ast
import inspect
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import polylosses
from polylosses import catalogue, two_sided
from polylosses.polynomial import Polynomial

try:
    import typer
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Table
    from typer.exceptions import TyperException
except ImportError as error:
    raise SystemExit(f"polylosses: the command needs {error.name}: pip install 'polylosses[tune]'") from error

app = typer.Typer(
    help="PolyLoss for people who train classifiers.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

INTERRUPTED = 130  # a shell's exit code for a command ended by Ctrl-C


def main() -> None:
    """Run the command line; a user error gives one line on stderr and exit code 2."""
    warnings.showwarning = lambda message, *_: _print_error(f"warning: {message}")
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer catches Ctrl-C
            raise KeyboardInterrupt
    except (TyperException, ValueError, OSError, ImportError) as error:
        message = error.format_message() if isinstance(error, TyperException) else str(error)
        _print_error(" ".join(message.split()))
        code = 2
    except KeyboardInterrupt:
        _print_error("interrupted.")
        code = INTERRUPTED
    sys.exit(code)


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
    data: Annotated[
        str,
        typer.Argument(help="digits, breast_cancer, wine, iris, or a CSV or Parquet file.", show_default=False),
    ],
    target: Annotated[str | None, typer.Option(help="The column of a file that holds the labels.")] = None,
    epsilons: Annotated[
        str, typer.Option(help="Values to compare, separated by commas; 0 is always included.")
    ] = "-1,0,1,2,5,10",
    learning_rates: Annotated[
        str, typer.Option(help="Candidates for every epsilon, separated by commas.")
    ] = "0.0003,0.001,0.003,0.01,0.03",
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
        Path | None, typer.Option(help="The directory for the report; by default polylosses-DATA.", show_default=False)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the verdict only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json only.")] = False,
) -> None:
    """Tune epsilon on your data, and test whether it improves on plain cross-entropy."""
    # By default, torch's threads spin while they wait for each other: next to another busy process on 2 cores, this
    # command was 3 to 5 times slower (iris: 35 to 60 s instead of 12 s). Read when torch is imported, hence set here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with _progress(silent=quiet or as_json) as progress:
        progress(0.0, "loading")
        from polylosses import tune as tuning  # noqa: PLC0415 (takes seconds, shown by the progress bar)

        X, y = tuning.load(data, target)
        directory = Path(f"polylosses-{Path(data).stem}") if out is None else out
        with _directory(directory):
            try:
                result = tuning.sweep(
                    X,
                    y,
                    epsilons=_numbers("--epsilons", epsilons),
                    learning_rates=_numbers("--learning-rates", learning_rates),
                    metric=metric,
                    repeats=repeats,
                    imbalance=imbalance,
                    label_noise=label_noise,
                    seed=seed,
                    name=Path(data).name,
                    progress=progress,
                )
            except tuning.SweepInterrupted as interrupt:
                if not len(interrupt.runs):
                    raise KeyboardInterrupt from None
                written = tuning.write_runs(interrupt.runs, directory)
                _print_error(f"interrupted; the {len(interrupt.runs)} finished runs are in {written}.")
                sys.exit(INTERRUPTED)
            result.write(directory)

    if as_json:
        print(json.dumps(result.to_dict(), indent=2, allow_nan=False))
    elif quiet:
        print(result.sentence)
    else:
        console = Console(highlight=False)
        console.print(_table({str(name): list(cells) for name, cells in result.formatted_table().items()}))
        console.print(f"\n[bold]{result.sentence}[/bold]")
        for note in result.notes:
            console.print(f"Note: {note}")
        console.print(f"\nReport: {directory / 'report.html'}", soft_wrap=True, markup=False)


@app.command("list")
def list_() -> None:
    """Show the named losses."""
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


def _call(name: str, function: Callable[..., Any]) -> str:
    parameters = inspect.signature(function).parameters.values()
    return f"{name}({', '.join(str(p.replace(annotation=p.empty)) for p in parameters)})"


@app.command("plot")
def plot_(
    losses: Annotated[list[str], typer.Argument(help='Such as "poly1(2)" "focal(2)".', show_default=False)],
    out: Annotated[Path, typer.Option(help="An .html, .png, .svg or .pdf file.", show_default=False)],
) -> None:
    """Plot value, gradient factor and series coefficients of losses."""
    from polylosses import plot  # noqa: PLC0415 (takes seconds, not needed by `list`)

    try:
        plot.write(plot.polynomials({text: _polynomial(text) for text in losses}), out)
    except RuntimeError as error:  # no browser for images
        raise ValueError(str(error)) from error
    print(f"Wrote {out}")


def _polynomial(text: str) -> Polynomial:
    """Parse a loss of the catalogue such as ``"poly1(2)"``."""
    if text.partition("(")[0].strip() in two_sided.ALL:
        raise ValueError(
            f"{text!r} has a polynomial for positives and one for negatives. Name these, such as focal(1) and focal(4)."
        )
    usage = f"write one of {', '.join(catalogue.ALL)}, with numbers in brackets, such as poly1(2)."
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Name):
            call = ast.Call(call, [], [])
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError(text)
        function = catalogue.ALL[call.func.id]
        values = [ast.literal_eval(argument) for argument in call.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, KeyError, ValueError, MemoryError, RecursionError):  # the last two: nested too deeply
        raise ValueError(f"{text!r} is no loss of the catalogue: {usage}") from None
    try:
        return function(*values, **named)
    except TypeError as error:
        raise ValueError(f"{text!r}: {error}; {usage}") from None


@contextmanager
def _progress(silent: bool) -> Iterator[Callable[[float, str], None]]:
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=silent or not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda done, stage: bar.update(task, completed=done, description=stage)


@contextmanager
def _directory(path: Path) -> Iterator[None]:
    """Create a directory and check that it is writable; directories created here are removed again if left empty."""
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
        yield
    finally:
        for directory in reversed(made):
            with suppress(OSError):  # not empty: it has the report or other files
                directory.rmdir()


def _table(columns: dict[str, list[str]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for heading, cells in columns.items():
        if all(cell[:1] in "+-0123456789" for cell in cells):
            # Wrapped headings let the table of `tune` fit into 80 columns.
            narrow = heading.replace(" %", "\N{NO-BREAK SPACE}%").replace(" ", "\n")
            table.add_column(narrow, justify="right", no_wrap=True, vertical="bottom")
        else:
            table.add_column(heading, overflow="fold")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _print_error(message: Any) -> None:
    print(f"polylosses: {message}", file=sys.stderr, flush=True)
