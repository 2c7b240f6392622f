"""What happens while she answers: one stream of frozen events, consumed by every face."""

import re
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeAlias
from uuid import UUID

from domain.emotion import Emotion, Mood
from domain.memory import Memory
from domain.speech import Sentence


class Durability(StrEnum):
    """Where the user's words lie safely: in the database, or in the journal until the database is back."""

    STORED = "stored"
    JOURNALLED = "journalled"


class EndReason(StrEnum):
    """Why a reply ended."""

    STOP = "stop"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The user's words are safe and she is about to answer."""

    conversation_id: UUID
    turn_id: UUID
    at: datetime
    durability: Durability


@dataclass(frozen=True, slots=True)
class MemoryRecalled:
    """What she remembered for this turn."""

    memories: tuple[Memory, ...]


@dataclass(frozen=True, slots=True)
class ExpertChosen:
    """Who answers, how sure the router is (0 to 1), and why."""

    name: str
    confidence: float
    reason: str


@dataclass(frozen=True, slots=True)
class EmotionChanged:
    """Her face shows another emotion; the mood is what lies beneath."""

    emotion: Emotion
    mood: Mood


@dataclass(frozen=True, slots=True)
class AccessoryChanged:
    """She wears something else on her head."""

    name: str


@dataclass(frozen=True, slots=True)
class MotionChosen:
    """She moves."""

    name: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of her reply, free of tags."""

    text: str


@dataclass(frozen=True, slots=True)
class SentenceReady:
    """A sentence is complete and stored."""

    sentence: Sentence


@dataclass(frozen=True, slots=True)
class HistoryTrimmed:
    """The oldest turns no longer fit into the model's context."""

    dropped_turns: int


@dataclass(frozen=True, slots=True)
class MemoryWritten:
    """She will remember this."""

    memory: Memory


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written for one reply."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds from the user's words to each step; None where the step was not reached."""

    ready: float
    first_token: float | None
    first_sentence: float | None
    total: float


@dataclass(frozen=True, slots=True)
class ReplyFinished:
    """The reply is complete, or was interrupted; either way it is stored."""

    reason: EndReason
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class ReplyFailed:
    """The reply broke off; what was generated until then is stored."""

    code: str
    problem: str
    remedy: str
    retryable: bool


ReplyEvent: TypeAlias = (
    TurnStarted
    | MemoryRecalled
    | ExpertChosen
    | EmotionChanged
    | AccessoryChanged
    | MotionChosen
    | TextDelta
    | SentenceReady
    | HistoryTrimmed
    | MemoryWritten
    | ReplyFinished
    | ReplyFailed
)
ReplyStream: TypeAlias = AsyncGenerator[ReplyEvent, None]

# The grammar of a stream, one letter for a kind of event; a reply may fail before an expert could be chosen.
_LETTERS: dict[type[ReplyEvent], str] = {
    TurnStarted: "T",
    MemoryRecalled: "R",
    ExpertChosen: "X",
    EmotionChanged: "b",
    AccessoryChanged: "b",
    MotionChosen: "b",
    TextDelta: "b",
    SentenceReady: "b",
    HistoryTrimmed: "b",
    MemoryWritten: "W",
    ReplyFinished: "E",
    ReplyFailed: "F",
}
_GRAMMAR = re.compile("TR?(Xb*W*[EF]|F)")


def follows_grammar(events: Iterable[ReplyEvent]) -> bool:
    """Tell whether a whole stream reads TurnStarted MemoryRecalled? ExpertChosen body* MemoryWritten* end."""
    return _GRAMMAR.fullmatch("".join(_LETTERS[type(event)] for event in events)) is not None
