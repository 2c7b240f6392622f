"""Ratings that last as long as the program: for trials and tests, and what every other store must agree with."""

from uuid import UUID

from pydantic import BaseModel, ConfigDict

from domain.conversation import Scope
from domain.errors import NotFound
from domain.feedback import Rating
from domain.ports import Feedback, Sessions


class Config(BaseModel):
    """Nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InMemoryFeedback:
    """Keeps ratings in a dictionary, of turns that a store of conversations knows."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._ratings: dict[UUID, Rating] = {}

    async def rate(self, rating: Rating) -> None:
        for conversation in await self._sessions.conversations(rating.scope):
            turns = await self._sessions.read(rating.scope, conversation.id)
            if any(turn.id == rating.turn_id for turn in turns):
                self._ratings[rating.turn_id] = rating
                return
        raise NotFound("There is no such reply to rate.", "Rate one that she has given you.")

    async def ratings(self, scope: Scope) -> list[Rating]:
        mine = (rating for rating in self._ratings.values() if rating.scope == scope)
        return sorted(mine, key=lambda rating: (rating.at, rating.turn_id))


def build(config: Config, sessions: Sessions) -> Feedback:
    """Return an empty store."""
    return InMemoryFeedback(sessions)
