"""Who answers a turn: asks the scorer, lets the router decide, and sends a turn to a model of the expert's own."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from domain.errors import BadInput
from domain.ports import Experts, ExpertScorer, LanguageModel
from domain.prompt import Prompt, Sampling
from domain.routing import BASE, Decision, Expert, OwnBackend, Router


@dataclass(frozen=True, slots=True)
class Choice:
    """Who answers a turn.

    Attributes:
        decision: The router's word, for the user.
        expert: Who was chosen; None for the base.
        likely: The scorer's posteriors, a hint for a model that fetches adapters ahead (it knows itself who followed
            whom until now); empty where nobody was scored.
    """

    decision: Decision
    expert: Expert | None = None
    likely: Mapping[str, float] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """What the prompt shall carry: only the weights of an adapter were trained on it."""
        return self.expert.tag if self.expert and self.expert.adapter and not self.expert.backend else ""

    def sampled(self, sampling: Sampling) -> Sampling:
        """Return the sampling with its temperature within the expert's band."""
        if not self.expert or not self.expert.speaks_itself:
            return sampling
        low, high = self.expert.temperature
        return replace(sampling, temperature=min(max(sampling.temperature, low), high))


class _Nobody:
    """Neither experts nor a scorer for them."""

    def all(self) -> tuple[Expert, ...]:
        return ()

    def refused(self) -> Mapping[str, str]:
        return {}

    async def score(self, words: str, experts: Sequence[Expert]) -> Mapping[str, float]:
        return {BASE: 1.0}


class ChooseExpert:
    """Decides who answers; without arguments it is always the base.

    Args:
        experts: Who is plugged in.
        scorer: Who tells how likely each of them is.
        router: The rules.
        patience_s: Seconds that a turn waits for the scorer; None waits as long as it takes.

    Attributes:
        router: The rules.
    """

    def __init__(
        self,
        experts: Experts | None = None,
        scorer: ExpertScorer | None = None,
        router: Router | None = None,
        *,
        patience_s: float | None = 1.0,
    ) -> None:
        self._experts = experts or _Nobody()
        self._scorer = scorer or _Nobody()
        self.router = router or Router()
        self._patience_s = patience_s

    def named(self, tag: str) -> str:
        """Return the name of the expert that a trusted caller asks for by tag or by name.

        Raises:
            BadInput: There is no such expert.
        """
        for name, other in ((BASE, BASE), *((expert.name, expert.tag) for expert in self._experts.all())):
            if tag.casefold() in (name, other.casefold()):
                return name
        known = ", ".join(expert.tag for expert in self._experts.all()) or "none"
        raise BadInput(f"There is no expert with the tag {tag!r}.", f"Leave it out, or choose one of: {known}.")

    async def choose(
        self, words: str, *, in_charge: str = BASE, asked_for: str | None = None, refused: Collection[str] = ()
    ) -> Choice:
        """Return who answers a turn; whatever happens to the scorer, somebody does.

        Args:
            words: What the user says.
            in_charge: Who answered the turn before.
            asked_for: The name that `named` returned for a trusted caller.
            refused: Whose adapters the model cannot use; the base answers for them.
        """
        experts = {
            expert.name: replace(expert, adapter=None) if expert.name in refused else expert
            for expert in self._experts.all()
        }
        if asked_for is not None:
            return Choice(self.router.obey(asked_for, experts=tuple(experts.values())), experts.get(asked_for))
        if not experts:
            return Choice(self.router.choose({}))
        posteriors = await self._score(words, tuple(experts.values()), self._patience_s)
        if isinstance(posteriors, str):
            return Choice(Decision(BASE, 1.0, posteriors))
        decision = self.router.choose(posteriors, in_charge=in_charge, words=words, experts=tuple(experts.values()))
        return Choice(decision, experts.get(decision.expert), posteriors)

    async def warm_up(self, *, patience_s: float = 30.0) -> None:
        """Let the scorer learn what it must before the first turn; if it fails, that turn will say so."""
        await self._score("你好", self._experts.all(), patience_s)

    async def _score(
        self, words: str, experts: Sequence[Expert], patience_s: float | None
    ) -> Mapping[str, float] | str:
        """Return the posteriors, or why there are none, in words for the user."""
        task = asyncio.ensure_future(self._scorer.score(words, experts))
        try:
            await asyncio.wait({task}, timeout=patience_s)
        finally:
            task.cancel()  # does nothing where it is done
        if not task.done():
            return "专家的判断没有及时给出，这一轮由基础人格回答"
        if task.exception():  # any at all: a scorer from elsewhere must not break a turn
            return "专家的判断出了错，这一轮由基础人格回答"
        return task.result()


class ManyModels:
    """A `LanguageModel` in which an expert may be a model of its own, made at its first turn and closed with the rest.

    Args:
        model: Answers for the base and for every expert without such a model.
        experts: Who is plugged in.
        build: Makes the model of an expert.
    """

    def __init__(self, model: LanguageModel, experts: Experts, build: Callable[[OwnBackend], LanguageModel]) -> None:
        self._model = model
        self._experts = experts
        self._build = build
        self._own: dict[str, tuple[OwnBackend, LanguageModel]] = {}
        self._making = asyncio.Lock()

    @property
    def context_tokens(self) -> int:
        return self._model.context_tokens

    async def load(self) -> None:
        await self._model.load()

    def count_tokens(self, text: str) -> int:
        return self._model.count_tokens(text)

    async def generate(self, prompt: Prompt, *, expert: str, sampling: Sampling) -> AsyncGenerator[str, None]:
        own = (
            next((each.backend for each in self._experts.all() if each.name == expert), None)
            if expert != BASE
            else None
        )
        model = await self._own_model(expert, own) if own else self._model
        name = BASE if own else expert
        async with aclosing(model.generate(prompt, expert=name, sampling=sampling)) as pieces:
            async for piece in pieces:
                yield piece

    def anticipate(self, likely: Mapping[str, float]) -> None:
        self._model.anticipate(likely)

    def refused(self) -> Mapping[str, str]:
        return self._model.refused()

    async def close(self) -> None:
        for _, model in self._own.values():
            await model.close()
        self._own.clear()
        await self._model.close()

    async def _own_model(self, name: str, backend: OwnBackend) -> LanguageModel:
        """Return the loaded model of an expert; one whose settings have changed is made anew."""
        async with self._making:
            made, model = self._own.get(name, (None, None))
            if model is None or made != backend:
                fresh = await asyncio.to_thread(self._build, backend)
                self._own[name] = backend, fresh
                if model is not None:
                    await model.close()
                model = fresh
        await model.load()
        return model
