"""The tensors of a published checkpoint, one at a time, whatever file they lie in; and the shards they end in."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adapters.models.convert import unpickle
from domain.errors import BackendUnavailable, BadConfiguration

# A file of a few gigabytes can be fetched again when one is damaged. 2 GB, as many hubs have them.
SHARD_BYTES = 2_000_000_000
# Room that is left for the header of a shard, which is known only at its end; the format allows blanks after it
# (github.com/safetensors/safetensors#format).
_HEADER_BYTES = 256 * 1024
_LARGEST_HEADER = 1024 * 1024
# Names of the format, for what torch calls them.
_KINDS: Mapping[torch.dtype, str] = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_NAMED = {str(kind).removeprefix("torch."): kind for kind in _KINDS}
_PICKLES = ("pytorch_model*.bin", "model*.bin", "consolidated*.pth", "*.ckpt", "*.pt")


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors of a folder, or else its pickles.

    Raises:
        BadConfiguration: It has neither.
    """
    safe = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("consolidated"))
    pickles = sorted({path for pattern in _PICKLES for path in folder.glob(pattern)})
    if not safe and not pickles:
        raise BadConfiguration(
            f"{folder} has no weights.", "Name a folder with .safetensors or pytorch_model.bin files."
        )
    return safe or pickles


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of a folder, never two at the same time in memory.

    Raises:
        BadConfiguration: There are none, a file is damaged, or a pickle holds more than tensors.
        BackendUnavailable: The isolated reader died.
    """
    for path in weight_files(folder):
        yield from _safe(path) if path.suffix == ".safetensors" else pickled(path)


def _safe(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no dict
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error


def pickled(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a pickle, which is opened in a process of its own and never in this one.

    Raises:
        BadConfiguration: The file is damaged, or holds more than tensors.
        BackendUnavailable: The reader was killed, as by a lack of memory.
    """
    command = [sys.executable, "-I", "-W", "ignore", str(Path(unpickle.__file__)), str(path.resolve())]
    reader = subprocess.Popen(  # noqa: S603  our own file, by an absolute path
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_bare_environment(),
    )
    with reader:
        try:
            yield from _received(_pipe(reader.stdout))
        except EOFError:
            complaint = _pipe(reader.stderr).read().decode("utf-8", "replace")
            raise _refusal(path, reader.wait(), complaint) from None
        finally:
            reader.kill()


def _pipe(end: IO[bytes] | None) -> IO[bytes]:
    assert end is not None  # noqa: S101  asked for above
    return end


def _bare_environment() -> dict[str, str]:
    """Return what a Python needs to start; no token of the user is among it."""
    needed = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "TMPDIR", "TEMP")
    return {"OMP_NUM_THREADS": "1"} | {name: os.environ[name] for name in needed if name in os.environ}


def _received(pipe: IO[bytes]) -> Iterator[tuple[str, Tensor]]:
    """Yield what the reader writes; an EOFError where it stops in the middle, or writes what it should not."""
    while size := int.from_bytes(_exactly(pipe, 8), "little"):
        if size > _LARGEST_HEADER:
            raise EOFError
        keys = json.loads(_exactly(pipe, size))
        kind, shape = _NAMED.get(keys["dtype"]), [int(extent) for extent in keys["shape"]]
        if kind is None or prod(shape) * kind.itemsize != keys["bytes"]:
            raise EOFError
        numbers = _exactly(pipe, keys["bytes"])
        flat = torch.frombuffer(numbers, dtype=kind) if numbers else torch.empty(0, dtype=kind)
        yield str(keys["name"]), flat.reshape(shape)


def _exactly(pipe: IO[bytes], size: int) -> bytearray:
    """Read into memory that a tensor may then lie in, without a copy."""
    buffer = bytearray(size)
    view, done = memoryview(buffer), 0
    while done < size:
        got = pipe.readinto(view[done:])  # type: ignore[attr-defined]  # a buffered reader has it
        if not got:
            raise EOFError
        done += got
    return buffer


def _refusal(path: Path, status: int, complaint: str) -> BadConfiguration | BackendUnavailable:
    """Return what to tell of a file that was not read to its end."""
    if status == unpickle.REFUSED:
        named = re.search(r"GLOBAL (\S+)", complaint)
        said = complaint.partition("WeightsUnpickler error:")[2].strip() or complaint.strip()
        what = f"it wants to run {named[1]}" if named else said.partition("\n")[0].rstrip(".")
        return BadConfiguration(
            f"{path} holds more than tensors, which may harm this machine: {what}.",
            "Do not use this file; take the model from its makers, as safetensors where they have them.",
        )
    if status == unpickle.DAMAGED:
        return _damaged(path, (complaint.strip().splitlines() or ["it ends too early"])[0].rstrip("."))
    return BackendUnavailable(
        f"The isolated reader of {path} died with status {status}.",
        "Close other programs, as it is most often memory that lacks, and try again.",
    )


def _damaged(path: Path, what: str) -> BadConfiguration:
    return BadConfiguration(f"{path} is damaged: {what}.", "Download it again and compare its checksum.")


class Shards:
    """Writes safetensors as tensors come; on leaving, the files get their names and their index.

    A shard's numbers go to the disk at once and its header last, so that no two tensors are in memory at a time.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._limit = shard_bytes
        self._shards: list[dict[str, dict[str, object]]] = []
        self._file: BinaryIO | None = None
        self._end = 0
        self.kinds: dict[torch.dtype, int] = {}

    def __enter__(self) -> "Shards":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()
            self._name()
        elif self._file:
            self._file.close()

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor.

        Raises:
            ValueError: A tensor of this name was written before.
        """
        if any(name in shard for shard in self._shards):
            raise ValueError(f"there are two tensors {name}")
        numbers = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        if self._file is None or self._end + numbers.nbytes > self._limit or len(self._shards[-1]) == 1000:
            self._begin()
        file, shard = self._file, self._shards[-1]
        assert file is not None  # noqa: S101  just begun
        start, self._end = self._end, self._end + numbers.nbytes
        shard[name] = {"dtype": _KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, self._end]}
        self.kinds[tensor.dtype] = self.kinds.get(tensor.dtype, 0) + tensor.numel()
        file.write(numbers)

    def _begin(self) -> None:
        self._finish()
        self._file = self._part(len(self._shards)).open("wb")
        self._file.write(bytes(_HEADER_BYTES))
        self._shards.append({})
        self._end = 0

    def _finish(self) -> None:
        """Write the header of the current shard and close it."""
        if self._file is None:
            return
        header = json.dumps({"__metadata__": {"format": "pt"}, **self._shards[-1]}).encode()
        self._file.seek(0)
        self._file.write((_HEADER_BYTES - 8).to_bytes(8, "little") + header.ljust(_HEADER_BYTES - 8))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None

    def _name(self) -> None:
        """Give the files the names that transformers looks for."""
        count = len(self._shards)
        if count == 1:
            self._part(0).rename(self._folder / "model.safetensors")
            return
        places: dict[str, str] = {}
        for place, shard in enumerate(self._shards):
            name = f"model-{place + 1:05}-of-{count:05}.safetensors"
            self._part(place).rename(self._folder / name)
            places.update(dict.fromkeys(shard, name))
        index = {
            "metadata": {"total_size": sum(kind.itemsize * n for kind, n in self.kinds.items())},
            "weight_map": places,
        }
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")

    def _part(self, place: int) -> Path:
        return self._folder / f"part-{place}.unfinished"
