from collections.abc import Iterable
from datetime import UTC, datetime
from typing import get_args
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.conversation import Scope
from domain.emotion import Emotion, Mood
from domain.events import (
    AccessoryChanged,
    Durability,
    EmotionChanged,
    EndReason,
    ExpertChosen,
    HistoryTrimmed,
    MemoryRecalled,
    MemoryWritten,
    MotionChosen,
    ReplyEvent,
    ReplyFailed,
    ReplyFinished,
    SentenceReady,
    TextDelta,
    Timings,
    TurnStarted,
    Usage,
    follows_grammar,
)
from domain.memory import Memory, MemoryKind
from domain.speech import Sentence

NOW = datetime(2026, 3, 14, tzinfo=UTC)
NOBODY = UUID(int=0)
MEMORY = Memory(NOBODY, Scope("local", "zishu"), MemoryKind.EVENT, "考试", NOW, NOW)
STARTED = TurnStarted(NOBODY, NOBODY, NOW, Durability.STORED)
RECALLED = MemoryRecalled((MEMORY,))
CHOSEN = ExpertChosen("base", 1.0, "")
BODY: list[ReplyEvent] = [
    EmotionChanged(Emotion(), Mood()),
    AccessoryChanged("flower"),
    MotionChosen("wave"),
    TextDelta("好"),
    SentenceReady(Sentence(0, "好", "好")),
    HistoryTrimmed(2),
]
WRITTEN = MemoryWritten(MEMORY)
FINISHED = ReplyFinished(EndReason.STOP, Usage(1, 1), Timings(0.0, None, None, 1.0))
FAILED = ReplyFailed("BackendUnavailable", "", "", retryable=True)
EVERY = [STARTED, RECALLED, CHOSEN, *BODY, WRITTEN, FINISHED, FAILED]


def test_every_event_is_tried_here() -> None:
    assert {type(event) for event in EVERY} == set(get_args(ReplyEvent))


@given(
    st.sampled_from([[], [RECALLED]]),
    st.lists(st.sampled_from(BODY), max_size=8),
    st.lists(st.just(WRITTEN), max_size=2),
    st.sampled_from([FINISHED, FAILED]),
)
def test_a_whole_reply_follows_the_grammar(
    recalled: list[ReplyEvent], body: list[ReplyEvent], written: list[ReplyEvent], end: ReplyEvent
) -> None:
    events = [STARTED, *recalled, CHOSEN, *body, *written, end]
    assert follows_grammar(events)
    for length in range(len(events)):
        assert not follows_grammar(events[:length])
    assert not follows_grammar([*events, end])
    assert not follows_grammar([STARTED, *events])


@pytest.mark.parametrize("events", [[STARTED, FAILED], [STARTED, RECALLED, FAILED]])
def test_a_reply_may_fail_before_an_expert_is_chosen(events: list[ReplyEvent]) -> None:
    assert follows_grammar(iter(events))


@pytest.mark.parametrize(
    "events",
    [
        [],
        [FINISHED],
        [CHOSEN, FINISHED],
        [STARTED, FINISHED],
        [STARTED, CHOSEN, RECALLED, FINISHED],
        [STARTED, RECALLED, RECALLED, CHOSEN, FINISHED],
        [STARTED, BODY[3], CHOSEN, FINISHED],
        [STARTED, CHOSEN, CHOSEN, FINISHED],
        [STARTED, CHOSEN, WRITTEN, BODY[3], FINISHED],
        [STARTED, CHOSEN, FINISHED, FAILED],
        [STARTED, CHOSEN, FINISHED, WRITTEN],
    ],
)
def test_what_is_missing_doubled_or_out_of_order_is_refused(events: Iterable[ReplyEvent]) -> None:
    assert not follows_grammar(events)
