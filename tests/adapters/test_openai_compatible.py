import asyncio
import json
import socket
import threading
import time
from contextlib import aclosing
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from adapters.language_model import openai_compatible
from adapters.language_model.openai_compatible import Config, estimated_tokens
from adapters.models.starter import assembled
from domain.conversation import Message, Role
from domain.errors import BackendUnavailable
from domain.ports import LanguageModel
from domain.prompt import Prompt, Sampling
from entrypoints.settings import load_settings
from tests.gguf_files import CHAT_TEMPLATE, tiny_llama
from tests.llama_server import llama_server
from tests.local_server import Answer, respond, serving

PROMPT = Prompt(
    user_name="同学",
    her_name="紫舒",
    persona="紫舒是温柔的老师。",
    profile="和紫舒说话的人叫小明。",
    history=(Message(Role.USER, "早上好"), Message(Role.HER, "早上好呀")),
    words="你好，你是谁？",
)
SAMPLING = Sampling(temperature=0.5, top_p=0.8, max_tokens=12, seed=3)


def status(code: int, body: str = "") -> Answer:
    return lambda handler: respond(handler, code, body.encode())


def events(*lines: str) -> Answer:
    """Answer with the lines of a stream, then hang up."""
    return status(200, "".join(f"{line}\n\n" for line in lines))


def delta(text: str | None, end: str | None = None) -> str:
    chunk = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": end}]}
    return "data: " + json.dumps(chunk, ensure_ascii=False)


def client(url: str, **keys: object) -> LanguageModel:
    return openai_compatible.build(Config(base_url=url, model="zishu", **keys))


async def pieces(url: str, **keys: object) -> list[str]:
    model = client(url, **keys)
    try:
        return [piece async for piece in model.generate(PROMPT, expert="base", sampling=SAMPLING)]
    finally:
        await model.close()


async def refusal(url: str, **keys: object) -> BackendUnavailable:
    with pytest.raises(BackendUnavailable) as caught:
        await pieces(url, **keys)
    assert caught.value.remedy
    return caught.value


async def test_the_whole_prompt_is_sent_as_messages_and_the_answer_comes_in_pieces():
    with serving(
        events(delta(None), ": ping", delta("你好"), delta("呀🐢"), delta("", "stop"), "data: [DONE]")
    ) as server:
        assert await pieces(f"{server.url}/v1/", api_key="secret") == ["你好", "呀🐢"]
    ((method, path, headers, request),) = server.asked
    assert (method, path) == ("POST", "/v1/chat/completions")
    assert headers["Authorization"] == "Bearer secret"
    assert request == {
        "model": "zishu",
        "stream": True,
        "temperature": 0.5,
        "top_p": 0.8,
        "max_tokens": 12,
        "seed": 3,
        "messages": [
            {"role": "system", "content": "紫舒是温柔的老师。\n和紫舒说话的人叫小明。"},
            {"role": "user", "content": "早上好"},
            {"role": "assistant", "content": "早上好呀"},
            {"role": "user", "content": "你好，你是谁？"},
        ],
    }


async def test_line_separators_inside_a_piece_are_text():
    said = "第一行\u2028第二行\x85第三行"
    with serving(events(delta(said), "data:[DONE]")) as server:
        assert await pieces(server.url) == [said]


async def test_characters_that_a_server_cut_in_two_are_left_out():
    with serving(events(delta("\ufffd"), delta("好\ufffd\x00"), "data: [DONE]")) as server:
        assert await pieces(server.url) == ["好"]


async def test_a_stream_that_ends_without_done_is_whole_once_it_gave_a_reason():
    with serving(events(delta("好"), delta(None, "length"))) as server:
        assert await pieces(server.url) == ["好"]


async def test_nothing_there_names_the_address_and_what_to_do():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        error = await refusal(url)
    assert error.problem == f"Nothing answers at {url}."
    assert error.remedy == "Start the server or set [language_model.openai_compatible] base_url."


@pytest.mark.parametrize(
    ("code", "problem", "remedy"),
    [
        (401, "refuses the key", "api_key"),
        (404, "knows no model 'zishu': model 'zishu' not found", "model"),
        (429, "busy", "Try again"),
        (503, "busy", "Try again"),
        (400, "status 400: model 'zishu' not found", "log"),
        (500, "status 500", "log"),
        (302, "status 302", "log"),
    ],
)
async def test_every_error_status_says_what_to_do(code: int, problem: str, remedy: str):
    with serving(status(code, '{"error": {"message": "model \'zishu\' not found"}}')) as server:
        error = await refusal(server.url)
    assert problem in error.problem
    assert remedy in error.remedy


@pytest.mark.parametrize(
    "lines",
    [
        ["data: {half a chunk"],
        ["data: [1, 2]"],
        ['data: {"choices": "none"}'],
        ["data: \ud83d".encode("utf-8", "surrogatepass").decode("latin-1")],
        ['data: {"choices": [{"delta": {"content": "\\ud83d"}}]}'],
    ],
)
async def test_events_that_are_no_protocol_are_refused(lines: list[str]):
    with serving(events(*lines)) as server:
        assert "not the OpenAI protocol" in (await refusal(server.url)).problem


async def test_a_page_that_is_no_stream_is_refused():
    with serving(status(200, "<html>It works!</html>")) as server:
        assert "broke off" in (await refusal(server.url)).problem


async def test_an_error_in_mid_stream_is_passed_on():
    with serving(events(delta("你"), 'data: {"error": {"message": "out of memory"}}')) as server:
        assert "out of memory" in (await refusal(server.url)).problem


async def test_a_connection_cut_in_mid_stream_is_told_and_the_words_until_then_were_heard():
    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        handler.wfile.write(f"{delta('你好')}\n\n".encode())

    with serving(cut) as server:
        model = client(server.url)
        answer = model.generate(PROMPT, expert="base", sampling=SAMPLING)
        assert await anext(answer) == "你好"
        with pytest.raises(BackendUnavailable, match="broke off"):
            await anext(answer)
        await model.close()


async def test_a_line_without_an_end_is_not_kept_for_ever():
    def flood(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with pytest.raises(OSError):
            while True:
                handler.wfile.write(b"data: " + b"x" * 65536)

    with serving(flood) as server:
        assert "a line without an end" in (await refusal(server.url)).problem


async def test_a_silent_server_is_given_up():
    quiet = threading.Event()
    with serving(lambda handler: quiet.wait(10) and None) as server:
        error = await refusal(server.url, timeout_s=0.2)
        quiet.set()
    assert "0.2 seconds" in error.problem


async def test_hanging_up_closes_the_connection():
    hung_up = threading.Event()

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(f"{delta('好')}\n\n".encode())
                time.sleep(0.005)
        except OSError:
            hung_up.set()

    with serving(endless) as server:
        model = client(server.url)
        async with aclosing(model.generate(PROMPT, expert="base", sampling=SAMPLING)) as answer:
            await anext(answer)
        assert await asyncio.to_thread(hung_up.wait, 10)
        await model.close()


async def test_loading_finds_out_whether_the_server_is_there_and_takes_the_key():
    with serving(status(401)) as server, pytest.raises(BackendUnavailable, match="key"):
        await client(server.url).load()
    with serving(status(404)) as server:  # not every server lists its models
        await client(server.url).load()
    with pytest.raises(BackendUnavailable, match="Nothing answers"):
        await client(server.url).load()


async def test_a_proxy_is_not_asked_for_what_this_machine_serves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with serving(events(delta("好"), "data: [DONE]")) as server:
        assert await pieces(server.url) == ["好"]


def test_the_key_may_come_from_the_environment_and_is_never_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ZISHU_LANGUAGE_MODEL__OPENAI_COMPATIBLE__API_KEY", "secret")
    config = Config(model="zishu", **load_settings().language_model.table("openai_compatible"))
    assert config.api_key
    assert config.api_key.get_secret_value() == "secret"
    assert "secret" not in repr(config)


@pytest.mark.parametrize("url", ["127.0.0.1:11434", "ftp://x", "http://", "http://[::1", ""])
def test_an_address_without_scheme_or_host_is_refused(url: str):
    with pytest.raises(ValidationError):
        Config(model="zishu", base_url=url)


@settings(deadline=None)
@given(first=st.text(), second=st.text())
def test_the_estimate_of_tokens_grows_with_the_text_and_is_bounded_by_it(first: str, second: str):
    whole = estimated_tokens(first + second)
    assert max(estimated_tokens(first), estimated_tokens(second)) <= whole <= len(first + second)


def test_the_estimate_counts_han_characters_and_words():
    assert estimated_tokens("") == 0
    assert estimated_tokens("你好，小明🐢") == 6
    assert estimated_tokens("good morning") == 3


# Real servers


@pytest.mark.model
async def test_a_real_server_is_loaded_asked_and_told_the_key(tmp_path: Path):
    with llama_server(tiny_llama(tmp_path / "tiny.gguf", CHAT_TEMPLATE)) as url:
        said = "".join(await pieces(url, api_key="sesame"))
        assert said
        assert said == "".join(await pieces(url, api_key="sesame"))
        assert "key" in (await refusal(url, api_key="wrong")).problem
        model = client(url, api_key="sesame")
        await model.load()
        await model.close()


@pytest.mark.model
@pytest.mark.slow
async def test_the_starter_behind_a_real_server_answers_in_chinese_and_stops_when_hung_up_on():
    with llama_server(assembled(load_settings().cache_dir)) as url:
        said = "".join(await pieces(url, api_key="sesame"))
        assert any("\u4e00" <= char <= "\u9fff" for char in said)
        model = client(url, api_key="sesame")
        endless = Sampling(temperature=1, max_tokens=3000)
        async with aclosing(model.generate(PROMPT, expert="base", sampling=endless)) as answer:
            await anext(answer)
        await model.close()
        async with httpx.AsyncClient(headers={"Authorization": "Bearer sesame"}) as asking:
            for _ in range(50):
                slots = (await asking.get(f"{url}/slots")).json()
                if not any(slot["is_processing"] for slot in slots):
                    break
                await asyncio.sleep(0.1)
            else:
                pytest.fail("the server is still writing five seconds after the hang-up")
