"""A conversation between one user and one character: the one mutable aggregate."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from domain.emotion import Emotion, Mood, Temperament, shown
from domain.routing import BASE


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose conversations and memories are meant: no store is asked anything without one.

    Attributes:
        owner: The user, `local` or namespaced such as `onebot:qq:1:2`.
        character: The character's id.
    """

    owner: str
    character: str


class Role(StrEnum):
    """Who speaks."""

    USER = "user"
    HER = "her"


@dataclass(frozen=True, slots=True)
class Message:
    """One line of the history."""

    role: Role
    text: str


class ReplyState(StrEnum):
    """How far a reply has come."""

    PENDING = "pending"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user said and what she answered, as far as it has come.

    Attributes:
        said_at: When the user spoke; aware, UTC.
        emotion: What her face showed at the end.
        heard_chars: How much of the reply was heard, where that is known to be less than all of it.
    """

    id: UUID
    user_text: str
    said_at: datetime
    reply: str = ""
    state: ReplyState = ReplyState.PENDING
    expert: str = BASE
    emotion: Emotion = field(default_factory=Emotion)
    heard_chars: int | None = None

    @property
    def heard(self) -> str:
        """The part of the reply that the user heard."""
        return self.reply if self.heard_chars is None else self.reply[: self.heard_chars]


@dataclass(frozen=True, slots=True)
class ConversationSummary:
    """A conversation in a list."""

    id: UUID
    begun_at: datetime
    turns: int
    first_words: str


@dataclass(slots=True)
class Session:
    """A running conversation: its turns, her mood, and the expert in charge.

    Attributes:
        accessory: What she wears; empty until she has dressed for the first time.
        called: What she calls the user, once she knows it.
        felt_at: When the mood was last brought up to date.
    """

    id: UUID
    scope: Scope
    mood: Mood
    felt_at: datetime
    turns: list[Turn] = field(default_factory=list)
    face: Emotion = field(default_factory=Emotion)
    accessory: str = ""
    called: str | None = None
    expert: str = BASE

    def begin(self, turn: Turn) -> None:
        """Append the user's words; from here on they are part of the conversation."""
        self.turns.append(turn)

    def update(self, **changes: object) -> Turn:
        """Replace fields of the running turn and return it."""
        self.turns[-1] = replace(self.turns[-1], **changes)  # type: ignore[arg-type]
        return self.turns[-1]

    def calm_down(self, now: datetime, temperament: Temperament) -> None:
        """Let the time since the last feeling pass over mood and face."""
        elapsed = max(timedelta(0), now - self.felt_at)
        self.mood = self.mood.after(elapsed, half_life=temperament.half_life, baseline=temperament.baseline)
        self.face = Emotion(self.face.label, self.face.intensity * 0.5 ** (elapsed / temperament.half_life))
        self.felt_at = now

    def feel(self, felt: Emotion, temperament: Temperament) -> bool:
        """React to an emotion; return whether the face she shows has changed."""
        self.mood = temperament.react(self.mood, felt)
        before = self.face
        self.face = shown(self.face, felt, self.mood, temperament)
        return self.face.label is not before.label

    def history(self, *, skip: int = 0) -> list[Message]:
        """Return the finished past as messages; unanswered words stay, as the user's.

        The running turn is left out, and the `skip` oldest ones.
        """
        messages: list[Message] = []
        for turn in self.turns[skip:-1]:
            messages.append(Message(Role.USER, turn.user_text))
            if turn.heard:
                messages.append(Message(Role.HER, turn.heard))
        return messages
