"""One reply in the making: what it has read and said, how its next token is drawn, and what of it may be heard."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapters.language_model.transformers.caches import KeyValues
from adapters.language_model.transformers.decoding import next_token
from adapters.language_model.transformers.requests import PrefillCounts, Request
from adapters.language_model.transformers.speculation import Lookup
from adapters.language_model.transformers.text import Detokeniser, StopStrings
from adapters.models.repetition import LoopGuard
from domain.errors import BadInput

if TYPE_CHECKING:
    from adapters.language_model.transformers.loading import Loaded


class Reply:
    """A reply in the making.

    Attributes:
        request: What was asked for.
        ids: The tokens of the prompt and of what was said.
        fed: How many of them the model has read; all but one while the reply is spoken.
        reused: How many of those an earlier turn had read.
        fixed: How many of the prompt's tokens all conversations with the character begin with.
        cache: What the model keeps of a prompt that it is reading; nothing before and after.
        lookup: Guesses what comes next.
    """

    def __init__(self, request: Request, loaded: "Loaded", lookup_tokens: int) -> None:
        """Encode the prompt.

        Raises:
            BadInput: It does not fit.
            BackendUnavailable: The chat template refuses it.
        """
        self.request = request
        self.ids: list[int] = loaded.encoder.ids(request.prompt)
        room = loaded.context_tokens - len(self.ids)
        if room < 1:
            raise BadInput(
                f"The prompt takes {len(self.ids)} tokens; the model reads {loaded.context_tokens}.",
                "Say less at once, or raise [language_model.transformers] context_tokens.",
            )
        self.fixed = loaded.encoder.fixed(request.prompt, self.ids)
        self.fed = self.reused = 0
        self.cache: KeyValues | None = None
        self.lookup = Lookup(lookup_tokens)
        self.lookup.feed(self.ids)
        self._prompt_tokens = len(self.ids)
        self._sampling = replace(request.sampling, max_tokens=min(request.sampling.max_tokens, room))
        self._ends = loaded.ends
        self._text = Detokeniser(loaded.tokenizer)
        self._stops = StopStrings(loaded.encoder.stops(request.prompt))
        self._guard = LoopGuard()
        self._random = torch.Generator()
        seed = request.sampling.seed
        _ = self._random.seed() if seed is None else self._random.manual_seed(seed)

    @property
    def may_reuse(self) -> bool:
        """Whether what earlier turns have read may be taken over.

        Read in other portions, a prompt has other last digits, and those may give another word: a seeded reply is to
        be the same again.
        """
        return self.request.sampling.seed is None

    @property
    def said(self) -> list[int]:
        """The tokens of the reply so far."""
        return self.ids[self._prompt_tokens :]

    @property
    def room(self) -> int:
        """How many more tokens may be said."""
        return self._sampling.max_tokens - len(self.said)

    @property
    def counts(self) -> PrefillCounts:
        """What reading the prompt has cost."""
        return PrefillCounts(self._prompt_tokens, self.reused, self._prompt_tokens - self.reused)

    def take(self, scores: Tensor) -> bool:
        """Draw the next token and say what it completes; tell whether the reply is over.

        Args:
            scores: Logits of the whole vocabulary, shape (vocabulary,).
        """
        token = next_token(scores, self.said, self._sampling, self._random)
        if token in self._ends:
            return True
        self.ids.append(token)
        self.lookup.feed((token,))
        self._say(self._stops.feed(self._text.feed(token)))
        return self._stops.reached or self._guard.looping or not self.room

    def finish(self) -> None:
        """Say what was held back, and be done."""
        if not (self._stops.reached or self._guard.looping):
            self._say(self._stops.flush())
        self.request.done.set_result(self.said)

    def _say(self, text: str) -> None:
        if piece := self._guard.feed(text):
            self.request.say(piece)
