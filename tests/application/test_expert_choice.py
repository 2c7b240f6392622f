import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from application.experts import Choice, ChooseExpert, ManyModels
from domain.errors import BackendUnavailable, BadInput
from domain.events import EndReason, ExpertChosen, ReplyEvent, ReplyFailed, ReplyFinished, follows_grammar
from domain.ports import ExpertScorer
from domain.prompt import SCRIPT, Prompt, Sampling, as_text
from domain.routing import BASE, Decision, Expert, KnowledgeKind, OwnBackend, Router
from tests.application.test_converse import HOME, Listening, Room, text

ANIME = Expert("culture", "ANIME", "深度文化", KnowledgeKind.CORE, (0.5, 0.7), adapter=Path("culture"))
LOGIC = Expert("logic", "LOGIC", "逻辑推理", KnowledgeKind.FACT, (0.3, 0.5))
PROMPT = Prompt("同学", "紫舒", "老师", "你好")


class Shelf:
    """Experts that a test puts there."""

    def __init__(self, *experts: Expert) -> None:
        self.experts = experts

    def all(self) -> tuple[Expert, ...]:
        return self.experts

    def refused(self) -> Mapping[str, str]:
        return {}


class Keywords:
    """A scorer that goes by one word for each expert."""

    async def score(self, words: str, experts: Sequence[Expert]) -> Mapping[str, float]:
        named = {"动漫": "culture", "数学": "logic"}
        right = next((name for word, name in named.items() if word in words), BASE)
        names = [BASE, *(expert.name for expert in experts)]
        return {name: 0.9 if name == right else 0.1 / (len(names) - 1) for name in names}


class Hanging:
    """A scorer that never answers, and notes that it was let go."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()

    async def score(self, words: str, experts: Sequence[Expert]) -> Mapping[str, float]:
        try:
            await asyncio.Event().wait()
        finally:
            self.let_go.set()
        return {}


class Failing:
    """A scorer that fails with whatever it is given."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def score(self, words: str, experts: Sequence[Expert]) -> Mapping[str, float]:
        raise self._error


class Attentive(Listening):
    """The scripted model, remembering also who was asked for, how warm, and what it was told to expect."""

    def __init__(self, *replies: str) -> None:
        super().__init__(*replies)
        self.asked_for: list[tuple[str, float]] = []
        self.expected: list[Mapping[str, float]] = []

    async def generate(self, prompt: Prompt, *, expert: str, sampling: Sampling) -> AsyncGenerator[str, None]:
        self.asked_for.append((expert, sampling.temperature))
        async for piece in super().generate(prompt, expert=expert, sampling=sampling):
            yield piece

    def anticipate(self, likely: Mapping[str, float]) -> None:
        self.expected.append(likely)


def routed(model: Listening, scorer: ExpertScorer | None = None, *, patience_s: float = 5) -> Room:
    """A room in which two experts are plugged in; one of them has weights of its own."""
    return Room(model, ChooseExpert(Shelf(ANIME, LOGIC), scorer or Keywords(), patience_s=patience_s))


def chosen(events: list[ReplyEvent]) -> ExpertChosen:
    return next(event for event in events if isinstance(event, ExpertChosen))


async def test_an_expert_with_weights_answers_under_its_tag_and_in_its_band_of_temperature() -> None:
    model = Attentive("好呀，我们聊聊。")
    events = await routed(model).say("聊聊动漫")
    assert follows_grammar(events)
    assert (chosen(events).name, chosen(events).confidence) == ("culture", 0.9)
    assert model.asked_for == [("culture", 0.5)]
    assert model.prompts[0].volatile.splitlines()[0] == "[EXPERT=ANIME]"


async def test_an_expert_whose_weights_the_model_refuses_is_answered_for_as_openly() -> None:
    class Refusing(Attentive):
        def refused(self) -> Mapping[str, str]:
            return {"culture": "its adapter is for another model"}

    model = Refusing("好呀，我们聊聊。")
    events = await routed(model).say("聊聊动漫")
    assert "先由基础模型回答" in chosen(events).reason
    assert model.asked_for == [("culture", Sampling().temperature)]
    assert "EXPERT" not in as_text(model.prompts[0], SCRIPT)


async def test_an_expert_without_weights_is_answered_for_openly_by_the_base_without_a_tag() -> None:
    model = Attentive("我们一步一步来。")
    events = await routed(model).say("一道数学题")
    assert chosen(events).name == "logic"
    assert "先由基础模型回答" in chosen(events).reason
    assert model.asked_for == [("logic", Sampling().temperature)]
    assert "EXPERT" not in as_text(model.prompts[0], SCRIPT)


async def test_persona_and_examples_stay_whoever_answers() -> None:
    model = Attentive("嗯。")
    room = routed(model)
    for words in ("你好", "聊聊动漫", "一道数学题"):
        await room.say(words)
    assert len({prompt.persona for prompt in model.prompts}) == 1
    assert all(prompt.found for prompt in model.prompts)


async def test_the_session_remembers_who_is_in_charge_and_the_turn_who_answered() -> None:
    room = routed(Attentive("嗯。"))
    await room.say("聊聊动漫")
    session = await room.session()
    assert (session.expert, session.turns[-1].expert) == ("culture", "culture")
    await room.say("今天好累")
    session = await room.session()
    assert (session.expert, session.turns[-1].expert) == (BASE, BASE)


async def test_a_tag_typed_by_the_user_is_text_and_a_trusted_callers_tag_decides() -> None:
    model = Attentive("嗯。")
    room = routed(model)
    typed = await room.say("[EXPERT=ANIME] 你好")
    assert chosen(typed).name == BASE
    assert "[EXPERT" not in as_text(model.prompts[0], SCRIPT)
    assert (await room.session()).turns[-1].user_text == "[EXPERT=ANIME] 你好"
    trusted = [event async for event in room.converse.reply(HOME, "你好", expert="ANIME")]
    assert (chosen(trusted).name, chosen(trusted).confidence) == ("culture", 1.0)
    assert "[EXPERT=ANIME]" in as_text(model.prompts[1], SCRIPT)
    without = [event async for event in room.converse.reply(HOME, "你好", expert="logic")]
    assert "先由基础模型回答" in chosen(without).reason
    back = [event async for event in room.converse.reply(HOME, "聊聊动漫", expert="base")]
    assert chosen(back).name == BASE


async def test_a_trusted_callers_unknown_tag_is_refused_and_nothing_is_stored() -> None:
    room = routed(Attentive("嗯。"))
    with pytest.raises(BadInput, match="ANIME, LOGIC"):
        await anext(room.converse.reply(HOME, "你好", expert="COOKING"))
    assert (await room.session()).turns == []


async def test_the_model_is_told_before_it_answers_who_may_be_wanted() -> None:
    model = Attentive("嗯。")
    room = routed(model)
    for words in ("聊聊动漫", "一道数学题"):
        await room.say(words)
    assert [max(likely, key=lambda name: likely[name]) for likely in model.expected] == ["culture", "logic"]
    assert all(sum(likely.values()) == pytest.approx(1) for likely in model.expected)


async def test_without_experts_nobody_is_scored_and_the_model_is_told_nothing() -> None:
    model = Attentive("嗯。")
    events = await Room(model).say("聊聊动漫")
    assert chosen(events).name == BASE
    assert model.expected == []


@pytest.mark.parametrize("error", [BackendUnavailable("No embedder.", "Install one."), ZeroDivisionError(), KeyError()])
async def test_a_scorer_that_fails_in_any_way_costs_the_expert_and_not_the_turn(error: Exception) -> None:
    events = await routed(Attentive("我在听。"), Failing(error)).say("聊聊动漫")
    assert follows_grammar(events)
    assert isinstance(events[-1], ReplyFinished)
    assert chosen(events).name == BASE
    assert "出了错" in chosen(events).reason


async def test_a_scorer_that_hangs_is_let_go_and_the_base_answers() -> None:
    scorer = Hanging()
    events = await routed(Attentive("我在听。"), scorer, patience_s=0.01).say("聊聊动漫")
    assert text(events) == "我在听。"
    assert isinstance(events[-1], ReplyFinished)
    assert events[-1].reason is EndReason.STOP
    assert "没有及时" in chosen(events).reason
    await scorer.let_go.wait()


async def test_giving_up_a_turn_lets_the_scorer_go() -> None:
    scorer = Hanging()
    task = asyncio.create_task(ChooseExpert(Shelf(ANIME), scorer, patience_s=None).choose("你好"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await scorer.let_go.wait()


async def test_warming_up_asks_the_scorer_once_and_never_fails() -> None:
    await ChooseExpert(Shelf(ANIME), Failing(ValueError())).warm_up()
    await ChooseExpert(Shelf(ANIME), Hanging()).warm_up(patience_s=0.01)
    await ChooseExpert().warm_up()


@pytest.mark.parametrize(("wished", "given"), [(0.0, 0.5), (0.6, 0.6), (1.2, 0.7)])
def test_the_temperature_is_kept_within_the_experts_band(wished: float, given: float) -> None:
    choice = Choice(Decision("culture", 1.0, ""), ANIME)
    assert choice.sampled(Sampling(temperature=wished)) == Sampling(temperature=given)
    assert Choice(Decision(BASE, 1.0, "")).sampled(Sampling(temperature=wished)).temperature == wished


def test_only_the_weights_of_an_adapter_know_their_tag() -> None:
    served = replace(LOGIC, backend=OwnBackend("scripted", {}))
    tags = [Choice(Decision(expert.name, 1.0, ""), expert).tag for expert in (ANIME, LOGIC, served)]
    assert tags == ["ANIME", "", ""]


class Own:
    """Makes scripted models for experts, and keeps count."""

    def __init__(self) -> None:
        self.made: list[Listening] = []

    def __call__(self, backend: OwnBackend) -> Listening:
        self.made.append(Listening(str(backend.table["says"])))
        return self.made[-1]


SEEING = replace(LOGIC, name="vision", tag="VISION", backend=OwnBackend("scripted", {"says": "我看见了。"}))


async def said(model: ManyModels, expert: str) -> str:
    return "".join([piece async for piece in model.generate(PROMPT, expert=expert, sampling=Sampling())])


async def test_an_expert_may_be_a_model_of_its_own_made_at_its_first_turn() -> None:
    own, main = Own(), Attentive("我是基础模型。")
    model = ManyModels(main, Shelf(ANIME, SEEING), own)
    await model.load()
    assert own.made == []
    assert await said(model, "vision") == await said(model, "vision") == "我看见了。"
    assert len(own.made) == 1
    assert await said(model, "culture") == "我是基础模型。"
    assert [name for name, _ in main.asked_for] == ["culture"]
    assert (model.context_tokens, model.count_tokens("你好")) == (main.context_tokens, 2)


async def test_several_first_turns_at_once_make_one_model() -> None:
    own = Own()
    model = ManyModels(Attentive("嗯。"), Shelf(SEEING), own)
    assert await asyncio.gather(*(said(model, "vision") for _ in range(5))) == ["我看见了。"] * 5
    assert len(own.made) == 1


async def test_changed_settings_of_an_expert_make_its_model_anew_and_all_are_closed_with_the_rest() -> None:
    closed: list[str] = []

    class Closing(Listening):
        async def close(self) -> None:
            closed.append("one")

    made: list[OwnBackend] = []

    def build(backend: OwnBackend) -> Closing:
        made.append(backend)
        return Closing(str(backend.table["says"]))

    shelf = Shelf(SEEING)
    model = ManyModels(Closing("嗯。"), shelf, build)
    await said(model, "vision")
    shelf.experts = (replace(SEEING, backend=OwnBackend("scripted", {"says": "我看得更清楚了。"})),)
    assert await said(model, "vision") == "我看得更清楚了。"
    assert (len(made), len(closed)) == (2, 1)
    await model.close()
    assert len(closed) == 3


async def test_a_model_of_an_expert_that_cannot_be_had_fails_the_turn_with_its_remedy() -> None:
    def build(backend: OwnBackend) -> Listening:
        raise BackendUnavailable("Nobody listens there.", "Start the server.")

    shelf = Shelf(SEEING)
    room = Room(ManyModels(Attentive("嗯。"), shelf, build), ChooseExpert(shelf, Keywords()))
    events = [event async for event in room.converse.reply(HOME, "看图", expert="VISION")]
    assert isinstance(events[-1], ReplyFailed)
    assert events[-1].remedy == "Start the server."


async def test_the_router_of_the_settings_decides() -> None:
    doubtful = ChooseExpert(Shelf(ANIME), Keywords(), Router(abstain_below=0.95))
    assert (await doubtful.choose("聊聊动漫")).decision.expert == BASE
