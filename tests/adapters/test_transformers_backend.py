import asyncio
import hashlib
import json
import os
import pickle
import random
import shutil
import struct
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapters.language_model import transformers as backend
from adapters.language_model.transformers import Config, TransformersModel
from adapters.language_model.transformers.loading import load
from adapters.language_model.transformers.text import Detokeniser
from domain.conversation import Message, Role
from domain.errors import BackendUnavailable, BadConfiguration, BadInput, ZishuError
from domain.prompt import Prompt, Sampling
from domain.routing import Expert, KnowledgeKind
from tests import checkpoints
from tests.gguf_files import tiny_llama
from tests.local_server import respond, serving

pytestmark = pytest.mark.model

PROMPT = Prompt(user_name="同学", her_name="紫舒", persona="紫舒是温柔的老师。", words="你好，你是谁？")
PERSONA = "紫舒老师是一位温柔活泼的二次元少女老师，说话亲切，喜欢在句尾加“呢”“哦”“～”。"
GREEDY = Sampling(temperature=0, repetition_penalty=1, max_tokens=24)


def config(folder: Path, **keys: object) -> Config:
    return Config(model=str(folder), precision="fp32", device="cpu", threads=1, **keys)


async def said(
    model: TransformersModel, prompt: Prompt = PROMPT, sampling: Sampling = GREEDY, expert: str = "base"
) -> str:
    return "".join([piece async for piece in model.generate(prompt, expert=expert, sampling=sampling)])


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
async def model(llama: Path) -> AsyncIterator[TransformersModel]:
    model = backend.build(config(llama))
    await model.load()
    yield model
    await model.close()


async def test_one_seed_gives_one_reply_and_another_seed_another(model: TransformersModel):
    seeded = Sampling(temperature=1, max_tokens=24, seed=7)
    first = await said(model, sampling=seeded)
    assert first == await said(model, sampling=seeded)
    assert first != await said(model, sampling=replace(seeded, seed=8))


async def test_after_hanging_up_at_most_one_further_token_is_computed(model: TransformersModel):
    steps_after = 0
    hung_up = threading.Event()

    def count(*_: object) -> None:
        nonlocal steps_after
        steps_after += hung_up.is_set()

    hook = model.engine.loaded.model.register_forward_pre_hook(count)
    for _ in range(20):
        async with aclosing(model.generate(PROMPT, expert="base", sampling=replace(GREEDY, max_tokens=1500))) as pieces:
            await anext(pieces)
            hung_up.set()
        assert steps_after <= 1
        steps_after = 0
        hung_up.clear()
    hook.remove()


async def test_hanging_up_while_a_long_prompt_is_read_stops_after_the_chunk(model: TransformersModel):
    chunks = 0
    reading, go_on = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        nonlocal chunks
        chunks += 1
        reading.set()
        go_on.wait(10)

    hook = model.engine.loaded.model.register_forward_pre_hook(hold)
    long = replace(PROMPT, persona="紫舒是温柔的老师。" * 150)
    listening = asyncio.ensure_future(said(model, long))
    await asyncio.to_thread(reading.wait, 10)
    listening.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await listening
    hook.remove()
    assert chunks == 1


async def test_a_thousand_hang_ups_at_any_moment_leave_nothing_behind(llama: Path):
    """A thousand where all is tried; fewer otherwise."""
    model = backend.build(config(llama, batch=4, waiting=4, cache_megabytes=1))
    await model.load()
    first = await said(model)
    threads, tasks, chance = threading.active_count(), len(asyncio.all_tasks()), random.Random(1)
    endless = Sampling(temperature=2, repetition_penalty=1, max_tokens=1500)
    for _ in range(settings.default.max_examples // 5):
        prompts = [replace(PROMPT, words="你好，老师！" * chance.randint(1, 60)) for _ in range(5)]
        listeners = [asyncio.ensure_future(said(model, asked, endless)) for asked in prompts]
        for listener in listeners:
            await asyncio.sleep(chance.uniform(0, 0.02))
            listener.cancel()
        await asyncio.wait(listeners)
    assert await said(model) == first
    assert threading.active_count() <= threads
    assert len(asyncio.all_tasks()) == tasks
    counts = model.engine.counts
    assert counts.running == counts.waiting == 0
    assert counts.cache_bytes <= 1024**2
    free = await asyncio.gather(*(said(model) for _ in range(8)))  # all places are free again
    assert free == [first] * 8
    await model.close()


async def test_of_two_hundred_requests_those_over_the_limit_are_turned_away_and_nothing_hangs(llama: Path):
    model = backend.build(config(llama, batch=4, waiting=6))
    await model.load()
    alone = await said(model)
    ended = await asyncio.gather(*(said(model) for _ in range(200)), return_exceptions=True)
    refused = [end for end in ended if isinstance(end, BackendUnavailable)]
    assert [end for end in ended if not isinstance(end, BackendUnavailable)] == [alone] * (200 - len(refused))
    assert 100 < len(refused) <= 190
    assert "waiting" in refused[0].remedy
    assert await said(model) == alone
    await model.close()


async def test_what_nobody_foresaw_ends_the_replies_and_the_engine_goes_on(model: TransformersModel):
    def fail(*_: object) -> None:
        raise KeyError("unforeseen")

    alone = await said(model)
    hook = model.engine.loaded.model.register_forward_pre_hook(fail)
    ended = await asyncio.gather(*(said(model) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(end, KeyError) for end in ended)
    hook.remove()
    assert await said(model) == alone


async def test_a_second_turn_goes_on_from_the_first(model: TransformersModel):
    assert model.engine.counts.cache_bytes == 0
    first = await said(model)
    history = (Message(Role.USER, PROMPT.words), Message(Role.HER, first))
    await said(model, replace(PROMPT, words="真的吗？", history=history))
    counts = model.engine.counts
    assert (counts.prompts, counts.hits) == (2, 1)
    assert counts.cache_bytes > 0


async def test_conversations_wait_for_the_model_and_one_too_many_is_turned_away(llama: Path):
    model = backend.build(config(llama, waiting=2, batch=1))
    await model.load()
    alone = await said(model)
    together = await asyncio.gather(*(said(model) for _ in range(4)), return_exceptions=True)
    assert together[:3] == [alone] * 3
    assert isinstance(together[3], BackendUnavailable)
    assert await said(model) == alone
    await model.close()


async def test_tokens_can_be_counted_while_the_model_speaks(model: TransformersModel):
    expected = model.count_tokens("你好，你是谁？")
    speaking = asyncio.ensure_future(said(model, sampling=replace(GREEDY, max_tokens=200)))
    counts = set()
    while not speaking.done():
        counts.add(model.count_tokens("你好，你是谁？"))
        await asyncio.sleep(0)
    assert await speaking
    assert counts == {expected}


async def test_a_model_closed_in_mid_reply_says_so(llama: Path):
    model = backend.build(config(llama))
    pieces = model.generate(PROMPT, expert="base", sampling=replace(GREEDY, max_tokens=1500))
    await anext(pieces)
    await model.close()
    with pytest.raises(BackendUnavailable, match="closed"):
        async for _ in pieces:
            pass
    with pytest.raises(BackendUnavailable, match="closed"):
        await said(model)


async def test_the_first_words_load_the_model(llama: Path):
    model = backend.build(config(llama))
    assert await said(model)
    await model.close()


async def test_a_reply_never_leaves_the_context_and_a_prompt_that_fills_it_is_refused(llama: Path):
    model = backend.build(config(llama, context_tokens=128))
    await model.load()
    used = len(model.engine.loaded.encoder.ids(PROMPT))
    steps: list[int] = []
    hook = model.engine.loaded.model.register_forward_hook(lambda *_: steps.append(1))
    await said(model, sampling=replace(GREEDY, max_tokens=1000))
    assert used + len(steps) <= 128
    with pytest.raises(BadInput, match="128"):
        await said(model, replace(PROMPT, words="你好" * 200))
    hook.remove()
    await model.close()


async def test_the_context_is_never_larger_than_what_the_model_was_made_for(llama: Path):
    model = backend.build(config(llama, context_tokens=100_000))
    await model.load()
    assert model.context_tokens == 2048
    await model.close()


# Adapters

peft_warns = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def adapter(base: Path, folder: Path, *, safe: bool = True, seed: int = 1) -> Path:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    adapted.save_pretrained(folder)
    if not safe:
        (folder / "adapter_model.safetensors").unlink()
        torch.save({}, folder / "adapter_model.bin")
    return folder


@peft_warns
async def test_an_adapter_changes_what_she_says_as_peft_itself_would(llama: Path, tmp_path: Path):
    from peft import PeftModel

    folder = adapter(llama, tmp_path / "adapter")
    model, bare = backend.build(config(llama, adapter=str(folder))), backend.build(config(llama))
    ours = await said(model)
    assert ours != await said(bare)
    loaded = model.engine.loaded
    beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), folder).eval()
    given = torch.tensor([loaded.encoder.ids(PROMPT)])
    plain = beside.generate(input_ids=given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=24)
    text = Detokeniser(loaded.tokenizer)
    assert "".join(text.feed(token) for token in plain[0, given.shape[1] :].tolist()).startswith(ours)
    assert len(ours) > 3
    await model.close()
    await bare.close()


@dataclass
class Plugged:
    """Experts in a list: the port without folders."""

    folders: dict[str, Path | None]

    def all(self) -> tuple[Expert, ...]:
        kind = KnowledgeKind.FACT
        return tuple(Expert(name, name.upper(), name, kind, (0, 1), adapter=at) for name, at in self.folders.items())

    def refused(self) -> Mapping[str, str]:
        return {}


@peft_warns
async def test_an_expert_answers_with_his_adapter_and_one_who_has_none_as_the_base(llama: Path, tmp_path: Path):
    folder = adapter(llama, tmp_path / "culture")
    bare, merged = backend.build(config(llama)), backend.build(config(llama, adapter=str(folder)))
    experts = Plugged({"culture": folder, "logic": None})
    model = backend.build(config(llama), experts)
    model.anticipate({"culture": 1.0})
    await model.load()
    model.anticipate({"culture": 1.0})
    wanted = [await said(merged), await said(bare)]
    assert wanted[0] != wanted[1]
    assert [await said(model, expert=name) for name in ("culture", "logic", "culture")] == [*wanted, wanted[0]]
    together = await asyncio.gather(*(said(model, expert=name) for name in ("base", "culture", "logic", "culture")))
    assert together == [wanted[1], wanted[0], wanted[1], wanted[0]]
    for one in (bare, merged, model):
        await one.close()


@peft_warns
async def test_an_expert_that_is_plugged_in_later_does_without_her_own_adapter(llama: Path, tmp_path: Path):
    persona, culture = adapter(llama, tmp_path / "persona"), adapter(llama, tmp_path / "culture", seed=5)
    experts = Plugged({"culture": None})
    model = backend.build(config(llama, adapter=str(persona)), experts)
    hers = await said(model)
    assert await said(model, expert="culture") == hers  # by the base
    experts.folders["culture"] = culture
    alone = backend.build(config(llama, adapter=str(culture)))
    assert await said(model, expert="culture") == await said(alone) != hers
    assert await said(model) == hers
    await model.close()
    await alone.close()


async def test_a_model_that_cannot_go_back_to_an_earlier_token_is_refused(llama: Path, tmp_path: Path):
    from transformers import Lfm2Config, Lfm2ForCausalLM

    folder = copied(llama, tmp_path)
    sizes = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}
    Lfm2ForCausalLM(Lfm2Config(**sizes, **heads)).save_pretrained(folder)
    assert "attention" in (await refusal(config(folder))).remedy


# Bad files


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self):
        return Path.touch, (self.sprung,)


async def refusal(config: Config) -> ZishuError:
    model = backend.build(config)
    with pytest.raises(ZishuError) as caught:
        await model.load()
    await model.close()
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
async def test_pickled_weights_are_refused_before_they_are_opened(llama: Path, tmp_path: Path, name: str):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((llama / "config.json").read_bytes())
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    error = await refusal(config(folder))
    assert isinstance(error, BadConfiguration)
    assert "safetensors" in error.remedy
    assert not (tmp_path / "sprung").exists()


@peft_warns
async def test_a_pickled_adapter_is_refused(llama: Path, tmp_path: Path):
    folder = adapter(llama, tmp_path / "adapter", safe=False)
    assert isinstance(await refusal(config(llama, adapter=str(folder))), BadConfiguration)


async def test_code_that_comes_with_a_model_is_never_run(llama: Path, tmp_path: Path):
    folder = copied(llama, tmp_path)
    keys = json.loads((folder / "config.json").read_text())
    keys.update(model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"})
    (folder / "config.json").write_text(json.dumps(keys))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    assert "code of its own" in (await refusal(config(folder))).remedy
    assert not (tmp_path / "sprung").exists()


def copied(folder: Path, into: Path) -> Path:
    return Path(shutil.copytree(folder, into / "model"))


async def test_weights_cut_short_are_refused(llama: Path, tmp_path: Path):
    file = copied(llama, tmp_path) / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    assert "whole" in (await refusal(config(file.parent))).problem


async def test_a_model_with_missing_weights_is_refused_instead_of_filled_with_noise(llama: Path, tmp_path: Path):
    folder = copied(llama, tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "up_proj" in (await refusal(config(folder))).problem


async def test_a_model_that_does_not_fit_is_told_what_does(llama: Path, tmp_path: Path):
    folder = copied(llama, tmp_path)
    header = json.dumps({"huge": {"dtype": "BF16", "shape": [10**6, 10**6], "data_offsets": [0, 2 * 10**12]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 2 * 10**12)  # sparse: takes no disk
    error = await refusal(config(folder))
    assert "GB" in error.problem
    assert "billion parameters" in error.remedy


async def test_a_folder_without_tokenizer_is_refused(llama: Path, tmp_path: Path):
    folder = copied(llama, tmp_path)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    await refusal(config(folder))


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/at/all", "./nowhere"])
async def test_a_model_that_is_not_there_is_named(name: str, tmp_path: Path):
    assert name in (await refusal(Config(model=name, cache_dir=tmp_path))).problem


async def test_a_hub_that_cannot_be_reached_names_the_mirror_setting(tmp_path: Path):
    error = await refusal(Config(model="Qwen/Qwen3-0.6B", hub="http://127.0.0.1:9", cache_dir=tmp_path))
    assert "http://127.0.0.1:9" in error.problem
    assert "mirror" in error.remedy


async def test_a_hub_gives_safetensors_once_and_is_never_asked_for_a_pickle(llama: Path, tmp_path: Path):
    folder = copied(llama, tmp_path)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))

    def hub(handler: BaseHTTPRequestHandler) -> None:
        if "/resolve/" in handler.path:
            body = (folder / handler.path.rsplit("/", 1)[1]).read_bytes()
            respond(handler, 200, body, {"ETag": hashlib.sha256(body).hexdigest(), "X-Repo-Commit": "0" * 40})
        else:
            files = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0"} for f in folder.iterdir()]
            reply = files if "/tree/" in handler.path else {"id": "tiny/llama", "sha": "0" * 40, "siblings": []}
            respond(handler, 200, json.dumps(reply).encode(), {"Content-Type": "application/json"})

    with serving(hub) as server:
        chosen = Config(model="tiny/llama", hub=server.url, cache_dir=tmp_path / "cache", threads=1)
        assert load(chosen).context_tokens == 2048
        assert any("model.safetensors" in path for _, path, *_ in server.asked)
        assert not any(".bin" in path for _, path, *_ in server.asked)
    assert load(chosen).context_tokens == 2048  # from the cache, now that nobody answers


async def test_a_gpu_that_is_not_there_is_named(llama: Path):
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    assert "CUDA" in (await refusal(Config(model=str(llama), device="cuda"))).problem


async def test_a_gguf_file_speaks_and_one_that_is_cut_short_is_refused(tmp_path: Path):
    gguf = tiny_llama(tmp_path / "tiny.gguf")
    model = backend.build(Config(model=str(gguf), cache_dir=tmp_path, threads=1))
    assert await said(model, sampling=Sampling(seed=1))
    await model.close()
    os.truncate(gguf, 3000)
    assert "cut short" in (await refusal(Config(model=str(gguf), cache_dir=tmp_path))).problem


# The real starter


@pytest.mark.slow
async def test_the_starter_answers_in_chinese_as_plain_generate_would():
    model = backend.build(Config(threads=1, adapter=None, precision="bf16"))
    await model.load()
    words = await said(model, replace(PROMPT, persona=PERSONA), replace(GREEDY, max_tokens=12))
    loaded = model.engine.loaded
    prompt = loaded.encoder.ids(replace(PROMPT, persona=PERSONA))
    given = torch.tensor([prompt])
    plain = loaded.model.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=12)
    assert loaded.tokenizer.decode(plain[0, len(prompt) :]).startswith(words)
    assert sum("\u4e00" <= char <= "\u9fff" for char in words) >= 3
    await model.close()
