"""The decode loop in the open: read the prompt, then draw one token after another."""

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from domain.prompt import Sampling

# The classes of transformers carry no types that say anything.
Model = Any
# A prompt is read in chunks of this many tokens, so that hanging up takes effect in between; 512 are 5 % faster.
PREFILL_TOKENS = 256
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


@torch.inference_mode()
def reply_tokens(
    model: Model,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    ends: frozenset[int],
    stopped: Callable[[], bool],
) -> Generator[int, None, None]:
    """Yield the tokens of a reply, without the one that ends it.

    Args:
        model: A causal language model of transformers.
        prompt: Token ids.
        sampling: How to draw, and how many tokens at most.
        ends: Tokens that end the reply.
        stopped: Asked before every step on the device; once it says so, nothing more is computed.
    """
    from transformers import DynamicCache

    generator = torch.Generator()
    _ = generator.seed() if sampling.seed is None else generator.manual_seed(sampling.seed)
    past = DynamicCache(config=model.config)

    def step(tokens: Sequence[int]) -> Tensor:
        given = torch.tensor([tokens], device=model.device)
        logits: Tensor = model(given, past_key_values=past, use_cache=True, logits_to_keep=1).logits
        return logits[0, -1].cpu()

    for start in range(0, len(prompt), PREFILL_TOKENS):
        if stopped():
            return
        scores = step(prompt[start : start + PREFILL_TOKENS])
    said: list[int] = []
    while True:
        token = next_token(scores, said, sampling, generator)
        if token in ends:
            return
        yield token
        said.append(token)
        if len(said) == sampling.max_tokens or stopped():
            return
        scores = step([token])
