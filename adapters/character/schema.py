"""The keys of a character file, and how they become a `Character`."""

from datetime import datetime, timedelta
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

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

Unit = Annotated[float, Field(ge=-1, le=1)]
Factor = Annotated[float, Field(ge=0.5, le=2)]
Line = Annotated[str, Field(min_length=1, max_length=2000)]


class _Keys(BaseModel):
    """A table of the file: an unknown key is a mistake, not a wish."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PersonaKeys(_Keys):
    """`[persona]`."""

    summary: Line
    identity: Line
    temperament: Line
    background: Line
    relationship: Line
    register_: Line = Field(alias="register")
    likes: tuple[Line, ...]
    dislikes: tuple[Line, ...]
    catchphrases: tuple[Line, ...]
    values: tuple[Line, ...]
    boundaries: tuple[Line, ...]


class GreetingKeys(_Keys):
    """`[greetings]`."""

    first: Line
    morning: Line
    noon: Line
    evening: Line
    night: Line
    back: Line


class MoodKeys(_Keys):
    """A point in valence, arousal and dominance."""

    valence: Unit
    arousal: Unit
    dominance: Unit


class FeelingKeys(MoodKeys):
    """One line of `[emotion.map]`."""

    expression: Line
    motion: Line


class EmotionKeys(_Keys):
    """`[emotion]`."""

    baseline: MoodKeys
    gain: Annotated[float, Field(ge=0, le=2)]
    half_life_minutes: Annotated[float, Field(gt=0, le=10_000)]
    contagion: Annotated[float, Field(ge=0, le=1)]
    map: dict[EmotionLabel, FeelingKeys]

    @model_validator(mode="after")
    def _complete(self) -> "EmotionKeys":
        missing = [label.value for label in EmotionLabel if label not in self.map]
        if missing:
            raise ValueError(f"[emotion.map] lacks {', '.join(missing)}")
        return self


class MotionKeys(_Keys):
    """One of `[[motions]]`."""

    motion: Line
    words: tuple[Line, ...]


class RuleKeys(_Keys):
    """One of `[[appearance.rules]]`."""

    accessory: Line
    words: tuple[Line, ...] = ()
    emotions: tuple[EmotionLabel, ...] = ()


class AppearanceKeys(_Keys):
    """`[appearance]`."""

    accessory: Line
    palette: dict[str, Annotated[str, Field(pattern=r"^#[0-9A-Fa-f]{6}$")]]
    rules: tuple[RuleKeys, ...] = ()


class ToneKeys(_Keys):
    """Factors on rate and pitch."""

    rate: Factor = 1.0
    pitch: Factor = 1.0


class VoiceKeys(ToneKeys):
    """`[voice]`: the voice, its tone, and one table for every emotion that bends it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    voice: Line
    __pydantic_extra__: dict[str, ToneKeys]

    @model_validator(mode="after")
    def _known_emotions(self) -> "VoiceKeys":
        unknown = set(self.__pydantic_extra__) - set(EmotionLabel)
        if unknown:
            raise ValueError(f"no emotion is called {', '.join(sorted(unknown))}")
        return self


def _minute(value: object) -> object:
    """Read `2026-03-14 22:40`; TOML's own date-times pass as they are."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value


class ExchangeKeys(_Keys):
    """One of `[[exchange]]`."""

    turns: tuple[Line, ...]
    name: Line | None = None
    now: Annotated[datetime | None, BeforeValidator(_minute)] = None
    memories: tuple[Line, ...] = ()

    @model_validator(mode="after")
    def _she_has_the_last_word(self) -> "ExchangeKeys":
        if len(self.turns) < 2 or len(self.turns) % 2:
            raise ValueError("turns must alternate user, her, … and end with her")
        return self

    def exchange(self, topic: str) -> Exchange:
        """Return the domain's value."""
        return Exchange(self.turns, self.name, self.now, self.memories, topic)


class ExchangeFile(_Keys):
    """A file of `exchanges/`."""

    exchange: tuple[ExchangeKeys, ...]


class CharacterFile(_Keys):
    """A whole character file."""

    display_name: Line
    address: Line
    calls_user: Line
    persona: PersonaKeys
    greetings: GreetingKeys
    emotion: EmotionKeys
    motions: tuple[MotionKeys, ...] = ()
    appearance: AppearanceKeys
    voice: VoiceKeys
    exchange: tuple[ExchangeKeys, ...] = ()

    def character(self, name: str, more: tuple[Exchange, ...]) -> Character:
        """Return the domain's value; `more` are the exchanges that lie in files of their own."""
        return Character(
            id=name,
            display_name=self.display_name,
            address=self.address,
            calls_user=self.calls_user,
            persona=Persona(**{key.rstrip("_"): value for key, value in self.persona}),
            greetings=Greetings(**self.greetings.model_dump()),
            temperament=self._temperament(),
            appearance=Appearance(
                self.appearance.accessory,
                self.appearance.palette,
                tuple(AccessoryRule(rule.accessory, rule.words, rule.emotions) for rule in self.appearance.rules),
            ),
            voice=VoiceStyle(
                self.voice.voice,
                Tone(self.voice.rate, self.voice.pitch),
                {
                    EmotionLabel(label): Tone(tone.rate, tone.pitch)
                    for label, tone in self.voice.__pydantic_extra__.items()
                },
            ),
            motions=tuple(MotionRule(rule.motion, rule.words) for rule in self.motions),
            exchanges=(*(keys.exchange(name) for keys in self.exchange), *more),
        )

    def _temperament(self) -> Temperament:
        return Temperament(
            baseline=Mood(**self.emotion.baseline.model_dump()),
            gain=self.emotion.gain,
            half_life=timedelta(minutes=self.emotion.half_life_minutes),
            contagion=self.emotion.contagion,
            feelings={
                label: Feeling(Mood(keys.valence, keys.arousal, keys.dominance), keys.expression, keys.motion)
                for label, keys in self.emotion.map.items()
            },
        )
