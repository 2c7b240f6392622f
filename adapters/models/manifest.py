"""The card that lies in a model's folder once it is whole: where it came from, and the checksum of each file."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from adapters.data_folder import write_whole
from domain.errors import BadConfiguration

NAME = "zishu-model.json"
_BLOCK = 4 * 1024 * 1024

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class File:
    """A file of a model; `sha256` is the hub's own where it gives one, else what was found after the download."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model's folder was made of.

    Attributes:
        source: The hub it was fetched from, or the folder that it was converted from.
        model: Its id on the hub, or its name.
        revision: The commit on the hub; empty where it has none.
        converter: What made it native; empty for files as published.
        files: By path within the folder.
    """

    source: str
    model: str
    revision: str
    converter: str
    files: Mapping[str, File]


def checksum(path: Path, done: Callable[[int], None] = lambda _: None) -> str:
    """Return the SHA-256 of a file; `done` hears of each block's bytes."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done(len(block))
    return digest.hexdigest()


def file_size(path: Path) -> int:
    """Return the bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the card, whole or not at all; it comes last, so that a folder with a card is complete."""
    write_whole(folder / NAME, json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n")


def read_manifest(folder: Path) -> Manifest | None:
    """Return the card of a folder, or None where there is none.

    Raises:
        BadConfiguration: It cannot be read.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
        files = {str(name): File(int(each["size"]), str(each["sha256"])) for name, each in keys.pop("files").items()}
        return Manifest(**{name: str(value) for name, value in keys.items()}, files=files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadConfiguration(f"{path} is damaged: {error!r}.", "Download or convert the model again.") from error


def is_complete(folder: Path) -> bool:
    """Tell whether a folder has its card and every file of it in its size; nothing is read but the card."""
    manifest = read_manifest(folder)
    return manifest is not None and not any(_missized(folder, manifest))


def mismatches(folder: Path, manifest: Manifest, progress: Progress = lambda done, total: None) -> dict[str, str]:
    """Read every file of a manifest and return what is wrong, by name."""
    wrong = dict(_missized(folder, manifest))
    total = sum(file.size for file in manifest.files.values())
    seen = 0

    def count(size: int) -> None:
        nonlocal seen
        seen += size
        progress(seen, total)

    for name, file in manifest.files.items():
        if name not in wrong and checksum(folder / name, count) != file.sha256:
            wrong[name] = "its checksum is wrong"
    return wrong


def _missized(folder: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    for name, file in manifest.files.items():
        path = folder / name
        if not path.is_file():
            yield name, "it is missing"
        elif path.stat().st_size != file.size:
            yield name, f"it has {path.stat().st_size:,} bytes instead of {file.size:,}"
