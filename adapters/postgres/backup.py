"""Backups: one private file each, complete or not there, taken by pg_dump and brought back in one transaction."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import URL

from adapters.data_folder import disk_refused, flush_folder
from adapters.postgres.failures import why_it_failed
from adapters.postgres.programs import ProgramFailed, Programs
from adapters.postgres.tables import SCHEMA
from domain.errors import BadInput

# How many of the backups that nobody asked for are kept.
KEPT_AUTOMATIC = 5


def back_up(programs: Programs, url: URL, folder: Path, *, before: str | None = None) -> Path:
    """Write a backup and return its path.

    Args:
        programs: Where pg_dump lies.
        url: The database.
        folder: Where backups lie; it is made if needed.
        before: What is about to happen, for a backup that nobody asked for; only the newest of these are kept.

    Raises:
        StoreUnavailable: The disk refuses, or the database does.
    """
    taken = f"zishu-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    path = folder / (f"{taken}-before-{before}.dump" if before else f"{taken}.dump")
    with _unfinished(folder, taken) as (unfinished, file):
        programs.run(
            "pg_dump", "-Fc", "-n", SCHEMA, "-d", _without_password(url),
            cwd=folder, environment=_password(url), output=file,
        )  # fmt: skip
        os.fsync(file.fileno())
        file.close()
        unfinished.replace(path)
        flush_folder(folder)
        for extra in sorted(folder.glob("*-before-*.dump"))[:-KEPT_AUTOMATIC]:
            extra.unlink()
    return path


def restore(programs: Programs, url: URL, file: Path, folder: Path, *, replaces: bool) -> Path | None:
    """Replace all that Zishu stored with a backup, or change nothing; return the backup of what was there before.

    Args:
        programs: Where pg_restore and psql lie.
        url: The database.
        file: The backup.
        folder: Where backups lie, and for the while the backup's contents.
        replaces: Whether there is anything to back up first.

    Raises:
        BadInput: The file is no backup of Zishu.
        StoreUnavailable: The disk refuses, or the database does.
    """
    with _unfinished(folder, "restore") as (script, written):
        try:
            programs.run(
                "pg_restore", "--no-owner", "--no-privileges", "-f", "-", file.absolute(), cwd=folder, output=written
            )
        except ProgramFailed as error:
            if "No space left" in str(error):
                raise
            raise _no_backup(file) from error
        with script.open("rb") as lines:
            if not any(line.startswith(f"CREATE TABLE {SCHEMA}.alembic_version".encode()) for line in lines):
                raise _no_backup(file)
        before = back_up(programs, url, folder, before="restore") if replaces else None
        programs.run(
            "psql", "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-d", _without_password(url),
            "-c", f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE",
            "-c", "CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public", "-f", script,
            cwd=folder, environment=_password(url),
        )  # fmt: skip
    return before


def backups(folder: Path) -> list[Path]:
    """Return all backups, newest first."""
    return sorted(folder.glob("zishu-*.dump"), reverse=True)


@contextmanager
def _unfinished(folder: Path, name: str) -> Iterator[tuple[Path, BinaryIO]]:
    """Lend a private file that is gone afterwards, unless it was renamed, and translate what goes wrong meanwhile."""
    path = folder / f"{name}.{os.getpid()}.part"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in folder.glob("*.part"):
            if old.stat().st_mtime < time.time() - 86_400:  # left by a power cut, not by a program still at work
                old.unlink()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield path, file
        finally:
            path.unlink(missing_ok=True)
    except ProgramFailed as error:
        raise why_it_failed(str(error), folder) from error
    except OSError as error:
        raise disk_refused(error, folder) from error


def _no_backup(file: Path) -> BadInput:
    return BadInput(f"{file} is not a backup of Zishu, or it is damaged.", "zishu db status lists the backups.")


def _without_password(url: URL) -> str:
    """Return the URL for libpq; the password goes another way, because everybody can read a command line."""
    return url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)


def _password(url: URL) -> dict[str, str]:
    return {"PGPASSWORD": str(url.password)} if url.password is not None else {}
