"""What can be set for the llama.cpp backend."""

from pathlib import Path
from typing import Annotated, Literal

from platformdirs import user_cache_path
from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """Which model to load and how.

    Attributes:
        model: A `.gguf` file, or `starter`.
        adapter: A folder with a peft LoRA, `starter` for the one that makes the starter Zishu, or "" for none.
        context_tokens: What prompt and reply may take together, at most what the model was made for.
        threads: Threads on the CPU; without it all cores but one.
        layout: `auto` is what the adapter was trained in, else the model's own chat template, else a script.
        cache_dir: Where the starter's weights and converted adapters are kept.
        waiting: Conversations that may wait for the model; one more is turned away.
        batch: Conversations that decode side by side; each takes memory for `context_tokens`, and more than two gain a
            CPU little.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1)] = "starter"
    adapter: str | None = "starter"
    context_tokens: Annotated[int, Field(ge=128)] = 4096
    threads: Annotated[int, Field(ge=1)] | None = None
    layout: Literal["auto", "chat", "script", "turns"] = "auto"
    cache_dir: Path = Field(default_factory=lambda: user_cache_path("zishu"))
    waiting: Annotated[int, Field(ge=1)] = 8
    batch: Annotated[int, Field(ge=1, le=16)] = 2
