"""A character's example exchanges as prompts to learn from, varied the way conversations vary."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from random import Random

from application.examples import Examples, Pair, showable
from domain.character import Character, Exchange
from domain.conversation import Message, Role
from domain.emotion import EmotionLabel
from domain.errors import BadInput
from domain.extraction import told_name
from domain.prompt import Prompt, notes_for, profile_line, within_budget

# How often a training sample differs from the plain case, so that she copes with what serving brings.
_ENDS_EARLIER = 0.35  # a dialogue is learnt up to an earlier reply, so that the volatile block stands there too
_FOUND_SHOWN = (0, 1, 2, 2, 2)  # how many found examples are shown, drawn evenly
_OWN_SHOWN = 0.5  # the very pair is among the examples: she learns to lean on one that fits, as a small model must
_OTHER_TALK_BEFORE = 0.15  # an unrelated exchange stands in front, as the history of a longer conversation
_IDLE_MEMORY = 0.15  # something is recalled that has nothing to do with the question
_NAME_KNOWN = 0.5  # the user's name is known, which is no reason to take it for hers
_NAME_JUST_TOLD = 0.6  # of these: it was told right before

# A question whose honest answer would change if a memory of somebody else were shown.
_ASKS_WHAT_SHE_KNOWS = re.compile(r"记|忘|猜|知道|上次|谁|哪|几|多大|叫|remember|know", re.IGNORECASE)
# An exchange that would be wrong with a known name: the user speaks of it, or she asks for it.
_SPEAKS_OF_A_NAME = re.compile(r"名字|称呼|叫我|我叫|我是谁|认识我|知道我|记得我|name", re.IGNORECASE)
_ASKS_FOR_A_NAME = re.compile(r"称呼|叫你|你的名字|叫什么|贵姓")
_MOODS = (EmotionLabel.NEUTRAL, EmotionLabel.NEUTRAL, EmotionLabel.JOY, *EmotionLabel)


@dataclass(frozen=True, slots=True)
class Split:
    """Exchanges to learn from, and exchanges to be measured on that are never learnt or shown."""

    train: tuple[Exchange, ...]
    held_out: tuple[Exchange, ...]


def split(exchanges: Sequence[Exchange], *, share: float) -> Split:
    """Divide exchanges by a hash of the opening line: stable when others are added, and no opening on both sides.

    Raises:
        BadInput: One of the two parts would be empty.
    """

    def measured(exchange: Exchange) -> bool:
        place = int.from_bytes(sha256(exchange.turns[0].encode()).digest()[:4], "big") / 2**32
        return place < share

    divided = Split(
        tuple(exchange for exchange in exchanges if not measured(exchange)),
        tuple(exchange for exchange in exchanges if measured(exchange)),
    )
    if not divided.train or not divided.held_out:
        raise BadInput(
            f"{len(exchanges)} exchanges leave nothing to learn from or nothing to measure with.",
            "Add exchanges to the character (some hundreds are needed), or change --held-out.",
        )
    return divided


def fingerprint(exchanges: Sequence[Exchange]) -> str:
    """Return a hash of everything that the exchanges say, in any order of files."""
    lines = sorted(repr((one.turns, one.name, one.now, one.memories)) for one in exchanges)
    return sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Lesson:
    """A prompt and the reply that she should give."""

    prompt: Prompt
    reply: str


class Lessons:
    """Lays out exchanges as serving would: examples are found among hers, the one being learnt left out.

    Args:
        character: Who is learnt, with those exchanges only that may be shown: the training part.
        examples: Finds what is similar; give it the same embedder as serving.
        count: Returns how many tokens a text takes.
        budget: Tokens of the volatile block, as in serving.
    """

    def __init__(self, character: Character, examples: Examples, count: Callable[[str], int], budget: int) -> None:
        self._character = character
        self._budget = budget
        self._examples = examples
        self._count = count
        self._found: dict[tuple[Exchange, int], tuple[Pair, ...]] = {}
        self._introductions = tuple(one.turns[:2] for one in character.exchanges if told_name(one.turns[0]))
        self._asides = tuple(exchange for exchange in character.exchanges if _stands_alone(exchange))
        self._memories = tuple(
            line for exchange in character.exchanges for line in exchange.memories if f" {character.calls_user}" in line
        )

    async def find(self, exchanges: Sequence[Exchange]) -> None:
        """Look up the examples for every user line of these exchanges, which is slow, once."""
        for exchange in exchanges:
            for end in range(2, len(exchange.turns) + 1, 2):
                self._found[exchange, end] = await self._examples.similar(
                    self._character, exchange.turns[end - 2], leave_out=showable(exchange)
                )

    def plain(self, exchange: Exchange, *, shown: int, seed: int) -> Lesson:
        """Return a whole exchange as serving would lay it out; only an absent clock is made up, from `seed`."""
        rng = Random(f"{seed} {exchange.turns[0]}")  # noqa: S311 - repeatable, nothing secret
        end = len(exchange.turns)
        found = self._found[exchange, end][:shown]
        return self._lesson(exchange, end, found, _present(exchange, rng), EmotionLabel.NEUTRAL)

    def varied(self, exchange: Exchange, rng: Random) -> Lesson:
        """Return an exchange in one of the situations that serving brings."""
        end = len(exchange.turns)
        if end > 2 and rng.random() < _ENDS_EARLIER:
            end = rng.randrange(2, end, 2)
        aside: tuple[str, ...] = ()
        if rng.random() < _OTHER_TALK_BEFORE:
            other = rng.choice(self._asides or (exchange,))
            aside = other.turns if other is not exchange and _stands_alone(other) else ()
        called = exchange.name
        if self._introductions and self._is_nameless(exchange) and rng.random() < _NAME_KNOWN:
            introduction = rng.choice(self._introductions)
            called = told_name(introduction[0])
            aside = introduction if rng.random() < _NAME_JUST_TOLD else ()
        memories = exchange.memories
        asked = "".join(exchange.turns[0:end:2])
        if not memories and self._memories and rng.random() < _IDLE_MEMORY and not _ASKS_WHAT_SHE_KNOWS.search(asked):
            line = rng.choice(self._memories)
            memories = (line.replace(self._character.calls_user, called) if called else line,)
        now, shown, mood = _present(exchange, rng, memories), rng.choice(_FOUND_SHOWN), rng.choice(_MOODS)
        found = self._found[exchange, end][:shown]
        if end == 2 and rng.random() < _OWN_SHOWN and (own := showable(exchange)):
            found = (own, *found[: max(0, shown - 1)])
        return self._lesson(exchange, end, found, now, mood, called=called, memories=memories, aside=aside)

    def _is_nameless(self, exchange: Exchange) -> bool:
        """Whether the exchange stays true whoever the user is."""
        theirs, hers = "".join(exchange.turns[::2]), "".join(exchange.turns[1::2])
        asked = _ASKS_FOR_A_NAME.search(hers) or self._character.calls_user in hers
        return not (asked or _SPEAKS_OF_A_NAME.search(theirs) or exchange.name or exchange.memories)

    def _lesson(
        self,
        exchange: Exchange,
        end: int,
        found: tuple[Pair, ...],
        now: datetime,
        mood: EmotionLabel,
        *,
        called: str | None = None,
        memories: tuple[str, ...] | None = None,
        aside: tuple[str, ...] = (),
    ) -> Lesson:
        turns = (*aside, *exchange.turns[:end])
        called = called or exchange.name
        for line in turns[::2]:
            called = told_name(line) or called
        prompt = Prompt(
            user_name=self._character.calls_user,
            her_name=self._character.display_name,
            persona=self._character.persona.summary,
            profile=profile_line(self._character, called),
            history=tuple(Message(Role.HER if place % 2 else Role.USER, line) for place, line in enumerate(turns[:-2])),
            notes=notes_for(now, mood, exchange.memories if memories is None else memories),
            found=found,
            words=turns[-2],
        )
        return Lesson(within_budget(prompt, self._budget, self._count), turns[-1])


def _stands_alone(exchange: Exchange) -> bool:
    """Whether nothing known beforehand and no name plays a part, so that it can precede any other talk."""
    told = any(told_name(line) for line in exchange.turns[::2])
    return not (told or exchange.name or exchange.now or exchange.memories or len(exchange.turns) > 4)


def _present(exchange: Exchange, rng: Random, memories: Sequence[str] = ()) -> datetime:
    """Return when the exchange takes place: as written, else some time after what is recalled, in waking hours."""
    if exchange.now:
        return exchange.now
    dates = [line[:10] for line in (*exchange.memories, *memories) if re.match(r"\d{4}-\d\d-\d\d", line)]
    start = datetime.fromisoformat(max(dates)) if dates else datetime(2026, 1, 1)
    day = start + timedelta(days=rng.randint(1, 20) if dates else rng.randrange(700))
    return day.replace(hour=rng.choice((*range(7, 24), *range(17, 24), 0)), minute=rng.randrange(60))
