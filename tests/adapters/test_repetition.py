from hypothesis import given
from hypothesis import strategies as st

from adapters.character.files import PACKAGED, CharacterFiles
from adapters.models.repetition import LoopGuard

CUTS = st.lists(st.integers(1, 9), min_size=1, max_size=40)


def said(text: str, cuts: list[int]) -> str:
    """Return what the guard lets through of a text that comes in pieces of the given sizes."""
    guard, kept, place, turn = LoopGuard(), "", 0, 0
    while place < len(text) and not guard.looping:
        size = cuts[turn % len(cuts)]
        kept += guard.feed(text[place : place + size])
        place, turn = place + size, turn + 1
    return kept


@given(
    text=st.text(alphabet="你好呀，。哈a ", max_size=120),
    unit=st.text(alphabet="你好呀，。哈a ", min_size=1, max_size=20),
    cuts=CUTS,
)
def test_where_a_reply_stops_does_not_depend_on_how_it_is_cut(text: str, unit: str, cuts: list[int]) -> None:
    looped = text + unit * 30
    assert said(looped, cuts) == said(looped, [len(looped)])


@given(start=st.text(max_size=40), unit=st.text(min_size=1, max_size=48), cuts=CUTS)
def test_whoever_goes_round_in_circles_is_stopped(start: str, unit: str, cuts: list[int]) -> None:
    kept = said(start + unit * 60, cuts)
    assert len(kept) <= len(start) + max(3 * len(unit), 16)


def test_a_clause_is_said_twice_but_not_four_times() -> None:
    reply = "别担心呀，老师在。今天先休息，好不好？别担心呀，明天再看。没关系的，别担心呀，慢慢来。"
    assert said(reply, [1]) == "别担心呀，老师在。今天先休息，好不好？别担心呀，明天再看。没关系的，别担心呀，慢慢来。"
    reply = "老师一直都在，别怕。老师一直都在，睡吧。老师一直都在，听话。"
    assert said(reply, [1]) == "老师一直都在，别怕。老师一直都在，睡吧。老师一直都在，"


def test_laughter_and_dots_are_no_loop() -> None:
    for reply in (
        "哈哈哈哈哈哈哈，笑死我了！",
        "唔……………………",
        "加油加油加油！",
        "嗯嗯嗯，好好好～～～",
        "100000000000 块！",
    ):
        assert said(reply, [1]) == reply


def test_nothing_that_she_says_herself_counts_as_a_loop() -> None:
    shelf = CharacterFiles((PACKAGED,))
    lines = [line for name in shelf.names() for exchange in shelf.load(name).exchanges for line in exchange.turns[1::2]]
    assert len(lines) > 100
    assert [line for line in lines if said(line, [2]) != line] == []
