"""Conversations that go on while the database is away: what it cannot take is written to a file, and replayed later."""

import asyncio
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from adapters.data_folder import disk_refused, exclusive, exclusive_async, flush_folder
from domain.conversation import ConversationSummary, ReplyState, Scope, Session, Turn
from domain.emotion import Emotion, EmotionLabel, Mood
from domain.errors import BadInput, NotFound, StoreUnavailable
from domain.events import Durability
from domain.ports import Sessions

_log = logging.getLogger(__name__)


class JournalledSessions:
    """Another store of conversations, and a journal for the time in which that store cannot be reached.

    Several programs may share one journal.
    """

    def __init__(self, store: Sessions, path: Path) -> None:
        self._store = store
        self._journal = Journal(path)
        self._opened_without_store: set[UUID] = set()

    async def open(self, scope: Scope, *, now: datetime) -> Session:
        try:
            await self._replay()
            return await self._store.open(scope, now=now)
        except StoreUnavailable as error:
            _log.warning("Her long-term memory is away: %s", error)
            session = await asyncio.to_thread(self._journal.session, scope, now)
            self._opened_without_store.add(session.id)
            return session

    async def start_new(self, scope: Scope, *, now: datetime) -> Session:
        await self._replay()
        return await self._store.start_new(scope, now=now)

    async def commit(self, session: Session, turn: Turn) -> Durability:
        try:
            await self._replay()
            await self._rejoin(session, turn.said_at)
            return await self._store.commit(session, turn)
        except StoreUnavailable as error:
            _log.warning("A turn went to the journal: %s", error)
            await asyncio.to_thread(self._journal.append, _line(session, turn))
            return Durability.JOURNALLED

    async def conversations(self, scope: Scope) -> list[ConversationSummary]:
        await self._replay()
        return await self._store.conversations(scope)

    async def read(self, scope: Scope, conversation_id: UUID) -> list[Turn]:
        await self._replay()
        return await self._store.read(scope, conversation_id)

    async def _replay(self) -> None:
        """Bring what waits in the journal to the store, oldest first; a crash in between only repeats it."""
        if not self._journal.waits():
            return
        async with exclusive_async(self._journal.lock):
            lines, refused = await asyncio.to_thread(self._journal.newest_lines)
            for line in lines:
                try:
                    await self._store_late(*_parsed(line))
                except (NotFound, BadInput) as error:
                    _log.error("A turn of the journal was refused: %s", error)
                    refused.append(line)
            await asyncio.to_thread(self._journal.finish, refused)

    async def _store_late(self, session: Session, turn: Turn) -> None:
        """Store a turn of the journal; one whose conversation the store never saw joins the open one."""
        stored = await self._store.open(session.scope, now=turn.said_at)
        late = replace(session if session.felt_at >= stored.felt_at else stored, id=session.id)
        late.called = session.called or stored.called  # a session opened without the store may not know it
        try:
            await self._store.commit(late, turn)
        except NotFound:
            late.id = stored.id
            await self._store.commit(late, turn)

    async def _rejoin(self, session: Session, now: datetime) -> None:
        """Let a session that was opened without the store go on in the stored conversation."""
        if session.id not in self._opened_without_store:
            return
        stored = await self._store.open(session.scope, now=now)
        self._opened_without_store.discard(session.id)
        session.id = stored.id
        session.called = session.called or stored.called


class Journal:
    """A file of turns, one JSON object each line, appended and flushed to the disk before it counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lock = path.with_suffix(".lock")

    def waits(self) -> bool:
        """Tell whether there is anything to replay."""
        return self._path.exists()

    def append(self, line: bytes) -> None:
        """Append a line that is on the disk when this returns.

        Raises:
            StoreUnavailable: The disk refuses; the journal stays as it was.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(self.lock):
                is_new = not self._path.exists()
                _append_whole(self._path, line)
                if is_new:
                    flush_folder(self._path.parent)
        except OSError as error:
            raise disk_refused(error, self._path.parent) from error

    def newest_lines(self) -> tuple[list[bytes], list[bytes]]:
        """Return the newest line of each turn, in the order in which the turns began, and lines that make no sense.

        What a crash left of the last line was never acknowledged, and is left out.
        """
        try:
            *whole, _ = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return [], []
        except OSError as error:
            raise disk_refused(error, self._path.parent) from error
        newest: dict[UUID, bytes] = {}
        senseless = []
        for line in whole:
            try:
                newest[_parsed(line)[1].id] = line
            except (ValueError, KeyError, TypeError):
                senseless.append(line)
        return list(newest.values()), senseless

    def session(self, scope: Scope, now: datetime) -> Session:
        """Return the conversation of a scope as far as the journal knows it."""
        said = [_parsed(line) for line in self.newest_lines()[0]]
        mine = [(session, turn) for session, turn in said if session.scope == scope]
        if not mine:
            return Session(uuid4(), scope, Mood(), now)
        return replace(mine[-1][0], turns=[turn for _, turn in mine])

    def finish(self, refused: Sequence[bytes]) -> None:
        """Remove the journal; lines that the store refused are kept beside it, for a person to look at."""
        try:
            if refused:
                _append_whole(self._path.with_suffix(".refused.jsonl"), b"".join(line + b"\n" for line in refused))
            self._path.unlink(missing_ok=True)
            flush_folder(self._path.parent)
        except OSError as error:
            raise disk_refused(error, self._path.parent) from error


def _append_whole(path: Path, data: bytes) -> None:
    """Append after the last whole line and flush; where the disk refuses, leave no half line."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if file.read(1) not in (b"", b"\n"):
            file.seek(0)
            end = file.readall().rfind(b"\n") + 1
            file.truncate(end)
        file.seek(end)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(descriptor)
        except OSError:
            file.truncate(end)
            raise


def _line(session: Session, turn: Turn) -> bytes:
    """Write a turn and what she feels as one line; escapes keep any text, even broken Unicode, as it is."""
    fields = {
        "owner": session.scope.owner,
        "character": session.scope.character,
        "conversation": str(session.id),
        "mood": [session.mood.valence, session.mood.arousal, session.mood.dominance],
        "felt_at": session.felt_at.isoformat(),
        "face": [session.face.label, session.face.intensity],
        "accessory": session.accessory,
        "called": session.called,
        "expert": session.expert,
        "turn": {
            "id": str(turn.id),
            "user_text": turn.user_text,
            "said_at": turn.said_at.isoformat(),
            "reply": turn.reply,
            "state": turn.state,
            "expert": turn.expert,
            "emotion": [turn.emotion.label, turn.emotion.intensity],
            "heard_chars": turn.heard_chars,
        },
    }
    return json.dumps(fields).encode("ascii") + b"\n"


def _parsed(line: bytes) -> tuple[Session, Turn]:
    """Read what `_line` wrote."""
    fields = json.loads(line)
    turn = fields["turn"]
    return (
        Session(
            UUID(fields["conversation"]),
            Scope(fields["owner"], fields["character"]),
            Mood(*fields["mood"]),
            datetime.fromisoformat(fields["felt_at"]),
            face=_emotion(fields["face"]),
            accessory=fields["accessory"],
            called=fields["called"],
            expert=fields["expert"],
        ),
        Turn(
            UUID(turn["id"]),
            turn["user_text"],
            datetime.fromisoformat(turn["said_at"]),
            turn["reply"],
            ReplyState(turn["state"]),
            turn["expert"],
            _emotion(turn["emotion"]),
            turn["heard_chars"],
        ),
    )


def _emotion(pair: Sequence[Any]) -> Emotion:
    return Emotion(EmotionLabel(pair[0]), pair[1])
