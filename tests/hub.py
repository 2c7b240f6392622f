"""A hub on this machine: serves a model's folder as Hugging Face does, and as ModelScope does."""

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from adapters.models.manifest import checksum
from tests.local_server import respond

COMMIT = "0" * 40


def hub_of(folder: Path, model: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """Return what answers for one model; it has no other."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path)
        if path.startswith((f"/{model}/resolve/", f"/models/{model}/resolve/")):
            body = (folder / path.rsplit("/", 1)[1]).read_bytes()
            respond(handler, 200, body, {"ETag": "none", "X-Repo-Commit": COMMIT})
        elif path == f"/api/v1/models/{model}/repo/files":
            entries = [
                {"Path": file.name, "Size": file.stat().st_size, "Sha256": checksum(file), "Type": "blob"}
                for file in folder.iterdir()
            ]
            send(handler, {"Code": 200, "Data": {"Files": entries}})
        elif path == f"/api/models/{model}/tree/{COMMIT}":
            send(handler, [_entry(file) for file in folder.iterdir()])
        elif path == f"/api/models/{model}":
            send(handler, {"id": model, "sha": COMMIT, "siblings": []})
        else:
            respond(handler, 404, b"{}", {"X-Error-Code": "RepoNotFound"})

    return answer


def send(handler: BaseHTTPRequestHandler, content: Any) -> None:
    """Answer with JSON."""
    respond(handler, 200, json.dumps(content).encode(), {"Content-Type": "application/json"})


def _entry(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    lfs = {"oid": checksum(file), "size": size, "pointerSize": 1}
    return {"type": "file", "path": file.name, "size": size, "oid": "", "lfs": lfs}
