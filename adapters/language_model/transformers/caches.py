"""Key-value caches: those of running replies, written in place, and those of earlier turns, kept by bytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from domain.errors import BackendUnavailable

# Columns that a buffer grows by at least.
_SPARE = 128
# Tokens after the part that all conversations share, from which on two prompts are turns of one conversation.
_ONE_CONVERSATION = 32

# The layers whose states are a list of tokens, of which any beginning can be used again.
_LISTS = {"full_attention", "sliding_attention"}

# What a cache holds of one row: for each layer keys and values, (heads, tokens, width), or nothing.
States = tuple[tuple[Tensor, Tensor] | None, ...]


def check_rewindable(name: str, model: Any) -> None:  # noqa: ANN401  # the classes of transformers carry no types
    """Refuse a model that cannot go back to an earlier token.

    Raises:
        BackendUnavailable: Some of its layers sum up what they have read, as those of Mamba do.
    """
    others = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - _LISTS
    if others or getattr(model, "_is_stateful", False):
        raise BackendUnavailable(
            f"The model {name} sums up what it has read ({', '.join(sorted(others)) or 'in a running state'}).",
            "Choose a model with attention in every layer, or run this one elsewhere with openai_compatible.",
        )


class _Layer(CacheLayerMixin):  # type: ignore[misc]  # the classes of transformers carry no types
    """Keys and values of one layer in buffers of shape (rows, heads, columns, width) with room on all sides.

    The columns from `start` to `end` are in use; rows end together and begin where they will, after zeros. What is new
    is written in place, where `DynamicCache` copies everything for every token. A sliding window is left to the mask:
    a layer that forgets what left its window could not go back to a prefix.
    """

    is_croppable = True

    def __init__(self) -> None:
        super().__init__()
        self.rows = self.start = self.end = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.rows = len(key_states)
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        size = key_states.shape[-2]
        self.reserve(self.rows, 0, size)
        self.keys[: self.rows, :, self.end : self.end + size] = key_states
        self.values[: self.rows, :, self.end : self.end + size] = value_states
        self.end += size
        used = slice(self.start, self.end)
        return self.keys[: self.rows, :, used], self.values[: self.rows, :, used]

    def get_seq_length(self) -> int:
        return self.end - self.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reserve(self, rows: int, before: int, after: int) -> None:
        """Make room for so many rows, and for columns before and after those in use."""
        room, _, columns, _ = self.keys.shape
        if rows <= room and before <= self.start and self.end + after <= columns:
            return
        used = self.end - self.start
        rows = room if rows <= room else 1 << (rows - 1).bit_length()
        columns = before + used + after + max(_SPARE, used // 4)
        self.keys = self._moved(self.keys, rows, columns, before)
        self.values = self._moved(self.values, rows, columns, before)
        self.start, self.end = before, before + used

    def _moved(self, old: Tensor, rows: int, columns: int, start: int) -> Tensor:
        _, heads, _, width = old.shape
        new = old.new_zeros(rows, heads, columns, width)
        new[: self.rows, :, start : start + self.end - self.start] = old[: self.rows, :, self.start : self.end]
        return new

    def join(self, newcomer: "_Layer") -> None:
        """Take in the only row of another layer as the last one of this."""
        size, used = newcomer.get_seq_length(), self.get_seq_length()
        more = max(0, size - used)
        self.reserve(self.rows + 1, more, 0)
        self.start -= more
        for mine, other in ((self.keys, newcomer.keys), (self.values, newcomer.values)):
            mine[: self.rows, :, self.start : self.start + more] = 0
            mine[self.rows, :, self.start : self.end - size] = 0
            mine[self.rows, :, self.end - size : self.end] = other[0, :, newcomer.start : newcomer.end]
        self.rows += 1

    def leave(self, row: int) -> None:
        """Drop a row; the last one takes its place."""
        self.rows -= 1
        if row != self.rows:
            used = slice(self.start, self.end)
            self.keys[row, :, used] = self.keys[self.rows, :, used]
            self.values[row, :, used] = self.values[self.rows, :, used]


class KeyValues(Cache):  # type: ignore[misc]  # the classes of transformers carry no types
    """What attention needs of the tokens that rows of a batch have read; rows of different length end together."""

    layers: list[Any]

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_Layer)

    @classmethod
    def of(cls, states: States, size: int) -> "KeyValues":
        """Return a cache of one row with the first `size` tokens of kept states."""
        made = cls()
        for kept in states:
            layer = _Layer()
            if kept:
                layer.update(*(part[None, :, :size] for part in kept))
            made.layers.append(layer)
        return made

    @property
    def columns(self) -> int:
        """Tokens of the longest row."""
        return max((layer.get_seq_length() for layer in self.layers), default=0)

    @property
    def bytes_per_token(self) -> int:
        """What a token takes in one row."""
        return sum(part[0, :, 0].nbytes for layer in self._used for part in (layer.keys, layer.values))

    @property
    def _used(self) -> list[_Layer]:
        return [layer for layer in self.layers if layer.is_initialized]

    def rewind(self, columns: int) -> None:
        """Forget what was read after so many columns; also mends a cache whose model failed half-way."""
        for layer in self._used:
            layer.end = layer.start + columns

    def narrow(self, columns: int) -> None:
        """Drop the columns in which no row has a token any more."""
        for layer in self._used:
            layer.start = layer.end - columns

    def join(self, newcomer: "KeyValues") -> None:
        """Take in the only row of another cache as the last one."""
        for layer, other in zip(self.layers, newcomer.layers, strict=True):
            if layer.is_initialized:
                layer.join(other)

    def leave(self, row: int) -> None:
        """Drop a row; the last one takes its place."""
        for layer in self._used:
            layer.leave(row)

    def states(self, row: int, length: int, size: int) -> States:
        """Copy the first `size` tokens of a row that has `length` of them."""
        copies: list[tuple[Tensor, Tensor] | None] = []
        for layer in self.layers:
            begin = layer.end - length
            span = slice(begin, begin + size)
            copies.append(
                (layer.keys[row, :, span].clone(), layer.values[row, :, span].clone()) if layer.is_initialized else None
            )
        return tuple(copies)


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with in common; by halving, since slices compare at C speed."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """The states of a token sequence, computed with certain weights.

    Attributes:
        weights: Key of the weights.
        ids: The tokens.
        states: What attention needs of them.
        fixed: Whether it is the beginning that all conversations with a character share.
        size: Bytes.
    """

    weights: str
    ids: list[int]
    states: States
    fixed: bool
    size: int


class KeptCaches:
    """Caches of earlier turns; the least recently used go when the bytes run out."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._kept: list[Kept] = []  # the least recently used first

    @property
    def size(self) -> int:
        """Bytes of all that is kept."""
        return sum(kept.size for kept in self._kept)

    def longest(self, weights: str, ids: list[int]) -> tuple[Kept | None, int]:
        """Return what shares the longest prefix with a sequence, and how many tokens that is."""
        best, size = None, 0
        for kept in self._kept:
            shared = common_prefix(kept.ids, ids) if kept.weights == weights else 0
            if shared > size:
                best, size = kept, shared
        return best, size

    def touch(self, used: Kept) -> None:
        """Count something as used just now, and with it the fixed beginnings that it goes on from."""
        used_now = [kept for kept in self._kept if kept is used or (kept.fixed and _begins(kept, used))]
        self._kept = [kept for kept in self._kept if kept not in used_now] + used_now

    def keep(
        self, weights: str, ids: list[int], copy: Callable[[], States], *, token_bytes: int, shared: int, fixed: bool
    ) -> None:
        """Keep the states of a sequence, unless they are kept already or do not fit.

        Args:
            weights: Key of the weights.
            ids: The tokens.
            copy: Makes the states.
            token_bytes: What a token takes.
            shared: Tokens at the beginning that all conversations share; an earlier turn of this one makes way.
            fixed: Whether that beginning is all.
        """
        size = token_bytes * len(ids)
        if not ids or size > self._budget:
            return
        for kept in self._kept:
            if kept.weights == weights and kept.fixed >= fixed and kept.ids[: len(ids)] == ids:
                self.touch(kept)
                return
        if not fixed:
            self._kept = [kept for kept in self._kept if not _outdated(kept, weights, ids, shared)]
        while self._kept and self.size + size > self._budget:
            del self._kept[0]
        self._kept.append(Kept(weights, ids, copy(), fixed, size))

    def clear(self) -> bool:
        """Drop everything; tell whether there was anything."""
        had, self._kept = bool(self._kept), []
        return had


def _begins(kept: Kept, other: Kept) -> bool:
    return kept.weights == other.weights and other.ids[: len(kept.ids)] == kept.ids


def _outdated(kept: Kept, weights: str, ids: list[int], shared: int) -> bool:
    """Tell whether a sequence is an earlier state of the conversation that `ids` are the newest state of."""
    if kept.fixed or kept.weights != weights:
        return False
    common = common_prefix(kept.ids, ids)
    return common == len(kept.ids) or common >= shared + _ONE_CONVERSATION


def clear_device() -> None:
    """Give what torch holds in reserve back to a GPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
