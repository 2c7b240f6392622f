"""A loaded llama.cpp server inside this process, and what it is asked."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

import xllamacpp

from adapters.models.repetition import LoopGuard
from adapters.models.sayable import sayable
from adapters.models.special_tokens import defused
from domain.errors import BackendUnavailable, BadInput, ZishuError
from domain.prompt import Layout, Prompt, Sampling, as_messages, as_text

_RESTART = "Start the program again."


@dataclass(frozen=True, slots=True)
class Adapters:
    """The adapters that a server was started with.

    Attributes:
        persona: Whether the first of them, number 0, is the persona's.
        experts: The numbers of those of experts, by name.
        refused: The experts whose adapter it could not be started with, and why.
    """

    persona: bool = False
    experts: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def of(self, expert: str) -> str:
        """Return the name of the adapter that answers for an expert; "" is the base with the persona."""
        return expert if expert in self.experts else ""

    def chosen(self, adapter: str) -> list[dict[str, Any]] | None:
        """Return the scale of every adapter for a request; None where there is nothing to choose."""
        if not self.experts:
            return None
        on = self.experts.get(adapter, 0 if self.persona else None)
        return [{"id": number, "scale": float(number == on)} for number in range(self.persona + len(self.experts))]


class Server:
    """A loaded model; its methods may be called from any thread.

    Attributes:
        context_tokens: What prompt and reply may take together.
        adapters: What it was started with.
        size: Bytes of its weights.
    """

    def __init__(
        self,
        engine: xllamacpp.Server,
        key: str,
        special: Collection[str],
        layout: Layout | None,
        context_tokens: int,
        adapters: Adapters,
        size: int,
    ) -> None:
        self._engine = engine
        self._headers = {"Authorization": f"Bearer {key}"}
        self._special = special
        self._layout = layout
        self.context_tokens = context_tokens
        self.adapters = adapters
        self.size = size
        self.count_tokens = lru_cache(maxsize=4096)(self._count_tokens)

    def _count_tokens(self, text: str) -> int:
        """Ask over the loopback port, half a millisecond: only there does the library let us at its tokenizer."""
        body = json.dumps({"content": text, "add_special": False, "parse_special": False})
        connection = HTTPConnection(urlsplit(self._engine.listening_address).netloc, timeout=30)
        try:
            connection.request("POST", "/tokenize", body, self._headers)
            return len(json.load(connection.getresponse())["tokens"])
        except (OSError, HTTPException, ValueError, KeyError) as error:
            raise BackendUnavailable(f"llama.cpp does not count tokens: {error!r}.", _RESTART) from error
        finally:
            connection.close()

    def stop(self) -> None:
        """Free the memory and the threads of the engine; nothing may run on it any more."""
        self._engine = None

    def stream(
        self,
        prompt: Prompt,
        sampling: Sampling,
        say: Callable[[str], None],
        stop: Callable[[], bool],
        *,
        adapter: str = "",
        slot: int = -1,
    ) -> None:
        """Generate one reply on this thread, handing its pieces to `say` until it ends or `stop` says so.

        `stop` is asked after every token and after every 128 tokens of the prompt. Measured from a hang-up, the engine
        finishes the token in the making, and in one case out of ten the one after it.

        Args:
            prompt: What to continue.
            sampling: How to draw.
            say: Gets the pieces.
            stop: Tells when nobody listens any more.
            adapter: Whose adapter answers; "" is the base with the persona.
            slot: Where to compute it; -1 lets the engine choose.

        Raises:
            BadInput: The prompt does not fit.
            BackendUnavailable: The engine refuses the request.
        """
        guard, failures = LoopGuard(), []

        def on_chunk(chunk: dict[str, Any]) -> bool:
            """Take a chunk; to return True is to cancel the request."""
            if stop():
                return True
            if "error" in chunk:
                failures.append(chunk["error"])
                return True
            if text := guard.feed(sayable(_text(chunk))):
                say(text)
            return guard.looping

        request = _request(sampling) | {"id_slot": slot}
        if (chosen := self.adapters.chosen(adapter)) is not None:
            request["lora"] = chosen
        prompt = defused(prompt, self._special)
        try:
            if self._layout is None:
                self._engine.handle_chat_completions(request | _chat(prompt), on_chunk)
            else:
                self._engine.handle_completions(request | _completion(prompt, self._layout), on_chunk)
        except RuntimeError as error:
            raise BackendUnavailable(f"llama.cpp refuses the request: {error}.", _RESTART) from error
        if failures:
            raise _translated(failures[0])


def _text(chunk: dict[str, Any]) -> str:
    """Return the new text in a chunk of either protocol; a report of progress has none."""
    choice = chunk["choices"][0]
    return choice.get("text") or choice.get("delta", {}).get("content") or ""


def _request(sampling: Sampling) -> dict[str, Any]:
    request: dict[str, Any] = {
        "stream": True,
        "return_progress": True,
        # a prompt computed in other portions gives other last digits, and those another word
        "cache_prompt": sampling.seed is None,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "repeat_penalty": sampling.repetition_penalty,
    }
    # the largest number of 32 bits means "draw one"
    return request if sampling.seed is None else request | {"seed": sampling.seed % (2**32 - 1)}


def _completion(prompt: Prompt, layout: Layout) -> dict[str, Any]:
    """Return the part of the request that holds a prompt laid out by us."""
    stops = layout.stops(prompt.user_name)
    # a mark that is a special token has no text to be found, unless it is asked for
    return {"prompt": as_text(prompt, layout), "stop": stops, "preserved_tokens": stops}


def _chat(prompt: Prompt) -> dict[str, Any]:
    """Return the part of the request that holds a prompt for the model's own template."""
    messages = [{"role": role, "content": content} for role, content in as_messages(prompt)]
    # a companion answers at once: models that can think aloud first are asked not to
    return {"messages": messages, "chat_template_kwargs": {"enable_thinking": False}}


def _translated(error: dict[str, Any]) -> ZishuError:
    if error.get("type") == "exceed_context_size_error":
        return BadInput(
            f"The prompt takes {error['n_prompt_tokens']} tokens; the model reads {error['n_ctx']}.",
            "Say less at once, or raise [language_model.llama_cpp] context_tokens.",
        )
    return BackendUnavailable(f"llama.cpp reports: {error.get('message', error)}.", "Try again; see zishu doctor.")
