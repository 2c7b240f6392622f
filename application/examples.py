"""Finding the example exchanges that are most like what the user just said."""

from array import array
from collections.abc import Callable, Sequence
from operator import mul

from domain.character import Character, Exchange
from domain.extraction import told_name
from domain.ports import Embedder

Pair = tuple[str, str]


def showable(exchange: Exchange) -> Pair | None:
    """Return the opening pair of an exchange, or None where it makes sense only with what was known beforehand."""
    question, answer = exchange.turns[0], exchange.turns[1]
    depends = exchange.name or exchange.now or exchange.memories or told_name(question)
    return None if depends else (question, answer)


class Examples:
    """The examples of the characters met so far, searchable by meaning.

    Args:
        embedder: Turns questions into vectors.
        shown: How many examples a prompt gets.
    """

    def __init__(self, embedder: Embedder, *, shown: int) -> None:
        self._embedder = embedder
        self._shown = shown
        self._pairs: dict[str, list[Pair]] = {}
        self._vectors: dict[str, list[Sequence[float]]] = {}

    async def prepare(self, character: Character, progress: Callable[[int, int], None] | None = None) -> None:
        """Embed a character's examples, reporting (done, total); what is known already costs nothing."""
        if character.id in self._vectors:
            return
        pairs = [pair for pair in map(showable, character.exchanges) if pair]
        vectors: list[Sequence[float]] = []
        for start in range(0, len(pairs), 32):
            block = [question for question, _ in pairs[start : start + 32]]
            vectors.extend(array("f", vector) for vector in await self._embedder.embed_passages(block))
            if progress:
                progress(len(vectors), len(pairs))
        self._pairs[character.id], self._vectors[character.id] = pairs, vectors

    async def similar(self, character: Character, words: str, *, leave_out: Pair | None = None) -> tuple[Pair, ...]:
        """Return the most similar pairs, best first.

        Args:
            character: Whose examples to search.
            words: What the user said.
            leave_out: A pair that must not be found: in training, the one that is being learnt.
        """
        await self.prepare(character)
        (query,) = await self._embedder.embed_queries([words])
        scored = sorted(
            (
                (sum(map(mul, query, vector)), pair)
                for vector, pair in zip(self._vectors[character.id], self._pairs[character.id], strict=True)
                if pair != leave_out
            ),
            reverse=True,
        )
        return tuple(pair for _, pair in scored[: self._shown])
