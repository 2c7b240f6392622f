"""From a prompt to token ids in which only we place special tokens, and exactly one begins the text."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import dropwhile, takewhile

from jinja2 import TemplateError

from adapters.language_model.transformers.text import Tokenizer
from adapters.models.special_tokens import defused
from domain.errors import BackendUnavailable
from domain.prompt import Layout, Prompt, as_messages, as_text

_PROBE = "probe"


class PromptEncoder:
    """Encodes prompts in a layout, or without one in the tokenizer's own chat template."""

    def __init__(self, tokenizer: Tokenizer, layout: Layout | None) -> None:
        self._tokenizer = tokenizer
        self._layout = layout
        self._marks = {tokenizer.convert_ids_to_tokens(token) for token in special_ids(tokenizer)}
        self._knows_system = layout is None and self._renders([("system", _PROBE), ("user", "")], _PROBE)
        bos = tokenizer.bos_token_id
        self._begins = [] if bos is None or tokenizer("").input_ids[:1] != [bos] else [bos]
        self._opening = lru_cache(maxsize=16)(self._common_opening)

    def stops(self, prompt: Prompt) -> tuple[str, ...]:
        """Return the strings that end a reply where no special token does; none with a chat template."""
        return self._layout.stops(prompt.user_name) if self._layout else ()

    def ids(self, prompt: Prompt) -> list[int]:
        """Return the tokens to continue from.

        Raises:
            BackendUnavailable: The chat template refuses the conversation.
        """
        prompt = defused(prompt, self._marks)
        text = as_text(prompt, self._layout) if self._layout else self._templated(prompt)
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        bos = self._tokenizer.bos_token_id
        begins = self._begins or tokens[: tokens[:1] == [bos]]
        return [*begins, *dropwhile(lambda token: token == bos, tokens)]

    def fixed(self, prompt: Prompt, ids: Sequence[int]) -> int:
        """Return with how many of a prompt's tokens every conversation begins: who she is, and the fixed examples."""
        return _common(self._opening(replace(prompt, profile="", history=(), notes=(), found=(), words="")), ids)

    def _common_opening(self, bare: Prompt) -> list[int]:
        one, other = (self.ids(replace(bare, words=words)) for words in ("a", "你"))
        return one[: _common(one, other)]

    def _templated(self, prompt: Prompt) -> str:
        """Render the chat template; where it has no system role, that text goes into the user's first line."""
        talk = as_messages(prompt)
        if not self._knows_system:
            (_, intro), (_, first), *rest = talk
            talk = [("user", f"{intro}\n\n{first}"), *rest]
        try:
            return self._render(talk)
        except TemplateError as error:
            raise BackendUnavailable(
                f"The model's chat template refuses this conversation: {error}.",
                'Set [language_model.transformers] layout = "script".',
            ) from error

    def _renders(self, talk: list[tuple[str, str]], expected: str) -> bool:
        try:
            return expected in self._render(talk)
        except TemplateError:
            return False

    def _render(self, talk: list[tuple[str, str]]) -> str:
        messages = [{"role": role, "content": content} for role, content in talk]
        # a companion answers at once: models that can think aloud first are asked not to
        text: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return text


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the tokens that structure a text and are never part of it."""
    marked = (token for token, added in tokenizer.added_tokens_decoder.items() if added.special)
    return frozenset((*marked, *tokenizer.all_special_ids))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
