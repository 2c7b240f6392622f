import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.language_model.llama_cpp.admission import Admission, Slots
from domain.conversation import Message, Role
from domain.errors import BackendUnavailable
from domain.prompt import Prompt

# What each visitor wants (None is to be alone), and after how many steps of the loop it hangs up, if ever.
visitors = st.lists(
    st.tuples(st.sampled_from(["", "acgn", "logic", None]), st.none() | st.integers(0, 6)), min_size=1, max_size=12
)


def together(program: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(program())


@given(visitors, st.integers(1, 3))
def test_nobody_is_overtaken_and_only_one_adapter_speaks_at_a_time(wishes: list, places: int) -> None:
    inside: list[str | None] = []
    entered: list[int] = []

    async def visit(admission: Admission, number: int, adapter: str | None) -> None:
        assert await admission.enter(lambda: adapter) == adapter
        entered.append(number)
        inside.append(adapter)
        assert len(inside) <= places
        assert len(set(inside)) == 1
        assert adapter is not None or inside == [None]
        try:
            for _ in range(number % 3):
                await asyncio.sleep(0)
        finally:
            inside.remove(adapter)
            admission.leave()

    async def program() -> None:
        admission = Admission(places, len(wishes))
        tasks = [asyncio.create_task(visit(admission, number, adapter)) for number, (adapter, _) in enumerate(wishes)]
        for step in range(8):
            await asyncio.sleep(0)
            for task, (_, hang_up) in zip(tasks, wishes, strict=True):
                if hang_up == step:
                    task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await asyncio.wait_for(task, 5)
        await asyncio.wait_for(admission.enter(lambda: None), 5)  # nothing is left behind

    together(program)
    assert entered == sorted(entered)
    assert not inside


def test_one_more_than_may_wait_is_turned_away_at_once() -> None:
    async def program() -> None:
        admission = Admission(1, 2)
        await admission.enter(lambda: "")
        waiting = [asyncio.create_task(admission.enter(lambda: "")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(BackendUnavailable, match="2 conversations already wait"):
            await admission.enter(lambda: "")
        waiting[0].cancel()
        await asyncio.sleep(0)
        third = asyncio.create_task(admission.enter(lambda: ""))
        for _ in range(2):
            admission.leave()
            await asyncio.sleep(0)
        await asyncio.gather(waiting[1], third)

    together(program)


def test_whoever_was_alone_may_let_others_in() -> None:
    async def program() -> None:
        admission = Admission(2, 2)
        await admission.enter(lambda: None)
        friend = asyncio.create_task(admission.enter(lambda: "acgn"))
        await asyncio.sleep(0)
        assert not friend.done()
        admission.share("acgn")
        await asyncio.wait_for(friend, 5)

    together(program)


def test_closing_turns_away_those_who_wait_and_those_who_come() -> None:
    async def program() -> None:
        admission = Admission(1, 2)
        await admission.enter(lambda: "")
        waiting = asyncio.create_task(admission.enter(lambda: ""))
        await asyncio.sleep(0)
        admission.close(BackendUnavailable("The model was closed.", "Start again."))
        for late in (waiting, admission.enter(lambda: "")):
            with pytest.raises(BackendUnavailable, match="closed"):
                await late

    together(program)


def turn(persona: str, *said: str) -> Prompt:
    """Return a prompt whose history is all that was said but the last words."""
    history = tuple(Message(Role.HER if place % 2 else Role.USER, text) for place, text in enumerate(said[:-1]))
    return Prompt("同学", "紫舒", persona, said[-1], history=history)


def visit(slots: Slots, adapter: str, prompt: Prompt) -> int:
    number = slots.take(adapter, prompt)
    slots.give_back(number)
    return number


def test_a_conversation_stays_in_its_slot() -> None:
    slots = Slots(3)
    first = visit(slots, "", turn("甲", "你好"))
    second = visit(slots, "", turn("甲", "早上好"))
    assert first != second
    assert visit(slots, "", turn("甲", "你好", "你好呀", "猫")) == first
    assert visit(slots, "", turn("甲", "早上好", "早", "狗")) == second
    assert visit(slots, "", turn("甲", "早上好", "早", "狗")) == second  # once more
    assert visit(slots, "", turn("甲", "你好", "你好呀", "猫", "喵", "鱼")) == first


def test_another_adapter_does_not_take_the_slot_that_remembers_while_one_rests_longer() -> None:
    slots = Slots(2)
    mine = visit(slots, "acgn", turn("甲", "你好"))
    assert visit(slots, "logic", turn("甲", "你好", "你好呀", "猫")) != mine
    assert visit(slots, "acgn", turn("甲", "你好", "你好呀", "猫")) == mine


def test_who_comes_back_to_an_adapter_finds_the_slot_of_that_time() -> None:
    slots = Slots(3)
    mine = visit(slots, "acgn", turn("甲", "你好"))
    visit(slots, "", turn("甲", "你好", "你好呀", "猫"))
    visit(slots, "acgn", turn("甲", "早"))
    assert visit(slots, "acgn", turn("甲", "你好", "你好呀", "猫", "喵", "鱼")) == mine


def test_a_busy_slot_is_never_given_twice() -> None:
    slots = Slots(2)
    one, other = slots.take("", turn("甲", "你好")), slots.take("", turn("甲", "你好"))
    assert {one, other} == {0, 1}
    slots.give_back(other)
    assert slots.take("", turn("甲", "你好", "早", "猫")) == other


def test_a_newcomer_gets_the_slot_that_has_rested_longest() -> None:
    slots = Slots(2)
    old = visit(slots, "", turn("甲", "你好"))
    new = visit(slots, "", turn("乙", "早上好"))
    assert visit(slots, "", turn("乙", "早上好", "早", "狗")) == new
    assert visit(slots, "", turn("丙", "晚安")) == old
