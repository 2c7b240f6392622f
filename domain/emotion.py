"""How she feels: a point in valence, arousal and dominance that reacts, lingers, and shows as one label."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from math import sqrt


class EmotionLabel(StrEnum):
    """The emotions that are told apart, in the user's words and in hers."""

    NEUTRAL = "neutral"
    JOY = "joy"
    LAUGH = "laugh"
    SHY = "shy"
    TEASE = "tease"
    SURPRISE = "surprise"
    THINK = "think"
    SAD = "sad"
    ANXIOUS = "anxious"
    COMFORT = "comfort"
    ANGRY = "angry"
    SLEEPY = "sleepy"
    FOCUSED = "focused"


@dataclass(frozen=True, slots=True)
class Emotion:
    """A recognised emotion and how strong it is, from 0 to 1."""

    label: EmotionLabel = EmotionLabel.NEUTRAL
    intensity: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.intensity <= 1.0:
            raise ValueError(f"intensity {self.intensity} is outside [0, 1]")


@dataclass(frozen=True, slots=True)
class Mood:
    """How she feels: valence, arousal, dominance, each in [-1, 1].

    Source: the PAD model, Mehrabian 1996, doi:10.1007/BF02686918.
    """

    valence: float = 0.0
    arousal: float = 0.0
    dominance: float = 0.0

    def __post_init__(self) -> None:
        for axis in (self.valence, self.arousal, self.dominance):
            if not -1.0 <= axis <= 1.0:
                raise ValueError(f"mood axis {axis} is outside [-1, 1]")

    def toward(self, other: "Mood", share: float) -> "Mood":
        """Return the mood `share` (0 to 1) of the way from here to `other`."""

        def blend(mine: float, theirs: float) -> float:
            return max(-1.0, min(1.0, mine + (theirs - mine) * share))

        return Mood(
            blend(self.valence, other.valence),
            blend(self.arousal, other.arousal),
            blend(self.dominance, other.dominance),
        )

    def distance(self, other: "Mood") -> float:
        """Return the Euclidean distance, from 0 to 2·√3."""
        return sqrt(
            (self.valence - other.valence) ** 2
            + (self.arousal - other.arousal) ** 2
            + (self.dominance - other.dominance) ** 2
        )

    def after(self, elapsed: timedelta, *, half_life: timedelta, baseline: "Mood") -> "Mood":
        """Return the mood once `elapsed` has passed with nothing happening: half way to `baseline` per half-life."""
        halvings = max(0.0, elapsed / half_life)
        return self.toward(baseline, 1.0 - 0.5**halvings)


@dataclass(frozen=True, slots=True)
class Feeling:
    """What one emotion means for one character: where it pulls the mood, the face and the movement it shows."""

    mood: Mood
    expression: str
    motion: str


@dataclass(frozen=True, slots=True)
class Temperament:
    """How a character reacts: resting mood, gain, inertia and the meaning of every emotion label.

    Attributes:
        baseline: Where the mood rests.
        gain: Strength of reaction; 1 follows the emotion map, 0 feels nothing.
        half_life: Time in which a mood loses half its distance to the baseline.
        contagion: Share of the user's emotion that she takes on, 0 to 1.
        feelings: One entry for every `EmotionLabel`.
    """

    baseline: Mood
    gain: float
    half_life: timedelta
    contagion: float
    feelings: Mapping[EmotionLabel, Feeling]

    def react(self, mood: Mood, felt: Emotion) -> Mood:
        """Return the mood after feeling `felt`; inertia keeps at least half of the old mood."""
        share = max(0.0, min(0.5, 0.5 * self.gain * felt.intensity))
        return mood.toward(self.feelings[felt.label].mood, share)

    def catch(self, theirs: Emotion) -> Emotion:
        """Return what she takes on of the user's emotion."""
        return Emotion(theirs.label, theirs.intensity * self.contagion)


# How much better another emotion must fit before the face changes; keeps it from flickering between clauses.
HYSTERESIS = 0.15
# What a shown emotion keeps of its strength through a clause that does not repeat it.
LINGERING = 0.6
# At this strength a shown emotion has faded, and the face follows the mood.
FADED = 0.15
# How strongly the face shows an emotion that nobody voiced, but that the mood has come near to.
MOOD_STRENGTH = 0.5


def shown(current: Emotion, felt: Emotion, mood: Mood, temperament: Temperament) -> Emotion:
    """Choose the one emotion that the face shows.

    Every label scores its nearness to the mood; the felt label its intensity besides, as far as her gain lets her feel
    it, and the shown one what lingers of it. A clause without feeling is no reason to drop a face: it fades instead.
    """
    voiced = 0.0 if felt.label is EmotionLabel.NEUTRAL else min(1.0, temperament.gain * felt.intensity)
    lingers = 0.0 if current.label is EmotionLabel.NEUTRAL else LINGERING * current.intensity

    def score(label: EmotionLabel) -> float:
        nearness = 1.0 - temperament.feelings[label].mood.distance(mood) / (2 * sqrt(3))
        return nearness + (voiced if label is felt.label else 0.0) + (lingers if label is current.label else 0.0)

    best = max(EmotionLabel, key=score)
    follows_mood = lingers <= FADED and not (voiced and best is felt.label)
    margin = 0.0 if follows_mood else HYSTERESIS
    label = best if score(best) > score(current.label) + margin else current.label
    if label is felt.label:
        return felt
    return Emotion(label, max(FADED, lingers) if label is current.label else MOOD_STRENGTH)
