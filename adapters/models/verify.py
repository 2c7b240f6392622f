"""Whether a model's folder is whole, safe and complete, found out without loading it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from adapters.models.formats import refuse_pickle
from adapters.models.manifest import Progress, mismatches, read_manifest
from domain.errors import BadConfiguration, ZishuError


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in a model's folder.

    Attributes:
        folder: The one that was looked at.
        architecture: Its class in transformers.
        parameters: How many weights its files hold.
        checked: Files whose checksum was compared; 0 where the folder has no card.
        template: Whether its tokenizer has a chat template that renders.
        problems: What is wrong; empty for a sound model.
    """

    folder: Path
    architecture: str
    parameters: int
    checked: int
    template: bool
    problems: tuple[str, ...]


def verify(folder: Path, progress: Progress = lambda done, total: None) -> Report:
    """Look at every file of a model: checksums, pickles, the tensors that its class needs, tokenizer and template.

    Raises:
        BadConfiguration: The folder or its card cannot be read at all.
    """
    if not folder.is_dir():
        raise BadConfiguration(f"There is no folder {folder}.", "Run: zishu models list")
    manifest = read_manifest(folder)
    problems: list[str] = []
    if manifest:
        problems += [f"{name}: {what}" for name, what in mismatches(folder, manifest, progress).items()]
    for path in sorted(folder.rglob("*")):
        try:
            if path.is_file():
                refuse_pickle(path)
        except BadConfiguration as error:
            problems.append(error.problem)
    architecture, parameters = "", 0
    try:
        shapes = tensor_shapes(folder)
        parameters = sum(prod(shape) for shape in shapes.values())
        architecture = require_all_weights(folder)
    except ZishuError as error:
        problems.append(error.problem)
    template = False
    try:
        template = _renders(folder)
    except ZishuError as error:
        problems.append(error.problem)
    return Report(folder, architecture, parameters, len(manifest.files) if manifest else 0, template, tuple(problems))


def require_all_weights(folder: Path) -> str:
    """Return the class of a model, once its files hold every tensor of it in the right shape, and no other.

    Raises:
        BadConfiguration: A tensor is missing, too many or misshapen, or transformers knows no such class.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    found = tensor_shapes(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadConfiguration(
            f"transformers cannot run the model in {folder}: {str(error).splitlines()[0].rstrip('.')}.",
            f"Run: zishu models convert {folder}",
        ) from error
    if getattr(config, "quantization_config", None):
        return type(model).__name__  # its tensors have names of their own
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = {name for name in needed if name.startswith("lm_head.")} if config.tie_word_embeddings else set()
    missing, strange = sorted(needed.keys() - found.keys() - tied), sorted(found.keys() - needed.keys())
    misshapen = sorted(name for name in needed.keys() & found.keys() if needed[name] != found[name])
    for what, names in (("lacks", missing), ("has the unknown", strange), ("has the misshapen", misshapen)):
        if names:
            raise BadConfiguration(
                f"The model in {folder} {what} {names[0]} ({len(names)} such tensors).", "Download or convert it again."
            )
    return type(model).__name__


def tensor_shapes(folder: Path) -> Mapping[str, tuple[int, ...]]:
    """Return the tensors that the safetensors of a folder hold, read from their headers alone.

    Raises:
        BadConfiguration: There are none, or one is cut short or corrupt.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BadConfiguration(f"{folder} has no .safetensors file.", f"Run: zishu models convert {folder}")
    for path in files:
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header: dict[str, Any] = json.loads(file.read(min(size, path.stat().st_size)))
            header.pop("__metadata__", None)
            end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
            shapes |= {name: tuple(tensor["shape"]) for name, tensor in header.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _cut(path) from error
        if 8 + size + end != path.stat().st_size:
            raise _cut(path)
    return shapes


def _cut(path: Path) -> BadConfiguration:
    return BadConfiguration(f"{path} is not a whole safetensors file.", "Download or convert it again.")


def _renders(folder: Path) -> bool:
    """Tell whether the tokenizer has a chat template, after words went through it and came back.

    Raises:
        BadConfiguration: The tokenizer cannot be read, loses words, or its template fails.
    """
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    words = "你好，紫舒老师！Hello 123🐢"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        back = tokenizer.decode(tokenizer(words, add_special_tokens=False).input_ids)
        if tokenizer.chat_template:
            tokenizer.apply_chat_template([{"role": "user", "content": words}], tokenize=False)
    except (OSError, ValueError, KeyError, TypeError, TemplateError) as error:
        raise BadConfiguration(
            f"The tokenizer in {folder} cannot be used: {str(error).splitlines()[0].rstrip('.')}.",
            "Download or convert it again.",
        ) from error
    if back.strip() != words:
        raise BadConfiguration(
            f"The tokenizer in {folder} turns {words!r} into {back!r}.", "Check that it belongs to this model."
        )
    return bool(tokenizer.chat_template)
