"""What she remembers, how it fades, and what fits into the prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from math import exp, log1p
from uuid import UUID

from domain.conversation import Scope


class MemoryKind(StrEnum):
    """What a memory is about; promises and profile facts outlive events."""

    PROFILE = "profile"
    PREFERENCE = "preference"
    EVENT = "event"
    RELATION = "relation"
    PROMISE = "promise"
    OPINION = "opinion"


@dataclass(frozen=True, slots=True)
class Memory:
    """One thing she remembers about one user, in the user's own words.

    Attributes:
        importance: 0 to 1, as judged when it was written.
        strength: Spaced, useful recalls so far; at most one a day counts.
        last_recalled: When it last helped, or when it was written.
        pinned: Kept for ever at the user's wish.
    """

    id: UUID
    scope: Scope
    kind: MemoryKind
    text: str
    recorded_at: datetime
    last_recalled: datetime
    importance: float = 0.5
    strength: int = 0
    pinned: bool = False


# Days after which an unimportant memory of a kind, never recalled, keeps 1/e of its rank.
_STABILITY_DAYS = 30.0
_KIND_FACTOR = {
    MemoryKind.PROFILE: 8.0,
    MemoryKind.PROMISE: 8.0,
    MemoryKind.RELATION: 4.0,
    MemoryKind.PREFERENCE: 3.0,
    MemoryKind.OPINION: 1.5,
    MemoryKind.EVENT: 1.0,
}


def retention(memory: Memory, now: datetime) -> float:
    """Return how present a memory is, in (0, 1]: falls with time, rises with importance and strength.

    Source: exponential forgetting, R = exp(-t/S), Ebbinghaus 1885; S grows with spaced recalls.
    """
    if memory.pinned:
        return 1.0
    elapsed = max(timedelta(0), now - memory.last_recalled) / timedelta(days=1)
    stability = _STABILITY_DAYS * _KIND_FACTOR[memory.kind] * (1 + memory.importance) * (1 + log1p(memory.strength))
    return exp(-elapsed / stability)


@dataclass(frozen=True, slots=True)
class ShortTermWindow:
    """The part of a conversation that the prompt holds, cut in blocks so that a prefix cache stays valid.

    Attributes:
        tokens: What the history may take, in tokens of the model.
    """

    tokens: int

    def cut(self, costs: Sequence[int]) -> int:
        """Return how many of the oldest items to leave out, given the cost of each in tokens.

        The cut moves by a quarter of the window at once: between two moves, appended items leave it where it is.
        """
        excess = sum(costs) - self.tokens
        if excess <= 0:
            return 0
        block = max(1, self.tokens // 4)
        leave_out = -(-excess // block) * block
        total = 0
        for place, cost in enumerate(costs):
            if total >= leave_out:
                return place
            total += cost
        return len(costs)
