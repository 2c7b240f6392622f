"""What is looked at before anything is trained: that the right words are learnt, and in the layout of serving."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from adapters.language_model.transformers.prompting import PromptEncoder
from domain.errors import BadInput
from domain.prompt import Layout
from training.exchanges import Lesson
from training.targets import NOT_A_TARGET, Tokens, tokenised


def check_template(lessons: Sequence[Lesson], layout: Layout, tokenizer: Any, console: Console) -> None:  # noqa: ANN401
    """Show up to three lessons with what is learnt in green, and refuse to train on a wrong layout.

    Raises:
        BadInput: A lesson has no target, its end of turn is not learnt, or its prompt is not what serving encodes.
    """
    serving = PromptEncoder(tokenizer, layout)
    for lesson in lessons:
        tokens = tokenised(lesson, layout, tokenizer)
        prompt, close = tokens.ids[: tokens.reply_at], tokens.ids[tokens.close_at :]
        problem = None
        if tokens.close_at == tokens.reply_at:
            problem = "holds no word of hers to learn"
        elif tokens.targets[tokens.close_at :] != close or not close:
            problem = "does not teach the end of her turn"
        elif list(prompt) != serving.ids(lesson.prompt):
            problem = "is not encoded as serving encodes it"
        elif tokenizer.decode(tokens.ids[tokens.reply_at :]) != layout.clean(lesson.reply) + layout.her_close:
            problem = "does not survive its way through the tokenizer"
        if problem:
            raise BadInput(
                f"The lesson beginning {lesson.prompt.words!r} {problem}.",
                "Use a tokenizer that belongs to the model and a layout whose end of turn is not empty.",
            )
    for lesson in lessons[:3]:
        console.print(_coloured(tokenised(lesson, layout, tokenizer), tokenizer))
        console.rule()


def _coloured(tokens: Tokens, tokenizer: Any) -> Text:  # noqa: ANN401
    """Return the lesson's text, green where it is learnt."""
    shown = Text()
    pairs = zip(tokens.ids, tokens.targets, strict=True)
    for learnt, run in groupby(pairs, key=lambda pair: pair[1] != NOT_A_TARGET):
        text = tokenizer.decode([token for token, _ in run]).replace("\n", "⏎\n")
        shown.append(text, style="bold green" if learnt else "dim")
    return shown
