"""A LoRA adapter of the peft library, looked at before an engine sees it; needs numpy, no torch."""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import psutil
from numpy.typing import NDArray

from adapters.models.formats import refuse_pickle
from adapters.models.profiles import Shelf
from domain.errors import BackendUnavailable, BadConfiguration

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"

# What changes how an adapter is to be computed, with the values under which it is plain B(A(x)).
_PLAIN = {
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "exclude_modules": None,
}
_NAME = re.compile(r"^base_model\.model\.(.+)\.lora_([AB])\.weight$")
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_ITEM = {"F16": 2, "BF16": 2, "F32": 4}
# Bytes between two looks at whether anybody still wants the adapter; a disk reads them in some milliseconds.
_BLOCK = 1 << 20
_REMEDY = "Choose an adapter that was trained on this model, or leave it out."


class Abandoned(Exception):
    """Nobody wants the adapter any more that was being read."""


@dataclass(frozen=True, slots=True)
class Base:
    """The model that an adapter has to fit.

    Attributes:
        names: What it goes by: the name in the settings, and its id on the hub where that is known.
        shapes: Inputs and outputs of its linear layers, by their names in transformers.
        vocabulary: Tokens that it knows; None where that is not known.
    """

    names: frozenset[str]
    shapes: Mapping[str, tuple[int, int]]
    vocabulary: int | None = None


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """What there is to know about an adapter.

    Attributes:
        fingerprint: SHA-256 of its weights and settings.
        rank: Width of its bottleneck.
        scale: What B(A(x)) is multiplied with.
        size: Bytes that its weights take.
        base: The model that it says to be trained on; may be "".
    """

    fingerprint: str
    rank: int
    scale: float
    size: int
    base: str


@dataclass(frozen=True, slots=True)
class Matrix:
    """Numbers as they stand in the file, row after row.

    Attributes:
        kind: `F16`, `BF16` or `F32`.
        shape: Rows and columns.
        content: The bytes.
    """

    kind: str
    shape: tuple[int, int]
    content: memoryview

    def numbers(self) -> NDArray[np.float32]:
        """Return the matrix in fp32."""
        if self.kind == "BF16":  # the upper half of a float32
            return (np.frombuffer(self.content, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(self.shape)
        kind = "<f2" if self.kind == "F16" else "<f4"
        return np.frombuffer(self.content, kind).astype(np.float32).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A checked adapter: what it is, and A (rank x inputs) and B (outputs x rank) by the layer that they change."""

    card: AdapterCard
    pairs: Mapping[str, tuple[Matrix, Matrix]]


def model_names(model: str) -> frozenset[str]:
    """Return what a model of the settings goes by: itself, its file or folder, its profile and its ids on hubs."""
    names = {model, Path(model).name, Path(model).name.removesuffix(".gguf")}
    for profile in Shelf().all():
        known = {profile.name, profile.huggingface, profile.modelscope}
        if model in known:
            names |= known
    return frozenset(names - {""})


def check_adapter(folder: Path, base: Base, *, trained_on: str = "") -> AdapterCard:
    """Return what an adapter is, if all is well with it; for errors see `read_adapter`."""
    return read_adapter(folder, base, trained_on=trained_on).card


def read_adapter(
    folder: Path, base: Base, *, trained_on: str = "", stopped: Callable[[], bool] = lambda: False
) -> Adapter:
    """Read an adapter after checking that it is whole, safe, finite, and for this model.

    Whatever the settings and the table of tensors give away is found before the weights are read.

    Args:
        folder: Holds `adapter_model.safetensors` and `adapter_config.json`.
        base: What it has to fit.
        trained_on: The model that whoever plugged it in says it belongs to; "" where nobody says.
        stopped: Asked before every megabyte.

    Raises:
        BadConfiguration: It is damaged, a pickle, incomplete, not finite, for another model, or of a kind that is more
            than plain LoRA.
        BackendUnavailable: It cannot be read now, or is larger than the free memory.
        Abandoned: `stopped` said so.
    """
    for name in (WEIGHTS, SETTINGS):
        _refuse_other_formats(folder, name)
    try:
        description = (folder / SETTINGS).read_bytes()
        settings = json.loads(description)
        with (folder / WEIGHTS).open("rb") as file:
            front = _front(file)
            table = json.loads(front[8:])
            metadata = table.pop("__metadata__", {})
            _check_origin(settings, metadata, base, trained_on)
            places = _places(table, settings, base)
            _check_size(folder, max(end for _, _, _, end in places.values()))
            data, digest = _data(file, front, stopped)
        pairs = _pairs(places, memoryview(data))
        card = AdapterCard(
            fingerprint=sha256(digest + description).hexdigest(),
            rank=int(settings["r"]),
            scale=_scale(settings),
            size=len(data),
            base=str(settings.get("base_model_name_or_path") or ""),
        )
    except OSError as error:
        raise BackendUnavailable(
            f"The adapter in {folder} cannot be read: {error.strerror or error}.", "Look to the disk and the folder."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadConfiguration(f"The adapter in {folder} cannot be used with this model: {error}.", _REMEDY) from error
    return Adapter(card, pairs)


def _refuse_other_formats(folder: Path, name: str) -> None:
    """Name the pickle where only that is there."""
    path = folder / name
    pickled = path.with_suffix(".bin")
    refuse_pickle(pickled if pickled.is_file() and not path.is_file() else path)


def _front(file: BinaryIO) -> bytes:
    """Return a safetensors file up to its numbers: a length and a table in JSON.

    Source: https://github.com/huggingface/safetensors#format.
    """
    length = file.read(8)
    size = int.from_bytes(length, "little")
    file.seek(0, 2)
    if len(length) < 8 or size > file.tell() - 8:
        raise ValueError("its file is cut short")
    file.seek(0)
    return file.read(8 + size)


def _check_origin(settings: Mapping[str, Any], metadata: Mapping[str, str], base: Base, trained_on: str) -> None:
    """Refuse an adapter that says to be for another model or another tokenizer."""
    if trained_on and trained_on not in base.names:
        raise ValueError(f"it is for the model {trained_on!r}, and {min(base.names, default='another')!r} is loaded")
    said = str(settings.get("base_model_name_or_path") or "")
    known = {_last(name) for name in base.names if _HUB_ID.fullmatch(name)}
    # a folder that it was trained from tells nothing: folders move
    if known and _HUB_ID.fullmatch(said) and _last(said) not in known:
        raise ValueError(f"it was trained on {said}, and {', '.join(sorted(known))} is loaded")
    vocabulary = metadata.get("vocabulary")
    if vocabulary and base.vocabulary and int(vocabulary) != base.vocabulary:
        raise ValueError(f"its tokenizer has {int(vocabulary):,} tokens, that of the model {base.vocabulary:,}")


def _last(name: str) -> str:
    return name.rpartition("/")[2].casefold()


def _check_size(folder: Path, needed: int) -> None:
    free = psutil.virtual_memory().available
    if needed > free:
        raise BackendUnavailable(
            f"The adapter in {folder} takes {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB of memory are free.",
            "Close other programs, or train it with a smaller rank.",
        )


def _scale(settings: Mapping[str, Any]) -> float:
    alpha, rank = float(settings["lora_alpha"]), int(settings["r"])
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    if not math.isfinite(scale):
        raise ValueError(f"its scale is {scale}")
    return scale


# The kind, the shape, the first byte and the end of each half of a pair, by layer and letter.
_Places = Mapping[tuple[str, str], tuple[str, tuple[int, int], int, int]]


def _places(table: Mapping[str, Any], settings: Mapping[str, Any], base: Base) -> _Places:
    """Return where the halves lie, after checking that all are there, and no others, and that they fit."""
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"it is no LoRA but {settings.get('peft_type')}")
    for key, plain in _PLAIN.items():
        if settings.get(key) not in (plain, None):
            raise ValueError(f"{key} = {settings[key]!r} is not supported")
    places = {}
    for name, entry in table.items():
        match = _NAME.match(name)
        if not match or match[1] not in base.shapes:
            raise ValueError(f"it has a tensor {name} that the model has nothing for")
        if entry["dtype"] not in _ITEM:
            raise ValueError(f"it holds numbers of the kind {entry['dtype']}")
        rows, columns = entry["shape"]
        start, end = entry["data_offsets"]
        if end - start != rows * columns * _ITEM[entry["dtype"]] or start < 0:
            raise ValueError(f"its table gives {name} {end - start:,} bytes for {rows} x {columns} numbers")
        places[match[1], match[2]] = (entry["dtype"], (rows, columns), start, end)
    _check_whole(places.keys(), _wanted(settings, base))
    rank = int(settings["r"])
    for (layer, letter), (_, shape, _, _) in places.items():
        inputs, outputs = base.shapes[layer]
        if shape != ((rank, inputs) if letter == "A" else (outputs, rank)):
            raise ValueError(
                f"its shapes do not fit: {letter} of {layer} is {shape[0]} x {shape[1]}; "
                f"the rank is {rank}, the layer {inputs} -> {outputs}"
            )
    return places


def _check_whole(halves: Collection[tuple[str, str]], wanted: set[str]) -> None:
    layers = {layer for layer, _ in halves}
    if odd := sorted(layers ^ wanted):
        raise ValueError(
            f"it should change {len(wanted)} layers and changes {len(layers)}; look at {', '.join(odd[:3])}"
        )
    for layer in sorted(layers):
        if missing := {"A", "B"} - {letter for name, letter in halves if name == layer}:
            raise ValueError(f"for {layer} the half {min(missing)} is missing")


def _wanted(settings: Mapping[str, Any], base: Base) -> set[str]:
    """Return the layers that the adapter says to change."""
    targets, only = settings["target_modules"], settings.get("layers_to_transform")
    if not isinstance(targets, list) or not targets:
        raise ValueError(f"its target_modules are {targets!r}, not a list of names")
    numbers = {only} if isinstance(only, int) else set(only or ())

    def chosen(layer: str) -> bool:
        number = _LAYER.search(layer)
        return not numbers or (number is not None and int(number[1]) in numbers)

    wanted = {layer for layer in base.shapes for name in targets if f".{layer}".endswith(f".{name}") and chosen(layer)}
    if not wanted:
        raise ValueError(f"the model has no layer that is called {' or '.join(map(str, targets))}")
    return wanted


def _data(file: BinaryIO, front: bytes, stopped: Callable[[], bool]) -> tuple[bytearray, bytes]:
    """Return the numbers of the file and a digest of the whole of it."""
    digest, data = sha256(front), bytearray()
    while True:
        if stopped():
            raise Abandoned
        block = file.read(_BLOCK)
        if not block:
            return data, digest.digest()
        digest.update(block)
        data += block


def _pairs(places: _Places, data: memoryview) -> dict[str, tuple[Matrix, Matrix]]:
    halves: dict[tuple[str, str], Matrix] = {}
    for (layer, letter), (kind, shape, start, end) in places.items():
        if end > len(data):
            raise ValueError(f"its file is cut short: {letter} of {layer} ends at byte {end:,} of {len(data):,}")
        matrix = Matrix(kind, shape, data[start:end])
        if not np.isfinite(matrix.numbers()).all():
            raise ValueError(f"{letter} of {layer} holds numbers that are not finite")
        halves[layer, letter] = matrix
    return {layer: (halves[layer, "A"], halves[layer, "B"]) for layer, letter in places if letter == "A"}
