"""The hubs that models are fetched from: what each has, and how a file of it comes here.

The bytes come by our own code from all of them: huggingface_hub 2.4 throws a broken transfer away when its process ends
(huggingface/huggingface_hub#4228), and eight gigabytes are too many to begin anew.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote

import httpx

from adapters.models.manifest import file_size
from adapters.models.profiles import Profile
from domain.errors import BackendUnavailable

# Where else a model may be found when one hub is out of reach.
ELSEWHERE = "another place: --from modelscope, or --endpoint https://hf-mirror.com"
# How often a transfer may bring nothing before it is given up, and how long it waits in between, in seconds.
_TRIES, _PAUSE = 4, 0.5
_PATIENCE = 30
# What comes of an answer that is none.
_NONSENSE = (ValueError, KeyError, TypeError, AttributeError)
_ABSENT = (httpx.codes.NOT_FOUND, httpx.codes.FORBIDDEN, httpx.codes.UNAUTHORIZED)

Hear = Callable[[int], None]


class Hub(StrEnum):
    """Which interface a hub speaks; mirrors of Hugging Face speak its own."""

    HUGGINGFACE = "huggingface"
    MODELSCOPE = "modelscope"


ADDRESSES: Mapping[Hub, str] = {Hub.HUGGINGFACE: "https://huggingface.co", Hub.MODELSCOPE: "https://modelscope.cn"}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on a hub.

    Attributes:
        path: Its name in the model's folder.
        size: In bytes.
        url: Where it is.
        sha256: Its checksum; empty where the hub does not say.
        git: Its blob id in git; empty where the hub does not say.
    """

    path: str
    size: int
    url: str
    sha256: str = ""
    git: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a hub has of a model, at one commit.

    Attributes:
        address: The hub's.
        model: Its id there.
        revision: The commit; its branch where the hub names no commit.
        files: Those at the top of its folder.
        headers: What a request must carry, such as the token of a user who logged in.
    """

    address: str
    model: str
    revision: str
    files: tuple[RemoteFile, ...]
    headers: Mapping[str, str] = field(default_factory=dict)


def list_files(profile: Profile, hub: Hub, endpoint: str | None) -> Listing:
    """Ask a hub what it has of a model.

    Args:
        profile: The model.
        hub: Whose interface to speak.
        endpoint: The address of a mirror; without it the hub's own.

    Raises:
        BackendUnavailable: The hub cannot be reached, or has no such model.
    """
    address = (endpoint or ADDRESSES[hub]).rstrip("/")
    if hub is Hub.HUGGINGFACE:
        return _on_huggingface(profile.huggingface, address)
    if not profile.modelscope:
        raise BackendUnavailable(
            f"{profile.name} has no known place on ModelScope.", "Take it from Hugging Face or a mirror: --endpoint URL"
        )
    return _on_modelscope(profile.modelscope, address)


def _on_huggingface(model: str, address: str) -> Listing:
    from huggingface_hub import HfApi, errors, get_token, hf_hub_url
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2, as hub has it
    from huggingface_hub.hf_api import RepoFile

    # a mirror is somebody else: it does not get the user's token
    token = get_token() if address == ADDRESSES[Hub.HUGGINGFACE] else None
    api = HfApi(endpoint=address, token=token or False)
    try:
        revision = str(api.model_info(model).sha)
        files = tuple(
            RemoteFile(
                each.path,
                each.size,
                hf_hub_url(model, each.path, revision=revision, endpoint=address),
                sha256=each.lfs.sha256 if each.lfs else "",
                git="" if each.lfs else each.blob_id,
            )
            for each in api.list_repo_tree(model, revision=revision)
            if isinstance(each, RepoFile) and _plain(each.path)
        )
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise _no_such_model(model, address) from error
    except (HTTPError, errors.OfflineModeIsEnabled, *_NONSENSE) as error:
        raise _unreachable(model, address, error) from error
    return Listing(address, model, revision, files, {"Authorization": f"Bearer {token}"} if token else {})


def _on_modelscope(model: str, address: str) -> Listing:
    """Ask ModelScope, whose interface is plain HTTP.

    Source: `get_model_files` and `get_file_download_url` in github.com/modelscope/modelscope, modelscope/hub/.
    """
    asked = {"Revision": "master", "Recursive": "true"}
    try:
        answer = httpx.get(
            f"{address}/api/v1/models/{model}/repo/files", params=asked, follow_redirects=True, timeout=_PATIENCE
        )
        if answer.status_code in _ABSENT:
            raise _no_such_model(model, address)
        files = tuple(
            RemoteFile(
                str(each["Path"]),
                int(each["Size"]),
                f"{address}/models/{model}/resolve/master/{quote(str(each['Path']))}",
                sha256=str(each.get("Sha256") or ""),
            )
            for each in answer.raise_for_status().json()["Data"]["Files"]
            if each.get("Type") != "tree" and _plain(str(each["Path"]))
        )
    except (httpx.HTTPError, httpx.InvalidURL, *_NONSENSE) as error:
        raise _unreachable(model, address, error) from error
    return Listing(address, model, "master", files)


def _plain(path: str) -> bool:
    """Tell whether a file lies at the top of a model's folder, and nowhere else on this machine."""
    return Path(path).name == path and not path.startswith(".") and "\\" not in path


def part_of(folder: Path, file: RemoteFile) -> Path:
    """Return where a transfer that is not at its end keeps its bytes."""
    return folder / f"{file.path}.part"


def fetch(file: RemoteFile, listing: Listing, folder: Path, hear: Hear) -> None:
    """Bring one file into a folder, going on where an earlier transfer broke off.

    Args:
        file: What to fetch.
        listing: Where it is from.
        folder: Where it goes.
        hear: Told of bytes as they come; less than none where some must come again.

    Raises:
        BackendUnavailable: The hub brought nothing, again and again.
    """
    part = part_of(folder, file)
    if file_size(part) > file.size:
        part.unlink()
    part.touch()
    hear(file_size(part))
    idle = 0
    while file_size(part) < file.size:
        before = file_size(part)
        failure: Exception = EOFError("the connection broke off")
        try:
            _append(file, listing, part, hear)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            failure = error
        idle = 0 if file_size(part) > before else idle + 1
        if idle == _TRIES:
            raise _unreachable(listing.model, listing.address, failure) from failure
        time.sleep(_PAUSE * idle)
    part.replace(folder / file.path)


def _append(file: RemoteFile, listing: Listing, part: Path, hear: Hear) -> None:
    """Ask for what is missing, and keep what comes, however the transfer ends."""
    start = file_size(part)
    headers = {**listing.headers, "Range": f"bytes={start}-", "Accept-Encoding": "identity"}
    with httpx.stream("GET", file.url, headers=headers, follow_redirects=True, timeout=_PATIENCE) as answer:
        answer.raise_for_status()
        resumed = answer.status_code == httpx.codes.PARTIAL_CONTENT
        if not resumed:
            hear(-start)
        with part.open("ab" if resumed else "wb") as written:
            for block in answer.iter_raw():  # as it comes: what is gathered is lost with the connection
                block = block[: file.size - written.tell()]
                written.write(block)
                hear(len(block))
                if written.tell() == file.size:  # what a hub sends beyond that is not for us
                    break


def _no_such_model(model: str, address: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"{address} has no model {model}, or it is not public.",
        f"Choose {ELSEWHERE}; for a private one log in with: hf auth login",
    )


def _unreachable(model: str, address: str, error: Exception) -> BackendUnavailable:
    return BackendUnavailable(
        f"{model} cannot be fetched from {address}: {(str(error).splitlines() or [type(error).__name__])[0]}.",
        f"Look to your network and run the same command again, which goes on where it stopped; or choose {ELSEWHERE}.",
    )
