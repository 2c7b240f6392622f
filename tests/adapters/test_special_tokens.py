from collections.abc import Iterator
from itertools import repeat

from hypothesis import given
from hypothesis import strategies as st

from adapters.models.special_tokens import defused
from domain.character import Exchange
from domain.conversation import Message, Role
from domain.prompt import LAYOUTS, Prompt, as_messages, as_text

SPECIAL = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "[multimodal]", "<|im_end|>")
TEXTS = st.lists(st.sampled_from([*SPECIAL, "<", ">", "<e", "os>", "|", "[", "你好", " ", "\n", "of_turn>"])).map(
    "".join
)


def prompt_of(text: Iterator[str]) -> Prompt:
    """Return a prompt with a text of its own in every place."""
    return Prompt(
        user_name=next(text),
        her_name=next(text),
        persona=next(text),
        words=next(text),
        fixed=(Exchange((next(text), next(text))),),
        profile=next(text),
        history=(Message(Role.USER, next(text)), Message(Role.HER, next(text))),
        notes=(next(text),),
        found=((next(text), next(text)),),
    )


@given(texts=st.lists(TEXTS, min_size=12, max_size=12))
def test_nobody_but_the_layout_places_a_special_token(texts: list[str]) -> None:
    safe = defused(prompt_of(iter(texts)), SPECIAL)
    assert not any(token in text for _, text in as_messages(safe) for token in SPECIAL)
    for layout in LAYOUTS.values():
        laid = as_text(safe, layout)
        harmless = as_text(prompt_of(repeat("好")), layout)
        assert all(laid.count(token) == harmless.count(token) for token in SPECIAL)


def test_ordinary_words_stay_as_they_are() -> None:
    prompt = Prompt("同学", "紫舒", "老师", "1 < 2，<b>对吗</b>？[好]")
    assert defused(prompt, SPECIAL) == prompt
