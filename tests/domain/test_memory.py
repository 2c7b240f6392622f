from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.conversation import Scope
from domain.memory import Memory, MemoryKind, ShortTermWindow, retention
from tests.domain.strategies import pauses, share

NOW = datetime(2026, 3, 14, 22, 40, tzinfo=UTC)
memories = st.builds(
    Memory,
    id=st.just(UUID(int=1)),
    scope=st.just(Scope("local", "zishu")),
    kind=st.sampled_from(MemoryKind),
    text=st.just("怕猫"),
    recorded_at=st.just(NOW),
    last_recalled=st.just(NOW),
    importance=share,
    strength=st.integers(0, 1000),
)


@given(memories, pauses, pauses)
def test_what_is_not_recalled_fades(memory: Memory, one: timedelta, other: timedelta) -> None:
    sooner, later = sorted((one, other))
    assert 0 < retention(memory, NOW + later) <= retention(memory, NOW + sooner) <= 1


@given(memories, st.timedeltas(timedelta(days=1), timedelta(days=400)), st.integers(1, 100))
def test_each_spaced_recall_makes_it_fade_more_slowly(memory: Memory, elapsed: timedelta, more: int) -> None:
    stronger = replace(memory, strength=memory.strength + more)
    assert retention(stronger, NOW + elapsed) > retention(memory, NOW + elapsed)


@given(memories, st.timedeltas(timedelta(days=1), timedelta(days=400)), share, share)
def test_what_matters_more_stays_longer(memory: Memory, elapsed: timedelta, one: float, other: float) -> None:
    less, more = (retention(replace(memory, importance=value), NOW + elapsed) for value in sorted((one, other)))
    assert more >= less


@given(memories, st.timedeltas(timedelta(0), timedelta(days=100_000)))
def test_what_is_pinned_never_fades(memory: Memory, elapsed: timedelta) -> None:
    assert retention(replace(memory, pinned=True), NOW + elapsed) == 1


@given(memories, pauses)
def test_a_memory_from_the_future_is_as_fresh_as_can_be(memory: Memory, elapsed: timedelta) -> None:
    assert retention(memory, NOW - elapsed) == 1


@given(memories, st.timedeltas(timedelta(days=1), timedelta(days=400)))
def test_who_somebody_is_outlives_what_happened(memory: Memory, elapsed: timedelta) -> None:
    kept = {kind: retention(replace(memory, kind=kind), NOW + elapsed) for kind in MemoryKind}
    assert kept[MemoryKind.PROFILE] == kept[MemoryKind.PROMISE] == max(kept.values())
    assert kept[MemoryKind.EVENT] == min(kept.values())


windows = st.builds(ShortTermWindow, st.integers(0, 400))
costs = st.lists(st.integers(0, 120), max_size=60)


@given(windows, costs)
def test_what_is_left_always_fits(window: ShortTermWindow, items: list[int]) -> None:
    assert sum(items[window.cut(items) :]) <= window.tokens


@given(windows, costs)
def test_nothing_is_left_out_while_everything_fits(window: ShortTermWindow, items: list[int]) -> None:
    assert (window.cut(items) == 0) == (sum(items) <= window.tokens)


@given(windows, costs)
def test_what_was_left_out_never_comes_back(window: ShortTermWindow, items: list[int]) -> None:
    cuts = [window.cut(items[:end]) for end in range(len(items) + 1)]
    assert cuts == sorted(cuts)


@given(windows, costs)
def test_the_cut_moves_once_for_a_quarter_of_the_window(window: ShortTermWindow, items: list[int]) -> None:
    block = max(1, window.tokens // 4)
    totals = [0, *accumulate(items)]
    excesses = [max(0, total - window.tokens) for total in totals]
    cuts = [window.cut(items[:end]) for end in range(len(items) + 1)]
    for before in range(len(items)):
        if -(-excesses[before] // block) == -(-excesses[before + 1] // block):
            assert cuts[before] == cuts[before + 1]
    moves = len(set(cuts)) - 1
    assert moves <= -(-excesses[-1] // block)


@pytest.mark.parametrize(("said", "cut"), [(8, 0), (9, 2), (10, 2), (11, 4), (12, 4), (13, 6)])
def test_equal_lines_leave_two_at_a_time_from_a_window_of_eight(said: int, cut: int) -> None:
    assert ShortTermWindow(80).cut([10] * said) == cut
