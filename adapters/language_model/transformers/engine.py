"""One reply after another from a loaded model."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import torch

from adapters.language_model.transformers.decoding import reply_tokens
from adapters.language_model.transformers.loading import Loaded
from adapters.language_model.transformers.text import Detokeniser, StopStrings
from adapters.models.repetition import LoopGuard
from domain.errors import BackendUnavailable, BadInput
from domain.prompt import Prompt, Sampling


def reply(loaded: Loaded, prompt: Prompt, sampling: Sampling, stopped: Callable[[], bool]) -> Iterator[str]:
    """Yield the text of a reply in pieces of whole characters.

    Raises:
        BadInput: The prompt does not fit.
        BackendUnavailable: The device ran out of memory, or failed.
    """
    ids = loaded.encoder.ids(prompt)
    room = loaded.context_tokens - len(ids)
    if room < 1:
        raise BadInput(
            f"The prompt takes {len(ids)} tokens; the model reads {loaded.context_tokens}.",
            "Say less at once, or raise [language_model.transformers] context_tokens.",
        )
    sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
    text, stops, guard = Detokeniser(loaded.tokenizer), StopStrings(loaded.encoder.stops(prompt)), LoopGuard()
    try:
        with closing(reply_tokens(loaded.model, ids, sampling, ends=loaded.ends, stopped=stopped)) as tokens:
            for token in tokens:
                if piece := guard.feed(stops.feed(text.feed(token))):
                    yield piece
                if stops.reached or guard.looping:
                    return
    except torch.OutOfMemoryError as error:
        raise BackendUnavailable(
            f"The device has no memory left for a prompt of {len(ids)} tokens.",
            "Lower [prompt] history_tokens, or choose a smaller model.",
        ) from error
    except RuntimeError as error:
        raise BackendUnavailable(
            f"The model failed while it answered: {error}.",
            'Say it again; if it happens again, set [language_model.transformers] device = "cpu".',
        ) from error
    if rest := guard.feed(stops.flush()):
        yield rest
