"""From a lesson to tokens with targets, and the loss at the targets alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Any

import torch

from domain.prompt import Layout, segments
from training.exchanges import Lesson
from training.workers import ALONE, Workers

if TYPE_CHECKING:
    from torch import Tensor

# Rows of the vocabulary's logits held at once: 64 x 262,144 x 4 bytes = 67 MB.
_ROWS = 64
NOT_A_TARGET = -100


@dataclass(frozen=True, slots=True)
class Tokens:
    """A lesson in tokens.

    Attributes:
        ids: The prompt exactly as serving encodes it, then her reply and its end of turn.
        targets: For every position the id to predict there (its own id, unshifted), or `NOT_A_TARGET`.
        reply_at: Where her reply begins.
        close_at: Where the end of her turn begins.
        chars: Characters of the reply.
    """

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    reply_at: int
    close_at: int
    chars: int

    @property
    def learnt(self) -> int:
        """How many tokens are targets; the first one of a text has nothing before it and is none."""
        return sum(target != NOT_A_TARGET for target in self.targets[1:])


def tokenised(lesson: Lesson, layout: Layout, tokenizer: Any) -> Tokens:  # noqa: ANN401 - transformers is untyped
    """Encode a lesson; targets are all that she says, in the history too, and the ends of her turns."""
    text, hers = "", []
    for segment in segments(lesson.prompt, layout):
        if segment.hers:
            hers.append(range(len(text), len(text) + len(segment.text)))
        text += segment.text
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids = list(encoded["input_ids"])
    targets = [
        token if any(start in part and end - 1 in part for part in hers) else NOT_A_TARGET
        for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    words = layout.clean(lesson.reply)
    said = tokenizer(words, add_special_tokens=False)["input_ids"]
    close = tokenizer(layout.her_close, add_special_tokens=False)["input_ids"]
    return Tokens((*ids, *said, *close), (*targets, *said, *close), len(ids), len(ids) + len(said), len(words))


class _AtTargets(torch.autograd.Function):
    """Negative log-likelihood from hidden states, some rows at a time.

    The gradient by the hidden states is (softmax - one-hot) @ weight; it is computed along with the loss, so that the
    logits [targets, vocabulary] never exist as a whole, which for 262,144 words would outweigh the model itself.
    """

    @staticmethod
    def forward(ctx: Any, hidden: "Tensor", weight: "Tensor", wanted: "Tensor") -> "Tensor":  # noqa: ANN401
        losses, gradients = [], []
        for rows, ids in zip(torch.split(hidden, _ROWS), torch.split(wanted, _ROWS), strict=True):
            logits = (rows @ weight.T).float()
            scale = logits.logsumexp(-1, keepdim=True)
            losses.append(scale[:, 0] - logits.gather(-1, ids[:, None])[:, 0])
            if ctx.needs_input_grad[0]:
                share = logits.sub_(scale).exp_()
                share.scatter_add_(-1, ids[:, None], share.new_full((len(ids), 1), -1.0))
                gradients.append(share.to(weight.dtype) @ weight)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *incoming: "Tensor") -> tuple["Tensor", None, None]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        return (gradient * incoming[0][:, None]).to(gradient.dtype), None, None


def target_losses(model: Any, batch: Sequence[Tokens]) -> "Tensor":  # noqa: ANN401 - transformers is untyped
    """Return the negative log-likelihood of every target token of a batch, in nats, shape [targets].

    Args:
        model: A causal language model, with or without LoRA: `get_decoder()` and `lm_head` are used.
        batch: Lessons of similar length; shorter ones are padded on the right, which no earlier token can see.
    """
    width = max(len(lesson.ids) for lesson in batch)
    ids = torch.tensor([lesson.ids + (0,) * (width - len(lesson.ids)) for lesson in batch])
    wanted = torch.tensor([lesson.targets + (NOT_A_TARGET,) * (width - len(lesson.targets)) for lesson in batch])
    mask = torch.tensor([[1] * len(lesson.ids) + [0] * (width - len(lesson.ids)) for lesson in batch])
    head = model.get_output_embeddings().weight
    with torch.autocast("cpu", torch.bfloat16, enabled=head.dtype is torch.bfloat16):
        hidden = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    wanted = wanted[:, 1:]  # the state at a position predicts the next token
    at = wanted != NOT_A_TARGET
    losses: Tensor = _AtTargets.apply(hidden[:, :-1][at].to(head.dtype), head, wanted[at])  # type: ignore[no-untyped-call]
    return losses


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How well the replies to unseen prompts are predicted.

    Attributes:
        bits_per_char: Bits of her words per character; comparable across tokenizers and layouts.
        end_bits: Bits of one end of turn.
        loss: Nats per target token, ends of turn included.
    """

    bits_per_char: float
    end_bits: float
    loss: float


def held_out(model: Any, lessons: Sequence[Tokens], workers: Workers = ALONE, *, batch: int = 4) -> HeldOut:  # noqa: ANN401
    """Measure the last replies of these lessons, the ones that serving would generate."""
    words = ends = 0.0
    mine = sorted(lessons, key=lambda one: len(one.ids))[workers.rank :: workers.count]
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(mine), batch):
            part = [_only_reply(one) for one in mine[start : start + batch]]
            losses = target_losses(model, part).tolist()
            for one in part:
                said, end = one.close_at - one.reply_at, len(one.ids) - one.reply_at
                words += sum(losses[:said])
                ends += sum(losses[said:end])
                losses = losses[end:]
    model.train(was_training)
    words, ends = workers.total(words, ends)
    chars, tokens = sum(one.chars for one in lessons), sum(len(one.ids) - one.reply_at for one in lessons)
    return HeldOut(words / chars / log(2), ends / len(lessons) / log(2), (words + ends) / tokens)


def _only_reply(lesson: Tokens) -> Tokens:
    """Return the lesson with targets in the last reply alone."""
    kept = (NOT_A_TARGET,) * lesson.reply_at + lesson.targets[lesson.reply_at :]
    return Tokens(lesson.ids, kept, lesson.reply_at, lesson.close_at, lesson.chars)
