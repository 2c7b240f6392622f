"""One turn of conversation: keep the user's words, route, find examples, prompt, generate, feel, keep hers."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from time import perf_counter
from uuid import UUID

from application.examples import Examples
from application.experts import ChooseExpert
from domain.character import Character
from domain.conversation import ReplyState, Role, Scope, Session, Turn
from domain.crisis import concern, help_text
from domain.emotion import Emotion, EmotionLabel
from domain.errors import BackendUnavailable, BadInput, StoreUnavailable, ZishuError
from domain.events import (
    AccessoryChanged,
    EmotionChanged,
    EndReason,
    ExpertChosen,
    HistoryTrimmed,
    MotionChosen,
    ReplyEvent,
    ReplyFailed,
    ReplyFinished,
    ReplyStream,
    SentenceReady,
    TextDelta,
    Timings,
    TurnStarted,
    Usage,
)
from domain.extraction import told_name
from domain.memory import ShortTermWindow
from domain.ports import Characters, EmotionClassifier, LanguageModel, Sessions
from domain.prompt import Prompt, Sampling, notes_for, profile_line, within_budget
from domain.speech import Sentence, SentenceSplitter
from domain.tags import Tag, TagParser

# Tokens that a layout puts around one line, and around everything else in a prompt; generous for any template.
_MARKS_PER_LINE, _MARKS = 8, 64
# One message: some thirty pages. More than that is a document, not something to say.
LONGEST_WORDS = 20_000


@dataclass(frozen=True, slots=True)
class PromptBudget:
    """What a prompt may hold, in tokens of the model.

    Attributes:
        volatile: Examples, memories, clock and mood together.
        history: The conversation so far.
    """

    volatile: int = 250
    history: int = 1000


def acceptable(words: str) -> str:
    """Return the user's words without control characters and outer blanks.

    Raises:
        BadInput: Nothing is left, or more than `LONGEST_WORDS` characters.
    """
    visible = "".join(char for char in words if char.isprintable() or char in "\n\t\u200d").strip()
    if not visible:
        raise BadInput("There is nothing to answer in an empty message.", "Type some words and press Enter.")
    if len(visible) > LONGEST_WORDS:
        raise BadInput(
            f"The message has {len(visible):,} characters; at most {LONGEST_WORDS:,} fit into one turn.",
            "Send the part that matters, or several shorter messages.",
        )
    return visible


@dataclass(slots=True)
class _Running:
    """A turn in the making: what it belongs to and when it reached each milestone."""

    session: Session
    character: Character
    began: float = field(default_factory=perf_counter)
    prompt_tokens: int = 0
    marks: dict[str, float] = field(default_factory=dict)
    tags: list[tuple[int, Tag]] = field(default_factory=list)
    spoken: int = 0

    def note(self, tag: Tag) -> None:
        """Keep a tag with its place in the reply: a sentence is complete only after what follows it has begun."""
        self.tags.append((_ink(self.session.turns[-1].reply), tag))

    def tag_of(self, sentence: str) -> Tag | None:
        """Return the last tag that stands in or before the next sentence of the reply."""
        self.spoken += _ink(sentence)
        tag = None
        while self.tags and self.tags[0][0] < self.spoken:
            tag = self.tags.pop(0)[1]
        return tag

    def mark(self, milestone: str) -> None:
        """Note the milliseconds since the beginning, the first time that a milestone is reached."""
        self.marks.setdefault(milestone, round((perf_counter() - self.began) * 1000, 1))

    def timings(self) -> Timings:
        self.mark("total")
        return Timings(
            ready=self.marks["ready"],
            first_token=self.marks.get("first_token"),
            first_sentence=self.marks.get("first_sentence"),
            total=self.marks["total"],
        )

    def feel(self, felt: Emotion, said: str, motion: str | None = None) -> Iterator[ReplyEvent]:
        """React to an emotion and to what was said; yield what changes to see."""
        session, character = self.session, self.character
        changed = session.feel(felt, character.temperament)
        if changed:
            yield EmotionChanged(session.face, session.mood)
        accessory = character.appearance.accessory_for(said, session.face.label, wearing=session.accessory)
        if accessory != session.accessory:
            session.accessory = accessory
            yield AccessoryChanged(accessory)
        motion = motion or character.motion_for(said, session.face.label)
        if changed or motion != character.temperament.feelings[session.face.label].motion:
            yield MotionChosen(motion)


class Converse:
    """Answers a user in character; every face consumes the stream that `reply` gives.

    Args:
        clock: Returns the present as an aware datetime in the user's time zone.
        new_id: Returns a fresh id for a turn.
        routing: Decides who answers; without it there are no experts.
    """

    def __init__(
        self,
        *,
        model: LanguageModel,
        sessions: Sessions,
        characters: Characters,
        classifier: EmotionClassifier,
        examples: Examples,
        sampling: Sampling,
        budget: PromptBudget,
        clock: Callable[[], datetime],
        new_id: Callable[[], UUID],
        routing: ChooseExpert | None = None,
    ) -> None:
        self._model = model
        self._sessions = sessions
        self._characters = characters
        self._classifier = classifier
        self._examples = examples
        self._sampling = sampling
        self._budget = budget
        self._clock = clock
        self._new_id = new_id
        self._routing = routing or ChooseExpert()

    async def reply(self, scope: Scope, words: str, *, expert: str | None = None) -> ReplyStream:
        """Keep the user's words, then yield her answer as it comes.

        Closing the stream early stops the model; what was said until then is stored as interrupted.

        Args:
            scope: Whose conversation.
            words: What the user says; an expert's tag in it is text and decides nothing.
            expert: Who shall answer, by tag or name, when a trusted caller says so; without it the router decides.

        Raises:
            BadInput: The words are empty or far too long, or there is no such expert; nothing was stored.
            NotFound: There is no such character.
            StoreUnavailable: The words could not be kept; she does not answer what would be forgotten at once.
        """
        words = acceptable(words)
        asked_for = None if expert is None else self._routing.named(expert)
        turn = await self._begin(scope, words)
        session = turn.session
        durability = await self._sessions.commit(session, session.turns[-1])
        try:
            yield TurnStarted(session.id, session.turns[-1].id, session.turns[-1].said_at, durability)
            async with aclosing(self._answer(turn, words, asked_for)) as events:
                async for event in events:
                    yield event
        except (GeneratorExit, asyncio.CancelledError):
            if session.turns[-1].state is ReplyState.PENDING:
                await asyncio.shield(self._sessions.commit(session, session.update(state=ReplyState.INTERRUPTED)))
            raise
        except ZishuError as error:
            if not isinstance(error, StoreUnavailable):
                await self._sessions.commit(session, session.update(state=ReplyState.FAILED))
            retryable = isinstance(error, BackendUnavailable | StoreUnavailable)
            yield ReplyFailed(type(error).__name__, error.problem, error.remedy, retryable)

    async def _begin(self, scope: Scope, words: str) -> _Running:
        """Open the session and put the user's words into it."""
        character = self._characters.load(scope.character)
        now = self._clock()
        session = await self._sessions.open(scope, now=now)
        session.calm_down(now, character.temperament)
        session.called = told_name(words) or session.called
        if not session.accessory:
            session.accessory = character.appearance.accessory
        session.begin(Turn(self._new_id(), words, now))
        return _Running(session, character)

    async def _answer(self, turn: _Running, words: str, asked_for: str | None) -> ReplyStream:
        """Choose who answers, then yield everything up to the end."""
        session = turn.session
        if language := concern(words):
            yield ExpertChosen("care", 1.0, "这样的话先由人接住：直接给出求助方式")
            felt, pieces = Emotion(EmotionLabel.COMFORT, 1.0), _in_one_piece(help_text(language))
        else:
            choice = await self._routing.choose(
                words, in_charge=session.expert, asked_for=asked_for, refused=self._model.refused()
            )
            decision = choice.decision
            session.expert = decision.expert
            session.update(expert=decision.expert)
            yield ExpertChosen(decision.expert, decision.confidence, decision.reason)
            if choice.likely:
                self._model.anticipate(choice.likely)
            prompt, trimmed = await self._prompt(turn, words, choice.tag)
            if trimmed:
                yield HistoryTrimmed(trimmed)
            felt = turn.character.temperament.catch(await self._classifier.classify(words, Role.USER))
            sampling = choice.sampled(self._sampling)
            pieces = self._model.generate(prompt, expert=decision.expert, sampling=sampling)
        turn.mark("ready")
        for event in turn.feel(felt, words):
            yield event
        async with aclosing(self._speak(turn, pieces)) as events:
            async for event in events:
                yield event
        reply = session.turns[-1].reply
        if not reply.strip():
            raise BackendUnavailable("The model found no words this time.", "Say it again, or in other words.")
        await self._sessions.commit(session, session.update(state=ReplyState.FINISHED, emotion=session.face))
        usage = Usage(turn.prompt_tokens, self._model.count_tokens(reply))
        yield ReplyFinished(EndReason.STOP, usage, turn.timings())

    async def _prompt(self, turn: _Running, words: str, expert_tag: str) -> tuple[Prompt, int]:
        """Compose the prompt; also return how many turns have just left the window."""
        session, character, count = turn.session, turn.character, self._model.count_tokens
        room = self._model.context_tokens - self._sampling.max_tokens - self._budget.volatile
        room -= count(character.persona.summary) + count(words) + _MARKS
        if room < 0:
            raise BadInput(
                f"The message does not fit into the {self._model.context_tokens} tokens that this model can read.",
                "Send a shorter part of it, or choose a model with a larger context.",
            )
        costs = [count(turn.user_text) + count(turn.heard) + 2 * _MARKS_PER_LINE for turn in session.turns[:-1]]
        window = ShortTermWindow(min(self._budget.history, room))
        cut = window.cut(costs)
        trimmed = cut - window.cut(costs[:-1])
        prompt = Prompt(
            user_name=character.calls_user,
            her_name=character.display_name,
            persona=character.persona.summary,
            profile=profile_line(character, session.called),
            history=tuple(session.history(skip=cut)),
            notes=notes_for(session.felt_at, session.face.label, ()),
            found=await self._examples.similar(character, words),
            words=words,
            expert_tag=expert_tag,
        )
        prompt = within_budget(prompt, self._budget.volatile, count)
        turn.prompt_tokens = count(f"{prompt.system}\n{prompt.volatile}\n{words}") + sum(costs[cut:])
        return prompt, trimmed

    async def _speak(self, turn: _Running, pieces: AsyncGenerator[str, None]) -> ReplyStream:
        """Turn the model's pieces into text, sentences and feelings, storing sentence by sentence."""
        parser, splitter = TagParser(), SentenceSplitter()
        async with aclosing(pieces):
            async for piece in pieces:
                for item in parser.feed(piece):
                    if isinstance(item, Tag):
                        turn.note(item)
                        continue
                    async for event in self._say(turn, item, splitter.feed(item)):
                        yield event
        # what the parser held back is text for the splitter
        rest = "".join(item for item in parser.flush() if isinstance(item, str))
        async for event in self._say(turn, rest, [*splitter.feed(rest), *splitter.flush()]):
            yield event
        for _, tag in turn.tags:
            for event in turn.feel(
                Emotion(tag.emotion or EmotionLabel.NEUTRAL, float(bool(tag.emotion))), "", tag.motion
            ):
                yield event

    async def _say(self, turn: _Running, text: str, sentences: list[Sentence]) -> ReplyStream:
        """Yield a piece of text and what its sentences change; every sentence is stored before it is announced."""
        session = turn.session
        said = session.turns[-1].reply
        text = text if said else text.lstrip()
        if text:
            turn.mark("first_token")
            session.update(reply=said + text)
            yield TextDelta(text)
        for sentence in sentences:
            tag = turn.tag_of(sentence.display)
            if tag and tag.emotion:
                felt = Emotion(tag.emotion, 1.0)
            else:
                felt = await self._classifier.classify(sentence.display, Role.HER)
            for event in turn.feel(felt, sentence.display, tag.motion if tag else None):
                yield event
            await self._sessions.commit(session, session.turns[-1])
            turn.mark("first_sentence")
            yield SentenceReady(sentence)


def _ink(text: str) -> int:
    """Count the characters that are not blank."""
    return len("".join(text.split()))


async def _in_one_piece(text: str) -> AsyncGenerator[str, None]:
    """Yield a text that needs no model."""
    yield text
