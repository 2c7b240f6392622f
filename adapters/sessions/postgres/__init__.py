"""Conversations in PostgreSQL, and in a journal while it is away."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from adapters.postgres.engine import Database
from adapters.sessions.postgres.journal import JournalledSessions
from adapters.sessions.postgres.store import PostgresSessions
from domain.ports import Sessions


class Config(BaseModel):
    """Nothing to set here; `[database]` says where the database is."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def build(config: Config, database: Database, data_folder: Path) -> Sessions:
    """Return the store in a database, with a journal in the data folder; nothing is connected yet."""
    return JournalledSessions(PostgresSessions(database), data_folder / "journal.jsonl")
