"""The native envelope: one table maps each event to its type and data on the wire (docs/events.md)."""

from collections.abc import Callable, Mapping
from time import time
from typing import Any
from uuid import UUID, uuid4

from domain.events import (
    AccessoryChanged,
    EmotionChanged,
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
    TurnStarted,
)
from domain.memory import Memory

Data = dict[str, Any]


def _memory(memory: Memory) -> Data:
    return {"id": str(memory.id), "kind": memory.kind, "text": memory.text, "at": memory.recorded_at.isoformat()}


def _emotion(event: EmotionChanged) -> Data:
    return {
        "label": event.emotion.label,
        "intensity": round(event.emotion.intensity, 3),
        "valence": round(event.mood.valence, 3),
        "arousal": round(event.mood.arousal, 3),
        "dominance": round(event.mood.dominance, 3),
    }


def _done(event: ReplyFinished) -> Data:
    return {
        "reason": event.reason,
        "usage": {
            "prompt_tokens": event.usage.prompt_tokens,
            "completion_tokens": event.usage.completion_tokens,
        },
        "timings": {
            "ready_ms": event.timings.ready,
            "first_token_ms": event.timings.first_token,
            "first_sentence_ms": event.timings.first_sentence,
            "total_ms": event.timings.total,
        },
    }


WIRE: Mapping[type, tuple[str, Callable[[Any], Data]]] = {
    TurnStarted: ("turn.started", lambda e: {"at": e.at.isoformat(), "durability": e.durability}),
    MemoryRecalled: ("memory.recalled", lambda e: {"items": [_memory(memory) for memory in e.memories]}),
    ExpertChosen: (
        "expert.chosen",
        lambda e: {"name": e.name, "confidence": round(e.confidence, 3), "reason": e.reason},
    ),
    EmotionChanged: ("emotion", _emotion),
    AccessoryChanged: ("accessory", lambda e: {"name": e.name}),
    MotionChosen: ("motion", lambda e: {"name": e.name}),
    TextDelta: ("reply.delta", lambda e: {"text": e.text}),
    SentenceReady: (
        "reply.sentence",
        lambda e: {"index": e.sentence.index, "display": e.sentence.display, "speech": e.sentence.speech},
    ),
    HistoryTrimmed: ("history.trimmed", lambda e: {"dropped_turns": e.dropped_turns}),
    MemoryWritten: ("memory.written", lambda e: _memory(e.memory)),
    ReplyFinished: ("turn.done", _done),
    ReplyFailed: (
        "error",
        lambda e: {"code": e.code, "message": e.problem, "remedy": e.remedy, "retryable": e.retryable},
    ),
}


class Envelopes:
    """Wraps the events of one turn, numbering them; `gen` rises with every interruption of the conversation."""

    def __init__(self, *, gen: int = 0) -> None:
        self._gen = gen
        self._seq = 0
        self._conversation: UUID | None = None
        self._turn: UUID | None = None

    def wrap(self, event: ReplyEvent) -> Data:
        """Return the envelope of an event, ready for JSON."""
        if isinstance(event, TurnStarted):
            self._conversation, self._turn = event.conversation_id, event.turn_id
        kind, data = WIRE[type(event)]
        self._seq += 1
        return {
            "v": 1,
            "type": kind,
            "id": str(uuid4()),
            "ts": int(time() * 1000),
            "conversation_id": str(self._conversation) if self._conversation else None,
            "turn_id": str(self._turn) if self._turn else None,
            "gen": self._gen,
            "seq": self._seq,
            "data": data(event),
        }
