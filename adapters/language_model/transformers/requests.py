"""What goes to the engine and what can be read off it; nothing here needs torch."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Event

from domain.prompt import Prompt, Sampling


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A reply that somebody waits for.

    Attributes:
        prompt: What to continue.
        expert: Who answers.
        sampling: How to draw.
        say: Takes a piece of the reply, on the engine's thread.
        done: Ends with the tokens that were said, or with what went wrong; cancelling it works until the reply begins.
        abandoned: Set when nobody listens any more.
    """

    prompt: Prompt
    expert: str
    sampling: Sampling
    say: Callable[[str], None]
    done: Future[list[int]] = field(default_factory=Future)
    abandoned: Event = field(default_factory=Event)

    def abandon(self) -> None:
        """Let the engine drop the reply before the next step."""
        self.abandoned.set()
        self.done.cancel()


@dataclass(frozen=True, slots=True)
class PrefillCounts:
    """How a prompt was read, in tokens: `reused` from earlier turns, `computed` anew; together they are `prompt`."""

    prompt: int
    reused: int
    computed: int


@dataclass(frozen=True, slots=True)
class EngineCounts:
    """What the engine does now and has done so far.

    Attributes:
        running: Replies that are read for or spoken.
        waiting: Replies that wait for a place.
        cache_bytes: What the caches of earlier turns take.
        prompts: Prompts that were read.
        hits: Those of which an earlier turn had read the beginning.
        prompt_tokens: Tokens of these prompts.
        reused_tokens: Those of them that an earlier turn had read.
        said_tokens: Tokens that were said.
        steps: Runs of the model that said them.
        guessed_tokens: Tokens that were guessed.
        accepted_tokens: Guesses that were right.
    """

    running: int = 0
    waiting: int = 0
    cache_bytes: int = 0
    prompts: int = 0
    hits: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    said_tokens: int = 0
    steps: int = 0
    guessed_tokens: int = 0
    accepted_tokens: int = 0
