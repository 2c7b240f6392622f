"""Who is read and who speaks next: fair among replies and among the weights they need. All of it on one thread."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from adapters.language_model.transformers.batching import Batch
from adapters.language_model.transformers.caches import KeptCaches, KeyValues, clear_device, common_prefix
from adapters.language_model.transformers.config import Config
from adapters.language_model.transformers.replies import Reply
from adapters.language_model.transformers.requests import EngineCounts, PrefillCounts, Request
from domain.errors import BackendUnavailable, ZishuError

if TYPE_CHECKING:
    from adapters.language_model.transformers.loading import Loaded

# A prompt is read in chunks of this many tokens, so that hanging up takes effect in between; 512 are 5 % faster. While
# others speak, they wait for a chunk between any two of their tokens, so that it is a small one.
PREFILL_TOKENS, SHARED_PREFILL_TOKENS = 256, 64
# Steps that weights stay active while other weights are asked for too.
_TURN = 16
# Tokens of a common beginning for which a reply waits until its neighbour has read them.
_WORTH_WAITING = 16
# The PrefillCounts that are remembered.
_REMEMBERED = 64


class Adapters(Protocol):
    """Makes the model answer as an expert."""

    def activate(self, expert: str) -> str:
        """Switch to an expert's weights and return their key; caches are of use to these weights only."""
        ...

    def anticipate(self, likely: Mapping[str, float]) -> None:
        """Take a hint which experts may answer next; from any thread, and without blocking it."""
        ...

    def refused(self) -> Mapping[str, str]:
        """Return the experts whose adapters turned out to be of no use, and why."""
        ...

    def close(self) -> None:
        """Free what is held beside the model."""
        ...


class BaseAlone:
    """The model as it was loaded, for every expert."""

    def activate(self, expert: str) -> str:
        return "base"

    def anticipate(self, likely: Mapping[str, float]) -> None:
        """Do nothing: there is nothing to fetch."""

    def refused(self) -> Mapping[str, str]:
        return {}

    def close(self) -> None:
        """Do nothing: there is nothing to free."""


@dataclass(slots=True, eq=False)
class _Lane:
    """Replies of one expert, or of several whose weights are the same.

    Attributes:
        expert: Whose weights they are.
        batch: The replies that are spoken.
        weights: Key of the weights; None before their first turn.
        reading: The replies whose prompts are read, in turn.
    """

    expert: str
    batch: Batch
    weights: str | None = None
    reading: deque[Reply] = field(default_factory=deque)

    @property
    def replies(self) -> list[Reply]:
        return [*self.batch.rows, *self.reading]


class Scheduler:
    """Shares one model among many replies.

    Args:
        loaded: The model.
        adapters: The weights it can answer with.
        config: How many replies go side by side, what caches may take, and how far to guess.
    """

    def __init__(self, loaded: "Loaded", adapters: Adapters, config: Config) -> None:
        self.loaded = loaded
        self.counts = EngineCounts()
        self.prefills: tuple[PrefillCounts, ...] = ()
        self._adapters = adapters
        self._config = config
        self._kept = KeptCaches(config.cache_megabytes * 1024**2)
        self._waiting: deque[Request] = deque()
        self._lanes: deque[_Lane] = deque()  # the first has its turn
        self._active: _Lane | None = None
        self._steps_of_turn = 0
        self._weights_of: dict[str, str] = {}

    @property
    def replies(self) -> list[Reply]:
        """The replies in the making."""
        return [reply for lane in self._lanes for reply in lane.replies]

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._waiting.append(request)

    def work(self) -> bool:
        """Do the next piece of work, one chunk and one step at most; tell whether any is left."""
        self._drop_abandoned()
        self._admit()
        if lane := self._lane_in_turn():
            self._read(lane)
            self._drop_abandoned()
            if lane.batch.rows:
                self._speak(lane)
        self._lanes = deque(lane for lane in self._lanes if lane.replies)
        self.counts = replace(
            self.counts, running=len(self.replies), waiting=len(self._waiting), cache_bytes=self._kept.size
        )
        return bool(self._lanes or self._waiting)

    def fail(self, error: BaseException) -> None:
        """End all replies with an error."""
        for request in self._waiting:
            if request.done.running() or request.done.set_running_or_notify_cancel():
                request.done.set_exception(error)
        for reply in self.replies:
            reply.request.done.set_exception(error)
        self._waiting.clear()
        self._lanes.clear()
        self.counts = replace(self.counts, running=0, waiting=0)

    # Coming

    def _admit(self) -> None:
        """Give free places to those who wait, in their order."""
        free = self._config.batch - len(self.replies)
        while free > 0 and self._waiting:
            request = self._waiting[0]  # and only once it has its place, no more
            if request.done.set_running_or_notify_cancel():
                try:
                    self._seat(Reply(request, self.loaded, self._config.lookup_tokens))
                except (ZishuError, RuntimeError, ValueError) as error:
                    request.done.set_exception(error)
                else:
                    free -= 1
            self._waiting.popleft()

    def _seat(self, reply: Reply) -> None:
        """Put a reply into the lane of its expert."""
        expert = reply.request.expert
        self._active = None  # the expert may have another adapter by now
        for lane in self._lanes:
            if lane.expert == expert:
                lane.reading.append(reply)
                return
        lane = _Lane(expert, Batch(self.loaded.model), reading=deque([reply]))
        if self._lanes and self._lanes[0].weights == self._weights_of.get(expert, ""):
            self._lanes.appendleft(lane)  # most likely the same weights: nobody has to wait for them
        else:
            self._lanes.append(lane)

    def _lane_in_turn(self) -> _Lane | None:
        """Return the lane whose turn it is, with its weights active."""
        if len(self._lanes) > 1 and self._steps_of_turn >= _TURN:
            self._lanes.rotate(-1)
            self._steps_of_turn = 0
        self._steps_of_turn += 1
        while self._lanes and self._lanes[0] is not self._active:
            lane = self._lanes[0]
            try:
                weights = self._weights_of[lane.expert] = self._adapters.activate(lane.expert)
            except (ZishuError, RuntimeError) as error:
                self._lanes.popleft()
                for reply in lane.replies:
                    reply.request.done.set_exception(error)
            else:
                self._active = self._with_weights(lane, weights)
        return self._lanes[0] if self._lanes else None

    def _with_weights(self, lane: _Lane, weights: str) -> _Lane:
        """Return the one lane with these weights, moved to the front, with all replies of `lane` in it."""
        if lane.weights not in (None, weights):  # its adapter was exchanged: what was read counts for nothing
            lane.reading.extend(lane.batch.rows)
            lane.batch = Batch(self.loaded.model)
            for reply in lane.reading:
                reply.cache, reply.fed, reply.reused = None, 0, 0
        lane.weights = weights
        twin = next((other for other in self._lanes if other is not lane and other.weights == weights), None)
        if twin:
            twin.reading.extend(lane.reading)
            self._lanes.remove(lane)
            self._lanes.remove(twin)
            self._lanes.appendleft(twin)
        return twin or lane

    # Reading

    def _read(self, lane: _Lane) -> None:
        """Read a chunk of a prompt, if any is to be read."""
        reply = None
        try:
            reply = self._next_reader(lane)
            if reply is None:
                return
            scores = lane.batch.read(reply, SHARED_PREFILL_TOKENS if lane.batch.rows else PREFILL_TOKENS)
            if scores is not None:
                over = reply.take(scores)
                lane.batch.join(reply)
                lane.reading.remove(reply)
                self._has_read(lane, reply)
                if over:
                    self._finish(lane, reply)
        except RuntimeError as error:
            self._recover(lane, error, [reply] if reply else list(lane.reading))

    def _next_reader(self, lane: _Lane) -> Reply | None:
        """Return whose prompt is read next, in turn; who would read the same as a neighbour waits for it."""
        for _ in range(len(lane.reading)):
            reply = lane.reading[0]
            lane.reading.rotate(-1)
            if reply.cache or self._begin(lane, reply):
                return reply
        return None

    def _begin(self, lane: _Lane, reply: Reply) -> bool:
        """Take over what is known of a prompt; tell whether it shall be read now."""
        reply.cache = KeyValues()
        if not reply.may_reuse:
            return True
        wanted = reply.ids[:-1]  # what follows the last token has to be computed in any case
        kept, size = self._kept.longest(lane.weights or "", wanted)
        neighbour = None
        for other in lane.replies:
            if other is reply or not other.fed:
                continue
            shared = common_prefix(other.ids, wanted)
            if shared > max(size, other.fed) + _WORTH_WAITING:
                reply.cache = None
                return False
            if min(shared, other.fed) > size:
                neighbour, size = other, min(shared, other.fed)
        if neighbour:
            cache, row = lane.batch.cache_of(neighbour)
            reply.cache = KeyValues.of(cache.states(row, neighbour.fed, size), size)
        elif kept:
            self._kept.touch(kept)
            reply.cache = KeyValues.of(kept.states, size)
        reply.fed = reply.reused = size
        return True

    def _has_read(self, lane: _Lane, reply: Reply) -> None:
        """Count a prompt that was read, and keep the part of it that all conversations begin with."""
        read = reply.counts
        self.prefills = (*self.prefills[1 - _REMEMBERED :], read)
        self._count(
            prompts=1, hits=int(read.reused > 0), prompt_tokens=read.prompt, reused_tokens=read.reused, said_tokens=1
        )
        self._keep(lane, reply, reply.fixed, fixed=True)

    # Speaking

    def _speak(self, lane: _Lane) -> None:
        """Let every reply of a lane say its next token, and one that is alone those that were guessed rightly."""
        alone = len(lane.replies) == len(self._lanes) == 1 and not self._waiting
        guess = lane.batch.rows[0].lookup.guess(lane.batch.rows[0].room - 1) if alone else []
        try:
            scores = lane.batch.step(guess)
        except RuntimeError as error:
            self._recover(lane, error, list(lane.batch.rows))
            return
        self._count(steps=1)
        for reply, next_scores in zip(list(lane.batch.rows), scores, strict=True):
            try:
                over = self._follow(lane, reply, guess, next_scores)
            except RuntimeError as error:  # nothing can be drawn from scores that are no numbers
                self._leave(lane, reply)
                reply.request.done.set_exception(_translated(error, reply))
            else:
                if over:
                    self._finish(lane, reply)

    def _follow(self, lane: _Lane, reply: Reply, guess: list[int], scores: Tensor) -> bool:
        """Draw tokens as long as they are what was guessed, and one more; tell whether the reply is over.

        Every token is drawn from what the model says after those before it: guessing changes no probability.
        """
        before, right = len(reply.ids), 0
        over = reply.take(scores[0])
        while not over and right < len(guess) and reply.ids[-1] == guess[right]:
            right += 1
            over = reply.take(scores[right])
        self._count(said_tokens=len(reply.ids) - before, guessed_tokens=len(guess), accepted_tokens=right)
        if guess:
            reply.lookup.learn(len(guess), right)
            lane.batch.accept(right)
        return over

    # Going

    def _finish(self, lane: _Lane, reply: Reply) -> None:
        self._leave(lane, reply)
        reply.finish()

    def _drop_abandoned(self) -> None:
        """Free the places of those to whom nobody listens."""
        self._waiting = deque(request for request in self._waiting if not request.done.cancelled())
        for lane in self._lanes:
            for reply in lane.replies:
                if reply.request.abandoned.is_set():
                    self._leave(lane, reply)
                    reply.request.done.set_result(reply.said)

    def _leave(self, lane: _Lane, reply: Reply) -> None:
        """Free a reply's place and keep what was read for it: the next turn goes on from there."""
        self._keep(lane, reply, reply.fed, fixed=False)
        if reply in lane.batch.rows:
            lane.batch.leave(reply)
        else:
            lane.reading.remove(reply)
        self.counts = replace(self.counts, running=self.counts.running - 1)

    def _keep(self, lane: _Lane, reply: Reply, size: int, *, fixed: bool) -> None:
        if not reply.fed:
            return
        cache, row = lane.batch.cache_of(reply)
        try:
            self._kept.keep(
                lane.weights or "",
                reply.ids[:size],
                lambda: cache.states(row, reply.fed, size),
                token_bytes=cache.bytes_per_token,
                shared=reply.fixed,
                fixed=fixed,
            )
        except RuntimeError:  # no memory for a copy: the next turn computes it again
            self._kept.clear()

    def _recover(self, lane: _Lane, error: RuntimeError, hit: list[Reply]) -> None:
        """Go on after a step that failed: without memory, first without the kept caches, then without the longest."""
        if _out_of_memory(error):
            freed = self._kept.clear()
            clear_device()
            if freed:
                return
            hit = [max(hit, key=lambda reply: len(reply.ids))]
        for reply in hit:
            reply.fed = 0  # nothing of it is worth keeping
            self._leave(lane, reply)
            reply.request.done.set_exception(_translated(error, reply))

    def _count(self, **more: int) -> None:
        self.counts = replace(self.counts, **{name: getattr(self.counts, name) + much for name, much in more.items()})


def _out_of_memory(error: RuntimeError) -> bool:
    """Tell whether it is memory that lacks; on a CPU torch says so in words only."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _translated(error: RuntimeError, reply: Reply) -> BackendUnavailable:
    if _out_of_memory(error):
        translated = BackendUnavailable(
            f"The device has no memory left for a conversation of {len(reply.ids)} tokens.",
            "Lower [prompt] history_tokens or [language_model.transformers] batch, or choose a smaller model.",
        )
    else:
        translated = BackendUnavailable(
            f"The model failed while it answered: {error}.",
            'Say it again; if it happens again, set [language_model.transformers] device = "cpu".',
        )
    translated.__cause__ = error
    return translated
