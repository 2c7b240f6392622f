from datetime import timedelta
from itertools import groupby
from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.emotion import FADED, HYSTERESIS, LINGERING, MOOD_STRENGTH, Emotion, EmotionLabel, Mood, Temperament, shown
from tests.domain.strategies import emotions, labels, moods, pauses, share, temperaments

TINY = 1e-9


def nearly(one: Mood, other: Mood) -> bool:
    return one.distance(other) < TINY


@given(moods, temperaments(), st.lists(emotions | pauses, max_size=20))
def test_whatever_happens_the_mood_stays_in_the_cube(
    mood: Mood, she: Temperament, events: list[Emotion | timedelta]
) -> None:
    for event in events:
        if isinstance(event, Emotion):
            mood = she.react(mood, event)
        else:
            mood = mood.after(event, half_life=she.half_life, baseline=she.baseline)
        assert all(-1 <= axis <= 1 for axis in (mood.valence, mood.arousal, mood.dominance))


@pytest.mark.parametrize("axis", [-1.01, 1.01, float("nan")])
def test_a_mood_outside_the_cube_is_refused(axis: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        Mood(arousal=axis)


@pytest.mark.parametrize("intensity", [-0.01, 1.01, float("nan")])
def test_an_intensity_outside_its_range_is_refused(intensity: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        Emotion(EmotionLabel.JOY, intensity)


@given(moods, temperaments(), pauses, pauses)
def test_the_mood_only_ever_falls_back_towards_the_baseline(
    mood: Mood, she: Temperament, one: timedelta, other: timedelta
) -> None:
    sooner, later = (
        mood.after(elapsed, half_life=she.half_life, baseline=she.baseline).distance(she.baseline)
        for elapsed in sorted((one, other))
    )
    assert later <= sooner + TINY <= mood.distance(she.baseline) + 2 * TINY


@given(moods, temperaments(), pauses, pauses)
def test_two_pauses_in_a_row_are_one_long_pause(
    mood: Mood, she: Temperament, first: timedelta, second: timedelta
) -> None:
    def after(start: Mood, elapsed: timedelta) -> Mood:
        return start.after(elapsed, half_life=she.half_life, baseline=she.baseline)

    assert nearly(after(after(mood, first), second), after(mood, first + second))


@given(moods, temperaments())
def test_half_of_a_mood_is_left_after_its_half_life(mood: Mood, she: Temperament) -> None:
    left = mood.after(she.half_life, half_life=she.half_life, baseline=she.baseline)
    assert isclose(left.distance(she.baseline), mood.distance(she.baseline) / 2, abs_tol=TINY)


@given(moods, temperaments(), pauses)
def test_a_clock_set_back_changes_nothing(mood: Mood, she: Temperament, elapsed: timedelta) -> None:
    assert nearly(mood.after(-elapsed, half_life=she.half_life, baseline=she.baseline), mood)


@given(moods, temperaments(), emotions)
def test_one_feeling_moves_her_at_most_half_way(mood: Mood, she: Temperament, felt: Emotion) -> None:
    goal = she.feelings[felt.label].mood
    assert she.react(mood, felt).distance(goal) >= mood.distance(goal) / 2 - TINY


@given(moods, temperaments(), labels, share, share)
def test_a_stronger_feeling_moves_her_no_less(
    mood: Mood, she: Temperament, label: EmotionLabel, one: float, other: float
) -> None:
    weak, strong = (she.react(mood, Emotion(label, intensity)) for intensity in sorted((one, other)))
    assert strong.distance(mood) >= weak.distance(mood) - TINY


@given(moods, temperaments(gain=st.just(0.0)), emotions, emotions, emotions)
def test_without_gain_nothing_is_felt_and_no_face_is_pulled(
    mood: Mood, she: Temperament, current: Emotion, one: Emotion, other: Emotion
) -> None:
    assert she.react(mood, one) == mood
    assert shown(current, one, mood, she).label is shown(current, other, mood, she).label


@given(temperaments(), emotions)
def test_she_catches_no_more_than_the_user_feels(she: Temperament, theirs: Emotion) -> None:
    caught = she.catch(theirs)
    assert caught.label is theirs.label
    assert caught.intensity <= theirs.intensity


@given(
    temperaments(gain=st.floats(0.5, 2)),
    moods,
    emotions,
    st.builds(Emotion, labels, st.floats(0.4, 1)),
)
def test_the_same_feeling_again_and_again_settles_on_one_face(
    she: Temperament, mood: Mood, face: Emotion, felt: Emotion
) -> None:
    settled = []
    for clause in range(160):
        mood = she.react(mood, felt)
        face = shown(face, felt, mood, she)
        if clause >= 120:
            settled.append(face)
    assert len(set(settled)) == 1


faint = st.builds(Emotion, labels, st.floats(0, HYSTERESIS * 0.99))


@given(temperaments(gain=st.floats(0, 1)), moods, emotions, st.lists(faint, max_size=40))
def test_faint_feelings_do_not_make_the_face_flicker(
    she: Temperament, mood: Mood, face: Emotion, felt: list[Emotion]
) -> None:
    seen = [face]
    for feeling in felt:
        seen.append(shown(seen[-1], feeling, mood, she))
    worn = [label for label, _ in groupby(face.label for face in seen)]
    assert len(worn) == len(set(worn)), "a face that was given up came back"


@given(temperaments(), moods, emotions, emotions)
def test_a_face_that_nothing_feeds_fades(she: Temperament, mood: Mood, current: Emotion, felt: Emotion) -> None:
    face = shown(current, felt, mood, she)
    if face != felt:
        assert face.intensity <= max(
            FADED, LINGERING * current.intensity, MOOD_STRENGTH * (face.label is not current.label)
        )


@given(temperaments(gain=st.floats(0.8, 2)), emotions, labels.filter(lambda label: label is not EmotionLabel.NEUTRAL))
def test_a_strong_feeling_that_has_taken_hold_shows(she: Temperament, current: Emotion, label: EmotionLabel) -> None:
    felt = Emotion(label, 1.0)
    assert shown(current, felt, she.feelings[label].mood, she) == felt


@given(temperaments(), emotions, st.floats(0, 1))
def test_a_clause_without_feeling_leaves_a_strong_face_on(she: Temperament, current: Emotion, sure: float) -> None:
    if current.label is not EmotionLabel.NEUTRAL and current.intensity * LINGERING > FADED:
        mood = she.feelings[current.label].mood
        assert shown(current, Emotion(EmotionLabel.NEUTRAL, sure), mood, she).label is current.label
