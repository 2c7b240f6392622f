"""Conversations that last as long as the program: for trials and tests, and what every other store must agree with."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict

from adapters.sessions import FIRST_WORDS, OPENED_TURNS
from domain.conversation import ConversationSummary, Scope, Session, Turn
from domain.emotion import Mood
from domain.errors import NotFound
from domain.events import Durability
from domain.ports import Sessions


class Config(BaseModel):
    """Nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(slots=True)
class _Conversation:
    id: UUID
    begun_at: datetime
    turns: dict[UUID, Turn] = field(default_factory=dict)


class InMemorySessions:
    """Keeps what it is told in dictionaries."""

    def __init__(self) -> None:
        self._conversations: dict[Scope, list[_Conversation]] = {}
        self._felt: dict[Scope, Session] = {}
        self._scope_of: dict[UUID, Scope] = {}

    async def open(self, scope: Scope, *, now: datetime) -> Session:
        return self._session(scope, now) if scope in self._conversations else await self.start_new(scope, now=now)

    async def start_new(self, scope: Scope, *, now: datetime) -> Session:
        self._conversations.setdefault(scope, []).append(_Conversation(uuid4(), now))
        return self._session(scope, now)

    async def commit(self, session: Session, turn: Turn) -> Durability:
        if self._scope_of.get(turn.id, session.scope) != session.scope:
            raise NotFound("This turn belongs to another conversation.", "Begin a new conversation.")
        mine = self._conversations.get(session.scope, [])
        # a turn stays in the conversation that it was first committed to
        home = next((each for each in mine if turn.id in each.turns), None) or self._find(session.scope, session.id)
        home.turns[turn.id] = turn
        self._scope_of[turn.id] = session.scope
        self._felt[session.scope] = replace(session, turns=[])
        return Durability.STORED

    async def conversations(self, scope: Scope) -> list[ConversationSummary]:
        return [
            ConversationSummary(
                conversation.id,
                conversation.begun_at,
                len(conversation.turns),
                next((turn.user_text for turn in conversation.turns.values()), "")[:FIRST_WORDS],
            )
            for conversation in reversed(self._conversations.get(scope, []))
        ]

    async def read(self, scope: Scope, conversation_id: UUID) -> list[Turn]:
        return list(self._find(scope, conversation_id).turns.values())

    def _find(self, scope: Scope, conversation_id: UUID) -> _Conversation:
        for conversation in self._conversations.get(scope, []):
            if conversation.id == conversation_id:
                return conversation
        raise NotFound(f"There is no conversation {conversation_id} here.", "Choose one of the list.")

    def _session(self, scope: Scope, now: datetime) -> Session:
        newest = self._conversations[scope][-1]
        felt = self._felt.get(scope) or Session(newest.id, scope, Mood(), now)
        return replace(felt, id=newest.id, turns=list(newest.turns.values())[-OPENED_TURNS:])


def build(config: Config) -> Sessions:
    """Return an empty store."""
    return InMemorySessions()
