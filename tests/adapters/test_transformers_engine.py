from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from itertools import takewhile
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.language_model.transformers import Config
from adapters.language_model.transformers.caches import KeptCaches, common_prefix
from adapters.language_model.transformers.loading import Loaded, load
from adapters.language_model.transformers.requests import PrefillCounts, Request
from adapters.language_model.transformers.scheduling import PREFILL_TOKENS, Adapters, BaseAlone, Scheduler
from adapters.language_model.transformers.text import Detokeniser, StopStrings
from adapters.models.repetition import LoopGuard
from domain.conversation import Message, Role
from domain.errors import BackendUnavailable
from domain.prompt import Prompt, Sampling
from tests import checkpoints

pytestmark = pytest.mark.model

PERSONA = "紫舒是温柔的老师，今天也要元气满满哦。" * 6
GREEDY = Sampling(temperature=0, repetition_penalty=1, max_tokens=12)
MAKERS = {
    "llama": checkpoints.llama,
    "llama with a template": lambda folder: checkpoints.llama(folder, template="system"),
    "gemma with a window of 64": checkpoints.gemma3,
}
every_model = pytest.mark.parametrize("kind", MAKERS)


@cache
def loaded(kind: str, *, exact: bool = False) -> Loaded:
    folder = MAKERS[kind](Path(mkdtemp()) / "model")
    made = load(Config(model=str(folder), precision="fp32", device="cpu", threads=1))
    if exact:
        made.model.double()
    return made


def scheduler(
    kind: str = "llama", adapters: Adapters | None = None, *, endless: bool = False, exact: bool = False, **keys: object
) -> Scheduler:
    """Make a scheduler; an endless one has no token that ends a reply.

    An exact one computes in float64: rows of a batch are summed up in another order, and in fp32 the last digit of a
    score decides one draw in many thousands.
    """
    model = loaded(kind, exact=True) if exact else loaded(kind)  # to a cache, a default said aloud is another key
    return Scheduler(replace(model, ends=frozenset()) if endless else model, adapters or BaseAlone(), Config(**keys))


def prompt(words: str = "你好，你是谁？", **keys: object) -> Prompt:
    return Prompt(**{"user_name": "同学", "her_name": "紫舒", "persona": PERSONA, "words": words, **keys})


WITH_TEMPLATE = "llama with a template"
CHATTY = prompt("今天也要元气满满哦")


def request(asked: Prompt, sampling: Sampling = GREEDY, expert: str = "base") -> Request:
    return Request(asked, expert, sampling, say=lambda _: None)


def spoken(engine: Scheduler, *requests: Request, apart: Iterable[int] = ()) -> list[list[int]]:
    """Answer all requests and return the tokens that were said; `apart` are the steps before each arrives."""
    for wait, asked in zip([*apart] or [0] * len(requests), requests, strict=True):
        for _ in range(wait):
            engine.work()
        engine.add(asked)
    while engine.work():
        pass
    return [asked.done.result(0) for asked in requests]


def plainly(kind: str, asked: Prompt) -> list[int]:
    """Return what plain `generate` says, up to where a reply ends."""
    model = loaded(kind)
    given_ids = torch.tensor([model.encoder.ids(asked)])
    tokens = model.model.generate(
        given_ids,
        attention_mask=torch.ones_like(given_ids),
        do_sample=False,
        max_new_tokens=GREEDY.max_tokens,
        eos_token_id=sorted(model.ends),
    )[0, given_ids.shape[1] :].tolist()
    text, stops, guard = Detokeniser(model.tokenizer), StopStrings(model.encoder.stops(asked)), LoopGuard()
    said: list[int] = []
    for token in takewhile(lambda token: token not in model.ends, tokens):
        said.append(token)
        guard.feed(stops.feed(text.feed(token)))
        if stops.reached or guard.looping:
            break
    return said


LINES = st.text(st.sampled_from("你好老师考试没考好难过今天元气满满 ha，。？～"), min_size=1, max_size=24)


@st.composite
def dialogues(draw: st.DrawFn) -> list[Prompt]:
    """Draw the prompts of a conversation's turns; what she says in them is made up."""
    lines = draw(st.lists(st.tuples(LINES, LINES), min_size=2, max_size=3))
    persona = PERSONA * draw(st.integers(0, 3)) + draw(LINES)
    return [
        prompt(
            words,
            persona=persona,
            profile=draw(st.sampled_from(["", "和紫舒说话的人叫小明。"])) if not turn else "",
            history=tuple(
                Message(role, text)
                for pair in lines[:turn]
                for role, text in zip((Role.USER, Role.HER), pair, strict=True)
            ),
            notes=tuple(draw(st.lists(LINES, max_size=2))),
        )
        for turn, (words, _) in enumerate(lines)
    ]


@every_model
def test_a_long_prompt_is_read_in_chunks_as_plain_generate_reads_it_at_once(kind: str):
    asked = prompt(persona=PERSONA * 6)
    assert len(loaded(kind).encoder.ids(asked)) > 2 * PREFILL_TOKENS
    assert spoken(scheduler(kind), request(asked)) == [plainly(kind, asked)]


def test_a_reply_ends_at_the_first_token_that_ends_one():
    (freely,) = spoken(scheduler(WITH_TEMPLATE, endless=True), request(CHATTY))
    model = replace(loaded(WITH_TEMPLATE), ends=frozenset({freely[5]}))
    (ended,) = spoken(Scheduler(model, BaseAlone(), Config()), request(CHATTY))
    assert ended == freely[: freely.index(freely[5])]
    ends = loaded(WITH_TEMPLATE).tokenizer.convert_ids_to_tokens(sorted(loaded(WITH_TEMPLATE).ends))
    assert set(checkpoints.SPECIAL) <= set(ends)


# Going on from what was read


@given(kind=st.sampled_from(list(MAKERS)), turns=dialogues())
def test_she_says_the_same_whether_earlier_turns_are_kept_or_not(kind: str, turns: list[Prompt]):
    engine = scheduler(kind)
    for turn in turns:
        (said,) = spoken(engine, request(turn))
        assert said == plainly(kind, turn)
    assert engine.counts.hits >= len(turns) - 1


@every_model
@pytest.mark.parametrize("full", [False, True])
def test_a_turn_computes_the_exchange_before_it_and_what_is_new_to_the_token(kind: str, full: bool):
    engine, ids = scheduler(kind, endless=True), loaded(kind).encoder.ids
    marks = len(ids(prompt(""))) - common_prefix(
        ids(prompt("")), ids(prompt("", notes=("，",)))
    )  # around the user's words
    history: tuple[Message, ...] = ()
    read: list[int] = []
    for turn in range(20):
        asked = prompt(f"今天第{turn}次。", history=history, notes=(f"【此刻】{turn}点" * 9,) if full else ())
        (said,) = spoken(engine, request(asked))
        counts = engine.prefills[-1]
        known = common_prefix(read, ids(asked)[:-1])
        assert counts == PrefillCounts(len(ids(asked)), known, len(ids(asked)) - known)
        if turn:
            assert counts.computed <= counts.prompt - len(ids(prompt("", history=history[:-2]))) + marks
        history += (Message(Role.USER, asked.words), Message(Role.HER, heard(kind, said)))
        read = ids(asked) + said[:-1]  # nothing was to follow the last token: it was not read


def heard(kind: str, said: list[int]) -> str:
    return loaded(kind).tokenizer.decode(said).replace("\ufffd", "")


def test_a_reply_that_is_spelled_in_other_tokens_the_next_time_is_read_again_from_there():
    engine = scheduler()
    tokenizer, encoder = loaded("llama").tokenizer, loaded("llama").encoder
    first = prompt("早")
    (said,) = spoken(engine, request(first, Sampling(temperature=1.5, max_tokens=40, seed=3)))
    text = heard("llama", said)
    assert tokenizer(text, add_special_tokens=False).input_ids != said
    again = prompt("晚", history=(Message(Role.USER, "早"), Message(Role.HER, text)))
    (goes_on,) = spoken(engine, request(again))
    known = common_prefix(encoder.ids(first) + said, encoder.ids(again))
    assert engine.prefills[-1].reused == known
    assert goes_on == plainly("llama", again)


def test_who_she_is_is_read_once_however_many_ask_at_once():
    engine = scheduler(batch=8)
    asked = [request(prompt(words * 3, persona=PERSONA * 4)) for words in "你好老师考试没难"]
    spoken(engine, *asked)
    fixed = loaded("llama").encoder.fixed(prompt(persona=PERSONA * 4), loaded("llama").encoder.ids(asked[0].prompt))
    assert fixed > PREFILL_TOKENS
    first, *others = engine.prefills
    assert first.reused == 0
    assert all(read.reused >= fixed for read in others)


def test_who_she_is_stays_known_where_there_is_room_for_little_else():
    persona, encoder = PERSONA * 15, loaded("llama").encoder
    engine = scheduler(cache_megabytes=1)
    for words in "你好老师考试":
        spoken(engine, request(prompt(words * 200, persona=persona)))
    fixed = encoder.fixed(prompt(persona=persona), encoder.ids(prompt(persona=persona)))
    per_token = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, bytes
    assert sum(read.prompt for read in engine.prefills[:3]) * per_token > 1024**2
    assert all(read.reused >= fixed > 1000 for read in engine.prefills[1:])
    assert engine.counts.cache_bytes <= 1024**2


def test_nothing_is_kept_where_caches_may_take_nothing():
    engine = scheduler(cache_megabytes=0)
    spoken(engine, request(prompt()))
    spoken(engine, request(prompt()))
    assert engine.counts.hits == engine.counts.cache_bytes == 0


def test_a_seeded_reply_is_read_from_the_beginning_so_that_it_is_the_same_again():
    engine = scheduler()
    seeded = Sampling(temperature=1, max_tokens=12, seed=5)
    assert spoken(engine, request(prompt(), seeded)) == spoken(engine, request(prompt(), seeded))
    assert engine.counts.hits == 0


# Side by side


@given(kind=st.sampled_from(list(MAKERS)), data=st.data())
def test_in_company_everybody_is_told_what_he_would_be_told_alone(kind: str, data: st.DataObject):
    sampled = st.builds(lambda seed: replace(GREEDY, temperature=1.0, seed=seed), st.integers(0, 99))
    talks = data.draw(st.lists(st.tuples(dialogues(), st.just(GREEDY) | sampled), min_size=2, max_size=5))
    asked = [(turns[-1], replace(how, max_tokens=data.draw(st.integers(1, 16)))) for turns, how in talks]
    apart = data.draw(st.lists(st.integers(0, 6), min_size=len(asked), max_size=len(asked)))
    alone = [spoken(scheduler(kind, exact=True, lookup_tokens=0), request(*one))[0] for one in asked]
    engine = scheduler(kind, exact=True, batch=3)
    assert spoken(engine, *(request(*one) for one in asked), apart=apart) == alone
    assert engine.counts.said_tokens >= sum(map(len, alone))


def test_eight_who_ask_at_once_share_the_steps():
    engine = scheduler(batch=8)
    said = spoken(engine, *(request(prompt(words * 5)) for words in "你好老师考试没难"))
    assert engine.counts.steps < sum(map(len, said)) / 3


def test_a_long_prompt_does_not_keep_those_who_speak_from_speaking():
    engine = scheduler()
    speaking = request(prompt(), replace(GREEDY, max_tokens=200))
    engine.add(speaking)
    engine.work()
    before = engine.counts
    engine.add(request(prompt("考" * 600)))
    while engine.counts.prompts == before.prompts:
        engine.work()
    chunks = engine.counts.steps - before.steps
    assert engine.counts.said_tokens - before.said_tokens >= chunks > 600 // PREFILL_TOKENS


def test_a_short_prompt_is_read_before_a_long_one_that_came_first():
    engine = scheduler()
    engine.add(request(prompt("考" * 1500, persona="一")))
    engine.add(request(prompt("好", persona="二")))
    while not engine.counts.prompts:
        engine.work()
    assert engine.prefills[0].prompt < 100


# Guessing


@given(
    kind=st.sampled_from(list(MAKERS)),
    turns=dialogues(),
    temperature=st.sampled_from([0, 0.3, 1.0]),
    penalty=st.sampled_from([1, 1.1]),
    limit=st.integers(1, 8),
)
def test_guessing_changes_no_word(kind: str, turns: list[Prompt], temperature: float, penalty: float, limit: int):
    how = Sampling(temperature=temperature, repetition_penalty=penalty, max_tokens=24, seed=7)
    asked = replace(turns[-1], notes=(*turns[-1].notes, turns[-1].words * 3))
    guessing = scheduler(kind, lookup_tokens=limit)
    assert spoken(guessing, request(asked, how)) == spoken(scheduler(kind, lookup_tokens=0), request(asked, how))
    assert guessing.counts.accepted_tokens <= guessing.counts.guessed_tokens


def test_right_guesses_save_steps_and_wrong_ones_are_given_up():
    engine = scheduler(WITH_TEMPLATE, endless=True)
    (said,) = spoken(engine, request(CHATTY, replace(GREEDY, max_tokens=200)))
    assert 0 < engine.counts.accepted_tokens == len(said) - 1 - engine.counts.steps
    wild = scheduler(WITH_TEMPLATE, endless=True)
    (said,) = spoken(wild, request(CHATTY, Sampling(temperature=9, top_p=1, max_tokens=200, seed=1)))
    assert wild.counts.guessed_tokens < len(said) / 2


def test_nobody_guesses_in_company():
    engine = scheduler(WITH_TEMPLATE, endless=True)
    together = [request(CHATTY, replace(GREEDY, max_tokens=200)) for _ in range(2)]
    spoken(engine, *together)
    assert engine.counts.guessed_tokens < len(together[0].done.result()) / 8  # when only the later one is left


# With several experts' weights


class TwoMinds:
    """Weights of an expert that are really others: she hears every word as the one beside it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.words = model.get_input_embeddings().weight.data
        self.bare = self.words.clone()
        self.keys = {"base": "base", "logic": "base", "culture": "culture@1"}
        self.asked: list[str] = []

    def activate(self, expert: str) -> str:
        self.asked.append(expert)
        self.words.copy_(self.bare if self.keys[expert] == "base" else self.bare.roll(1, 0))
        return self.keys[expert]

    def anticipate(self, likely: object) -> None: ...

    def refused(self) -> dict[str, str]:
        return {}

    def close(self) -> None: ...


@pytest.fixture
def minds() -> Iterator[TwoMinds]:
    made = TwoMinds(loaded("llama").model)
    yield made
    made.activate("base")


def test_replies_with_different_weights_go_side_by_side_and_none_gets_the_others_words(minds: TwoMinds):
    how = replace(GREEDY, max_tokens=60)
    experts = ("base", "culture", "base", "logic", "culture")
    asked = [(prompt(words * 4), expert) for words, expert in zip("你好老师考", experts, strict=True)]
    alone = [spoken(scheduler(adapters=minds), request(one, how, expert))[0] for one, expert in asked]
    assert alone[0] != spoken(scheduler(adapters=minds), request(asked[0][0], how, "culture"))[0]
    engine = scheduler(adapters=minds)
    minds.asked.clear()
    assert spoken(engine, *(request(one, how, expert) for one, expert in asked)) == alone
    assert len(minds.asked) < 20  # a switch is no matter of every token
    assert sum(read.reused == 0 for read in engine.prefills) == 2  # each of the two has read who she is, once


def test_an_expert_does_not_wait_until_another_has_said_everything(minds: TwoMinds):
    engine = scheduler(adapters=minds, endless=True)
    endless = request(prompt("一"), replace(GREEDY, max_tokens=1500, temperature=3, seed=1))
    engine.add(endless)
    engine.work()
    waiting = request(prompt("二"), GREEDY, "culture")
    engine.add(waiting)
    for _ in range(60):
        engine.work()
    assert waiting.done.done()
    assert not endless.done.done()


def test_an_exchanged_adapter_reads_again_what_the_old_one_had_read(minds: TwoMinds):
    engine = scheduler(adapters=minds)
    spoken(engine, request(prompt("二"), GREEDY, "culture"))
    minds.keys["culture"] = "base"
    (said,) = spoken(engine, request(prompt("二"), GREEDY, "culture"))
    assert engine.counts.hits == 0
    assert said == plainly("llama", prompt("二"))


# When something fails


class Failing:
    """Lets the model fail as a device does, whenever `when` says so of a batch."""

    def __init__(self, kind: str, when: Callable[[torch.Tensor], Exception | None]) -> None:
        self.model, self.when = loaded(kind).model.model, when

    def __enter__(self) -> None:
        # after the first layer: the cache is half written
        self.hook = self.model.layers[1].register_forward_pre_hook(self.fail)

    def fail(self, _: object, inputs: tuple[torch.Tensor]) -> None:
        if error := self.when(inputs[0]):
            raise error

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


def outcome(asked: Request) -> list[int] | BaseException:
    return asked.done.exception(0) or asked.done.result(0)


def test_without_memory_for_all_the_longest_conversation_goes_and_the_others_speak_on():
    asked = [request(prompt(words)) for words in ("你好", "老师" * 40, "考试")]
    alone = [spoken(scheduler(), request(one.prompt))[0] for one in asked]
    engine = scheduler()
    for one in asked:
        engine.add(one)
    with Failing("llama", lambda states: torch.OutOfMemoryError("full") if len(states) > 2 else None):
        while engine.work():
            pass
    assert [outcome(asked[0]), outcome(asked[2])] == [alone[0], alone[2]]
    assert isinstance(outcome(asked[1]), BackendUnavailable)
    assert "memory" in outcome(asked[1]).problem


def test_without_memory_the_kept_caches_go_first():
    engine = scheduler()
    spoken(engine, request(prompt("早")))
    assert engine.counts.cache_bytes
    once = iter([RuntimeError("DefaultCPUAllocator: can't allocate memory")])
    with Failing("llama", lambda _: next(once, None)):
        (said,) = spoken(engine, request(prompt("晚")))
    assert said == plainly("llama", prompt("晚"))


def test_a_prompt_that_cannot_be_read_fails_alone():
    speaking, broken = request(prompt("你好")), request(prompt("老师" * 40))
    engine = scheduler()
    engine.add(speaking)
    engine.work()
    engine.add(broken)
    with Failing("llama", lambda states: RuntimeError("boom") if states.shape[1] > 1 else None):
        while engine.work():
            pass
    assert speaking.done.result(0) == plainly("llama", speaking.prompt)
    assert isinstance(outcome(broken), BackendUnavailable)
    assert spoken(engine, request(prompt("晚"))) == spoken(scheduler(), request(prompt("晚")))


def test_a_step_that_fails_ends_who_was_in_it_and_the_engine_goes_on():
    engine = scheduler()
    asked = [request(prompt(words)) for words in "你好"]
    for one in asked:
        engine.add(one)
    with Failing("llama", lambda states: RuntimeError("boom") if len(states) > 1 else None):
        while engine.work():
            pass
    assert all(isinstance(outcome(one), BackendUnavailable) for one in asked)
    assert engine.counts.running == 0
    assert spoken(engine, request(prompt("晚"))) == spoken(scheduler(), request(prompt("晚")))


def test_scores_that_are_no_numbers_end_one_reply():
    engine = scheduler()
    asked = request(prompt("你好"), replace(GREEDY, temperature=1))
    engine.add(asked)
    with Failing("llama", lambda states: states.fill_(torch.nan) and None):
        while engine.work():
            pass
    assert isinstance(outcome(asked), BackendUnavailable)
    assert engine.counts.running == 0


# Hanging up


@given(data=st.data())
def test_who_hangs_up_in_company_disturbs_nobody(data: st.DataObject):
    asked = [request(prompt(words * 9), replace(GREEDY, max_tokens=10)) for words in "你好老师"]
    alone = [spoken(scheduler(), request(one.prompt, one.sampling))[0] for one in asked]
    engine = scheduler(batch=data.draw(st.integers(1, 4)))
    gone = data.draw(st.dictionaries(st.integers(0, 12), st.integers(0, 3), min_size=1))
    for one in asked:
        engine.add(one)
    steps = 0
    busy = True
    while busy:
        if steps in gone:
            asked[gone[steps]].abandon()
        busy, steps = engine.work(), steps + 1
    for place, (one, whole) in enumerate(zip(asked, alone, strict=True)):
        if place not in gone.values():
            assert one.done.result(0) == whole
        elif not one.done.cancelled():
            said = one.done.result(0)
            assert said == whole[: len(said)]
    assert engine.counts.running == engine.counts.waiting == 0


# What is kept


@given(
    sequences=st.lists(st.tuples(st.sampled_from("ab"), st.text("xyz", min_size=1, max_size=9)), max_size=30),
    budget=st.integers(0, 300),
)
def test_kept_caches_stay_in_their_budget_and_know_the_longest_beginning(sequences: list[tuple[str, str]], budget: int):
    kept = KeptCaches(budget)
    for place, (weights, text) in enumerate(sequences):
        ids = [ord(char) for char in text]
        kept.keep(weights, ids, tuple, token_bytes=10, shared=0, fixed=place % 3 == 0)
        assert kept.size <= budget
        found, size = kept.longest(weights, ids)
        if 10 * len(ids) <= budget:  # the newest is always kept
            assert found
            assert (size, found.weights) == (len(ids), weights)


def test_a_new_turn_replaces_the_one_before_and_another_conversation_does_not():
    kept = KeptCaches(10**6)
    kept.keep("base", [1] * 50 + [2] * 60, tuple, token_bytes=1, shared=50, fixed=False)
    kept.keep("base", [1] * 50 + [2] * 55 + [3] * 20, tuple, token_bytes=1, shared=50, fixed=False)
    assert kept.size == 125
    kept.keep("base", [1] * 50 + [4] * 60, tuple, token_bytes=1, shared=50, fixed=False)
    assert kept.size == 125 + 110
