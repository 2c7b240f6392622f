"""What a run learns from: the batches of every epoch, and the lessons that are only measured."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from application.converse import PromptBudget
from application.examples import Examples
from domain.character import Character
from domain.ports import Embedder
from domain.prompt import LAYOUTS
from training.exchanges import Lesson, Lessons, Split, split
from training.run import Recipe
from training.targets import Tokens, tokenised

_GROUP = 8  # batches that are sorted by length together: hardly any padding, and still mixed


@dataclass(frozen=True, slots=True)
class Course:
    """What is learnt: the batches of every epoch, and the lessons that are only measured."""

    divided: Split
    lessons: Lessons
    encode: "Callable[[Lesson], Tokens]"
    recipe: Recipe

    @property
    def batches(self) -> int:
        """How many batches an epoch has."""
        return math.ceil(len(self.divided.train) / self.recipe.batch)

    def epoch(self, number: int) -> "list[list[Tokens]]":
        """Return an epoch's batches, the same ones whenever it is asked: every exchange once, in some situation."""
        rng = Random(f"{self.recipe.seed} {number}")  # noqa: S311 - repeatable, nothing secret
        tokens = [self.encode(self.lessons.varied(exchange, rng)) for exchange in self.divided.train]
        rng.shuffle(tokens)
        size, batches = self.recipe.batch, []
        for start in range(0, len(tokens), size * _GROUP):
            group = sorted(tokens[start : start + size * _GROUP], key=lambda one: len(one.ids))
            batches += [group[at : at + size] for at in range(0, len(group), size)]
        rng.shuffle(batches)
        return batches

    def measured(self) -> "list[Tokens]":
        """Return the held-out lessons as serving would lay them out."""
        return [
            self.encode(self.lessons.plain(exchange, shown=self.recipe.examples, seed=0))
            for exchange in self.divided.held_out
        ]


def prepare(character: Character, embedder: Embedder, tokenizer: Any, recipe: Recipe) -> Course:  # noqa: ANN401
    """Divide the exchanges, and find the examples that each of their prompts shows, in the training part only."""
    divided = split(character.exchanges, share=recipe.held_out)
    learnt = replace(character, exchanges=divided.train)
    examples = Examples(embedder, shown=max(recipe.examples, 1))
    lessons = Lessons(learnt, examples, lambda text: len(tokenizer(text)["input_ids"]), budget=PromptBudget().volatile)
    asyncio.run(lessons.find((*divided.train, *divided.held_out)))
    layout = LAYOUTS[recipe.layout]
    return Course(divided, lessons, lambda lesson: tokenised(lesson, layout, tokenizer), recipe)
