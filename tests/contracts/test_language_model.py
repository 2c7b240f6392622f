"""What every language model owes to a conversation; a backend is one line in `BACKENDS`."""

import asyncio
import random
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, aclosing
from functools import partial
from pathlib import Path

import pytest

from adapters import plugins
from domain.conversation import Message, Role
from domain.ports import LanguageModel
from domain.prompt import Prompt, Sampling
from tests.gguf_files import CHAT_TEMPLATE, tiny_llama
from tests.llama_server import llama_server

LONG = "今天的风好舒服呀，墨墨趴在窗台上晒太阳🐢，我泡了一壶桂花乌龙茶，想和你慢慢说说话。" * 40


def _scripted(folder: Path, beside: ExitStack) -> LanguageModel:
    backend = plugins.load("language_model", "scripted")
    return backend.build(backend.Config(replies=(LONG,)))


def _llama_cpp(folder: Path, beside: ExitStack) -> LanguageModel:
    backend = plugins.load("language_model", "llama_cpp")
    return backend.build(backend.Config(cache_dir=folder, threads=1))


def _transformers(folder: Path, beside: ExitStack, *, template: str | None = None) -> LanguageModel:
    from tests import checkpoints

    backend = plugins.load("language_model", "transformers")
    tiny = checkpoints.llama(folder / "tiny", template=template, byte_level=template is not None)
    return backend.build(backend.Config(model=str(tiny), threads=1))


def _transformers_starter(folder: Path, beside: ExitStack) -> LanguageModel:
    backend = plugins.load("language_model", "transformers")
    return backend.build(backend.Config(threads=1))


def _openai_compatible(folder: Path, beside: ExitStack) -> LanguageModel:
    url = beside.enter_context(llama_server(tiny_llama(folder / "tiny.gguf", CHAT_TEMPLATE)))
    backend = plugins.load("language_model", "openai_compatible")
    return backend.build(backend.Config(base_url=url, model="tiny", api_key="sesame"))


# Each makes a model that keeps its files in a folder; what must run beside it goes onto the stack.
BACKENDS: dict[str, Callable[[Path, ExitStack], LanguageModel]] = {
    "scripted": _scripted,
    "llama_cpp": _llama_cpp,
    "openai_compatible": _openai_compatible,
    "transformers": _transformers,
    "transformers with a chat template": partial(_transformers, template="no_system"),
    "transformers with the starter": _transformers_starter,
}
MARKS = {"scripted": [], "transformers with the starter": [pytest.mark.model, pytest.mark.slow]}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=MARKS.get(name, [pytest.mark.model])) for name in BACKENDS],
)
async def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[LanguageModel]:
    cache = tmp_path_factory.mktemp("cache")
    with ExitStack() as beside:
        made = BACKENDS[request.param](cache, beside)
        await made.load()
        yield made
        await made.close()
    shutil.rmtree(cache)  # pytest would keep the weights


PERSONA = "紫舒是一位年轻的二次元老师，温柔、爱笑、有点小调皮，说话亲切，常带“呀”“呢”“哦”。下面是她和学生的聊天。"
PROMPT = Prompt(
    user_name="同学",
    her_name="紫舒",
    persona=PERSONA,
    history=(Message(Role.USER, "早上好，老师！"), Message(Role.HER, "早上好呀～昨晚睡得好吗？")),
    found=(("我有点累了。", "辛苦啦，先喝口水，休息十分钟好不好呢？"),),
    notes=("【此刻】2026年3月14日，星期六，上午十点",),
    words="给我讲一个长长的故事，好不好？",
)
SAMPLING = Sampling(temperature=0.8, max_tokens=24, seed=7)
# Twenty minutes of text: whoever does not stop when told to is found out.
ENDLESS = Sampling(temperature=1.0, repetition_penalty=1.0, max_tokens=3000)


async def reply(model: LanguageModel, prompt: Prompt = PROMPT, sampling: Sampling = SAMPLING) -> list[str]:
    return [piece async for piece in model.generate(prompt, expert="base", sampling=sampling)]


async def test_an_answer_comes_in_pieces_of_whole_characters(model: LanguageModel) -> None:
    for seed in range(3):
        pieces = await reply(model, sampling=Sampling(temperature=1.2, max_tokens=60, seed=seed))
        assert all(pieces)
        assert "\ufffd" not in "".join(pieces)
        if len("".join(pieces)) > 12:
            assert len(pieces) > 2


async def test_a_reply_never_takes_more_tokens_than_allowed(model: LanguageModel) -> None:
    for allowed in (1, 5, 30):
        said = "".join(await reply(model, sampling=Sampling(temperature=1.0, max_tokens=allowed, seed=3)))
        assert model.count_tokens(said) <= allowed


async def test_no_mark_of_the_layout_and_no_line_of_the_user_is_part_of_a_reply(model: LanguageModel) -> None:
    for words in ("你好呀", "我今天考试没考好，好难过。", "1+1等于几？", "晚安"):
        said = "".join(await reply(model, prompt=Prompt("同学", "紫舒", PERSONA, words), sampling=SAMPLING))
        assert not any(mark in said for mark in ("<start_of_turn>", "<end_of_turn>", "<|", "</s>", "<eos>", "同学："))


async def test_the_same_seed_says_the_same(model: LanguageModel) -> None:
    assert "".join(await reply(model)) == "".join(await reply(model))


async def test_conversations_at_the_same_time_all_get_their_answer(model: LanguageModel) -> None:
    answers = await asyncio.gather(*(reply(model) for _ in range(5)))
    assert all("".join(pieces) for pieces in answers)


async def test_stopping_early_frees_the_model_for_the_next_conversation(model: LanguageModel) -> None:
    async with aclosing(model.generate(PROMPT, expert="base", sampling=ENDLESS)) as pieces:
        async for _ in pieces:
            break
    assert "".join(await reply(model))


async def listening(model: LanguageModel) -> asyncio.Task[None]:
    """Return a listener in the middle of a long reply."""

    async def listen(heard: asyncio.Event) -> None:
        try:
            async with aclosing(model.generate(PROMPT, expert="base", sampling=ENDLESS)) as pieces:
                async for _ in pieces:
                    heard.set()
        finally:
            heard.set()

    while True:  # a model of random weights may end its reply at once
        heard = asyncio.Event()
        listener = asyncio.create_task(listen(heard))
        await heard.wait()
        if not listener.done():
            return listener
        await listener


async def test_cancelling_the_listener_stops_the_model(model: LanguageModel) -> None:
    listener = await listening(model)
    listener.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listener
    assert "".join(await reply(model))


async def test_fifty_hang_ups_at_any_moment_leave_nothing_behind(model: LanguageModel) -> None:
    await asyncio.gather(*(reply(model) for _ in range(3)))
    threads, tasks = threading.active_count(), len(asyncio.all_tasks())
    moment = random.Random(1)
    for _ in range(50):
        listener = asyncio.create_task(reply(model, sampling=ENDLESS))
        await asyncio.sleep(moment.uniform(0, 0.15))
        listener.cancel()
        await asyncio.wait([listener])
    assert "".join(await reply(model))
    assert threading.active_count() <= threads
    assert len(asyncio.all_tasks()) == tasks


async def test_loading_again_costs_nothing_and_changes_nothing(model: LanguageModel) -> None:
    before = "".join(await reply(model))
    await asyncio.gather(model.load(), model.load())
    assert "".join(await reply(model)) == before


async def test_tokens_are_counted(model: LanguageModel) -> None:
    assert model.count_tokens("") == 0
    assert 0 < model.count_tokens("你好") <= model.count_tokens("你好，今天过得怎么样？") <= 40
    assert model.count_tokens("你好" * 100) >= 50
    assert model.context_tokens >= 256
