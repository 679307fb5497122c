"""The database behind the store: opened, checked, and replaced when it is damaged. All access goes through `run`.

SQLite is written ahead (WAL) and synchronised normally: what was committed survives the death of the process at any
moment; a power cut may take the last commits, but leaves the file sound (https://www.sqlite.org/wal.html).
"""

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, OperationalError

from quantenv.core.errors import QuantenvError, one_line

#: Seconds that a connection waits for another one's lock, and for a server to answer.
BUSY_SECONDS, CONNECT_SECONDS = 30, 10
#: Bounded retries of an access that met a lock or a lost connection: 0.1 + 0.2 + 0.4 + 0.8 s of pauses between them.
ATTEMPTS, FIRST_PAUSE = 5, 0.1
#: Names of files that may be taken for a store even if nothing in them looks like one any more.
STORE_SUFFIXES = (".sqlite", ".sqlite3", ".db")

_SQLITE_HEADER = b"SQLite format 3\0"
#: What the names of a database's files end in besides the path.
_SUFFIXES = ("", "-wal", "-shm")
#: Primary result codes (sqlite.org/rescode.html) that speak of the circumstances. All others mean that the file is
#: damaged: the statements are always the same, so they fail only where tables or pages are not as they were made.
_CIRCUMSTANCES = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_ABORT,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_NOLFS,
    sqlite3.SQLITE_AUTH,
}
_BUSY_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Damaged(Exception):
    """What was read cannot be what was written; `Database.run` acts on it and callers never see it."""


class _Retry(Exception):
    """An access that may succeed when repeated."""

    def __init__(self, reason: str, damaged: bool) -> None:
        super().__init__(reason)
        self.reason, self.damaged = reason, damaged


def parse_location(location: str) -> sa.URL:
    """Reads where a database is.

    Args:
        location: An SQLAlchemy URL, or the path of an SQLite file. ``postgresql://`` means the driver psycopg.

    Returns:
        The URL; SQLite files by absolute path.

    Raises:
        QuantenvError: If it is not a URL that SQLAlchemy understands.
    """
    if "://" not in location:
        return sa.URL.create("sqlite", database=str(Path(location).expanduser().absolute()))
    try:
        url = sa.make_url(location)
    except (ArgumentError, ValueError) as error:
        # The location itself is not repeated: it may hold a password.
        raise QuantenvError(
            "The store's URL cannot be read; expected dialect+driver://user@host:port/database, such as "
            "postgresql+psycopg://user@host/database, or sqlite:////absolute/path.sqlite."
        ) from error
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    path = _sqlite_path(url)
    return url if path is None else url.set(database=str(path.absolute()))


class Database:
    """One database with known tables.

    Safe to use after a fork (every process opens connections of its own) and from several threads. A damaged SQLite
    file is moved aside, with a logged warning, and a new one takes its place; so is one that another process moved
    or deleted meanwhile.

    Args:
        url: Where it is.
        metadata: Its tables; missing ones are made.
        replace_damaged: Whether a damaged SQLite file is moved aside; otherwise it is an error.

    Raises:
        QuantenvError: If the database cannot be opened, its driver is not installed, or it has other columns.
    """

    def __init__(self, url: sa.URL, metadata: sa.MetaData, replace_damaged: bool = True) -> None:
        self.url = url
        self.path = _sqlite_path(url)
        self.name = str(self.path) if self.path else url.render_as_string(hide_password=True)
        """Path or URL without its password, for messages."""
        self._metadata = metadata
        self._replace_damaged = replace_damaged
        self._lock = threading.RLock()
        self._engine: sa.Engine | None = None
        self._pid = os.getpid()
        self._inherited: list[sa.Engine] = []
        self.run(lambda connection: None)

    @property
    def dialect(self) -> str:
        """Name of the dialect, such as ``sqlite``."""
        return self.url.get_backend_name()

    def run(self, operation: Callable[[sa.Connection], Result]) -> Result:
        """Runs an operation in a transaction; again, a bounded number of times, if a lock or a lost server stops it.

        Args:
            operation: May raise `Damaged`. It must bear being run again after a failure at any point.

        Returns:
            What the operation returns.

        Raises:
            QuantenvError: If the database fails, or is damaged and must not be replaced.
        """
        for attempt in range(ATTEMPTS):
            try:
                with self._clear_errors(), self._current_engine().begin() as connection:
                    return operation(connection)
            except _Retry as retry:
                if attempt + 1 == ATTEMPTS:
                    raise self._failure(retry.reason) from retry
                if retry.damaged:
                    self._replace(retry.reason)
                else:
                    time.sleep(FIRST_PAUSE * 2**attempt)
        raise AssertionError("unreachable")

    def run_outside_transactions(self, statement: str) -> None:
        """Runs one statement, such as ``VACUUM``, that no transaction may enclose."""
        try:
            with self._current_engine().connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql(statement)
        except DBAPIError as error:
            raise self._failure(error.orig) from error

    def close(self) -> None:
        """Closes the connections; the next access opens new ones."""
        with self._lock:
            if self._engine is not None and self._pid == os.getpid():
                self._engine.dispose()

    def _current_engine(self) -> sa.Engine:
        """Returns this process's engine on the file that is at the path now."""
        if self._pid != os.getpid():
            # A forked child must neither use nor close its parent's connections, so they are kept unused; the lock
            # may have been held by another thread of the parent.
            self._lock, self._pid = threading.RLock(), os.getpid()
            if self._engine is not None:
                self._inherited.append(self._engine)
            self._engine = None
        engine = self._engine
        if engine is None or self._was_moved():
            with self._lock:
                if self._engine is not None and self._was_moved():
                    self._engine.dispose()
                    self._engine = None
                if self._engine is None:
                    self._engine = self._open()
                engine = self._engine
        return engine

    def _was_moved(self) -> bool:
        """Whether another file, or none, is at the path of the one that was opened."""
        return self.path is not None and _file_id(self.path) != self._file

    def _open(self) -> sa.Engine:
        if self.path is None:
            return self._prepared_engine()
        if self.path.is_dir():
            raise QuantenvError(f"The store {self.path} is a folder; expected the path of a file.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock", timeout=BUSY_SECONDS):
            try:
                engine = self._prepared_engine()
            except (DBAPIError, Damaged, UnicodeError) as error:
                reason = _damage(error, self.path)
                if reason is None:
                    raise
                self._move_aside(reason)
                engine = self._prepared_engine()
            self._file = _file_id(self.path)
        return engine

    def _prepared_engine(self) -> sa.Engine:
        """Makes an engine and checks or makes the tables.

        Raises:
            Damaged: If an SQLite file fails its check, or a table has other columns.
        """
        engine = self._make_engine()
        try:
            if self.path is not None:
                with engine.connect() as connection:
                    # Unlike quick_check it looks at the order of keys, without which rows are there but never found.
                    verdict = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar()
                if verdict != "ok":
                    raise Damaged(str(verdict))
            for table in self._metadata.sorted_tables:
                _check_or_create(engine, table)
        except BaseException:
            engine.dispose()
            raise
        return engine

    def _make_engine(self) -> sa.Engine:
        options: dict[str, Any] = {"pool_pre_ping": True}
        if self.dialect == "sqlite":
            options = {"connect_args": {"timeout": BUSY_SECONDS}}
        elif self.url.drivername == "postgresql+psycopg":
            # Prepared for any values, batches were looked up 9 times as slowly until the server had statistics.
            options["connect_args"] = {"connect_timeout": CONNECT_SECONDS, "prepare_threshold": None}
        try:
            engine = sa.create_engine(self.url, **options)
        except NoSuchModuleError as error:
            raise QuantenvError(
                f"SQLAlchemy knows no database {self.url.drivername!r}; expected a URL such as "
                "postgresql+psycopg://user@host/database, or the path of an SQLite file."
            ) from error
        except ImportError as error:
            how = "quantenv[postgres]" if "psycopg" in self.url.drivername else str(error.name)
            raise QuantenvError(
                f"The store {self.name} needs a database driver that is not installed ({error}): pip install '{how}'."
            ) from error
        if self.path is not None:
            sa.event.listen(engine, "connect", _write_ahead)
        return engine

    def _replace(self, reason: str) -> None:
        """Moves the damaged file aside, unless another process was faster; the next access opens what is there then."""
        with self._lock, self._clear_errors():
            if self._engine is not None:
                self._engine.dispose()
                self._engine = None
            with FileLock(f"{self.path}.lock", timeout=BUSY_SECONDS):
                if not self._was_moved():
                    self._move_aside(reason)

    def _move_aside(self, reason: str) -> None:
        """Renames the file and what SQLite keeps beside it; the caller holds the lock file.

        Raises:
            QuantenvError: If it must not be replaced, or is not a store by content or by name.
        """
        path = self.path
        assert path is not None
        if not self._replace_damaged:
            raise QuantenvError(f"The store {path} is damaged: {one_line(reason)}.")
        with path.open("rb") as file:
            foreign = file.read(len(_SQLITE_HEADER)) != _SQLITE_HEADER
        if foreign and path.suffix not in STORE_SUFFIXES:
            raise QuantenvError(
                f"{path} is not an SQLite database: give the path of a store, or of a new file that ends in .sqlite."
            )
        stem = f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
        aside, number = path.with_name(stem), 1
        while aside.exists():
            number += 1
            aside = path.with_name(f"{stem}-{number}")
        for suffix in _SUFFIXES:
            part = Path(f"{path}{suffix}")
            if part.exists():
                os.replace(part, f"{aside}{suffix}")
        _log.warning(
            "The store %s is damaged (%s): it was moved aside to %s, and a new one begun.", path, reason, aside
        )

    def _failure(self, reason: object) -> QuantenvError:
        return QuantenvError(
            f"The store {self.name} failed: {one_line(reason)}. Mend it, name another one with --store "
            "or QUANTENV_STORE, or go without by naming 'off'."
        )

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Turns what databases and files raise into `_Retry`, where that can help, or QuantenvError."""
        try:
            yield
        except (DBAPIError, Damaged, UnicodeError) as error:
            damage = _damage(error, self.path)
            if damage is not None and self.path is not None:
                raise _Retry(damage, damaged=True) from error
            reason = damage or str(getattr(error, "orig", error))
            if _is_locked(error) or (self._engine is not None and _is_lost(error)):
                raise _Retry(reason, damaged=False) from error
            raise self._failure(reason) from error
        except (OSError, Timeout) as error:
            raise self._failure(error) from error


def _check_or_create(engine: sa.Engine, table: sa.Table) -> None:
    if not sa.inspect(engine).has_table(table.name):
        try:
            table.create(engine)
            return
        except (IntegrityError, OperationalError, sa.exc.ProgrammingError):
            # Another process may have made it at the same moment; servers say so in different ways.
            if not sa.inspect(engine).has_table(table.name):
                raise
    found = {column["name"] for column in sa.inspect(engine).get_columns(table.name)}
    if found != set(table.columns.keys()):
        raise Damaged(f"its table {table.name} has the columns {', '.join(sorted(found))}")


def _write_ahead(connection: Any, record: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def _damage(error: BaseException, path: Path | None) -> str | None:
    """Returns what is damaged, if an error means that the SQLite file at a path is."""
    if isinstance(error, Damaged | UnicodeError):
        return " ".join(str(error).split())
    cause = getattr(error, "orig", None)
    if not isinstance(cause, sqlite3.Error):
        return None
    code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR)  # text that is not UTF-8 has no code
    # A damaged header may look like that of a future format, which SQLite only reads (fileformat.html, section 1.3.3).
    taken_for_newer = code == sqlite3.SQLITE_READONLY and path is not None and _may_write(path)
    short = code == sqlite3.SQLITE_IOERR_SHORT_READ
    if code & 0xFF in _CIRCUMSTANCES and not short and not taken_for_newer:
        return None
    return " ".join(str(cause).split())


def _may_write(path: Path) -> bool:
    """Whether the system lets this process write a database, its folder and what SQLite keeps beside it."""
    parts = [path.parent, *(Path(f"{path}{suffix}") for suffix in _SUFFIXES)]
    return all(os.access(part, os.W_OK) for part in parts if part.exists())


def _is_locked(error: BaseException) -> bool:
    """Whether SQLite gave up waiting for another connection."""
    return getattr(getattr(error, "orig", None), "sqlite_errorcode", 0) & 0xFF in _BUSY_CODES


def _is_lost(error: BaseException) -> bool:
    """Whether a server went away or is about to."""
    if isinstance(getattr(error, "orig", None), sqlite3.Error):
        return False
    return isinstance(error, OperationalError) or bool(getattr(error, "connection_invalidated", False))


def _sqlite_path(url: sa.URL) -> Path | None:
    """Returns the file of an SQLite URL; None for servers, databases in memory and SQLite's own URIs."""
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:") or "uri" in url.query:
        return None
    return Path(str(url.database))


def _file_id(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
