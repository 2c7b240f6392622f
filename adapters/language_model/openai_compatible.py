"""Any server that speaks the OpenAI protocol: Ollama, vLLM, llama.cpp's server, or a service on the internet.

The default is this machine. With a `base_url` elsewhere, everything said leaves it: only the user can set that.
"""

import math
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from ipaddress import ip_address
from typing import Annotated, Any

import httpx
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from adapters.models.sayable import sayable
from domain.errors import BackendUnavailable
from domain.ports import LanguageModel
from domain.prompt import Prompt, Sampling, as_messages

_SECTION = "[language_model.openai_compatible]"
# No event of the protocol comes near this; what sends more without a line break is no such server.
_LONGEST_LINE = 1 << 20


def _with_path(address: str) -> str:
    """Return the address without a slash at its end; one without a path means the usual /v1."""
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("an address such as http://127.0.0.1:11434 is expected")
    return address.rstrip("/") + ("/v1" if url.path in ("", "/") else "")


class Config(BaseModel):
    """Where the server is and what to ask it for.

    Attributes:
        base_url: What stands before `/chat/completions`; an address without a path gets `/v1`.
        model: The name that the server knows the model by.
        api_key: Sent as a bearer token; ZISHU_LANGUAGE_MODEL__OPENAI_COMPATIBLE__API_KEY keeps it out of the file.
        timeout_s: Longest silence of the server, in seconds; a CPU reads a long prompt for a while.
        context_tokens: What prompt and reply may take together on that server.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: Annotated[str, AfterValidator(_with_path)] = "http://127.0.0.1:11434/v1"
    model: Annotated[str, Field(min_length=1)]
    api_key: SecretStr | None = None
    timeout_s: Annotated[float, Field(gt=0)] = 60
    context_tokens: Annotated[int, Field(ge=128)] = 4096


def build(config: Config) -> LanguageModel:
    """Return the client; nothing is sent before it is used."""
    return OpenAICompatibleModel(config)


class OpenAICompatibleModel:
    """A language model behind a server; its repetition penalty is the server's own, the protocol has none."""

    def __init__(self, config: Config) -> None:
        self._config = config
        headers = {"Authorization": f"Bearer {config.api_key.get_secret_value()}"} if config.api_key else {}
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(config.timeout_s, connect=min(config.timeout_s, 10)),
            trust_env=not _is_loopback(config.base_url),  # a proxy cannot reach this machine's own servers
        )

    @property
    def context_tokens(self) -> int:
        return self._config.context_tokens

    async def load(self) -> None:
        with self._failures_explained():
            response = await self._client.get(f"{self._config.base_url}/models")
        if response.status_code not in (404, 405):  # not every server lists its models
            self._check(response)

    def count_tokens(self, text: str) -> int:
        return estimated_tokens(text)

    async def generate(self, prompt: Prompt, *, expert: str, sampling: Sampling) -> AsyncGenerator[str, None]:
        request = {
            "model": self._config.model,
            "messages": [{"role": role, "content": content} for role, content in as_messages(prompt)],
            "stream": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            **({} if sampling.seed is None else {"seed": sampling.seed}),
        }
        address = f"{self._config.base_url}/chat/completions"
        with self._failures_explained():
            async with self._client.stream("POST", address, json=request) as response:
                if not response.is_success:
                    await response.aread()
                self._check(response)
                async with aclosing(self._pieces(response)) as pieces:
                    async for piece in pieces:
                        yield piece

    def anticipate(self, likely: Mapping[str, float]) -> None:
        """Do nothing: no expert has to be fetched."""

    def refused(self) -> Mapping[str, str]:
        """Return nothing: no expert has an adapter here."""
        return {}

    async def close(self) -> None:
        await self._client.aclose()

    async def _pieces(self, response: httpx.Response) -> AsyncGenerator[str, None]:
        """Yield the text in a stream of server-sent events up to its end."""
        finished = False
        async with aclosing(_lines(response)) as lines:
            async for line in lines:
                if not line.startswith(b"data:"):
                    continue
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                event = _Event.model_validate_json(data)
                if event.error is not None:
                    raise self._unusable(f"{self._server} gave up: {_said(event.error)}.")
                for choice in event.choices[:1]:
                    if text := sayable(choice.delta.content or ""):  # some servers cut characters in two
                        yield text
                    finished = finished or choice.finish_reason is not None
        if not finished:
            raise self._unusable(f"{self._server} broke off in the middle of the reply.")

    @property
    def _server(self) -> str:
        return str(httpx.URL(self._config.base_url).join("/")).rstrip("/")

    def _check(self, response: httpx.Response) -> None:
        """Raise what an error status means."""
        status = response.status_code
        if response.is_success:
            return
        if status in (401, 403):
            raise BackendUnavailable(
                f"{self._server} refuses the key (status {status}).",
                f"Set {_SECTION} api_key, or ZISHU_LANGUAGE_MODEL__OPENAI_COMPATIBLE__API_KEY.",
            )
        if status == 404:
            raise BackendUnavailable(
                f"{self._config.base_url} knows no model {self._config.model!r}: {_said_in(response)}.",
                f"Set {_SECTION} model to one that the server has, such as `ollama list` shows; or mend base_url.",
            )
        if status in (429, 503):
            raise BackendUnavailable(f"{self._server} is busy (status {status}).", "Try again in a moment.")
        raise self._unusable(f"{self._server} answered with status {status}: {_said_in(response)}.")

    @contextmanager
    def _failures_explained(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise BackendUnavailable(
                f"Nothing answers at {self._server}.", f"Start the server or set {_SECTION} base_url."
            ) from error
        except httpx.TimeoutException as error:
            raise BackendUnavailable(
                f"{self._server} has said nothing for {self._config.timeout_s:g} seconds.",
                f"Try again, choose a smaller model, or raise {_SECTION} timeout_s.",
            ) from error
        except httpx.HTTPError as error:
            raise self._unusable(f"The connection to {self._server} broke off: {error}.") from error
        except ValidationError as error:
            raise BackendUnavailable(
                f"What {self._server} sends is not the OpenAI protocol.",
                f"Set {_SECTION} base_url to a server that has /chat/completions.",
            ) from error

    def _unusable(self, problem: str) -> BackendUnavailable:
        return BackendUnavailable(problem, "Try again; if it happens again, look into the server's log.")


class _Delta(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Event(BaseModel):
    choices: list[_Choice] = []
    error: Any = None


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    r"""Yield the lines of a stream, ended by \n alone: httpx's own lines also end at U+2028 inside a JSON string."""
    held = b""
    async for received in response.aiter_bytes():
        *lines, held = (held + received).split(b"\n")
        for line in lines:
            yield line
        if len(held) > _LONGEST_LINE:
            raise httpx.RemoteProtocolError("a line without an end")
    yield held


def _said_in(response: httpx.Response) -> str:
    """Return the server's own words about an error."""
    try:
        return _said(_Event.model_validate_json(response.content).error)
    except ValidationError:
        return _said(response.text)


def _said(error: object) -> str:
    words = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(words).split())[:200].rstrip(".") or "no reason given"


def _is_loopback(address: str) -> bool:
    host = httpx.URL(address).host
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def estimated_tokens(text: str) -> int:
    """Estimate tokens: one for each Han character, emoji or sign, and one for every four letters of a word.

    Tokenizers that know Chinese take fewer. Never more than the text has characters.
    """
    words = re.findall(r"[A-Za-z0-9]+", text)
    others = sum(not (char.isspace() or (char.isascii() and char.isalnum())) for char in text)
    return others + sum(math.ceil(len(word) / 4) for word in words)
