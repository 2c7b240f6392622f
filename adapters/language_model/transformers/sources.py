"""Where a model's files come from: the starter, a profile, a GGUF file, a folder, the hub. All end as safetensors."""

import json
import re
from pathlib import Path

from adapters.language_model.transformers.config import Config
from adapters.models.convert import FOREIGN
from adapters.models.dequantised import dequantised
from adapters.models.download import download, original_folder, ready_folder
from adapters.models.formats import read_gguf, refuse_pickle
from adapters.models.hubs import ADDRESSES, Hub
from adapters.models.manifest import is_complete
from adapters.models.profiles import Profile, Shelf
from adapters.models.starter import ADAPTER, assembled, starter_adapter
from domain.errors import BackendUnavailable, BadConfiguration

STARTER = "starter"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_NAME = re.compile(r"[\w-][\w.-]*")
# What the hub is asked for: never a pickle, and no copies for other frameworks in subfolders.
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "*.tiktoken"]
_UNWANTED = ["*/*", "consolidated*"]


def weights_folder(config: Config) -> Path:
    """Return a folder with the model's safetensors and tokenizer, fetched or converted on the first call.

    A name is that of a profile before it is that of a folder, which `./name` always means.

    Raises:
        BackendUnavailable: There is no such model, or it cannot be fetched or converted.
        BadConfiguration: Its files are corrupt, or not safe to read.
    """
    path = Path(config.model).expanduser()
    if config.model == STARTER:
        return dequantised(assembled(config.cache_dir), config.cache_dir / "starter" / "gemma-3-270m-bf16")
    if path.suffix == ".gguf":
        read_gguf(path)
        state = path.stat()
        folder = config.cache_dir / "dequantised" / f"{path.stem}-{state.st_size}-{state.st_mtime_ns}"
        return dequantised(path, folder)
    if _NAME.fullmatch(config.model):
        if is_complete(folder := ready_folder(config.cache_dir, config.model)):
            return _native(folder)
        if profile := Shelf(config.data_dir / "models").find(config.model):
            return _native(_of_profile(profile, config))
    if path.is_dir():
        return _native(path)
    if _HUB_ID.fullmatch(config.model):
        return _native(_from_hub(config))
    raise _unknown(config.model)


def adapter_folder(config: Config) -> tuple[Path | None, str | None]:
    """Return the folder of the adapter and the layout it was trained in, as far as there are any.

    Raises:
        BackendUnavailable: There is no adapter in the folder that the settings name.
        BadConfiguration: Its weights are not safe to read, or belong to another model.
    """
    if not config.adapter:  # TOML has no word for nothing but ""
        return None, None
    folder = ADAPTER if config.adapter == STARTER else Path(config.adapter).expanduser()
    card = starter_adapter(folder) if config.model == STARTER else None
    if config.adapter == STARTER and card is None:
        return None, None
    if not (folder / "adapter_config.json").is_file():
        raise BackendUnavailable(
            f"There is no adapter in {folder}.",
            "Set [language_model.transformers] adapter to a folder with adapter_config.json, or leave it out.",
        )
    return _safe(folder), card.layout if card else None


def _of_profile(profile: Profile, config: Config) -> Path:
    """Fetch a model that can be loaded as it is published; what needs conversion is the user's decision."""
    name = profile.name
    if is_complete(original_folder(config.cache_dir, name)):
        raise BackendUnavailable(
            f"The model {name} is here, but not converted yet.", f"Run: zishu models convert {name}"
        )
    if profile.converter:
        raise BackendUnavailable(
            f"The model {name} is not here, and must be converted before it can be loaded.",
            f"Run: zishu models download {name}, then: zishu models convert {name}",
        )
    return download(profile, config.cache_dir, endpoint=config.hub)


def _native(folder: Path) -> Path:
    """Return the folder if it holds safetensors of a class that transformers has itself."""
    try:
        _safe(folder)
    except BadConfiguration as error:
        remedy = f"Turn it into safetensors, in an isolated process: zishu models convert {folder}"
        raise BadConfiguration(error.problem, remedy) from error
    kind = _model_type(folder)
    if kind in FOREIGN:
        raise BadConfiguration(
            f"{folder} is a {kind}: {FOREIGN[kind]}.", f"Run: zishu models convert {folder}, and name what comes of it."
        )
    return folder


def _model_type(folder: Path) -> str:
    """Return what the configuration calls the model; nothing where it cannot be read, which loading will say."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _safe(folder: Path) -> Path:
    """Return the folder if it has safetensors; torch never sees pickled weights."""
    if any(folder.glob("*.safetensors")):
        return folder
    for file in sorted(folder.iterdir()):
        if file.is_file():
            refuse_pickle(file)
    raise BackendUnavailable(
        f"{folder} has no .safetensors file.", "Choose a model whose weights are safetensors, or a .gguf file."
    )


def _from_hub(config: Config) -> Path:
    """Fetch a model from the hub, or take it from the hub's cache; what is half there is resumed."""
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2, as hub has it

    try:
        folder = snapshot_download(
            config.model,
            endpoint=config.hub,
            token=None if config.hub == ADDRESSES[Hub.HUGGINGFACE] else False,  # a mirror does not get the user's
            cache_dir=config.cache_dir / "hub",
            allow_patterns=_WANTED,
            ignore_patterns=_UNWANTED,
        )
    except errors.HFValidationError as error:
        raise _unknown(config.model) from error
    except errors.RepositoryNotFoundError as error:
        raise BackendUnavailable(
            f"{config.hub} has no model {config.model}, or it is not public.",
            "Check its name; for a private one log in with: hf auth login",
        ) from error
    except (HTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise BackendUnavailable(
            f"{config.model} cannot be fetched from {config.hub}.",
            "Look to your network, set [language_model.transformers] hub to a mirror such as https://hf-mirror.com, "
            "or model to a folder that you have.",
        ) from error
    except OSError as error:
        raise BackendUnavailable(
            f"{config.model} cannot be kept in {config.cache_dir}: {error.strerror or error}.",
            "Free some space there, or choose another folder: ZISHU_CACHE_DIR=/path zishu …",
        ) from error
    return Path(folder)


def _unknown(model: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"There is no model at {model}.",
        "Set [language_model.transformers] model to a folder, a .gguf file, a hub id, or a name that "
        "zishu models list shows.",
    )
