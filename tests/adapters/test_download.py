"""Downloads from hubs that break off, lie and corrupt: real HTTP, a server on this machine."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from adapters.models import download as module
from adapters.models import hubs
from adapters.models.download import Hub, download, original_folder, ready_folder
from adapters.models.manifest import is_complete, mismatches, read_manifest
from adapters.models.profiles import Profile, Shelf
from domain.errors import BackendUnavailable, BadConfiguration
from tests.local_server import LocalServer, respond, serving

FILES = {
    "config.json": b'{"model_type": "qwen3"}',
    "tokenizer.json": b"{}" * 50,
    "model.safetensors": bytes(range(256)) * 3000,
    "LICENSE": b"Apache-2.0",
    "modeling_evil.py": b"import os",
    "pytorch_model.bin": b"\x80\x02pickle",
    "pytorch_model.bin.index.json": b"{}",
    "consolidated.safetensors": b"again",
    "empty.txt": b"",
    ".gitattributes": b"*",
    "onnx/model.safetensors": b"other",
}
FETCHED = {"config.json", "tokenizer.json", "model.safetensors", "LICENSE", "empty.txt"}
both = pytest.mark.parametrize("hub", list(Hub))
# Changes the answer to a request for one file: it gets the handler, the file's name and its bytes.
Misdeed = Callable[[BaseHTTPRequestHandler, str, bytes], bool]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits between two tries, nor asks the real hub for anything."""
    monkeypatch.setattr(hubs, "_PAUSE", 0)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)


@pytest.fixture
def profile() -> Profile:
    return replace(Shelf().load("qwen3-0.6b"), name="tiny", huggingface="tiny/model", modelscope="tiny/model")


@contextmanager
def a_hub(files: dict[str, bytes], misdeed: Misdeed = lambda *_: False, **lies: Any) -> Iterator[LocalServer]:
    """Serve files as Hugging Face and as ModelScope do; `lies` replaces what the listing says of every file."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path)
        if "/resolve/" in path:
            name = path.partition("/resolve/")[2].partition("/")[2]
            body = files[name]
            if handler.command == "HEAD" or not misdeed(handler, name, body):
                send(handler, body)
        elif path.startswith("/api/v1/models/tiny/"):
            entries = [
                {"Path": name, "Size": len(body), "Sha256": hashlib.sha256(body).hexdigest(), "Type": "blob"} | lies
                for name, body in files.items()
            ]
            entries.append({"Path": "onnx", "Size": 0, "Sha256": "", "Type": "tree"})
            respond(handler, 200, json.dumps({"Code": 200, "Data": {"Files": entries}}).encode())
        elif path.startswith("/api/models/tiny/model"):
            tree = [
                {"type": "file", "path": name, "size": len(body), "oid": git_blob(body)} | large(name, body) | lies
                for name, body in files.items()
            ]
            reply = tree if "/tree/" in path else {"id": "tiny/model", "sha": "a" * 40, "siblings": []}
            respond(handler, 200, json.dumps(reply).encode(), {"Content-Type": "application/json"})
        else:
            missing = {"X-Error-Code": "RepoNotFound"}
            respond(handler, 404, b"{}", missing)

    with serving(answer) as server:
        yield server


def large(name: str, body: bytes) -> dict[str, Any]:
    """What Hugging Face says beside of files in LFS: their checksum."""
    if not name.endswith((".safetensors", ".bin")):
        return {}
    return {"lfs": {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}}


def git_blob(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def send(handler: BaseHTTPRequestHandler, body: bytes, *, stop_after: int | None = None) -> None:
    """Send a file, or the part of it that was asked for; perhaps hang up in the middle."""
    start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
    headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": "a" * 40, "Accept-Ranges": "bytes"}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
    rest = body[start:]
    if stop_after is None:
        respond(handler, 206 if start else 200, rest, headers)
        return
    respond(handler, 206 if start else 200, rest[:stop_after], headers | {"Content-Length": str(len(rest))})
    handler.close_connection = True


def fetch(profile: Profile, cache: Path, hub: Hub, server: LocalServer, **options: Any) -> Path:
    return download(profile, cache, hub=hub, endpoint=server.url, **options)


def asked_for(server: LocalServer, name: str) -> list[dict[str, str]]:
    """The headers of each request for a file's bytes."""
    return [headers for command, path, headers, _ in server.asked if command == "GET" and path.endswith("/" + name)]


@both
def test_a_model_comes_with_what_it_needs_and_no_code_no_pickle_and_no_copies(
    hub: Hub, profile: Profile, tmp_path: Path
):
    seen: list[tuple[int, int]] = []
    with a_hub(FILES) as server:
        folder = fetch(profile, tmp_path, hub, server, progress=lambda done, total: seen.append((done, total)))
        assert folder == ready_folder(tmp_path, "tiny")
        assert {path.name for path in folder.iterdir()} == FETCHED | {"zishu-model.json"}
        assert all((folder / name).read_bytes() == FILES[name] for name in FETCHED)
        assert not any(".py" in path or path.endswith(".bin") for _, path, *_ in server.asked)
        manifest = read_manifest(folder)
        assert manifest is not None
        assert (manifest.source, manifest.model) == (server.url, "tiny/model")
        assert mismatches(folder, manifest) == {}
        before = len(server.asked)
        assert fetch(profile, tmp_path, hub, server) == folder
        assert len(server.asked) == before  # it is here: nobody is asked
    total = sum(len(FILES[name]) for name in FETCHED)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@both
def test_a_connection_that_breaks_again_and_again_is_taken_up_where_it_broke(
    hub: Hub, profile: Profile, tmp_path: Path
):
    size = len(FILES["model.safetensors"])

    def break_off(handler: BaseHTTPRequestHandler, name: str, body: bytes) -> bool:
        if name == "model.safetensors":
            send(handler, body, stop_after=200_000)
        return name == "model.safetensors"

    with a_hub(FILES, break_off) as server:
        folder = fetch(profile, tmp_path, hub, server)
        starts = [headers.get("Range", "bytes=0-") for headers in asked_for(server, "model.safetensors")]
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert starts == [f"bytes={start}-" for start in range(0, size, 200_000)]


@both
def test_a_later_run_goes_on_where_the_first_one_gave_up(hub: Hub, profile: Profile, tmp_path: Path):
    alive = True

    def die(handler: BaseHTTPRequestHandler, name: str, body: bytes) -> bool:
        nonlocal alive
        if name != "model.safetensors":
            return False
        send(handler, body, stop_after=300_000 if alive else 0)
        alive = False
        return True

    with a_hub(FILES, die) as server, pytest.raises(BackendUnavailable, match="cannot be fetched") as caught:
        fetch(profile, tmp_path, hub, server)
    assert "goes on where it stopped" in caught.value.remedy
    assert not is_complete(ready_folder(tmp_path, "tiny"))
    with a_hub(FILES) as server:
        folder = fetch(profile, tmp_path, hub, server)
        assert [each.get("Range") for each in asked_for(server, "model.safetensors")] == ["bytes=300000-"]
        assert asked_for(server, "tokenizer.json") == []
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_hub_that_cannot_resume_is_asked_for_the_whole_file_again(profile: Profile, tmp_path: Path):
    first = True

    def whole_only(handler: BaseHTTPRequestHandler, name: str, body: bytes) -> bool:
        nonlocal first
        if name != "model.safetensors":
            return False
        del handler.headers["Range"]
        send(handler, body, stop_after=300_000 if first else None)
        first = False
        return True

    with a_hub(FILES, whole_only) as server:
        folder = fetch(profile, tmp_path, Hub.MODELSCOPE, server)
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


@both
def test_a_file_with_one_wrong_bit_is_thrown_away_and_fetched_anew(hub: Hub, profile: Profile, tmp_path: Path):
    def corrupt(handler: BaseHTTPRequestHandler, name: str, body: bytes) -> bool:
        if name == "model.safetensors":
            send(handler, body[:1000] + bytes([body[1000] ^ 1]) + body[1001:])
        return name == "model.safetensors"

    with a_hub(FILES, corrupt) as server, pytest.raises(BackendUnavailable, match=r"model\.safetensors came damaged"):
        fetch(profile, tmp_path, hub, server)
    assert not is_complete(ready_folder(tmp_path, "tiny"))
    assert not (ready_folder(tmp_path, "tiny") / "model.safetensors").exists()
    with a_hub(FILES) as server:
        assert is_complete(fetch(profile, tmp_path, hub, server))


def test_a_small_file_of_hugging_face_is_checked_by_its_git_id(profile: Profile, tmp_path: Path):
    def corrupt(handler: BaseHTTPRequestHandler, name: str, body: bytes) -> bool:
        if name == "config.json":
            send(handler, body.replace(b"qwen3", b"qwen2"))
        return name == "config.json"

    with a_hub(FILES, corrupt) as server, pytest.raises(BackendUnavailable, match=r"config\.json came damaged"):
        fetch(profile, tmp_path, Hub.HUGGINGFACE, server)


@both
@pytest.mark.parametrize("lie", [-1000, 1000])
def test_a_hub_that_lies_about_sizes_is_not_believed(hub: Hub, lie: int, profile: Profile, tmp_path: Path):
    size = len(FILES["model.safetensors"])
    only = {name: FILES[name] for name in ("config.json", "model.safetensors")}
    with a_hub(only, **{"Size": size + lie, "size": size + lie}) as server:
        with pytest.raises(BackendUnavailable) as caught:
            fetch(profile, tmp_path, hub, server)
        assert caught.value.remedy
    assert not is_complete(ready_folder(tmp_path, "tiny"))


@both
def test_no_room_is_noticed_before_the_first_byte(
    hub: Hub, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with a_hub(FILES) as server:
        with pytest.raises(BackendUnavailable, match="free") as caught:
            fetch(profile, tmp_path, hub, server)
        assert not any("/resolve/" in path for _, path, *_ in server.asked)
    assert "ZISHU_CACHE_DIR" in caught.value.remedy


@both
def test_pickles_come_only_when_asked_for_and_never_where_the_engine_looks(hub: Hub, profile: Profile, tmp_path: Path):
    pickled = {name: body for name, body in FILES.items() if not name.endswith(".safetensors")}
    with a_hub(pickled) as server:
        with pytest.raises(BadConfiguration, match="only as pickles") as caught:
            fetch(profile, tmp_path, hub, server)
        assert "--pickles" in caught.value.remedy
        folder = fetch(profile, tmp_path, hub, server, pickles=True)
    assert folder == original_folder(tmp_path, "tiny")
    assert (folder / "pytorch_model.bin").exists()
    assert not ready_folder(tmp_path, "tiny").exists()


@pytest.mark.parametrize(
    ("converter", "files", "place"),
    [
        ("chatglm3", FILES, original_folder),
        ("pickle", FILES, ready_folder),
        ("pickle", {**FILES, "model.safetensors": None, "consolidated.safetensors": None}, original_folder),
        ("native", FILES, ready_folder),
    ],
)
def test_a_model_that_needs_conversion_lies_beside_the_place_of_the_ready_one(
    converter: str, files: dict[str, bytes], place: Callable[[Path, str], Path], profile: Profile, tmp_path: Path
):
    offered = {name: body for name, body in files.items() if body is not None}
    with a_hub(offered) as server:
        folder = fetch(replace(profile, loading=converter), tmp_path, Hub.MODELSCOPE, server)
    assert folder == place(tmp_path, "tiny")


def test_a_tokenizer_without_a_template_is_given_ours(profile: Profile, tmp_path: Path):
    with a_hub(FILES | {"tokenizer_config.json": b"{}"}) as server:
        folder = fetch(replace(profile, layout="llama2"), tmp_path, Hub.MODELSCOPE, server)
    assert "[INST]" in (folder / "chat_template.jinja").read_text()


def test_a_template_that_came_with_the_model_stays(profile: Profile, tmp_path: Path):
    with a_hub(FILES | {"tokenizer_config.json": b'{"chat_template": "mine"}'}) as server:
        folder = fetch(replace(profile, layout="llama2"), tmp_path, Hub.MODELSCOPE, server)
    assert not (folder / "chat_template.jinja").exists()


@both
def test_a_model_that_the_hub_does_not_have_is_named(hub: Hub, profile: Profile, tmp_path: Path):
    gone = replace(profile, huggingface="no/where", modelscope="no/where")
    with a_hub(FILES) as server, pytest.raises(BackendUnavailable, match="has no model no/where") as caught:
        fetch(gone, tmp_path, hub, server)
    assert "mirror" in caught.value.remedy


@both
def test_a_hub_that_cannot_be_reached_names_another(hub: Hub, profile: Profile, tmp_path: Path):
    with pytest.raises(BackendUnavailable, match=r"127\.0\.0\.1:9") as caught:
        download(profile, tmp_path, hub=hub, endpoint="http://127.0.0.1:9")
    assert "modelscope" in caught.value.remedy


def test_a_model_without_a_place_on_modelscope_says_so(profile: Profile, tmp_path: Path):
    with pytest.raises(BackendUnavailable, match="ModelScope"):
        download(replace(profile, modelscope=""), tmp_path, hub=Hub.MODELSCOPE)


def test_a_mirror_does_not_get_the_token_of_the_user(profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with a_hub(FILES) as server:
        fetch(profile, tmp_path, Hub.HUGGINGFACE, server)
        assert server.asked
        assert not any("secret" in str(headers) for _, _, headers, _ in server.asked)


@both
def test_a_hub_cannot_write_outside_the_models_folder(hub: Hub, profile: Profile, tmp_path: Path):
    with a_hub(FILES | {"../escaped.json": b"{}", "..\\escaped.json": b"{}"}) as server:
        fetch(profile, tmp_path / "cache", hub, server)
    assert not list(tmp_path.rglob("*escaped*"))


@pytest.mark.parametrize("answer", [b"not json", b"[]", b'{"Data": {}}', b'{"Data": {"Files": [{"Path": "x"}]}}'])
def test_nonsense_from_a_hub_is_an_error_with_a_remedy(answer: bytes, profile: Profile, tmp_path: Path):
    with serving(lambda handler: respond(handler, 200, answer)) as server:
        for hub in Hub:
            with pytest.raises(BackendUnavailable):
                fetch(profile, tmp_path, hub, server)
