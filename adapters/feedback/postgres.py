"""Ratings in PostgreSQL, beside the turns that they are about."""

from pydantic import BaseModel, ConfigDict
from sqlalchemy import literal, select
from sqlalchemy.dialects.postgresql import insert

from adapters.postgres.engine import Database
from adapters.postgres.tables import ratings, turns
from domain.conversation import Scope
from domain.errors import NotFound
from domain.feedback import Rating
from domain.ports import Feedback


class Config(BaseModel):
    """Nothing to set here; `[database]` says where the database is."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PostgresFeedback:
    """Keeps ratings in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def rate(self, rating: Rating) -> None:
        given = {"good": rating.good, "at": rating.at, "note": rating.note}
        rated = insert(ratings).from_select(
            ["turn_id", "owner", "character", *given],
            select(
                turns.c.id,
                turns.c.owner,
                turns.c.character,
                *(literal(value, ratings.c[name].type) for name, value in given.items()),
            ).where(
                turns.c.id == rating.turn_id,
                turns.c.owner == rating.scope.owner,
                turns.c.character == rating.scope.character,
            ),
        )
        done = await self._database.execute(
            rated.on_conflict_do_update(
                index_elements=["turn_id"], set_={name: rated.excluded[name] for name in given}
            ).returning(ratings.c.turn_id)
        )
        if not done:
            raise NotFound("There is no such reply to rate.", "Rate one that she has given you.")

    async def ratings(self, scope: Scope) -> list[Rating]:
        rows = await self._database.execute(
            select(ratings)
            .where(ratings.c.owner == scope.owner, ratings.c.character == scope.character)
            .order_by(ratings.c.at, ratings.c.turn_id)
        )
        return [Rating(scope, row.turn_id, row.good, row.at, row.note) for row in rows]


def build(config: Config, database: Database) -> Feedback:
    """Return the store in a database; nothing is connected yet."""
    return PostgresFeedback(database)
