from collections.abc import Mapping
from itertools import pairwise
from math import isclose

from hypothesis import given
from hypothesis import strategies as st

from domain.residency import Counts, MarkovPredictor, Move, Place, Residency, Weights

NAMES = ("acgn", "culture", "logic", "security", "style", "vision")
adapters = st.builds(
    lambda name, size, seconds: Weights(name, size, seconds),
    st.sampled_from(NAMES),
    st.integers(0, 50),
    st.floats(0.001, 5),
)
likelihoods = st.dictionaries(st.sampled_from(NAMES), st.floats(0, 1))
# What happens to an adapter: it is read ahead with these likelihoods, or (None) used, whoever may be likely next.
steps = st.lists(st.tuples(adapters, st.none() | likelihoods), max_size=40)
places = st.builds(Residency, slots=st.integers(1, 4), size=st.integers(0, 120))


def sized(name: str, size: int = 10, seconds: float = 1.0, *, pinned: bool = False) -> Weights:
    return Weights(name, size, seconds, pinned)


def done(state: Residency, step: tuple[Weights, Mapping[str, float] | None]) -> tuple[Residency, tuple[Move, ...]]:
    wanted, likely = step
    return state.use(wanted, {"acgn": 0.7, "style": 0.3}) if likely is None else state.fetch(wanted, likely)


def used(state: Residency, *wanted: Weights) -> Residency:
    for one in wanted:
        state, _ = state.use(one)
    return state


@given(places, steps)
def test_no_place_ever_holds_more_than_it_can(state: Residency, happening: list) -> None:
    sizes: dict[str, int] = {}
    for step in happening:
        # an adapter that changed is another adapter: the first one seen of a name stays it
        wanted = Weights(step[0].name, sizes.setdefault(step[0].name, step[0].size), step[0].seconds)
        state, _ = done(state, (wanted, step[1]))
        assert len(state.names(Place.DEVICE)) <= state.slots
        assert sum(sizes[name] for name in state.names(Place.RAM)) <= state.size
        assert not state.names(Place.DEVICE) & state.names(Place.RAM)


@given(places, steps)
def test_the_moves_say_exactly_what_changed(state: Residency, happening: list) -> None:
    for step in happening:
        before = state
        state, moves = done(state, step)
        assert {move.name for move in moves} == {name for name in NAMES if before.where(name) != state.where(name)}
        assert all(state.where(move.name) is move.to for move in moves)
        if step[1] is None:
            assert state.where(step[0].name) is Place.DEVICE


@given(places, steps)
def test_a_hit_moves_nothing(state: Residency, happening: list) -> None:
    for step in happening:
        on_device = state.where(step[0].name) is Place.DEVICE
        state, moves = done(state, step)
        assert not (on_device and moves)


@given(places, steps, st.sets(st.sampled_from(NAMES)))
def test_a_pinned_adapter_stays_on_the_device(state: Residency, happening: list, pinned: set[str]) -> None:
    arrived: set[str] = set()
    for wanted, likely in happening:
        wanted = Weights(wanted.name, wanted.size, wanted.seconds, wanted.name in pinned)
        state, _ = done(state, (wanted, likely))
        arrived |= {wanted.name} & pinned if likely is None else set()
        if len(pinned) < state.slots:
            assert arrived <= state.names(Place.DEVICE)


@given(places, steps)
def test_the_same_happenings_always_give_the_same_decisions(state: Residency, happening: list) -> None:
    one = other = state
    for step in happening:
        one, moves = done(one, step)
        other, same = done(other, step)
        assert (one, moves) == (other, same)


@given(places, steps)
def test_every_use_is_counted_once_and_no_more_is_wasted_than_was_fetched(state: Residency, happening: list) -> None:
    for step in happening:
        state, _ = done(state, step)
    counts = state.counts
    assert counts.hits + counts.warm + counts.misses == sum(likely is None for _, likely in happening)
    assert 0 <= counts.wasted <= counts.fetched


def test_among_equals_the_first_of_the_alphabet_goes() -> None:
    state = used(Residency(2, 0), sized("style"), sized("logic"))
    state, moves = state.use(sized("vision"))
    assert moves == (Move("logic", Place.DISK), Move("vision", Place.DEVICE))


def test_what_is_dear_to_fetch_outlives_what_is_cheap() -> None:
    state = used(
        Residency(2, 0), sized("logic", seconds=5.0), sized("style", seconds=0.1), sized("vision", seconds=0.1)
    )
    assert state.names(Place.DEVICE) == {"logic", "vision"}


def test_memory_keeps_two_small_ones_rather_than_a_large_one() -> None:
    state = used(Residency(1, 20), *(sized(name, size) for name, size in (("acgn", 20), ("logic", 10), ("style", 10))))
    state = used(state, sized("vision"))
    assert state.names(Place.RAM) == {"logic", "style"}


def test_what_was_popular_long_ago_does_not_stay_for_ever() -> None:
    state = used(Residency(2, 0), *[sized("acgn")] * 5)
    state = used(state, *(sized(name) for name in ("logic", "style", "vision", "security", "culture") * 3))
    assert state.where("acgn") is Place.DISK


def test_who_is_likely_next_is_evicted_last() -> None:
    state = used(Residency(2, 0), sized("logic"), sized("style"))
    assert state.use(sized("vision"))[0].names(Place.DEVICE) == {"style", "vision"}
    likely = {"logic": 0.5, "style": 0.1, "vision": 0.4}
    assert state.use(sized("vision"), likely)[0].names(Place.DEVICE) == {"logic", "vision"}
    state = used(Residency(2, 0), sized("logic"), sized("style"))
    assert state.use(sized("vision"), {"logic": 0.5, "style": 0.5, "vision": 0.0})[0].names(Place.DEVICE) == {
        "style",
        "vision",
    }


def test_an_evicted_adapter_waits_in_memory() -> None:
    state = used(Residency(1, 20), sized("acgn"), sized("logic"))
    assert state.where("acgn") is Place.RAM
    state, moves = state.use(sized("acgn"))
    assert moves == (Move("logic", Place.RAM), Move("acgn", Place.DEVICE))
    assert state.counts == Counts(misses=2, warm=1)


def test_reading_ahead_displaces_only_what_is_less_likely() -> None:
    state, _ = Residency(1, 10).fetch(sized("acgn"), {"acgn": 0.6})
    assert state.fetch(sized("logic"), {"acgn": 0.6, "logic": 0.4}) == (state, ())
    state, moves = state.fetch(sized("logic"), {"acgn": 0.2, "logic": 0.7})
    assert moves == (Move("acgn", Place.DISK), Move("logic", Place.RAM))
    assert state.counts == Counts(fetched=2, wasted=1)


def test_an_adapter_larger_than_memory_is_not_read_ahead() -> None:
    state = Residency(1, 10)
    assert state.fetch(sized("acgn", 11), {"acgn": 1.0}) == (state, ())


def test_pins_never_take_the_last_slot() -> None:
    state = used(Residency(1, 10), sized("style", pinned=True), sized("acgn"))
    assert state.names(Place.DEVICE) == {"acgn"}


def test_a_forgotten_adapter_is_on_disk() -> None:
    state = used(Residency(1, 20), sized("acgn"), sized("logic")).forget("acgn").forget("logic")
    assert state.where("acgn") is state.where("logic") is Place.DISK


def chain(*names: str) -> MarkovPredictor:
    predictor = MarkovPredictor()
    for before, now in pairwise(names):
        predictor = predictor.after(before, now)
    return predictor


@given(st.lists(st.sampled_from(NAMES), max_size=30), likelihoods, st.sampled_from(NAMES))
def test_chances_are_positive_and_add_up_to_one(past: list[str], posteriors: dict[str, float], current: str) -> None:
    mixed = chain(*past).mixed(posteriors, current)
    assert isclose(sum(mixed.values()), 1.0)
    assert all(chance > 0 for chance in mixed.values())
    assert mixed.keys() >= posteriors.keys() | set(past[1:]) | {current}


@given(st.sampled_from(NAMES), st.sampled_from(NAMES))
def test_what_followed_before_is_expected_again(before: str, now: str) -> None:
    mixed = chain(*(before, now) * 5).mixed({name: 1 / len(NAMES) for name in NAMES}, before)
    assert max(mixed, key=lambda name: mixed[name]) == now


def test_without_a_past_the_router_decides() -> None:
    mixed = MarkovPredictor().mixed({"acgn": 0.9, "base": 0.1}, "base")
    assert mixed["acgn"] > mixed["base"]


def test_unknown_pasts_make_all_equally_likely() -> None:
    assert MarkovPredictor().chances("base", NAMES) == dict.fromkeys(NAMES, 1 / len(NAMES))
