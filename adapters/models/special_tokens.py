"""Keeps what people write from being read as a special token: only the layout may place those."""

from collections.abc import Callable, Collection
from dataclasses import replace

from domain.prompt import Prompt


def defused(prompt: Prompt, special: Collection[str]) -> Prompt:
    """Return the prompt with a blank inside whatever its tokenizer would take for a special token.

    A blank, because leaving the token out could join what stands around it into another one.
    """
    firsts = {token[0] for token in special}

    def rewrite(text: str) -> str:
        if not any(first in text for first in firsts):
            return text
        for token in special:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    return _rewritten(prompt, rewrite)


def _rewritten(prompt: Prompt, rewrite: Callable[[str], str]) -> Prompt:
    return replace(
        prompt,
        user_name=rewrite(prompt.user_name),
        her_name=rewrite(prompt.her_name),
        persona=rewrite(prompt.persona),
        words=rewrite(prompt.words),
        fixed=tuple(replace(example, turns=tuple(map(rewrite, example.turns))) for example in prompt.fixed),
        profile=rewrite(prompt.profile),
        history=tuple(replace(message, text=rewrite(message.text)) for message in prompt.history),
        notes=tuple(map(rewrite, prompt.notes)),
        found=tuple((rewrite(question), rewrite(answer)) for question, answer in prompt.found),
    )
