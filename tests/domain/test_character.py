from datetime import timedelta
from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.character import (
    AccessoryRule,
    Appearance,
    Character,
    Exchange,
    Greetings,
    MotionRule,
    Persona,
    Tone,
    VoiceStyle,
)
from domain.emotion import EmotionLabel, Feeling, Mood, Temperament
from tests.domain.strategies import labels, share

RULES = (
    AccessoryRule("flower", words=("生日", "樱花"), emotions=(EmotionLabel.SHY,)),
    AccessoryRule("ribbon", words=("漫展",), emotions=(EmotionLabel.LAUGH, EmotionLabel.SHY)),
    AccessoryRule("hat", words=("生日", "冷")),
)
LOOK = Appearance("turtle", {}, RULES)
factor = st.floats(0.5, 2)


def character(*motions: MotionRule) -> Character:
    words = ("",) * 6
    feelings = {label: Feeling(Mood(), label.value, f"{label}_move") for label in EmotionLabel}
    return Character(
        id="her",
        display_name="紫舒",
        address="老师",
        calls_user="同学",
        persona=Persona(*words, likes=(), dislikes=(), catchphrases=(), values=(), boundaries=()),
        greetings=Greetings("初", "早", "午", "晚", "夜", "回"),
        temperament=Temperament(Mood(), 1.0, timedelta(minutes=20), 0.3, feelings),
        appearance=LOOK,
        voice=VoiceStyle("v", Tone(), {}),
        motions=motions,
        exchanges=(Exchange(("你好", "你好呀", "在吗", "在的")),),
    )


@pytest.mark.parametrize(
    ("said", "label", "accessory"),
    [
        ("今天我生日", EmotionLabel.NEUTRAL, "flower"),
        ("去漫展吗", EmotionLabel.SHY, "ribbon"),
        ("好冷", EmotionLabel.LAUGH, "hat"),
        ("嗯", EmotionLabel.SHY, "flower"),
        ("嗯", EmotionLabel.LAUGH, "ribbon"),
        ("嗯", EmotionLabel.SAD, "scarf"),
    ],
)
def test_words_choose_the_accessory_before_feelings_do_and_the_first_rule_wins(
    said: str, label: EmotionLabel, accessory: str
) -> None:
    assert LOOK.accessory_for(said, label, wearing="scarf") == accessory


@given(st.text(), labels, st.text())
def test_without_rules_she_keeps_what_she_wears(said: str, label: EmotionLabel, wearing: str) -> None:
    assert Appearance("turtle", {}).accessory_for(said, label, wearing=wearing) == wearing


@given(labels)
def test_words_choose_the_motion_before_the_feeling_does(label: EmotionLabel) -> None:
    her = character(MotionRule("wave", ("再见", "拜拜")), MotionRule("tuck_in", ("晚安", "再见")))
    assert her.motion_for("那再见啦", label) == "wave"
    assert her.motion_for("晚安", label) == "tuck_in"
    assert her.motion_for("嗯", label) == f"{label}_move"


@given(factor, factor, factor, factor, labels, share, share)
def test_a_feeling_bends_the_voice_as_far_as_it_is_strong(
    rate: float, pitch: float, faster: float, higher: float, label: EmotionLabel, one: float, other: float
) -> None:
    style = VoiceStyle("v", Tone(rate, pitch), {label: Tone(faster, higher)})
    assert style.tone_for(label, 0.0) == Tone(rate, pitch)
    fully = style.tone_for(label, 1.0)
    assert isclose(fully.rate, rate * faster)
    assert isclose(fully.pitch, pitch * higher)
    weak, strong = (style.tone_for(label, intensity) for intensity in sorted((one, other)))
    assert abs(strong.rate - rate) >= abs(weak.rate - rate) - 1e-12
    assert abs(strong.pitch - pitch) >= abs(weak.pitch - pitch) - 1e-12


@given(labels, share)
def test_a_feeling_without_a_tone_leaves_the_voice_alone(label: EmotionLabel, intensity: float) -> None:
    assert VoiceStyle("v", Tone(1.1, 0.9), {}).tone_for(label, intensity) == Tone(1.1, 0.9)


def test_every_hour_has_its_greeting() -> None:
    said = "".join(character().greetings.at(hour) for hour in range(24))
    assert said == "夜" * 5 + "早" * 6 + "午" * 3 + "回" * 4 + "晚" * 5 + "夜"


def test_an_exchange_ends_with_a_question_and_her_answer() -> None:
    exchange = character().exchanges[0]
    assert (exchange.question, exchange.answer) == ("在吗", "在的")
