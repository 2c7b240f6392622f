"""What hypothesis draws for the tests of the domain."""

from datetime import timedelta

from hypothesis import strategies as st

from domain.emotion import Emotion, EmotionLabel, Feeling, Mood, Temperament

unit = st.floats(-1, 1)
share = st.floats(0, 1)
labels = st.sampled_from(EmotionLabel)
moods = st.builds(Mood, unit, unit, unit)
emotions = st.builds(Emotion, labels, share)
pauses = st.timedeltas(timedelta(0), timedelta(days=30))


def temperaments(gain: st.SearchStrategy[float] | None = None) -> st.SearchStrategy[Temperament]:
    """Characters of every kind: any emotion may mean any mood."""
    feelings = st.fixed_dictionaries(
        {label: st.builds(Feeling, moods, st.just(label.value), st.just(f"{label}_move")) for label in EmotionLabel}
    )
    return st.builds(
        Temperament,
        baseline=moods,
        gain=st.floats(0, 2) if gain is None else gain,
        half_life=st.timedeltas(timedelta(minutes=1), timedelta(days=7)),
        contagion=share,
        feelings=feelings,
    )


@st.composite
def in_pieces(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> tuple[str, list[str]]:
    """A text, and the same text cut anywhere, as a model may stream it."""
    text = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return text, [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
