"""Who may speak next: in the order they came, side by side only with the same adapter, and each in its own slot."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile

from domain.conversation import Message, Role
from domain.errors import BackendUnavailable, ZishuError
from domain.prompt import Prompt


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """Somebody in the queue: tells the adapter to answer with, or None to be alone; gets it with the turn."""

    wanted: Callable[[], str | None]
    turn: asyncio.Future[str | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Admission:
    """A bounded queue before the engine; belongs to one event loop.

    llama.cpp decodes replies together only where their adapters are the same, and lets the slot with the lowest number
    go first, so that another one would stand still in mid-sentence. Hence whoever needs another adapter waits until
    those that speak have finished, and those who come later wait behind.

    Args:
        places: Replies side by side.
        waiting: How many may wait; one more is turned away at once.
    """

    def __init__(self, places: int, waiting: int) -> None:
        self._places = places
        self._most = waiting
        self._queue: deque[_Waiting] = deque()
        self._inside = 0
        self._adapter: str | None = None
        self._closed: ZishuError | None = None

    async def enter(self, wanted: Callable[[], str | None]) -> str | None:
        """Wait for a turn, and return what it is for.

        Args:
            wanted: Tells which adapter shall answer, as things stand, or None for a time with nobody else inside; asked
                whenever the turn might come.

        Raises:
            BackendUnavailable: Too many wait already, or the model was closed.
        """
        if self._closed:
            raise self._closed
        one = _Waiting(wanted)
        self._queue.append(one)
        self._admit()
        if not one.turn.done() and len(self._queue) > self._most:
            self._queue.remove(one)
            raise BackendUnavailable(
                f"{self._most} conversations already wait for the model.",
                "Try again in a moment, or raise [language_model.llama_cpp] waiting.",
            )
        try:
            return await one.turn
        except asyncio.CancelledError:
            if not one.turn.cancelled():  # let in and hung up at the same moment
                self.leave()
            elif one in self._queue:
                self._queue.remove(one)
                self._admit()
            raise

    def share(self, adapter: str) -> None:
        """Go on with an adapter after having been alone, so that others may join."""
        self._adapter = adapter
        self._admit()

    def leave(self) -> None:
        """Make room for the next."""
        self._inside -= 1
        self._admit()

    def close(self, error: ZishuError) -> None:
        """Turn away whoever waits, and all who come later."""
        self._closed = error
        while self._queue:
            one = self._queue.popleft()
            if not one.turn.done():
                one.turn.set_exception(error)

    def _admit(self) -> None:
        while self._queue:
            one = self._queue[0]
            if not one.turn.cancelled():
                adapter = one.wanted()
                together = adapter is not None and adapter == self._adapter and self._inside < self._places
                if self._inside and not together:
                    return
                self._inside += 1
                self._adapter = adapter
                one.turn.set_result(adapter)
            self._queue.popleft()


@dataclass(slots=True)
class _Slot:
    """What a slot of the engine has computed last."""

    number: int
    adapter: str = ""
    prompt: Prompt | None = None
    busy: bool = False


class Slots:
    """Lets a conversation stay in the slot that remembers it, which with another adapter would remember nothing."""

    def __init__(self, count: int) -> None:
        self._slots = [_Slot(number) for number in range(count)]  # the one that has rested longest comes first

    def take(self, adapter: str, prompt: Prompt) -> int:
        """Return the number of a free slot: which remembers most of the conversation, else has rested longest."""
        free = [slot for slot in self._slots if not slot.busy]
        slot = max(free, key=lambda slot: _shared(prompt, slot.prompt) if slot.adapter == adapter else 0)
        slot.adapter, slot.prompt, slot.busy = adapter, prompt, True
        return slot.number

    def give_back(self, number: int) -> None:
        """Free a slot; what it has computed stays."""
        slot = next(slot for slot in self._slots if slot.number == number)
        slot.busy = False
        self._slots.remove(slot)
        self._slots.append(slot)


def _shared(prompt: Prompt, before: Prompt | None) -> int:
    """Return with how many messages both begin; none where the personas before them differ."""
    if before is None or before.persona != prompt.persona:
        return 0
    both = zip(_messages(prompt), _messages(before), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))


def _messages(prompt: Prompt) -> tuple[Message, ...]:
    return (*prompt.history, Message(Role.USER, prompt.words))
