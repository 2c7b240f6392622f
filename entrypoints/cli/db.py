"""`zishu db`: look at the database, back it up, bring a backup back, stop it."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from adapters.postgres.engine import Database

Result = TypeVar("Result")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

app = typer.Typer(
    no_args_is_help=True,
    help="The database that keeps conversations: an embedded PostgreSQL in the data folder, or the one that "
    "[database] url names.",
)


def open_database() -> "Database":
    """Return the database of the settings; nothing is started yet."""
    from entrypoints.container import build_container

    database: Database = build_container().database()
    return database


@app.command()
def status(as_json: AsJson = False) -> None:
    """Say where the database is, whether it runs, how large it is, and which backups there are.

    Starts nothing. A stopped embedded database is fine: it starts when it is needed. The exit status is 1 where the
    database should answer and does not.
    """
    from adapters.postgres.tables import REVISION

    seen = _run(lambda database: database.status())
    fields = {
        **asdict(seen),
        "running": seen.version is not None,
        "newest_revision": REVISION,
        "backups": [str(path) for path in seen.backups],
    }
    size = "" if seen.size_bytes is None else f"{seen.size_bytes / 1e6:.1f} MB"
    lines = {
        "database": seen.kind,
        "running": f"PostgreSQL {seen.version} at {seen.address}" if seen.version else seen.problem or "stopped",
        "schema": seen.revision and f"{seen.revision} (newest: {REVISION})",
        "size": size,
        "backups": "\n          ".join(fields["backups"]),
    }
    _print(fields, "\n".join(f"{name:<9} {value}" for name, value in lines.items() if value), as_json=as_json)
    raise typer.Exit(1 if seen.problem else 0)


@app.command()
def backup(as_json: AsJson = False) -> None:
    """Write everything into one private file in the folder `backups` of the data folder.

    It may run while she is talking. Bring it back with: zishu db restore FILE
    """
    path = _run(lambda database: database.back_up())
    _print({"file": str(path), "bytes": path.stat().st_size}, str(path), as_json=as_json)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A backup; `zishu db status` lists them.")], as_json: AsJson = False
) -> None:
    """Replace all conversations by those of a backup, in one step or not at all.

    What is there now is backed up first. A backup of an older version is upgraded.
    """
    before = _run(lambda database: database.restore(file))
    kept = f"\nWhat was there before is in {before}" if before else ""
    _print(
        {"restored": str(file), "before": str(before) if before else None}, f"Restored {file}{kept}", as_json=as_json
    )


@app.command()
def stop(as_json: AsJson = False) -> None:
    """Stop an embedded database that no program uses, such as one left running by a killed program."""
    stopped = _run(lambda database: database.stop())
    _print({"stopped": stopped}, "Stopped." if stopped else "It was not running.", as_json=as_json)


def _run(action: "Callable[[Database], Awaitable[Result]]") -> Result:
    """Do one thing with the database and let go of it."""

    async def act() -> Result:
        database = open_database()
        try:
            return await action(database)
        finally:
            await database.close()

    return asyncio.run(act())


def _print(fields: dict[str, object], words: str, *, as_json: bool) -> None:
    sys.stdout.write((json.dumps(fields, ensure_ascii=False) if as_json else words) + "\n")
