import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.emotion import EmotionLabel
from domain.tags import Tag, TagParser
from tests.domain.strategies import in_pieces, labels

FORMS = ("[{}]", "[face:{}]", '<face name="{}"/>', '<face name="{}" />', '<|ACT {{"emotion": "{}"}}|>')
tags = st.builds(str.format, st.sampled_from(FORMS), labels)
# What models write that looks like a tag and is none, and pieces of tags that never come to an end.
LOOKALIKES = [
    "[1]", "[链接]", "[TODO]", "[face:nobody]", "[jo y]", "[joy", "joy]", "[", "]", "[[", "<", "<b>", "a < b", "<3",
    '<face name="nobody"/>', '<face name="joy"', "<|im_end|>", "<|ACT", '<|ACT {"emotion": "joy"', "|>", "好呀", "\n",
]  # fmt: skip
noise = st.lists(st.sampled_from(LOOKALIKES) | st.text("[]<>|/= {}\"':faceACTjoyname笑\n", max_size=6)).map("".join)
replies = st.lists(tags | noise, max_size=8).map("".join)
prose = st.text(st.characters(exclude_characters="[<", exclude_categories=["Cs"]), max_size=8)


def parsed(pieces: list[str]) -> list[str | Tag]:
    """What comes out of the parser, with neighbouring text joined."""
    parser = TagParser()
    found: list[str | Tag] = []
    for item in [item for piece in pieces for item in parser.feed(piece)] + parser.flush():
        if found and isinstance(item, str) and isinstance(found[-1], str):
            found[-1] += item
        else:
            found.append(item)
    return found


@given(in_pieces(replies))
def test_the_result_is_the_same_however_the_stream_is_cut(reply: tuple[str, list[str]]) -> None:
    text, pieces = reply
    assert parsed(pieces) == parsed([text]) == parsed(list(text))


@given(in_pieces(replies))
def test_no_text_holds_a_tag(reply: tuple[str, list[str]]) -> None:
    for item in parsed(reply[1]):
        if isinstance(item, str):
            assert item
            assert parsed([item]) == [item]


@given(st.lists(st.tuples(prose, tags), max_size=6), prose)
def test_all_of_the_text_and_all_of_the_tags_come_out_in_order(parts: list[tuple[str, str]], rest: str) -> None:
    found = parsed(["".join(text + tag for text, tag in parts) + rest])
    assert "".join(item for item in found if isinstance(item, str)) == "".join(text for text, _ in parts) + rest
    assert [item for item in found if isinstance(item, Tag)] == [parsed([tag])[0] for _, tag in parts]


@pytest.mark.parametrize("label", EmotionLabel)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_names_every_emotion(form: str, label: EmotionLabel) -> None:
    assert parsed([form.format(label)]) == [Tag(label)]
    assert parsed([f"好呀{form.format(label.upper())}走吧"]) == ["好呀", Tag(label), "走吧"]


def test_names_that_others_use_are_understood() -> None:
    assert parsed(["[happy]"]) == [Tag(EmotionLabel.JOY)]
    assert parsed(['<face name="Surprised"/>']) == [Tag(EmotionLabel.SURPRISE)]


def test_an_act_may_ask_for_a_motion_with_or_without_a_face() -> None:
    assert parsed(['<|ACT {"emotion": "shy", "motion": "wave"}|>']) == [Tag(EmotionLabel.SHY, "wave")]
    assert parsed(['<|ACT {"motion": "nod"}|>嗯']) == [Tag(None, "nod"), "嗯"]


def test_an_act_may_say_how_strong_its_emotion_is() -> None:
    assert parsed(['<|ACT {"emotion": {"name": "Happy", "intensity": 1}}|>']) == [Tag(EmotionLabel.JOY)]


@pytest.mark.parametrize(
    "act", ["{}", "{emotion: joy}", "{{}", '{"emotion": 3, "motion": []}', '{"emotion": {"name": 1}}']
)
def test_an_act_that_asks_for_nothing_we_know_is_swallowed(act: str) -> None:
    assert parsed([f"<|ACT {act}|>"]) == [Tag()]


@pytest.mark.parametrize("text", LOOKALIKES)
def test_what_only_looks_like_a_tag_is_text(text: str) -> None:
    assert parsed([text]) == [text]


def test_text_is_not_held_back_once_it_cannot_become_a_tag() -> None:
    parser = TagParser()
    assert parser.feed("你好") == ["你好"]
    assert parser.feed("[jo") == []
    assert parser.feed("ke") == []
    assert parser.feed(" ") == ["[joke "]
