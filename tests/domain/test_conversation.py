from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from domain.conversation import Message, ReplyState, Role, Scope, Session, Turn
from domain.emotion import Emotion, Mood, Temperament
from tests.domain.strategies import emotions, moods, pauses, temperaments

NOW = datetime(2026, 3, 14, 22, 40, tzinfo=UTC)


@st.composite
def turns(draw: st.DrawFn) -> Turn:
    reply = draw(st.text(max_size=20))
    heard = draw(st.none() | st.integers(0, len(reply)))
    return Turn(UUID(int=draw(st.integers(0, 99))), draw(st.text(min_size=1)), NOW, reply, heard_chars=heard)


def session(*said: Turn, mood: Mood | None = None) -> Session:
    return Session(uuid4(), Scope("local", "zishu"), mood or Mood(), NOW, turns=list(said))


@given(st.lists(turns(), min_size=1, max_size=6))
def test_the_history_is_what_was_said_and_heard_before_the_running_turn(said: list[Turn]) -> None:
    expected: list[Message] = []
    for turn in said[:-1]:
        expected.append(Message(Role.USER, turn.user_text))
        if turn.heard:
            expected.append(Message(Role.HER, turn.heard))
    assert session(*said).history() == expected


def test_a_conversation_that_has_not_begun_has_no_history() -> None:
    assert session().history() == []


def test_what_was_not_heard_is_not_remembered_as_said() -> None:
    cut_short = Turn(UUID(int=1), "讲个故事", NOW, "从前有座山，山里有座庙。", ReplyState.INTERRUPTED, heard_chars=6)
    unheard = Turn(UUID(int=2), "嗯？", NOW, "庙里有个老和尚。", ReplyState.INTERRUPTED, heard_chars=0)
    running = Turn(UUID(int=3), "然后呢", NOW)
    assert session(cut_short, unheard, running).history() == [
        Message(Role.USER, "讲个故事"),
        Message(Role.HER, "从前有座山，"),
        Message(Role.USER, "嗯？"),
    ]


@given(st.lists(turns(), min_size=1, max_size=4), st.text())
def test_an_update_changes_the_running_turn_alone(said: list[Turn], reply: str) -> None:
    talk = session(*said)
    updated = talk.update(reply=reply, state=ReplyState.FINISHED)
    assert talk.turns == [*said[:-1], updated]
    assert (updated.reply, updated.state, updated.user_text) == (reply, ReplyState.FINISHED, said[-1].user_text)


@given(temperaments(), moods, st.lists(emotions, max_size=8))
def test_a_changed_face_is_announced_and_an_unchanged_one_is_not(
    she: Temperament, mood: Mood, felt: list[Emotion]
) -> None:
    talk = session(mood=mood)
    for feeling in felt:
        before = talk.face.label
        assert talk.feel(feeling, she) == (talk.face.label is not before)


@given(temperaments(), moods, pauses, pauses)
def test_calming_down_twice_is_calming_down_once(
    she: Temperament, mood: Mood, first: timedelta, second: timedelta
) -> None:
    often, once = session(mood=mood), session(mood=mood)
    often.calm_down(NOW + first, she)
    often.calm_down(NOW + first + second, she)
    once.calm_down(NOW + first + second, she)
    assert often.mood.distance(once.mood) < 1e-9
    assert often.felt_at == once.felt_at == NOW + first + second
