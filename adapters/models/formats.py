"""Looks at a weight file before an engine does: refuses pickles, and finds what is cut short or corrupt."""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from domain.errors import BadConfiguration

_PICKLE_NAMES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_ZIP = b"PK\x03\x04"  # what torch.save writes
_VERSIONS = (2, 3)
# struct codes of the scalar kinds; 8 is a string, 9 an array. Source: ggml/docs/gguf.md in github.com/ggml-org/ggml.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
# Token kinds that a tokenizer takes for more than text: unknown, control, and what the model's makers added.
_SPECIAL = {2, 3, 4}

_KINDS = {int(kind) for kind in GGML_QUANT_SIZES}

Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True)
class Gguf:
    """What the header of a GGUF file says.

    Attributes:
        metadata: The keys whose value is not a list.
        shapes: Dimensions of every tensor, the fastest-running first.
        special_tokens: The texts that its tokenizer takes for more than text.
    """

    metadata: Mapping[str, Scalar]
    shapes: Mapping[str, tuple[int, ...]]
    special_tokens: tuple[str, ...]

    @property
    def architecture(self) -> str:
        """The family of the model, such as `gemma3`."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def layers(self) -> int:
        """How many blocks the model has."""
        return int(self.metadata.get(f"{self.architecture}.block_count", 0))


def refuse_pickle(path: Path) -> None:
    """Let a weight file pass unless opening it could run a program that someone put into it.

    Raises:
        BadConfiguration: It is a pickle, by name or by content, or there is no such file.
    """
    if not path.is_file():
        raise BadConfiguration(f"There is no file {path}.", "Correct the path in the settings.")
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise BadConfiguration(f"{path} cannot be read: {error.strerror}.", "Make it readable for you.") from error
    pickled = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if path.suffix.lower() in _PICKLE_NAMES or start == _ZIP or pickled:
        raise BadConfiguration(
            f"{path} holds pickled weights, which can run any program when they are opened.",
            "Use the .safetensors or .gguf files of the model instead.",
        )


def read_gguf(path: Path) -> Gguf:
    """Read the header of a GGUF file and check that every tensor lies whole inside the file.

    An engine in C stops the whole program at some of the faults that are found here. 250 ms for 262,144 tokens.

    Raises:
        BadConfiguration: There is no such file, it is a pickle or no GGUF, or it is cut short or corrupt.
    """
    refuse_pickle(path)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise BadConfiguration(f"{path} is no GGUF file.", "Choose a .gguf file, or another backend.")
        with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            try:
                return _Header(content).read()
            except (struct.error, ValueError, OverflowError, UnicodeDecodeError) as error:
                raise BadConfiguration(
                    f"{path} is cut short or corrupt: {error}.", "Fetch the file again and compare its checksum."
                ) from error


class _Header:
    """Reads a header from the front; whatever does not add up is a ValueError or a struct.error."""

    def __init__(self, content: mmap) -> None:
        self._content = content
        self._place = 4

    def read(self) -> Gguf:
        version = self._scalar("<I")
        if version not in _VERSIONS:
            raise ValueError(f"it says to be version {version}, known are 2 and 3")
        tensors, keys = self._scalar("<Q"), self._scalar("<Q")
        metadata: dict[str, Scalar] = {}
        tokens: list[slice] = []
        kinds: tuple[int, ...] = ()
        for _ in range(keys):
            key = self._text()
            kind = self._scalar("<I")
            if kind != _ARRAY:
                metadata[key] = self._text() if kind == _STRING else self._scalar(self._code(kind))
            elif key == "tokenizer.ggml.tokens":
                tokens = list(self._strings())
            elif key == "tokenizer.ggml.token_type":
                kinds = self._integers()
            else:
                self._skip_array()
        special = (place for place, kind in zip(tokens, kinds, strict=True) if kind in _SPECIAL)
        texts = (self._content[place].decode() for place in special)
        # blanks and newlines are text, also where a model's makers gave them tokens of their own
        header = Gguf(metadata, dict(self._tensors(tensors, metadata)), tuple(text for text in texts if text.strip()))
        self._check_layers(header)
        return header

    def _tensors(self, count: int, metadata: Mapping[str, Scalar]) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Read the table of tensors, check that each fits into the file, and yield names and shapes."""
        ends: list[tuple[str, int]] = []
        seen: set[str] = set()
        for _ in range(count):
            name = self._text()
            if name in seen:
                raise ValueError(f"it has two tensors {name}")
            seen.add(name)
            dimensions = self._scalar("<I")
            if not 1 <= dimensions <= 4:
                raise ValueError(f"tensor {name} has {dimensions} dimensions")
            shape = tuple(self._scalar("<Q") for _ in range(dimensions))
            kind, offset = self._scalar("<I"), self._scalar("<Q")
            ends.append((name, offset + _size(name, shape, kind)))
            yield name, shape
        alignment = int(metadata.get("general.alignment", 32))
        if alignment < 1:
            raise ValueError(f"its alignment is {alignment}")
        data = -(-self._place // alignment) * alignment
        for name, end in ends:
            if data + end > len(self._content):
                raise ValueError(f"tensor {name} ends at byte {data + end:,}, the file at {len(self._content):,}")

    def _check_layers(self, header: Gguf) -> None:
        """Compare the number of layers that is written with those that are there."""
        blocks = {name.split(".")[1] for name in header.shapes if name.startswith("blk.")}
        if blocks and "split.count" not in header.metadata and len(blocks) != header.layers:
            raise ValueError(f"it says to have {header.layers} layers and has {len(blocks)}")

    def _advance(self, size: int) -> int:
        """Step over bytes and return where they begin."""
        start = self._place
        if start + size > len(self._content):
            raise ValueError("it ends in the middle of its header")
        self._place += size
        return start

    def _scalar(self, code: str) -> int:
        # floats and booleans come this way too; the sizes and counts that are computed with are integers
        value: int = struct.unpack_from(code, self._content, self._advance(struct.calcsize(code)))[0]
        return value

    def _text(self) -> str:
        size = self._scalar("<Q")
        start = self._advance(size)
        return self._content[start : start + size].decode()

    def _strings(self) -> Iterator[slice]:
        """Step over a list of strings and yield where each lies."""
        if self._scalar("<I") != _STRING:
            raise ValueError("its tokens are no strings")
        count = self._scalar("<Q")
        content, place, unpack = self._content, self._place, struct.Struct("<Q").unpack_from
        for _ in range(count):
            end = place + 8 + unpack(content, place)[0]
            yield slice(place + 8, end)
            place = end
        self._place = place

    def _integers(self) -> tuple[int, ...]:
        code, count = self._code(self._scalar("<I")), self._scalar("<Q")
        start = self._advance(count * struct.calcsize(code))
        return struct.unpack_from(f"<{count}{code[1]}", self._content, start)

    def _skip_array(self) -> None:
        kind = self._scalar("<I")
        if kind == _STRING:
            self._place -= 4
            for _ in self._strings():
                pass
        else:
            size = struct.calcsize(self._code(kind))
            self._advance(size * self._scalar("<Q"))

    def _code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise ValueError(f"it has a value of the unknown kind {kind}")
        return _SCALARS[kind]


def _size(name: str, shape: tuple[int, ...], kind: int) -> int:
    """Return the bytes of a tensor; one of a kind newer than this program counts as empty."""
    if kind not in _KINDS:
        return 0
    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    if 0 in shape or shape[0] % weights:
        raise ValueError(f"tensor {name} has the shape {shape}, which its kind cannot have")
    blocks: int = prod(shape) // weights
    return blocks * int(size)
