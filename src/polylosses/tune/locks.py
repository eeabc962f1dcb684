"""Locks that the system takes back however a process ends: on a journal file, and as a worker's sign of life."""

import os
import secrets
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]


# The folder of the files by which workers are known to be alive.
WORKERS = "workers"


def journal_lock(path: str) -> Any:
    """The lock on a journal file, for Optuna's ``JournalFileBackend``; None, which is Optuna's own, on Windows."""
    return _JournalLock(path) if fcntl else None


class _JournalLock:
    """The lock on a journal file, for :class:`JournalFileBackend`.

    The system takes it back from a process that is killed: Optuna's own locks are files, which then stay, and stop all
    others. A process killed while it writes leaves a line without an end; the next would be written behind it, and
    neither could be read.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = -1

    def acquire(self) -> bool:
        """Waits for the lock, and cuts off a line without an end."""
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        size = end = os.fstat(self._file).st_size
        while end and os.pread(self._file, 1, end - 1) != b"\n":
            start = max(0, end - 65536)
            end = start + os.pread(self._file, end - start, start).rfind(b"\n") + 1
        if end < size:
            os.ftruncate(self._file, end)
        return True

    def release(self) -> None:
        """Gives the lock back."""
        os.close(self._file)


class Presence:
    """A worker's sign that it is alive: a file that it holds a lock on.

    Args:
        folder: where the study's workers, all of this machine, have their files; None, for a place of this machine.
    """

    def __init__(self, folder: Path | None) -> None:
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._shared = folder is None
        if folder is None:
            folder = Path(tempfile.gettempdir()) / f"polylosses-{os.getuid() if hasattr(os, 'getuid') else ''}"
        self._folder = folder / WORKERS
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path(self.worker), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if fcntl is not None:
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def is_dead(self, worker: str) -> bool:
        """Whether a worker is known to be dead."""
        if worker == self.worker or worker.partition(":")[0] != socket.gethostname() or fcntl is None:
            return False
        path = self._path(worker)
        if not path.exists():
            # It ended in order; or, if the place is not the study's own, it may be in another container.
            return not self._shared
        return not _is_held(path)

    def others(self) -> list[str]:
        """The processes of other workers of this folder that are alive; none if it is no study's own."""
        if self._shared:
            return []
        own = self._path(self.worker).name
        return [file.name for file in self._folder.iterdir() if file.name != own and _is_held(file)]

    def close(self) -> None:
        """Removes the file, and the folder of such files after the last."""
        with suppress(OSError):
            os.close(self._file)
            self._path(self.worker).unlink()
            self._folder.rmdir()

    def _path(self, worker: str) -> Path:
        return self._folder / worker.replace(":", "-")


def _is_held(path: Path) -> bool:
    """Whether a process has a lock on a file."""
    if fcntl is None:
        return False
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
