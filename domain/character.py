"""Who she is: a character is data, and a new one needs no code."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from domain.emotion import EmotionLabel, Temperament


@dataclass(frozen=True, slots=True)
class Exchange:
    """An example dialogue: user and character alternate, the character has the last word.

    Attributes:
        turns: The lines; even positions are the user's, odd ones hers.
        name: What she calls the user, where she knows it beforehand.
        now: When the last user line is said, where the reply depends on it.
        memories: What she recalls from long ago, dated lines.
        topic: What it is an example of.
    """

    turns: tuple[str, ...]
    name: str | None = None
    now: datetime | None = None
    memories: tuple[str, ...] = ()
    topic: str = ""

    @property
    def question(self) -> str:
        """The user's last line."""
        return self.turns[-2]

    @property
    def answer(self) -> str:
        """Her last line."""
        return self.turns[-1]


@dataclass(frozen=True, slots=True)
class Persona:
    """Her self in words. `summary` opens every prompt; the rest is for models with room for it."""

    summary: str
    identity: str
    temperament: str
    background: str
    relationship: str
    register: str
    likes: tuple[str, ...]
    dislikes: tuple[str, ...]
    catchphrases: tuple[str, ...]
    values: tuple[str, ...]
    boundaries: tuple[str, ...]

    def in_full(self) -> str:
        """Return the whole persona as prose for a model with a large context."""
        return "\n".join(
            (
                self.summary,
                f"身份：{self.identity}",
                f"性格：{self.temperament}",
                f"背景：{self.background}",
                f"和用户的关系：{self.relationship}",
                f"说话方式：{self.register}",
                f"喜欢：{'、'.join(self.likes)}。不喜欢：{'、'.join(self.dislikes)}。",
                f"口头禅：{'、'.join(self.catchphrases)}。",
                f"看重：{'；'.join(self.values)}。",
                f"底线：{'；'.join(self.boundaries)}。",
            )
        )


@dataclass(frozen=True, slots=True)
class Greetings:
    """What she says first, by occasion and by hour."""

    first: str
    morning: str
    noon: str
    evening: str
    night: str
    back: str

    def at(self, hour: int) -> str:
        """Return the greeting for an hour of the day, 0 to 23."""
        if 5 <= hour < 11:
            return self.morning
        if 11 <= hour < 14:
            return self.noon
        if 14 <= hour < 18:
            return self.back
        return self.evening if 18 <= hour < 23 else self.night


@dataclass(frozen=True, slots=True)
class AccessoryRule:
    """When she puts on an accessory: one of the words was said, or one of the emotions is shown."""

    accessory: str
    words: tuple[str, ...] = ()
    emotions: tuple[EmotionLabel, ...] = ()


@dataclass(frozen=True, slots=True)
class Appearance:
    """What she wears and the colours she is drawn in."""

    accessory: str
    palette: Mapping[str, str]
    rules: tuple[AccessoryRule, ...] = ()

    def accessory_for(self, said: str, label: EmotionLabel, *, wearing: str) -> str:
        """Choose the accessory: the first rule whose word was said, else whose emotion shows, else what she wears."""
        for rule in self.rules:
            if any(word in said for word in rule.words):
                return rule.accessory
        for rule in self.rules:
            if label in rule.emotions:
                return rule.accessory
        return wearing


@dataclass(frozen=True, slots=True)
class MotionRule:
    """A movement that goes with what is said, such as waving at a goodbye."""

    motion: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tone:
    """Factors on the voice's own rate and pitch."""

    rate: float = 1.0
    pitch: float = 1.0


@dataclass(frozen=True, slots=True)
class VoiceStyle:
    """How she sounds: the voice's name, its resting tone, and how emotions bend it."""

    voice: str
    tone: Tone
    moods: Mapping[EmotionLabel, Tone]

    def tone_for(self, label: EmotionLabel, intensity: float) -> Tone:
        """Return the tone with `intensity` (0 to 1) of the emotion's bend applied."""
        bend = self.moods.get(label, Tone())
        return Tone(
            self.tone.rate * (1 + (bend.rate - 1) * intensity), self.tone.pitch * (1 + (bend.pitch - 1) * intensity)
        )


@dataclass(frozen=True, slots=True)
class Character:
    """Everything that makes one character who she is.

    Attributes:
        id: The name of her file; half of every scope.
        display_name: What the prompt and the screen call her.
        address: What the user calls her.
        calls_user: What she calls a user whose name she does not know.
    """

    id: str
    display_name: str
    address: str
    calls_user: str
    persona: Persona
    greetings: Greetings
    temperament: Temperament
    appearance: Appearance
    voice: VoiceStyle
    motions: tuple[MotionRule, ...]
    exchanges: tuple[Exchange, ...]

    def motion_for(self, said: str, label: EmotionLabel) -> str:
        """Choose what she does: by what she says, else by what she feels."""
        for rule in self.motions:
            if any(word in said for word in rule.words):
                return rule.motion
        return self.temperament.feelings[label].motion
