"""Emotion tags in model output, taken out of the stream before anyone sees or hears them."""

import json
import re
from dataclasses import dataclass

from domain.emotion import EmotionLabel


@dataclass(frozen=True, slots=True)
class Tag:
    """What a tag asks for: a face, a movement, or both."""

    emotion: EmotionLabel | None = None
    motion: str | None = None


# Names that models and front ends use for our labels.
_ALIASES = {
    "happy": "joy", "happiness": "joy", "smile": "joy", "excited": "joy", "laughing": "laugh", "embarrassed": "shy",
    "blush": "shy", "smirk": "tease", "playful": "tease", "surprised": "surprise", "thinking": "think",
    "curious": "think", "sadness": "sad", "crying": "sad", "fear": "anxious", "worried": "anxious",
    "nervous": "anxious", "love": "comfort", "caring": "comfort", "anger": "angry", "mad": "angry", "disgust": "angry",
    "tired": "sleepy", "calm": "neutral", "serious": "focused",
}  # fmt: skip
_NAMES = {**{label.value: label for label in EmotionLabel}, **{k: EmotionLabel(v) for k, v in _ALIASES.items()}}

_COMPLETE = re.compile(
    r"\[(?:face:)?([A-Za-z]{2,16})\]|<face name=\"([A-Za-z]{2,16})\"\s?/>|<\|ACT (\{[^<>|]{0,200}\})\|>"
)
# Every proper prefix of the three forms above.
_BEGUN = re.compile(
    r"\[(?:f|fa|fac|face|face:[A-Za-z]{0,16}|[A-Za-z]{0,16})\Z"
    r"|<(?:f|fa|fac|face|face |face n|face na|face nam|face name|face name=|face name=\"[A-Za-z]{0,16}"
    r"|face name=\"[A-Za-z]{2,16}\"\s?/?)?\Z"
    r"|<\|(?:A|AC|ACT|ACT (?:\{[^<>|]{0,200}(?:\}\|?)?)?)?\Z"
)


class TagParser:
    """Separates text from tags in a stream; the result is the same however the stream is cut.

    A bracket whose name is no emotion is ordinary text.
    """

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> list[str | Tag]:
        """Take the next piece and return what is certain by now, in order."""
        self._held += piece
        return self._advance(final=False)

    def flush(self) -> list[str | Tag]:
        """Return what was held back: at the end, an unfinished tag is text."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> list[str | Tag]:
        found: list[str | Tag] = []
        text = ""
        place = 0
        while place < len(self._held):
            if self._held[place] in "[<":
                complete = _COMPLETE.match(self._held, place)
                tag = _read(complete) if complete else None
                if complete and tag:
                    if text:
                        found.append(text)
                        text = ""
                    found.append(tag)
                    place = complete.end()
                    continue
                if not complete and not final and _BEGUN.match(self._held, place):
                    break
            text += self._held[place]
            place += 1
        self._held = self._held[place:]
        if text:
            found.append(text)
        return found


def _read(match: re.Match[str]) -> Tag | None:
    """Return what a complete tag asks for, or None where its name means nothing to us."""
    name, face, act = match.groups()
    if act is None:
        label = _NAMES.get((name or face).lower())
        return Tag(label) if label else None
    try:
        fields = json.loads(act)
    except ValueError:
        return Tag()  # an ACT that cannot be read is dropped, never shown
    emotion, motion = fields.get("emotion"), fields.get("motion")
    if isinstance(emotion, dict):  # {"name": "joy", "intensity": 1}
        emotion = emotion.get("name")
    return Tag(_NAMES.get(str(emotion).lower()), motion if isinstance(motion, str) else None)
