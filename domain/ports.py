"""Every port, on one page: what the application needs from the world, in the field's own words."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

from domain.character import Character
from domain.conversation import ConversationSummary, Role, Scope, Session, Turn
from domain.emotion import Emotion
from domain.events import Durability
from domain.feedback import Rating
from domain.prompt import Prompt, Sampling
from domain.routing import Expert


class LanguageModel(Protocol):
    """Continues a conversation."""

    @property
    def context_tokens(self) -> int:
        """How many tokens prompt and reply may take together."""
        ...

    async def load(self) -> None:
        """Bring the model into memory; later calls cost nothing.

        Raises:
            BackendUnavailable: The model cannot be reached or loaded.
        """
        ...

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the text takes; an estimate where only a server knows."""
        ...

    def generate(self, prompt: Prompt, *, expert: str, sampling: Sampling) -> AsyncGenerator[str, None]:
        """Yield the answer in pieces as it is produced.

        Closing the generator early stops generation within one token and frees the device. No piece ever holds half a
        character.

        Raises:
            BackendUnavailable: The model cannot be reached or loaded.
        """
        ...

    def anticipate(self, likely: Mapping[str, float]) -> None:
        """Take a hint which experts may answer next, with probabilities; it never blocks and may be ignored."""
        ...

    def refused(self) -> Mapping[str, str]:
        """Return the experts whose adapters turned out to be of no use, and why; the base answers for them."""
        ...

    async def close(self) -> None:
        """Free memory and threads; a closed model is not used again."""
        ...


class Experts(Protocol):
    """The experts that are plugged in; folders that come and go while the program runs are noticed."""

    def all(self) -> tuple[Expert, ...]:
        """Return the usable experts, by priority and name."""
        ...

    def refused(self) -> Mapping[str, str]:
        """Return the folders that hold no usable expert, and why."""
        ...


class ExpertScorer(Protocol):
    """Tells how likely each expert is the right one for what the user says."""

    async def score(self, words: str, experts: Sequence[Expert]) -> Mapping[str, float]:
        """Return calibrated probabilities by name, those of the base included; they add up to 1."""
        ...


class Embedder(Protocol):
    """Turns texts into vectors whose dot product tells how near in meaning they are."""

    @property
    def identity(self) -> str:
        """Name and version: vectors of different identities are never compared."""
        ...

    async def embed_queries(self, texts: Sequence[str]) -> list[Sequence[float]]:
        """Return one vector of unit length for each text that is searched with."""
        ...

    async def embed_passages(self, texts: Sequence[str]) -> list[Sequence[float]]:
        """Return one vector of unit length for each text that is searched for."""
        ...


class EmotionClassifier(Protocol):
    """Names the emotion in a clause."""

    async def classify(self, text: str, speaker: Role) -> Emotion:
        """Return the likeliest emotion with its probability as the intensity."""
        ...


class Sessions(Protocol):
    """Keeps conversations; what it has acknowledged survives kill -9."""

    async def open(self, scope: Scope, *, now: datetime) -> Session:
        """Return the one open conversation of a scope, begun anew where there is none.

        Raises:
            StoreUnavailable: The database cannot be reached and there is no journal to fall back on.
        """
        ...

    async def start_new(self, scope: Scope, *, now: datetime) -> Session:
        """Close the open conversation and begin another; her mood and what she calls the user carry over.

        Raises:
            StoreUnavailable: The database cannot be reached; a journal begins no conversations.
        """
        ...

    async def commit(self, session: Session, turn: Turn) -> Durability:
        """Store a turn as it now stands, with mood, face and name, in one transaction; repeating it changes nothing.

        A session that was opened without the database takes on the id of the conversation that it joins.

        Raises:
            NotFound: The conversation is gone, or the turn belongs to another scope.
            StoreUnavailable: Neither the database nor a journal takes it.
        """
        ...

    async def conversations(self, scope: Scope) -> list[ConversationSummary]:
        """Return all conversations of a scope, newest first."""
        ...

    async def read(self, scope: Scope, conversation_id: UUID) -> list[Turn]:
        """Return all turns of a conversation, oldest first.

        Raises:
            NotFound: The scope has no such conversation.
        """
        ...


class Feedback(Protocol):
    """Keeps what users thought of her replies."""

    async def rate(self, rating: Rating) -> None:
        """Store a rating; a later one of the same turn replaces it.

        Raises:
            NotFound: The scope has no such turn.
        """
        ...

    async def ratings(self, scope: Scope) -> list[Rating]:
        """Return all ratings of a scope, oldest first."""
        ...


class Characters(Protocol):
    """The characters that can be met here."""

    def names(self) -> list[str]:
        """Return the ids of all characters, the user's own and the packaged ones."""
        ...

    def load(self, name: str) -> Character:
        """Return a character.

        Raises:
            NotFound: There is no such character.
            BadConfiguration: Its file has a missing, unknown or wrong key.
        """
        ...
