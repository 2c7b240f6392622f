import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from adapters.character import files
from adapters.embedder import hashed
from adapters.emotion_classifier import ngram
from adapters.language_model import scripted
from adapters.sessions import in_memory
from application.converse import LONGEST_WORDS, Converse, PromptBudget
from application.examples import Examples
from application.experts import ChooseExpert
from domain.conversation import ReplyState, Scope, Session, Turn
from domain.errors import BackendUnavailable, BadInput, NotFound, StoreUnavailable
from domain.events import (
    Durability,
    EmotionChanged,
    EndReason,
    ExpertChosen,
    HistoryTrimmed,
    MotionChosen,
    ReplyEvent,
    ReplyFailed,
    ReplyFinished,
    SentenceReady,
    TextDelta,
    TurnStarted,
    follows_grammar,
)
from domain.ports import LanguageModel
from domain.prompt import Prompt, Sampling

HOME = Scope("local", "zishu")
NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)


class Listening:
    """The scripted model, remembering what it was asked."""

    def __init__(self, *replies: str, context_tokens: int = 4096) -> None:
        self._model = scripted.build(scripted.Config(replies=replies))
        self.prompts: list[Prompt] = []
        self.asked = asyncio.Event()
        self.stopped = 0
        self.context_tokens = context_tokens

    async def load(self) -> None:
        await self._model.load()

    def count_tokens(self, text: str) -> int:
        return len(text)

    def refused(self) -> dict[str, str]:
        return {}

    async def generate(self, prompt: Prompt, *, expert: str, sampling: Sampling) -> AsyncGenerator[str, None]:
        self.prompts.append(prompt)
        self.asked.set()
        try:
            async with aclosing(self._model.generate(prompt, expert=expert, sampling=sampling)) as pieces:
                async for piece in pieces:
                    yield piece
                    await asyncio.sleep(0)
        except GeneratorExit:
            self.stopped += 1
            raise

    async def close(self) -> None:
        await self._model.close()


class Breaking(Listening):
    """A model that dies after its first piece."""

    async def generate(self, prompt: Prompt, *, expert: str, sampling: Sampling) -> AsyncGenerator[str, None]:
        yield "我想说的是，"
        raise BackendUnavailable("The model died.", "Start it again.")


class Room:
    """A conversation with in-process parts."""

    def __init__(self, model: LanguageModel, routing: ChooseExpert | None = None, **budget: int) -> None:
        self.now = NOON
        self.sessions = in_memory.build(in_memory.Config())
        self.converse = Converse(
            model=model,
            sessions=self.sessions,
            characters=files.build(files.Config()),
            classifier=ngram.build(ngram.Config()),
            examples=Examples(hashed.build(hashed.Config()), shown=2),
            sampling=Sampling(max_tokens=64),
            budget=PromptBudget(**budget),
            clock=lambda: self.now,
            new_id=self._new_id,
            routing=routing,
        )
        self._ids = 0

    def _new_id(self) -> UUID:
        self._ids += 1
        return UUID(int=self._ids)

    async def say(self, words: str, scope: Scope = HOME) -> list[ReplyEvent]:
        return [event async for event in self.converse.reply(scope, words)]

    async def session(self, scope: Scope = HOME) -> Session:
        return await self.sessions.open(scope, now=self.now)


def text(events: list[ReplyEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def test_a_reply_follows_the_grammar_and_ends_with_the_finished_event():
    events = await Room(Listening("你好呀，我是紫舒。今天过得怎么样？")).say("你好")
    assert follows_grammar(events)
    assert text(events) == "你好呀，我是紫舒。今天过得怎么样？"
    assert isinstance(events[-1], ReplyFinished)
    assert events[-1].reason is EndReason.STOP
    assert events[-1].timings.first_token is not None


async def test_sentences_are_stored_before_they_are_announced():
    room = Room(Listening("第一句话说完啦。第二句话也说完啦。"))
    async for event in room.converse.reply(HOME, "说两句"):
        if isinstance(event, SentenceReady):
            stored = (await room.session()).turns[-1]
            assert event.sentence.display in stored.reply


async def test_the_users_words_are_stored_before_the_model_starts():
    room = Room(Breaking())
    async for event in room.converse.reply(HOME, "在吗"):
        if isinstance(event, TurnStarted):
            assert (await room.session()).turns[-1].user_text == "在吗"
            assert event.durability is Durability.STORED


async def test_stopping_early_stops_the_model_and_keeps_the_turn():
    model = Listening("很长很长的一句话，" * 20)
    room = Room(model)
    async with aclosing(room.converse.reply(HOME, "讲个故事")) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                break
    turn = (await room.session()).turns[-1]
    assert turn.state is ReplyState.INTERRUPTED
    assert turn.reply
    assert "很长很长的一句话".startswith(turn.reply[:8])
    assert model.stopped == 1


async def test_cancelling_the_task_keeps_the_turn():
    model = Listening("很长很长的一句话，" * 50)
    room = Room(model)
    task = asyncio.create_task(room.say("讲个故事"))
    await model.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await room.session()).turns[-1].state is ReplyState.INTERRUPTED


async def test_a_model_that_dies_fails_the_turn_with_a_remedy_and_keeps_what_was_said():
    room = Room(Breaking())
    events = await room.say("你想说什么")
    assert follows_grammar(events)
    assert isinstance(events[-1], ReplyFailed)
    assert events[-1].remedy == "Start it again."
    assert events[-1].retryable
    turn = (await room.session()).turns[-1]
    assert (turn.state, turn.reply) == (ReplyState.FAILED, "我想说的是，")


async def test_a_reply_without_words_is_a_failure_and_not_an_empty_answer():
    events = await Room(Listening("   ")).say("嗯？")
    assert isinstance(events[-1], ReplyFailed)


async def test_tags_reach_the_face_and_never_the_text():
    events = await Room(Listening('[joy]太好了！<|ACT {"emotion":"shy","motion":"wave"}|>再见啦。')).say("我考上了")
    assert text(events) == "太好了！再见啦。"
    assert "wave" in [event.name for event in events if isinstance(event, MotionChosen)]


async def test_without_tags_the_classifier_moves_her_face():
    events = await Room(Listening("恭喜你呀！太棒了，我好开心！")).say("我拿到第一名了，好开心！")
    assert any(isinstance(event, EmotionChanged) for event in events)


async def test_what_she_is_told_to_call_the_user_is_in_the_next_prompt_and_survives_a_new_conversation():
    model = Listening("好呀小明。", "你叫小明呀。", "小明你好。")
    room = Room(model)
    await room.say("我叫小明，今天考试没考好。")
    await room.say("你还记得我叫什么吗？")
    assert "小明" in model.prompts[1].profile
    assert [message.text for message in model.prompts[1].history] == ["我叫小明，今天考试没考好。", "好呀小明。"]
    await room.sessions.start_new(HOME, now=room.now)
    await room.say("你好")
    assert "小明" in model.prompts[2].profile
    assert model.prompts[2].history == ()


async def test_one_users_words_never_reach_anothers_prompt():
    model = Listening("好。")
    room = Room(model)
    await room.say("我的秘密是蓝莓")
    await room.say("你好", Scope("onebot:qq:1:2", "zishu"))
    await room.say("你好", Scope("local", "lanzhou"))
    assert all("蓝莓" not in str(prompt) for prompt in model.prompts[1:])


async def test_words_of_self_harm_are_answered_with_help_lines_before_any_model_speaks():
    model = Listening("不该说这个")
    room = Room(model)
    events = await room.say("我不想活了")
    assert follows_grammar(events)
    assert "12356" in text(events)
    assert model.prompts == []
    assert next(event for event in events if isinstance(event, ExpertChosen)).name == "care"
    assert "988" in text(await room.say("I want to kill myself"))


async def test_old_turns_leave_in_blocks_and_the_stream_says_so():
    model = Listening("嗯嗯，知道啦，我在听呢。")
    room = Room(model, history=400, volatile=100)
    trimmed = []
    for place in range(30):
        events = await room.say(f"今天的第{place}件小事是这样的")
        trimmed += [event for event in events if isinstance(event, HistoryTrimmed)]
    assert 0 < len(trimmed) < 15
    assert sum(len(message.text) for message in model.prompts[-1].history) <= 400
    starts = {prompt.history[0].text for prompt in model.prompts if prompt.history}
    assert len(starts) == len(trimmed) + 1
    assert all(start.startswith("今天的第") for start in starts), "a history begins with the user's words"


async def test_a_tag_belongs_to_the_sentence_it_stands_before():
    events = await Room(Listening('[joy]太好了！[sad]可是你要走了。<|ACT {"emotion":"shy"}|>')).say(
        "我考上外地的大学了"
    )
    faces = [event.emotion.label if isinstance(event, EmotionChanged) else "" for event in events]
    first, second = (place for place, event in enumerate(events) if isinstance(event, SentenceReady))
    assert "joy" in faces[:first]
    assert "sad" in faces[first:second]


async def test_her_mood_calms_down_while_nobody_talks():
    room = Room(Listening("[angry]哼，我真的生气了！"))
    await room.say("你好烦")
    upset = (await room.session()).mood
    room.now += timedelta(hours=6)
    await room.say("在吗")
    assert (await room.session()).turns[-1].said_at == room.now
    assert upset.valence < 0.25


@pytest.mark.parametrize("words", ["", "   ", "\n\t", "\x00\x07"])
async def test_an_empty_message_is_refused_and_nothing_is_stored(words: str):
    room = Room(Listening("?"))
    with pytest.raises(BadInput, match="empty"):
        await room.say(words)
    assert (await room.session()).turns == []


async def test_a_message_of_a_megabyte_is_refused_with_the_limit():
    with pytest.raises(BadInput, match=f"{LONGEST_WORDS:,}"):
        await Room(Listening("?")).say("长" * 1_000_000)


async def test_a_message_longer_than_the_models_context_fails_with_a_remedy_but_is_kept():
    room = Room(Listening("?", context_tokens=900))
    events = await room.say("长" * 800)
    assert isinstance(events[-1], ReplyFailed)
    assert "context" in events[-1].remedy
    assert (await room.session()).turns[-1].user_text == "长" * 800


async def test_control_characters_are_taken_out_of_the_words():
    room = Room(Listening("好。"))
    await room.say("你\x00好\x1b[31m吗")
    assert (await room.session()).turns[-1].user_text == "你好[31m吗"


async def test_an_unknown_character_is_named_in_the_error():
    with pytest.raises(NotFound, match="nobody"):
        await Room(Listening("?")).say("你好", Scope("local", "nobody"))


async def test_a_store_that_fails_in_mid_reply_ends_the_turn_openly():
    room = Room(Listening("第一句说完了。第二句说完了。"))
    commit = room.sessions.commit
    calls = 0

    async def failing(session: Session, turn: Turn) -> Durability:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise StoreUnavailable("The disk is full.", "Free some space.")
        return await commit(session, turn)

    room.sessions.commit = failing  # type: ignore[method-assign]
    events = await room.say("说两句")
    assert isinstance(events[-1], ReplyFailed)
    assert events[-1].code == "StoreUnavailable"
