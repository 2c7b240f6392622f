"""What every store of conversations promises."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4, uuid5

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.sessions import OPENED_TURNS
from adapters.sessions.in_memory import InMemorySessions
from adapters.sessions.postgres.journal import JournalledSessions
from adapters.sessions.postgres.store import PostgresSessions
from domain.conversation import ReplyState, Scope, Turn
from domain.emotion import Emotion, EmotionLabel, Mood
from domain.errors import NotFound
from domain.events import Durability
from domain.ports import Sessions

NOW = datetime(2026, 11, 23, 9, 30, 15, 123456, tzinfo=UTC)


@pytest.fixture(
    params=[
        "in_memory",
        pytest.param("postgres", marks=pytest.mark.postgres),
        pytest.param("journalled", marks=pytest.mark.postgres),
    ]
)
def sessions(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sessions:
    if request.param == "in_memory":
        return InMemorySessions()
    stored = PostgresSessions(request.getfixturevalue("database"))
    if request.param == "postgres":
        return stored
    return JournalledSessions(stored, tmp_path_factory.mktemp("journal") / "journal.jsonl")


@pytest.fixture
def scope() -> Scope:
    return Scope(f"user-{uuid4()}", "zishu")


def a_turn(text: str = "今天考试没考好。", **fields: object) -> Turn:
    return replace(Turn(uuid4(), text, NOW), **fields)


async def test_a_scope_has_one_open_conversation(sessions: Sessions, scope: Scope) -> None:
    first = await sessions.open(scope, now=NOW)
    again = await sessions.open(scope, now=NOW + timedelta(days=1))
    assert again.id == first.id
    assert (first.turns, first.mood, first.called, first.felt_at) == ([], Mood(), None, NOW)


async def test_programs_that_open_at_once_share_the_conversation(sessions: Sessions, scope: Scope) -> None:
    opened = await asyncio.gather(*(sessions.open(scope, now=NOW) for _ in range(8)))
    assert len({session.id for session in opened}) == 1


async def test_what_was_committed_comes_back_exactly(sessions: Sessions, scope: Scope) -> None:
    session = await sessions.open(scope, now=NOW)
    session.mood, session.felt_at = Mood(0.1, -0.25, 1.0), NOW + timedelta(microseconds=1)
    session.face, session.accessory = Emotion(EmotionLabel.COMFORT, 0.7), "ribbon"
    session.called, session.expert = "小明", "anime"
    turn = a_turn(
        reply="没事，抱抱你。\n下次一定行！🐢",
        state=ReplyState.INTERRUPTED,
        expert="anime",
        emotion=Emotion(EmotionLabel.COMFORT, 1 / 3),
        heard_chars=4,
    )
    assert await sessions.commit(session, turn) is Durability.STORED
    again = await sessions.open(scope, now=NOW)
    assert again == replace(session, turns=[turn])
    assert await sessions.read(scope, session.id) == [turn]


async def test_a_later_commit_of_a_turn_replaces_the_earlier(sessions: Sessions, scope: Scope) -> None:
    session = await sessions.open(scope, now=NOW)
    first, second = a_turn("一"), a_turn("二")
    for turn in (first, second, first, replace(first, reply="好", state=ReplyState.FINISHED)):
        await sessions.commit(session, turn)
        await sessions.commit(session, turn)
    assert await sessions.read(scope, session.id) == [replace(first, reply="好", state=ReplyState.FINISHED), second]


async def test_an_opened_conversation_brings_its_newest_turns(sessions: Sessions, scope: Scope) -> None:
    session = await sessions.open(scope, now=NOW)
    turns = [a_turn(str(number)) for number in range(OPENED_TURNS + 5)]
    for turn in turns:
        await sessions.commit(session, turn)
    assert (await sessions.open(scope, now=NOW)).turns == turns[5:]
    assert await sessions.read(scope, session.id) == turns


async def test_a_new_conversation_keeps_what_lies_between_the_two(sessions: Sessions, scope: Scope) -> None:
    session = await sessions.open(scope, now=NOW)
    session.called, session.mood, session.face = "小明", Mood(0.5, 0.5, 0.5), Emotion(EmotionLabel.JOY, 0.5)
    await sessions.commit(session, a_turn("你好" * 100))
    later = await sessions.start_new(scope, now=NOW + timedelta(hours=1))
    assert later == replace(session, id=later.id, turns=[])
    assert later.id != session.id
    assert (await sessions.open(scope, now=NOW)).id == later.id
    listed = await sessions.conversations(scope)
    assert [(each.id, each.turns, each.begun_at) for each in listed] == [
        (later.id, 0, NOW + timedelta(hours=1)),
        (session.id, 1, NOW),
    ]
    assert ("你好" * 100).startswith(listed[1].first_words)
    assert listed[1].first_words


async def test_a_closed_conversation_still_takes_its_running_turn(sessions: Sessions, scope: Scope) -> None:
    session = await sessions.open(scope, now=NOW)
    turn = a_turn()
    await sessions.commit(session, turn)
    await sessions.start_new(scope, now=NOW)
    await sessions.commit(session, replace(turn, reply="嗯"))
    assert await sessions.read(scope, session.id) == [replace(turn, reply="嗯")]
    assert (await sessions.open(scope, now=NOW)).turns == []


async def test_scopes_do_not_see_each_other(sessions: Sessions, scope: Scope) -> None:
    session = await sessions.open(scope, now=NOW)
    session.called = "小明"
    turn = a_turn()
    await sessions.commit(session, turn)
    for other in (Scope(scope.owner, "lanzhou"), Scope(scope.owner + "2", "zishu"), Scope("", "")):
        assert (await sessions.open(other, now=NOW)).called is None
        with pytest.raises(NotFound):
            await sessions.read(other, session.id)


async def test_a_turn_of_somebody_else_is_neither_changed_nor_taken(sessions: Sessions, scope: Scope) -> None:
    session = await sessions.open(scope, now=NOW)
    turn = a_turn()
    await sessions.commit(session, turn)
    thief = await sessions.open(Scope(scope.owner, "thief"), now=NOW)
    thief.called = "贼"
    with pytest.raises(NotFound):
        await sessions.commit(thief, replace(turn, user_text="偷"))
    assert await sessions.read(scope, session.id) == [turn]
    assert (await sessions.open(thief.scope, now=NOW)).called is None
    with pytest.raises(NotFound):
        await sessions.commit(replace(thief, id=session.id), a_turn())


async def test_a_conversation_that_does_not_exist_is_not_found(sessions: Sessions, scope: Scope) -> None:
    session = await sessions.open(scope, now=NOW)
    with pytest.raises(NotFound):
        await sessions.read(scope, uuid4())
    with pytest.raises(NotFound):
        await sessions.commit(replace(session, id=uuid4()), a_turn())


async def test_no_text_is_too_long_or_too_broken(sessions: Sessions, scope: Scope) -> None:
    session = await sessions.open(scope, now=NOW)
    broken, long = a_turn("a\0你\ud800b", reply="\x1b[31m\r\n"), a_turn("字" * 350_000, reply="r" * 1_000_000)
    session.called = "小\0明"
    for turn in (broken, long):
        await sessions.commit(session, turn)
    found = await sessions.read(scope, session.id)
    assert found[0].user_text.replace("\0", "").replace("\ufffd", "\ud800") == "a你\ud800b"
    assert found[0].reply == broken.reply
    assert found[1] == long


Operation = tuple[str, int, int, str]
operations = st.lists(
    st.tuples(
        st.sampled_from(["open", "start_new", "commit", "commit", "commit_stale"]),
        st.integers(0, 1),
        st.integers(0, 3),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60),
    ),
    max_size=12,
)


async def observed(sessions: Sessions, run: UUID, steps: list[Operation]) -> list[object]:
    """Carry out a run and return everything that can be seen of it, without the ids that a store chooses."""
    scopes = [Scope(f"{run}", "zishu"), Scope(f"{run}", "lanzhou")]
    held = [await sessions.open(scope, now=NOW) for scope in scopes]
    seen: list[object] = []
    for count, (what, whose, which, text) in enumerate(steps):
        now = NOW + timedelta(minutes=count)
        session = held[whose]
        turn = Turn(uuid5(run, str(which)), text, now, reply=text[::-1], state=ReplyState.FINISHED)
        if what == "open":
            held[whose] = await sessions.open(scopes[whose], now=now)
        elif what == "start_new":  # whoever holds the old session goes on with it, as another program would
            await sessions.start_new(scopes[whose], now=now)
        else:
            session.called, session.felt_at = text, now
            try:
                await sessions.commit(session, turn)
                if what == "commit_stale":
                    await sessions.commit(session, turn)
            except NotFound:
                seen.append("not found")
        seen.append(replace(held[whose], id=run))
    for scope in scopes:
        seen.append(replace(await sessions.open(scope, now=NOW), id=run))
        listed = await sessions.conversations(scope)
        seen.append([(each.begun_at, each.turns, each.first_words) for each in listed])
        seen.append([await sessions.read(scope, each.id) for each in listed])
    return seen


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=operations)
async def test_every_store_tells_the_same_story(
    sessions: Sessions, steps: list[Operation]
) -> None:  # fmt: skip
    run = uuid4()
    assert await observed(sessions, run, steps) == await observed(InMemorySessions(), run, steps)
