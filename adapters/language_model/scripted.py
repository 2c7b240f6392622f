"""Says what it was given to say: the demo without a model, the double in tests, and the oracle of the contract."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from domain.ports import LanguageModel
from domain.prompt import Prompt, Sampling

_PIECE = 2  # characters in a piece, about a token's worth
_NOTHING_SIMILAR = "嗯嗯，我在听呢。再多和我说一点，好不好？"


class Config(BaseModel):
    """What to say and how fast.

    Attributes:
        replies: Said in turn, the first again after the last; without any, the answer of the most similar example.
        delay_s: Seconds before each piece.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    replies: tuple[str, ...] = ()
    delay_s: Annotated[float, Field(ge=0)] = 0.0


class Scripted:
    """A `LanguageModel` whose tokens are characters."""

    context_tokens = 4096

    def __init__(self, config: Config) -> None:
        self._config = config
        self._asked = 0

    async def load(self) -> None:
        """Do nothing: there is no model."""

    def count_tokens(self, text: str) -> int:
        return len(text)

    async def generate(self, prompt: Prompt, *, expert: str, sampling: Sampling) -> AsyncGenerator[str, None]:
        reply = self._next_reply(prompt)[: sampling.max_tokens]
        for start in range(0, len(reply), _PIECE):
            await asyncio.sleep(self._config.delay_s)
            yield reply[start : start + _PIECE]

    def anticipate(self, likely: Mapping[str, float]) -> None:
        """Do nothing: no expert has to be fetched."""

    def refused(self) -> Mapping[str, str]:
        """Return nothing: no expert has an adapter here."""
        return {}

    async def close(self) -> None:
        """Do nothing: there is nothing to free."""

    def _next_reply(self, prompt: Prompt) -> str:
        if replies := self._config.replies:
            self._asked += 1
            return replies[(self._asked - 1) % len(replies)]
        return prompt.found[0][1] if prompt.found else _NOTHING_SIMILAR


def build(config: Config) -> LanguageModel:
    """Return the model."""
    return Scripted(config)
