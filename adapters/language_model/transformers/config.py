"""What can be set for the transformers backend."""

from pathlib import Path
from typing import Annotated, Literal

from platformdirs import user_cache_path, user_data_path
from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["auto", "fp32", "bf16", "int8", "nf4", "int8_weight_only", "int8_dynamic"]
Attention = Literal["auto", "flash_attention_2", "sdpa", "eager"]


class Config(BaseModel):
    """What to load and where to run it.

    Attributes:
        model: A profile such as `chinese-mistral-7b`, a folder, a `.gguf` file, an id on the hub such as
            `Qwen/Qwen3-0.6B`, or `starter`.
        adapter: A PEFT folder, `starter` for the one that makes the starter Zishu, or nothing.
        precision: `auto` takes the smallest and fastest that keeps the model; `int8` and `nf4` are those of
            bitsandbytes, `int8_weight_only` and `int8_dynamic` run on a CPU. A GPTQ or AWQ checkpoint keeps its own.
        attention: `auto` is FlashAttention-2 where it is installed and supported, else SDPA.
        device: `auto` takes a CUDA device where there is one.
        context_tokens: What prompt and reply may take together, at most what the model was made for.
        threads: Threads on the CPU; without it torch decides.
        layout: `auto` is what the adapter was trained in, else the model's own chat template, else a script.
        data_dir: Where the user's own profiles lie, in `models/`.
        hub: Where hub ids are looked up; `https://hf-mirror.com` is a mirror.
        waiting: Conversations that may wait for the model; one more is turned away.
        batch: Conversations that decode side by side.
        cache_megabytes: What the key-value caches of earlier turns may take; the least recently used go first.
        lookup_tokens: Tokens that are guessed from the prompt and checked at once while one conversation runs alone; 0
            guesses nothing.
        expert_slots: Adapters of experts that the device holds at the same time.
        expert_megabytes: What adapters of experts may take in memory beside the device.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1)] = "starter"
    adapter: str | None = "starter"
    precision: Precision = "auto"
    attention: Attention = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    context_tokens: Annotated[int, Field(ge=128)] = 4096
    threads: Annotated[int, Field(ge=1)] | None = None
    layout: Literal["auto", "chat", "script", "turns"] = "auto"
    hub: str = "https://huggingface.co"
    cache_dir: Path = Field(default_factory=lambda: user_cache_path("zishu"))
    data_dir: Path = Field(default_factory=lambda: user_data_path("zishu"))
    waiting: Annotated[int, Field(ge=1)] = 8
    batch: Annotated[int, Field(ge=1, le=64)] = 8
    cache_megabytes: Annotated[int, Field(ge=0)] = 512
    lookup_tokens: Annotated[int, Field(ge=0, le=32)] = 8
    expert_slots: Annotated[int, Field(ge=1)] = 2
    expert_megabytes: Annotated[int, Field(ge=0)] = 512
