"""A worker process of a study, ``python -m polylosses.tune.worker``: it takes waiting trials and runs them."""

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from polylosses.tune.plan import Plan, Trial
from polylosses.tune.store import Store
from polylosses.tune.trials import work

# The exit codes of a worker that could not load the training function, and of one that could not write.
NOT_LOADED, NOT_WRITTEN = 97, 98


def parted(code: str) -> tuple[Path, str]:
    """The file and the function of ``FILE.py:FUNCTION``.

    Raises:
        ValueError: there is no such file, or it is written otherwise.
    """
    name, _, function = code.rpartition(":")
    path = Path(name).resolve()
    if not path.is_file() or path.suffix != ".py" or not function.isidentifier():
        raise ValueError(f"{code} is no training function: give FILE.py:FUNCTION, of a file that exists.")
    return path, function


def load(code: str) -> Callable[[Trial], Any]:
    """The training function of ``FILE.py:FUNCTION``. Its folder can be imported from, as for ``python FILE.py``.

    Raises:
        ValueError: there is no such file or function, or the file can't be imported.
    """
    path, function = parted(code)
    sys.path.insert(0, str(path.parent))
    try:
        module = importlib.import_module(path.stem)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ValueError(f"{path.name} can't be imported: {type(error).__name__}: {error}.") from error
    if Path(module.__file__ or "").resolve() != path:
        raise ValueError(f"{path.name} has the name of the module {module.__name__}, of {module.__file__}: rename it.")
    found = getattr(module, function, None)
    if not callable(found):
        names = ", ".join(
            n for n, f in vars(module).items() if callable(f) and getattr(f, "__module__", "") == path.stem
        )
        raise ValueError(f"{path.name} has no function {function!r}; it has: {names or 'none'}.")
    loaded: Callable[[Trial], Any] = found
    return loaded


def main() -> None:
    """Run the study that standard input describes, until the process that started this one is gone or says so."""
    described = json.load(sys.stdin)
    parent = os.getppid()

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        train = load(described["code"])
    except ValueError as error:
        print(error, flush=True)
        sys.exit(NOT_LOADED)
    identity, storage = described["identity"], described["storage"]
    in_folder = "folder" in storage
    place = Path(storage["folder"]) if in_folder else storage["address"]
    try:
        # The process that has started this one has found the database.
        store = Store(place, described["name"], identity, {}, identity["maximize"], patient=not in_folder)
        try:
            work(Plan.from_json(identity), train, store, stopped=lambda: os.getppid() != parent)
        except KeyboardInterrupt:
            pass
        finally:
            store.close()
    except OSError as error:
        with suppress(OSError):  # the log may be on the same disk
            print(error, flush=True)
        os._exit(NOT_WRITTEN)  # an ordinary end writes, too


if __name__ == "__main__":
    main()
