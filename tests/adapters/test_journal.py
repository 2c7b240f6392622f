"""The journal that takes her words while the database is away."""

import resource
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.postgres import engine
from adapters.postgres.engine import Config, Database
from adapters.postgres.programs import find_programs
from adapters.postgres.supervisor import EmbeddedServer
from adapters.sessions.postgres.journal import JournalledSessions
from adapters.sessions.postgres.store import PostgresSessions
from domain.conversation import ReplyState, Scope, Session, Turn
from domain.emotion import Emotion, EmotionLabel, Mood
from domain.errors import StoreUnavailable
from domain.events import Durability

NOW = datetime(2026, 11, 23, 9, 30, 15, 123456, tzinfo=UTC)
SCOPE = Scope("local", "zishu")
NOWHERE = Config(url="postgresql://zishu@127.0.0.1:1/none")


def a_turn(text: str = "今天考试没考好。") -> Turn:
    return Turn(uuid4(), text, NOW)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


@pytest.fixture
def away(path: Path) -> JournalledSessions:
    """A store whose database cannot be reached."""
    return JournalledSessions(PostgresSessions(Database(NOWHERE, path.parent)), path)


class Outage:
    """A server that a test stops and starts, and the store of a program that uses it."""

    def __init__(self, data_folder: Path, journal: Path) -> None:
        self._server = EmbeddedServer(data_folder / "pg", find_programs(None))
        self.database = Database(
            Config(url=self._server.start().render_as_string(hide_password=False)), data_folder
        )  # fmt: skip
        self.stored = PostgresSessions(self.database)
        self.sessions = JournalledSessions(self.stored, journal)

    def begin(self) -> None:
        self._server.leave()

    def end(self) -> None:
        self._server.start()


@pytest.fixture
async def outage(data_folder: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Outage]:
    monkeypatch.setattr(engine, "REST", 0.0)
    made = Outage(data_folder, path)
    yield made
    await made.database.close()
    made.begin()


@pytest.mark.postgres
async def test_turns_wait_in_the_journal_and_are_stored_when_the_database_is_back(outage: Outage, path: Path) -> None:
    sessions = outage.sessions
    session = await sessions.open(SCOPE, now=NOW)
    before, during, after = a_turn("前"), a_turn("中"), a_turn("后")
    await sessions.commit(session, before)
    outage.begin()
    session.called = "小明"
    assert await sessions.commit(session, during) is Durability.JOURNALLED
    during = replace(during, reply="嗯。", state=ReplyState.FINISHED)
    assert await sessions.commit(session, during) is Durability.JOURNALLED
    assert path.stat().st_mode & 0o777 == 0o600
    outage.end()
    assert await sessions.commit(session, after) is Durability.STORED
    assert not path.exists()
    assert (await outage.stored.open(SCOPE, now=NOW)) == replace(session, turns=[before, during, after])


@pytest.mark.postgres
async def test_a_conversation_begun_without_the_database_joins_the_stored_one(outage: Outage, path: Path) -> None:
    stored = await outage.sessions.open(SCOPE, now=NOW)
    stored.called = "小明"
    earlier, later = a_turn("昨天"), a_turn("今天")
    await outage.sessions.commit(stored, earlier)
    outage.begin()
    another_program = JournalledSessions(outage.stored, path)
    session = await another_program.open(SCOPE, now=NOW + timedelta(hours=1))
    assert session.turns == []
    assert await another_program.commit(session, later) is Durability.JOURNALLED
    outage.end()
    later = replace(later, reply="早上好。")
    assert await another_program.commit(session, later) is Durability.STORED
    assert (session.id, session.called) == (stored.id, "小明")
    again = await outage.stored.open(SCOPE, now=NOW)
    assert (again.turns, again.called, again.felt_at) == ([earlier, later], "小明", NOW + timedelta(hours=1))


@pytest.mark.postgres
async def test_replaying_twice_changes_nothing(outage: Outage, path: Path) -> None:
    session = await outage.sessions.open(SCOPE, now=NOW)
    outage.begin()
    turns = [a_turn(str(number)) for number in range(5)]
    for turn in turns:
        await outage.sessions.commit(session, turn)
    kept = shutil.copy(path, path.with_suffix(".kept"))
    outage.end()
    assert (await outage.sessions.open(SCOPE, now=NOW)).turns == turns
    shutil.copy(kept, path)  # as after a crash between the last turn and the removal
    assert (await outage.sessions.open(SCOPE, now=NOW)).turns == turns
    assert not path.exists()


@pytest.mark.postgres
async def test_a_line_that_makes_no_sense_is_kept_aside_and_holds_nothing_up(outage: Outage, path: Path) -> None:
    session = await outage.sessions.open(SCOPE, now=NOW)
    outage.begin()
    turn = a_turn()
    await outage.sessions.commit(session, turn)
    with path.open("ab") as journal:
        journal.write(b'{"owner": 3}\nnot json\n{"half of a li')
    outage.end()
    assert (await outage.sessions.open(SCOPE, now=NOW)).turns == [turn]
    assert path.with_suffix(".refused.jsonl").read_bytes() == b'{"owner": 3}\nnot json\n'
    assert not path.exists()


async def test_without_the_database_she_goes_on_from_the_journal(away: JournalledSessions, path: Path) -> None:
    session = await away.open(SCOPE, now=NOW)
    session.called, session.mood = "小明", Mood(0.5, 0, 0)
    turns = [a_turn("一"), a_turn("二")]
    for turn in (*turns, *turns):
        assert await away.commit(session, turn) is Durability.JOURNALLED
    other = await away.open(Scope("onebot:qq:1:2", "zishu"), now=NOW)
    await away.commit(other, a_turn("别人"))
    restarted = JournalledSessions(PostgresSessions(Database(NOWHERE, path.parent)), path)
    assert await restarted.open(SCOPE, now=NOW) == replace(session, turns=turns)


async def test_what_needs_the_database_says_so(away: JournalledSessions) -> None:
    for needs in (
        away.start_new(SCOPE, now=NOW),
        away.conversations(SCOPE),
        away.read(SCOPE, uuid4()),
    ):  # fmt: skip
        with pytest.raises(StoreUnavailable):
            await needs


async def test_the_half_line_of_a_crash_is_overwritten(away: JournalledSessions, path: Path) -> None:
    session = await away.open(SCOPE, now=NOW)
    first, second = a_turn("一"), a_turn("二")
    await away.commit(session, first)
    with path.open("ab") as journal:
        journal.write(path.read_bytes()[:100])
    assert (await away.open(SCOPE, now=NOW)).turns == [first]
    await away.commit(session, second)
    assert (await away.open(SCOPE, now=NOW)).turns == [first, second]
    assert len(path.read_bytes().splitlines()) == 2


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_is_told_and_spoils_nothing(away: JournalledSessions, path: Path) -> None:
    session = await away.open(SCOPE, now=NOW)
    kept = a_turn("留下")
    await away.commit(session, kept)
    with largest_file(path.stat().st_size + 50):
        with pytest.raises(StoreUnavailable, match="disk is full") as refused:
            await away.commit(session, a_turn("放不下"))
        assert refused.value.remedy
        assert (await away.open(SCOPE, now=NOW)).turns == [kept]
    await away.commit(session, a_turn("又有地方了"))
    assert [turn.user_text for turn in (await away.open(SCOPE, now=NOW)).turns] == ["留下", "又有地方了"]


moods = st.floats(-1, 1)
emotions = st.builds(Emotion, st.sampled_from(EmotionLabel), st.floats(0, 1))
any_text = st.text(st.characters())  # lone surrogates and NUL among them
times = st.datetimes(timezones=st.just(UTC))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    turn=st.builds(
        Turn, st.uuids(), any_text, times, any_text, st.sampled_from(ReplyState), any_text, emotions,
        st.none() | st.integers(0),
    ),
    session=st.builds(
        Session, st.uuids(), st.builds(Scope, any_text, any_text), st.builds(Mood, moods, moods, moods), times,
        st.just([]), emotions, any_text, st.none() | any_text, any_text,
    ),
)  # fmt: skip
async def test_any_turn_comes_back_from_the_journal(
    away: JournalledSessions, path: Path, turn: Turn, session: Session
) -> None:
    path.unlink(missing_ok=True)
    await away.commit(session, turn)
    assert await away.open(session.scope, now=NOW) == replace(session, turns=[turn])
