"""A PostgreSQL server for tests: started, killed and started again."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest


def _found(name: str) -> str | None:
    """A program of PostgreSQL, which Debian does not put on the path."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(places[-1]) if places else None)


needs_postgresql = pytest.mark.skipif(_found("initdb") is None, reason="no PostgreSQL")


class Server:
    """A server of its own, on a free port of this machine; quicker without ``fsync``, unless the machine fails."""

    def __init__(self, fsync: bool = False) -> None:
        self.fsync = "on" if fsync else "off"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # Not pytest's folder, which is for root alone if these are its tests; PostgreSQL does not run as root.
        self.folder = Path(tempfile.mkdtemp(prefix="polylosses-postgresql-"))
        self.data = self.folder / "data"
        self.as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        if self.as_user:
            shutil.chown(self.folder, "postgres", "postgres")
        options = ["--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8"]
        self._run("initdb", "--pgdata", str(self.data), *options)
        self.start()

    @property
    def address(self) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync={self.fsync}"
        log = str(self.data / "log")
        until = time.monotonic() + 30
        while True:
            try:
                self._run("pg_ctl", "--pgdata", str(self.data), "--log", log, "--options", settings, "--wait", "start")
                return
            except subprocess.CalledProcessError:
                if time.monotonic() > until:  # after a kill, until its processes have noticed
                    raise
            time.sleep(0.2)

    def kill(self) -> None:
        """As if the machine had failed."""
        os.kill(int((self.data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)

    def stop(self) -> None:
        self._run("pg_ctl", "--pgdata", str(self.data), "--mode", "immediate", "stop")
        shutil.rmtree(self.folder)

    def create(self, name: str) -> str:
        """Another database; returns its address."""
        self._run("createdb", "--host", "127.0.0.1", "--port", str(self.port), "--username", "postgres", name)
        return self.address.removesuffix("postgres") + name

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run(
            [*self.as_user, str(_found(name)), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            timeout=60,
        )
