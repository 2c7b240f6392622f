"""The embedded server: created, started, joined, found dead, stopped by the last who leaves.

Everything lies in one folder: `data/` (the cluster), `port`, `password`, `server.log` and three lock files. A kernel
lock tells whether the server lives: the server inherits it, so that neither a zombie nor a process number that
somebody else has got by now can be taken for it.
"""

import logging
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import URL

from adapters.data_folder import (
    Membership,
    disk_refused,
    exclusive,
    flush_folder,
    lock_file,
    try_exclusive,
    write_whole,
)
from adapters.postgres.failures import why_the_server_failed
from adapters.postgres.programs import ROOT_STAYS, ProgramFailed, Programs, as_server_user, server_user
from domain.errors import StoreUnavailable

_log = logging.getLogger(__name__)

# Seconds that a start may take: enough for recovery from a crash, which `max_wal_size` bounds.
PATIENCE = 60
LOG_BYTES = 1_000_000
# Windows has neither shared nor inherited locks. There the server itself tells a stale pid file, and runs on until
# `zishu db stop`.
_INHERITS_LOCKS = os.name == "posix"
# Linux flushes a whole file system at once, in a fraction of the time that a thousand single files take.
_FLUSH = "syncfs" if sys.platform == "linux" else "fsync"

# Read at every start. Neither statements nor their parameters, which are what people said, may reach the log.
_SETTINGS = """\
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
max_connections = 50
shared_buffers = 128MB
maintenance_work_mem = 256MB
wal_compression = on
recovery_init_sync_method = {flush}
max_wal_size = 512MB
timezone = 'UTC'
log_timezone = 'UTC'
log_destination = 'stderr'
logging_collector = off
log_statement = none
log_duration = off
log_min_duration_statement = -1
log_min_duration_sample = -1
log_transaction_sample_rate = 0
log_min_messages = log
log_min_error_statement = panic
log_error_verbosity = terse
log_parameter_max_length = 0
log_parameter_max_length_on_error = 0
log_checkpoints = off
log_autovacuum_min_duration = -1
"""


class EmbeddedServer:
    """The PostgreSQL of one data folder, shared by all programs that use the folder. All methods block."""

    def __init__(self, folder: Path, programs: Programs) -> None:
        self._folder = folder.resolve()
        self._data = self._folder / "data"
        self._log = self._folder / "server.log"
        self._programs = programs
        self._membership: Membership | None = None

    def start(self) -> URL:
        """Start the server, or join the one that runs, and return where it answers.

        Raises:
            StoreUnavailable: The disk or the data folder refuses, or the server does not start.
        """
        with self._errors_explained():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with exclusive(self._folder / "start.lock"):
                self._membership = self._membership or Membership(self._folder / "clients.lock")
                if not self._data.exists():
                    self._create()
                if not self._answers():
                    self._bring_up()
                return self._url()

    def leave(self) -> None:
        """Stop using the server; the last program to leave stops it."""
        if self._membership is None:
            return
        try:
            with self._errors_explained(), exclusive(self._folder / "start.lock"):
                if self._membership.is_last():
                    self._halt()
        finally:
            self._membership.leave()
            self._membership = None

    def stop(self) -> bool:
        """Stop a server that nobody uses, such as one left behind by a killed program; tell whether one ran.

        Raises:
            StoreUnavailable: Another program is using it.
        """
        if self.where() is None:
            return False
        with self._errors_explained(), exclusive(self._folder / "start.lock"):
            alone = Membership(self._folder / "clients.lock")
            try:
                if _INHERITS_LOCKS and not alone.is_last():
                    raise StoreUnavailable("Another program is using the database.", "Quit it first.")
                self._halt()
            finally:
                alone.leave()
        return True

    def where(self) -> URL | None:
        """Return where the server answers now, or None; starts and changes nothing."""
        with self._errors_explained():
            begun = self._data.exists() and (self._folder / "port").exists()
            return self._url() if begun and self._answers() else None

    def _url(self) -> URL:
        return URL.create(
            "postgresql+psycopg", "zishu", self._password(), "127.0.0.1", self._port(), "postgres",
            # Not to be decided by the user's PG* variables; and nobody else's server is ever told the password.
            {"hostaddr": "127.0.0.1", "sslmode": "disable", "gssencmode": "disable",
             "channel_binding": "disable", "require_auth": "scram-sha-256"},
        )  # fmt: skip

    def _password(self) -> str:
        path = self._folder / "password"
        if not path.exists():
            if self._data.exists():
                raise StoreUnavailable(
                    f"The database's password file {path} is missing.",
                    f"Put it back, or move {self._folder} away and run: zishu db restore BACKUP",
                )
            write_whole(path, secrets.token_urlsafe(24))
        return path.read_text(encoding="utf-8")

    def _port(self) -> int:
        try:
            return int((self._folder / "port").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return self._pick_port()

    def _pick_port(self) -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        write_whole(self._folder / "port", str(port))
        return port

    def _answers(self) -> bool:
        return self._silence() is None

    def _silence(self) -> str | None:
        """Return None where our own server takes connections, else what was heard instead.

        SCRAM proves both sides, so no stranger passes for our server.
        """
        url = self._url().set(drivername="postgresql").render_as_string(hide_password=False)
        try:
            with psycopg.connect(url, connect_timeout=2, options="") as connection:
                home = connection.execute("SHOW data_directory").fetchone()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error) and self._lives():
                raise StoreUnavailable(
                    f"The database does not accept the password in {self._folder / 'password'}.",
                    "Put back the password file that belongs to the data.",
                ) from error
            return str(error)
        # A copy of the folder has the same password, but another server.
        return None if home and Path(home[0]) == self._data else "Another folder's database answers."

    def _lives(self) -> bool:
        """Tell whether any process of the server is left."""
        with lock_file(self._folder / "server.lock") as descriptor:
            return not try_exclusive(descriptor)

    def _create(self) -> None:
        """Create the cluster beside its place and move it there when it is complete."""
        for unfinished in self._folder.glob("data.init.*"):
            shutil.rmtree(unfinished)
        self._password()
        fresh = self._folder / f"data.init.{os.getpid()}"
        fresh.mkdir(mode=0o700)
        self._give_to_server(fresh)
        _log.info("Creating the database in %s", self._folder)
        self._programs.run(
            "initdb", "-D", fresh.name, "-U", "zishu", "--encoding=UTF8",
            # The locale of the environment would decide what counts as a letter; this one knows Han everywhere.
            "--locale-provider=builtin", "--locale=C.UTF-8",
            "--auth-local=scram-sha-256", "--auth-host=scram-sha-256", "--pwfile=password", "--no-instructions",
            f"--sync-method={_FLUSH}",
            cwd=self._folder, prefix=as_server_user(),
        )  # fmt: skip
        with (fresh / "postgresql.conf").open("a", encoding="utf-8") as settings:
            settings.write("\ninclude '../settings.conf'\n")
            settings.flush()
            os.fsync(settings.fileno())
        fresh.replace(self._data)
        flush_folder(self._folder)

    def _bring_up(self) -> None:
        """Start the server, once nothing of an older one is left; or wait until the living one answers."""
        with lock_file(self._folder / "server.lock") as descriptor:
            give_up = time.monotonic() + PATIENCE
            while _INHERITS_LOCKS and not try_exclusive(descriptor):
                if self._answers():
                    return
                if time.monotonic() > give_up:
                    raise StoreUnavailable(
                        "The embedded PostgreSQL runs but does not answer; it may be recovering from a crash.",
                        f"Wait and try again, or look into {self._log}",
                    )
                time.sleep(0.05)
            if _INHERITS_LOCKS:  # so nothing of an older server is left, whatever its file says
                (self._data / "postmaster.pid").unlink(missing_ok=True)
            self._trim_log()
            try:
                self._launch(descriptor)
            except ProgramFailed as error:
                if "could not create any TCP/IP sockets" not in str(error):
                    raise
                taken, port = self._port(), self._pick_port()
                _log.warning("Port %d is taken by another program; the database listens on %d from now on", taken, port)
                self._launch(descriptor)

    def _launch(self, lock: int) -> None:
        (self._folder / "settings.conf").write_text(_SETTINGS.format(port=self._port(), flush=_FLUSH), encoding="utf-8")
        written = self._log.stat().st_size
        try:
            self._programs.run(
                "pg_ctl", "start", "-w", "-t", str(PATIENCE), "-D", self._data.name, "-l", self._log.name,
                cwd=self._folder, prefix=as_server_user(), kept_open=(lock,) if _INHERITS_LOCKS else (),
            )  # fmt: skip
        except ProgramFailed as error:
            with self._log.open("rb") as log:
                log.seek(written)
                raise ProgramFailed(f"{error}\n{log.read().decode('utf-8', 'replace')}") from error
        if (silence := self._silence()) is not None:
            raise ProgramFailed(silence)

    def _halt(self) -> None:
        """Stop the server, disconnecting whoever is still there; a server too broken to tidy up recovers later."""
        for mode in ("fast", "immediate"):
            try:
                self._programs.run(
                    "pg_ctl", "stop", "-w", "-t", str(PATIENCE // 2), "-m", mode, "-D", self._data.name,
                    cwd=self._folder, prefix=as_server_user(),
                )  # fmt: skip
            except ProgramFailed:
                if self._lives() and mode == "immediate":
                    raise
            else:
                return

    def _trim_log(self) -> None:
        self._log.touch(mode=0o600)
        if self._log.stat().st_size > LOG_BYTES:
            self._log.replace(self._log.with_suffix(".log.1"))
            self._log.touch(mode=0o600)
        self._give_to_server(self._log)

    def _give_to_server(self, path: Path) -> None:
        user = server_user()
        if user is None:
            return
        try:
            os.chown(path, *user)
        except OSError as error:  # a container that takes this right from root, or knows no other user
            raise StoreUnavailable(*ROOT_STAYS) from error

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except ProgramFailed as error:
            raise why_the_server_failed(str(error), self._folder) from error
        except OSError as error:
            if error.filename == "setpriv":
                raise StoreUnavailable(*ROOT_STAYS) from error
            raise disk_refused(error, self._folder) from error
