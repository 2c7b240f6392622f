"""The replies that are spoken side by side with the same weights: a forward step says one token of each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from adapters.language_model.transformers.caches import KeyValues
from adapters.language_model.transformers.decoding import Model
from adapters.language_model.transformers.replies import Reply


class Batch:
    """Replies in the rows of one key-value cache; they join and leave between any two tokens."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._cache = KeyValues()
        self.rows: list[Reply] = []

    @torch.inference_mode()  # tensors made in this mode change in this mode only
    def join(self, reply: Reply) -> None:
        """Take in a reply whose prompt has been read."""
        if not reply.cache:
            raise ValueError("A reply joins with what the model has read for it.")
        if self.rows:
            self._cache.join(reply.cache)
        else:
            self._cache = reply.cache
        self.rows.append(reply)
        reply.cache = None

    @torch.inference_mode()
    def leave(self, reply: Reply) -> None:
        """Let go of a reply; the last row takes its place."""
        row = self.rows.index(reply)
        self.rows[row] = self.rows[-1]
        del self.rows[-1]
        if self.rows:
            self._cache.leave(row)
            self._cache.narrow(max(reply.fed for reply in self.rows))
        else:
            self._cache = KeyValues()

    def cache_of(self, reply: Reply) -> tuple[KeyValues, int]:
        """Return the cache that holds a reply, and its row there."""
        return (reply.cache, 0) if reply.cache else (self._cache, self.rows.index(reply))

    @torch.inference_mode()
    def read(self, reply: Reply, tokens: int) -> Tensor | None:
        """Read the next tokens of a prompt; return the scores of what may follow once it has been read.

        Raises:
            RuntimeError: The device failed, or has no memory left.
        """
        reply.cache = reply.cache or KeyValues()
        chunk = reply.ids[reply.fed : reply.fed + tokens]
        try:
            logits = self._model(
                torch.tensor([chunk], device=self._model.device),
                past_key_values=reply.cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        except BaseException:  # whatever stopped it, a half-written cache must not stay; it is raised again
            reply.cache.rewind(reply.fed)
            raise
        reply.fed += len(chunk)
        return logits[0, -1] if reply.fed == len(reply.ids) else None

    @torch.inference_mode()
    def step(self, guess: Sequence[int]) -> Tensor:
        """Feed what every row said last; return the scores of what may follow, (rows, 1 + guesses, vocabulary).

        Args:
            guess: What the only row may say next, fed along with it.

        Raises:
            RuntimeError: The device failed, or has no memory left.
        """
        columns, device = self._cache.columns, self._model.device
        aligned: dict[str, Tensor] = {}
        if len(self.rows) > 1:
            lengths = torch.tensor([[reply.fed] for reply in self.rows], device=device)
            # a row begins after columns that are none of its own
            mask = torch.arange(columns + 1, device=device) >= columns - lengths
            aligned = {"attention_mask": mask.long(), "position_ids": lengths}
        try:
            scores: Tensor = self._model(
                torch.tensor([[reply.ids[-1], *guess] for reply in self.rows], device=device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1 + len(guess),
                **aligned,
            ).logits
        except BaseException:  # whatever stopped it, a half-written cache must not stay; it is raised again
            self._cache.rewind(columns)
            raise
        for reply in self.rows:
            reply.fed += 1
        return scores

    def accept(self, guesses: int) -> None:
        """Keep of what was fed beside the only row's last token so many guesses, and forget the rest."""
        self.rows[0].fed += guesses
        self._cache.rewind(self.rows[0].fed)
