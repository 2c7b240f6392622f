"""Fetches a model from a hub: resumed where it broke, checked to the last byte, never a pickle unless asked for."""

import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from hashlib import sha1
from pathlib import Path

from adapters.data_folder import exclusive
from adapters.models.hubs import ELSEWHERE, Hub, Listing, RemoteFile, fetch, list_files, part_of
from adapters.models.manifest import File, Manifest, Progress, checksum, file_size, is_complete, write_manifest
from adapters.models.profiles import Profile
from domain.errors import BackendUnavailable, BadConfiguration

_WANTED = (
    "*.json",
    "*.jinja",
    "*.txt",
    "tokenizer.model",
    "*.tiktoken",
    "LICENSE*",
    "*LICENSE",
    "NOTICE*",
    "README.md",
)
_SAFE = ("*.safetensors",)
_PICKLED = ("pytorch_model*.bin",)
# The same weights once more, for other programs.
_UNWANTED = ("consolidated*", "*.index.json", "training_args*")


def ready_folder(cache_dir: Path, name: str) -> Path:
    """Return where a model lies that the engine can load."""
    return cache_dir / "models" / name


def original_folder(cache_dir: Path, name: str) -> Path:
    """Return where the published files of a model lie that must be converted first."""
    return cache_dir / "models" / f"{name}.original"


def download(
    profile: Profile,
    cache_dir: Path,
    *,
    hub: Hub = Hub.HUGGINGFACE,
    endpoint: str | None = None,
    pickles: bool = False,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Fetch what is missing of a model and return its folder: ready, or to be converted.

    A broken transfer goes on where it stopped, also in a later run. One program at a time works on a model.

    Args:
        profile: Which model.
        cache_dir: It goes to `models/` in it.
        hub: Whose interface to speak.
        endpoint: The address of a mirror; without it the hub's own.
        pickles: Take pickled weights where there are no others; only `convert` will ever open them.
        progress: Called with bytes here and bytes in all.

    Raises:
        BackendUnavailable: The hub cannot be reached or has no such model, a file came damaged, or there is no room.
        BadConfiguration: The hub has only pickled weights, and nobody asked for them.
    """
    for folder in (ready_folder(cache_dir, profile.name), original_folder(cache_dir, profile.name)):
        if is_complete(folder):
            return folder
    try:
        (cache_dir / "models").mkdir(parents=True, exist_ok=True)
        with exclusive(cache_dir / "models" / f".{profile.name}.lock"):
            listing = list_files(profile, hub, endpoint)
            files, convertible = _chosen(profile, listing, pickles=pickles or profile.converter is not None)
            folder = (original_folder if convertible else ready_folder)(cache_dir, profile.name)
            folder.mkdir(exist_ok=True)
            _fetch_all(listing, files, folder, progress)
            if not convertible:
                _give_template(folder, profile.layout)
            entries = {file.path: File(file.size, file.sha256 or checksum(folder / file.path)) for file in files}
            write_manifest(folder, Manifest(listing.address, listing.model, listing.revision, "", entries))
    except OSError as error:
        raise BackendUnavailable(
            f"The model cannot be written to {cache_dir / 'models'}: {error.strerror or error}.",
            "Free some space there, or choose another folder: ZISHU_CACHE_DIR=/path zishu …",
        ) from error
    return folder


def _chosen(profile: Profile, listing: Listing, *, pickles: bool) -> tuple[Sequence[RemoteFile], bool]:
    """Return the files to fetch, and whether they must be converted."""

    def named(patterns: Sequence[str]) -> list[RemoteFile]:
        return [file for file in listing.files if any(fnmatch(file.path, pattern) for pattern in patterns)]

    unwanted = named(_UNWANTED)
    weights = [file for file in named(_SAFE) if file not in unwanted]
    safe = bool(weights)
    if not safe:
        weights = named(_PICKLED)
        if weights and not pickles:
            raise BadConfiguration(
                f"{listing.model} has its weights only as pickles, which can run any program when they are opened.",
                f"Fetch them to be converted in an isolated process: zishu models download {profile.name} --pickles",
            )
    if not weights:
        raise BackendUnavailable(f"{listing.model} has no weights there.", f"Choose {ELSEWHERE}.")
    convertible = profile.converter not in (None, "pickle") or not safe
    # an index belongs to the shards beside it
    index = ("*.safetensors.index.json",) if safe else ("*.bin.index.json",)
    # the large ones last: what is wrong with a model shows in its small files
    return [*(file for file in named(_WANTED) if file not in unwanted), *named(index), *weights], convertible


def _fetch_all(listing: Listing, files: Sequence[RemoteFile], folder: Path, progress: Progress) -> None:
    """Bring every file into the folder and compare it with what the hub says of it."""
    total = sum(file.size for file in files)
    here = sum(file_size(folder / file.path) or file_size(part_of(folder, file)) for file in files)
    _require_room(folder, total - here)
    done = 0

    def hear(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    for file in files:
        path = folder / file.path
        if _intact(path, file):
            hear(file.size)
            continue
        fetch(file, listing, folder, hear)
        if not _intact(path, file):
            path.unlink()
            raise BackendUnavailable(
                f"{file.path} came damaged from the hub: its checksum is wrong.",
                f"Run the same command again; if it happens again, choose {ELSEWHERE}.",
            )


def _intact(path: Path, file: RemoteFile) -> bool:
    """Tell whether a file is the one that the hub has, as far as the hub lets one know."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    if file.sha256:
        return checksum(path) == file.sha256
    return not file.git or _git_blob(path) == file.git


def _git_blob(path: Path) -> str:
    """Return the id that git gives a file (git-scm.com/book/en/v2/Git-Internals-Git-Objects)."""
    digest = sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    digest.update(path.read_bytes())  # only small files lack a checksum
    return digest.hexdigest()


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BackendUnavailable(
            f"The download needs {needed / 1e9:.2f} GB in {folder.parent}, and {free / 1e9:.2f} GB are free.",
            "Free some space there, or choose another folder: ZISHU_CACHE_DIR=/path zishu …",
        )


def _give_template(folder: Path, layout: str) -> None:
    """Write a chat template of ours where the tokenizer has none."""
    from adapters.models.convert.templates import TEMPLATES

    settings, file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    has_one = file.exists() or (settings.exists() and "chat_template" in settings.read_text(encoding="utf-8"))
    if layout in TEMPLATES and not has_one:
        file.write_text(TEMPLATES[layout], encoding="utf-8")
