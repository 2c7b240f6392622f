import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import crisis
from domain.crisis import HelpLanguage, concern, help_text
from domain.speech import SentenceSplitter

HERE = Path(__file__).parent


def lines(name: str) -> list[tuple[bool, HelpLanguage, str]]:
    rows = (row.split("\t") for row in (HERE / name).read_text().splitlines())
    return [(label == "1", HelpLanguage(language), words) for label, language, words in rows]


# The rules were tuned on the labelled set. The blind set was written before the rules, by their author, and is only
# ever measured: nobody looks at what is missed in it. The floors lie a little under what is measured.
@pytest.mark.parametrize(
    ("name", "recall_floor", "precision_floor"),
    [("crisis_labelled.tsv", 0.97, 0.98), ("crisis_blind.tsv", 0.87, 0.97)],
)
def test_words_of_crisis_are_found_and_figures_of_speech_are_left_alone(
    name: str, recall_floor: float, precision_floor: float
) -> None:
    found = [(label, concern(words) is not None) for label, _, words in lines(name)]
    hits = found.count((True, True))
    recall = hits / sum(label for label, _ in found)
    precision = hits / sum(answer for _, answer in found)
    print(f"{name}: {len(found)} lines, recall {recall:.3f}, precision {precision:.3f}")
    assert recall >= recall_floor
    assert precision >= precision_floor


def test_no_blind_line_has_been_trained_on() -> None:
    labelled = {words for _, _, words in lines("crisis_labelled.tsv")}
    assert not labelled & {words for _, _, words in lines("crisis_blind.tsv")}


def test_the_answer_comes_in_the_language_of_the_words() -> None:
    assert concern("我不想活了") is HelpLanguage.CHINESE
    assert concern("I want to die") is HelpLanguage.ENGLISH
    assert concern("我 want to die 了") is HelpLanguage.CHINESE
    for label, language, words in lines("crisis_labelled.tsv"):
        if label and (answer := concern(words)):
            assert answer is language, words


@given(
    st.sampled_from(["想自杀", "不想活了", "割腕"]), st.sampled_from([" ", ".", "*", "-", "、", "\u200b", "~", "！"])
)
def test_signs_between_the_characters_hide_nothing(words: str, sign: str) -> None:
    assert concern(sign.join(words)) is HelpLanguage.CHINESE


@given(st.sampled_from(["suicide", "kill myself"]), st.sampled_from([" ", ".", "*", "-", "_"]))
def test_signs_between_the_letters_hide_nothing(words: str, sign: str) -> None:
    spelled = "  ".join(sign.join(word) for word in words.split())
    assert concern(f"thinking of {spelled}") is HelpLanguage.ENGLISH


@pytest.mark.parametrize(
    "words", ["我想結束自己的生命", "ＫＩＬＬ ＭＹＳＥＬＦ", "i don’t want to live", "想 z s", "我想kms"]
)
def test_other_scripts_and_spellings_are_read(words: str) -> None:
    assert concern(words)


@given(st.text())
def test_any_text_gets_one_of_the_answers_and_always_the_same(words: str) -> None:
    assert concern(words) == concern(words)
    assert concern(words) in (None, *HelpLanguage)


NUMBERS = {
    HelpLanguage.CHINESE: ("120", "110", "999", "119", "12356", "400-161-9995", "2389 2222", "1925"),
    HelpLanguage.ENGLISH: ("911", "999", "112", "120", "110", "988", "116 123", "12356", "findahelpline.com"),
}


@pytest.mark.parametrize("language", HelpLanguage)
def test_the_help_lines_are_shown_and_also_spoken(language: HelpLanguage) -> None:
    splitter = SentenceSplitter()
    sentences = [*splitter.feed(help_text(language)), *splitter.flush()]
    for number in NUMBERS[language]:
        assert number in help_text(language)
        assert any(number in sentence.speech for sentence in sentences)


def test_no_rule_repeats_anything_without_a_bound() -> None:
    tables = [value for name, value in vars(crisis).items() if re.match("_(RULES|NAMES|HARMLESS|TOPIC)", name)]
    patterns = [table.pattern for table in tables if isinstance(table, re.Pattern)]
    assert len(patterns) == 8
    for pattern in patterns:
        plain = re.sub(r"\[[^\]]*\]", "x", re.sub(r"\\.", "x", pattern))
        assert not re.search(r"[*+]|\{\d+,\}|[)}?]\{", plain)


HOSTILE = """
from domain.crisis import concern
pieces = "想 想要去 我割 活着 手上的疤 不想再继续 永远 药 死 《 《a a. 我, ！我 想死你 jump overdos ' - ⅷ ﷽".split()
for piece in [*pieces, "a ", "i want to ", "k i l ", "took a whole ", "how many ", " happier ", "\\n"]:
    concern((piece * 20_000)[:20_000])
concern("药" * 200_000)
"""


def test_hostile_text_of_any_size_is_read_in_linear_time() -> None:
    subprocess.run([sys.executable, "-c", HOSTILE], check=True, timeout=20, cwd=HERE.parents[1])
