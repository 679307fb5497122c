"""A PostgreSQL server for a benchmark: on loopback, in a temporary folder, gone afterwards."""

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantenv.core.errors import QuantenvError

#: Where Debian's package postgresql keeps a version's programs, which are not on the path.
DEBIAN = "/usr/lib/postgresql"
#: Who runs the server when the caller is root, which PostgreSQL refuses to run as.
UNPRIVILEGED = ("postgres", "nobody")
START_SECONDS = 30


class NotInstalledError(QuantenvError):
    """There is no PostgreSQL on this machine, or no driver for it."""


@contextmanager
def postgres_server() -> Iterator[str]:
    """Runs a server while the context lasts.

    Yields:
        An SQLAlchemy URL of its database, with a random password.

    Raises:
        NotInstalledError: If PostgreSQL or its driver psycopg is not installed.
        QuantenvError: If it does not start.
    """
    if importlib.util.find_spec("psycopg") is None:
        raise NotInstalledError("The driver psycopg is not installed: pip install 'quantenv[postgres]'.")
    programs = _programs()
    user = _user()
    port, password = _free_port(), secrets.token_hex(16)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        secret = folder / "password"
        secret.write_text(password)
        if user is not None:
            for path in (folder, secret):
                shutil.chown(path, user)
        data = folder / "data"
        options = [f"--pgdata={data}", "--username=quantenv", "--auth=scram-sha-256", f"--pwfile={secret}"]
        command = [str(programs / "initdb"), *options, "--encoding=UTF8"]
        initialised = subprocess.run(command, user=user, cwd=folder, capture_output=True, text=True)
        if initialised.returncode:
            raise QuantenvError(f"initdb failed: {' '.join(initialised.stderr.split())}")
        command = [
            str(programs / "postgres"),
            "-D",
            str(data),
            "-p",
            str(port),
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "unix_socket_directories=",
        ]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, user=user, cwd=folder, stdout=log, stderr=log)
        try:
            _wait(server, port, folder / "log")
            yield f"postgresql+psycopg://quantenv:{password}@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # "fast": SIGTERM would wait for clients to disconnect
            server.wait()


def _programs() -> Path:
    """Returns the folder of initdb and postgres, the newest version of several."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    versions = sorted(Path(DEBIAN).glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not versions:
        raise NotInstalledError("PostgreSQL is not installed here: install Debian's package postgresql.")
    return versions[-1].parent


def _user() -> str | None:
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in UNPRIVILEGED if name in known)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        if "ready to accept connections" in log.read_text(errors="replace"):
            return
        time.sleep(0.05)
    server.terminate()
    raise QuantenvError(f"PostgreSQL did not start on port {port}: {' '.join(log.read_text(errors='replace').split())}")
