import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.speech import FIRST_CLAUSE_HAN, Sentence, SentenceSplitter, spoken
from tests.domain.strategies import in_pieces

# What is never cut in two.
WHOLE = [
    "3.14", "1,000,000", "10:30", "10：30", "2026.3.14", "v1.2",
    "https://a.com/x?y=1,2;z=3!", "http://localhost:8080/a.b", "a.b@c.com",
    "「走吧。别回头！」", "『嗯？好。』", "“真的？真的！”", "（等等。嗯！）", "(well... no!)", "《你好。再见》",
    '"Wait! Really?"', "*歪头，笑。看着你*", "Mr. Chen", "J. K. Rowling", "e.g. this",
]  # fmt: skip
SIGNS = list(" ，、,:：。！？…!?.;；\n～」“(*\"'/")
WORDS = ["今天天气", "我们", "好", "嗯", "OK", "Hi", "3", "5*3", "**重点**", "😊", "...", "https://"]
fragments = st.sampled_from([*WHOLE, *WORDS, *SIGNS])
replies = st.lists(fragments, max_size=14).map("".join)
quiet = st.text("你好今天我们去看书", max_size=12)


def split(pieces: list[str]) -> list[Sentence]:
    splitter = SentenceSplitter()
    return [sentence for piece in pieces for sentence in splitter.feed(piece)] + splitter.flush()


def displays(text: str) -> list[str]:
    return [sentence.display for sentence in split([text])]


@given(in_pieces(replies))
def test_the_sentences_are_the_same_however_the_stream_is_cut(reply: tuple[str, list[str]]) -> None:
    text, pieces = reply
    assert split(pieces) == split([text]) == split(list(text))


@given(replies)
def test_nothing_but_blank_is_lost(text: str) -> None:
    rest = text
    for display in displays(text):
        blank, found, rest = rest.partition(display)
        assert found
        assert not blank.strip()
    assert not rest.strip()


@given(replies)
def test_sentences_are_numbered_from_nought(text: str) -> None:
    assert [sentence.index for sentence in split([text])] == list(range(len(displays(text))))


@given(
    quiet,
    st.sampled_from(["", "，", "。", "！", "\n"]),
    st.sampled_from(WHOLE),
    st.sampled_from(["", "，", "。", "呀。"]),
    quiet,
)
def test_what_belongs_together_is_never_cut(before: str, mark: str, whole: str, end: str, after: str) -> None:
    assert any(whole in display for display in displays(before + mark + whole + end + after))


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("好呀！走吧。", ["好呀！", "走吧。"]),
        ("真的吗？！走吧……嗯", ["真的吗？！", "走吧……", "嗯"]),
        ("第一行\n第二行", ["第一行\n", "第二行"]),
        ("Hi there. How are you? Fine!\nOk", ["Hi there.", " How are you?", " Fine!\n", "Ok"]),
        ("我知道了.然后呢?嗯!", ["我知道了.", "然后呢?", "嗯!"]),
        ("他说：“不去。”然后走了。你呢？", ["他说：“不去。”然后走了。", "你呢？"]),
        ('她笑了。"你来啦？"门开了。', ["她笑了。", '"你来啦？"门开了。']),
        ("“没有说完\n下一行。再下一行。", ["“没有说完\n", "下一行。", "再下一行。"]),
        ("三乘五是3*5=15。对吧？", ["三乘五是3*5=15。", "对吧？"]),
        ("好的，\n我们走。", ["好的，\n", "我们走。"]),
        ("  \n\n好。", ["好。"]),
        ("", []),
    ],
)  # fmt: skip
def test_sentences_end_where_a_reader_would_end_them(text: str, sentences: list[str]) -> None:
    assert displays(text) == sentences


@given(quiet, quiet)
def test_the_first_clause_is_spoken_early_if_it_is_long_enough(first: str, second: str) -> None:
    text = f"好{first}，{second}好。"
    long_enough = 1 + len(first) >= FIRST_CLAUSE_HAN
    assert displays(text) == ([f"好{first}，", f"{second}好。"] if long_enough else [text])


def test_later_clauses_wait_for_the_end_of_their_sentence() -> None:
    assert displays("今天天气真不错，我们走。后来下起了大雨，我们没有走。") == [
        "今天天气真不错，",
        "我们走。",
        "后来下起了大雨，我们没有走。",
    ]


@pytest.mark.parametrize(
    ("display", "speech"),
    [
        ("*歪头* 你好呀～", "你好呀～"),
        ("（笑）你好，", "你好"),
        ("(waves) Hi there!", "Hi there!"),
        ("这个**很重要**哦。", "这个很重要哦。"),
        ("看https://a.com/x?y=1这里。", "看这里。"),
        ("# 标题", "标题"),
        ("`code`", "code"),
        ("好呀😊👍🏽❤️⭐1️⃣👩‍👩‍👧🇨🇳⏰。", "好呀1。"),
        ("*歪头*！", ""),
        ("……", ""),
        ("😊", ""),
        ("  ", ""),
    ],
)
def test_only_words_are_spoken(display: str, speech: str) -> None:
    assert spoken(display) == speech


@given(st.text("你好今天abc。！？～", min_size=1))
def test_plain_words_are_spoken_as_they_stand(text: str) -> None:
    assert spoken(text) in (text, "")


@given(replies)
def test_speech_is_never_made_of_signs_alone(text: str) -> None:
    speech = spoken(text)
    assert not speech or any(char.isalnum() for char in speech)
    assert not set(speech) & set("*`#>_😊")
