"""How the next token is drawn."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from domain.prompt import Sampling

# The classes of transformers carry no types that say anything.
Model = Any
# The likeliest tokens, among which the nucleus nearly always lies: taking them is far cheaper than sorting 262,144.
_LIKELIEST = 512


def next_token(scores: Tensor, said: Sequence[int], sampling: Sampling, generator: torch.Generator) -> int:
    """Draw a token: repetition penalty (Keskar 2019, arXiv:1909.05858), temperature, nucleus (arXiv:1904.09751).

    Args:
        scores: Logits of the whole vocabulary, shape (vocabulary,).
        said: The tokens of the reply so far, which the penalty makes less likely.
        sampling: How to draw; temperature 0 takes the likeliest.
        generator: The source of randomness, on the CPU.
    """
    scores = scores.float()
    if said and sampling.repetition_penalty != 1:
        places = torch.tensor(sorted(set(said)), device=scores.device)
        heard = scores[places]
        factor = sampling.repetition_penalty
        scores = scores.index_put((places,), torch.where(heard > 0, heard / factor, heard * factor))
    if sampling.temperature == 0:
        return int(scores.argmax())
    probabilities = torch.softmax(scores / sampling.temperature, dim=-1)
    best, tokens = probabilities.topk(min(_LIKELIEST, len(probabilities)))
    if best.sum() < sampling.top_p:
        best, tokens = probabilities.sort(descending=True)
    best, tokens = best.cpu(), tokens.cpu()  # where the randomness is
    outside = best.cumsum(0) - best >= sampling.top_p  # the token that crosses the border is still inside
    return int(tokens[torch.multinomial(best.masked_fill(outside, 0), 1, generator=generator)])
