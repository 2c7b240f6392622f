"""Conversations in PostgreSQL; every statement names its scope."""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, Row, Table, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.postgres.engine import Database
from adapters.postgres.tables import conversations, relationships, turns
from adapters.sessions import FIRST_WORDS, OPENED_TURNS
from domain.conversation import ConversationSummary, ReplyState, Scope, Session, Turn
from domain.emotion import Emotion, EmotionLabel, Mood
from domain.errors import NotFound
from domain.events import Durability


class PostgresSessions:
    """Keeps conversations in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self, scope: Scope, *, now: datetime) -> Session:
        async def work(connection: AsyncConnection) -> Session:
            return await _load(connection, scope, await _open_conversation(connection, scope, now), now)

        return await self._database.transact(work)

    async def start_new(self, scope: Scope, *, now: datetime) -> Session:
        async def work(connection: AsyncConnection) -> Session:
            await connection.execute(
                update(conversations)
                .where(*_within(conversations, scope), conversations.c.closed_at.is_(None))
                .values(closed_at=now)
            )
            return await _load(connection, scope, await _open_conversation(connection, scope, now), now)

        return await self._database.transact(work)

    async def commit(self, session: Session, turn: Turn) -> Durability:
        stored = insert(turns).values(
            id=turn.id,
            conversation_id=session.id,
            owner=session.scope.owner,
            character=session.scope.character,
            user_text=turn.user_text,
            said_at=turn.said_at,
            reply=turn.reply,
            state=turn.state.value,
            expert=turn.expert,
            emotion=turn.emotion.label.value,
            emotion_intensity=turn.emotion.intensity,
            heard_chars=turn.heard_chars,
        )
        kept = {"id", "ordinal", "conversation_id", "owner", "character"}
        stored_turn = (
            stored.on_conflict_do_update(
                index_elements=["id"],
                set_={column.name: column for column in stored.excluded if column.name not in kept},
                where=(turns.c.owner == stored.excluded.owner) & (turns.c.character == stored.excluded.character),
            )
            .returning(turns.c.id)
            .cte("stored_turn")
        )
        felt = {
            "owner": session.scope.owner,
            "character": session.scope.character,
            "valence": session.mood.valence,
            "arousal": session.mood.arousal,
            "dominance": session.mood.dominance,
            "felt_at": session.felt_at,
            "face": session.face.label.value,
            "face_intensity": session.face.intensity,
            "accessory": session.accessory,
            "called": session.called,
            "expert": session.expert,
        }
        # One statement, so one round trip and one transaction: what she feels follows only where the turn was stored.
        felt_now = insert(relationships).from_select(
            list(felt),
            select(*(literal(value, relationships.c[name].type) for name, value in felt.items())).select_from(
                stored_turn
            ),
        )
        done = await self._database.execute(
            felt_now.on_conflict_do_update(
                index_elements=["owner", "character"],
                set_={name: felt_now.excluded[name] for name in felt if name not in ("owner", "character")},
            ).returning(relationships.c.owner)
        )
        if not done:
            raise NotFound("This turn belongs to another conversation.", "Begin a new conversation.")
        return Durability.STORED

    async def conversations(self, scope: Scope) -> list[ConversationSummary]:
        listed = (
            select(
                conversations.c.id,
                conversations.c.ordinal,
                conversations.c.begun_at,
                func.count(turns.c.id).label("turns"),
                func.min(turns.c.ordinal).label("first"),
            )
            .outerjoin(turns, turns.c.conversation_id == conversations.c.id)
            .where(*_within(conversations, scope))
            .group_by(conversations.c.id)
            .subquery()
        )
        rows = await self._database.execute(
            select(
                listed.c.id,
                listed.c.begun_at,
                listed.c.turns,
                func.coalesce(func.left(turns.c.user_text, FIRST_WORDS), ""),
            )
            .outerjoin(turns, (turns.c.conversation_id == listed.c.id) & (turns.c.ordinal == listed.c.first))
            .order_by(listed.c.ordinal.desc())
        )
        return [ConversationSummary(key, begun_at, count, words) for key, begun_at, count, words in rows]

    async def read(self, scope: Scope, conversation_id: UUID) -> list[Turn]:
        async def work(connection: AsyncConnection) -> list[Turn]:
            conversation = await connection.scalar(
                select(conversations.c.id).where(*_within(conversations, scope), conversations.c.id == conversation_id)
            )
            if conversation is None:
                raise NotFound(f"There is no conversation {conversation_id} here.", "Choose one of the list.")
            found = await connection.execute(
                select(turns)
                .where(*_within(turns, scope), turns.c.conversation_id == conversation_id)
                .order_by(turns.c.ordinal)
            )
            return [_turn(row) for row in found]

        return await self._database.transact(work)


def _within(table: Table, scope: Scope) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return table.c.owner == scope.owner, table.c.character == scope.character


async def _open_conversation(connection: AsyncConnection, scope: Scope, now: datetime) -> UUID:
    """Return the open conversation, begun where there is none; of two programs that begin one, the first wins."""
    while True:
        found: UUID | None = await connection.scalar(
            select(conversations.c.id).where(*_within(conversations, scope), conversations.c.closed_at.is_(None))
        )
        if found is not None:
            return found
        await connection.execute(
            insert(conversations)
            .values(id=uuid4(), owner=scope.owner, character=scope.character, begun_at=now)
            .on_conflict_do_nothing()
        )


async def _load(connection: AsyncConnection, scope: Scope, conversation_id: UUID, now: datetime) -> Session:
    newest = await connection.execute(
        select(turns)
        .where(*_within(turns, scope), turns.c.conversation_id == conversation_id)
        .order_by(turns.c.ordinal.desc())
        .limit(OPENED_TURNS)
    )
    session = Session(conversation_id, scope, Mood(), now, turns=[_turn(row) for row in newest][::-1])
    felt = (await connection.execute(select(relationships).where(*_within(relationships, scope)))).one_or_none()
    if felt is not None:
        session.mood = Mood(felt.valence, felt.arousal, felt.dominance)
        session.felt_at = felt.felt_at
        session.face = Emotion(EmotionLabel(felt.face), felt.face_intensity)
        session.accessory = felt.accessory
        session.called = felt.called
        session.expert = felt.expert
    return session


def _turn(row: Row[*tuple[Any, ...]]) -> Turn:
    return Turn(
        row.id,
        row.user_text,
        row.said_at,
        row.reply,
        ReplyState(row.state),
        row.expert,
        Emotion(EmotionLabel(row.emotion), row.emotion_intensity),
        row.heard_chars,
    )
