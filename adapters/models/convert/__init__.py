"""Published models that today's transformers cannot load become ones that it can, without the code they came with."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from adapters.data_folder import exclusive, flush_folder
from adapters.models.manifest import File, Manifest, Progress, checksum, write_manifest
from domain.errors import BackendUnavailable, BadConfiguration

if TYPE_CHECKING:
    from torch import Tensor

Keys = dict[str, Any]
# Which module converts which `model_type`; every other type only leaves its pickle.
_MODULES = {"chatglm": "chatglm3", "qwen": "qwen1", "baichuan": "baichuan2", "llava": "llava"}
_OLD = "transformers runs it only with code of its makers, which is never run here"
# Why such a model cannot be loaded as it is.
FOREIGN = {
    "chatglm": _OLD,
    "qwen": _OLD,
    "baichuan": _OLD,
    "llava": "it sees pictures, which conversations cannot hold yet; its language model can talk without its eyes",
}


class Converter(Protocol):
    """What a module of this package does for one published layout."""

    def native_config(self, keys: Keys) -> Keys:
        """Return the configuration of the native class."""
        ...

    def native_tensors(self, name: str, tensor: "Tensor", keys: Keys) -> "Iterator[tuple[str, Tensor]]":
        """Yield what one tensor of the original becomes."""
        ...

    def native_tokenizer(self, folder: Path, keys: Keys) -> Any:  # noqa: ANN401  transformers has no types
        """Return the tokenizer, with special tokens and chat template."""
        ...


def convert(
    source: Path, folder: Path, *, template: str | None = None, progress: Progress = lambda done, total: None
) -> str:
    """Write a model that the engine loads, and return the name of the converter that made it.

    Memory: one tensor at a time. The folder appears whole or not at all; one program at a time works on it.

    Args:
        source: The published files: config.json, weights as safetensors or pickle, the tokenizer's file.
        folder: Where the result goes; what is there already is replaced.
        template: Name of a chat template of ours, for a tokenizer that comes without one.
        progress: Called with bytes read and bytes in all.

    Raises:
        BadConfiguration: The source is incomplete, damaged, unsafe, of an unknown kind, or native already.
        BackendUnavailable: A library is missing, or the disk has no room.
    """
    keys = read_config(source)
    name = converter_for(source, keys)
    try:
        module = cast(Converter, import_module(f"adapters.models.convert.{name}"))
        from adapters.models.convert.tensors import weight_files
    except ImportError as error:
        raise BackendUnavailable(
            f"Converting needs '{error.name}', which is not installed.", "Run: pip install -e '.[transformers]'"
        ) from error
    total = sum(path.stat().st_size for path in weight_files(source))
    folder.parent.mkdir(parents=True, exist_ok=True)
    _require_room(folder.parent, total)
    with exclusive(folder.parent / f".{folder.name}.lock"):
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            _write_tokenizer(module, source, unfinished, keys, template)
            _write_weights(module, source, unfinished, keys, lambda done: progress(min(done, total), total))
            _finish(unfinished, Manifest(str(source), folder.name, "", name, {}))
            if folder.exists():
                shutil.rmtree(folder)
            unfinished.rename(folder)
            flush_folder(folder.parent)
        except (KeyError, ValueError, TypeError) as error:
            raise BadConfiguration(
                f"{source} cannot be converted: {_words(error)}.",
                "Check that its folder holds the model that config.json says, whole, and download it again if not.",
            ) from error
        except OSError as error:
            raise BackendUnavailable(
                f"The model cannot be written to {folder.parent}: {error.strerror or error}.",
                "Free some space there, or choose another folder: ZISHU_CACHE_DIR=/path zishu …",
            ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return name


def read_config(folder: Path) -> Keys:
    """Return the configuration of a model's folder.

    Raises:
        BadConfiguration: There is none, or it cannot be read.
    """
    path = folder / "config.json"
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
        keys["model_type"]
    except FileNotFoundError as error:
        raise BadConfiguration(f"{folder} holds no model: it has no config.json.", "Name a model's folder.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadConfiguration(f"{path} cannot be read: {error!r}.", "Download it again.") from error
    return cast(Keys, keys)


def converter_for(folder: Path, keys: Keys) -> str:
    """Return the name of the module that converts a model.

    Raises:
        BadConfiguration: It needs no conversion, or was quantised by somebody else.
    """
    if keys.get("quantization_config") or keys.get("quantization_bit"):
        raise BadConfiguration(f"{folder} is quantised, which no converter undoes.", "Download the full model instead.")
    if name := _MODULES.get(keys["model_type"]):
        return name
    if any(folder.glob("*.safetensors")):
        raise BadConfiguration(
            f"{folder} needs no conversion: it is a {keys['model_type']} in safetensors.",
            f'Use it as it is: [language_model.transformers] model = "{folder}".',
        )
    return "as_published"


def _write_tokenizer(module: Converter, source: Path, folder: Path, keys: Keys, template: str | None) -> None:
    from adapters.models.convert.templates import TEMPLATES

    tokenizer = module.native_tokenizer(source, keys)
    if not tokenizer.chat_template and template in TEMPLATES:
        tokenizer.chat_template = TEMPLATES[template]
    tokenizer.save_pretrained(folder)


def _write_weights(module: Converter, source: Path, folder: Path, keys: Keys, progress: Any) -> None:  # noqa: ANN401
    from adapters.models.convert.tensors import Shards, tensors

    done = 0
    with Shards(folder) as shards:
        for name, tensor in tensors(source):
            for native, part in module.native_tensors(name, tensor, keys):
                shards.add(native, part)
            done += tensor.nbytes
            progress(done)
    kind = max(shards.kinds, key=shards.kinds.__getitem__)
    config = {**module.native_config(keys), "dtype": str(kind).removeprefix("torch.")}
    config.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _finish(folder: Path, manifest: Manifest) -> None:
    """Check that nothing is missing, and write the card."""
    from adapters.models.verify import require_all_weights

    require_all_weights(folder)
    files = {path.name: File(path.stat().st_size, checksum(path)) for path in sorted(folder.iterdir())}
    write_manifest(folder, Manifest(manifest.source, manifest.model, manifest.revision, manifest.converter, files))


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BackendUnavailable(
            f"The converted model needs {needed / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free.",
            "Free some space there, or choose another folder: ZISHU_CACHE_DIR=/path zishu …",
        )


def _words(error: Exception) -> str:
    return f"config.json lacks {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
