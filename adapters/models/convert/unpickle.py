"""Reads one pickled checkpoint and writes its tensors to the standard output, as a program of its own: `python -I`.

Nothing else of this program is imported, and three walls stand around the file: torch's unpickler, which builds tensors
and nothing else; an audit hook, which ends the process at the first attempt to write, to run or to connect; and limits
of the operating system. What comes out, for each tensor: the length of a header (8 bytes, little-endian), the header
(JSON: name, dtype, shape, bytes), its numbers. A length of 0 ends it.
"""

import json
import os
import pickle
import sys
from pathlib import Path
from typing import NoReturn

# How it ends: not even a checkpoint; more than tensors in it, or an attempt to do more than to read.
DAMAGED, REFUSED = 3, 4
# Beyond twice the file, which a pickle without memory mapping may take: 2 GiB.
_ROOM = 2 * 1024**3
_FORBIDDEN = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.dlopen", "pty.", "webbrowser.", "signal.", "http.")
# What looking at files is audited as.
_HARMLESS = ("os.listdir", "os.scandir", "os.fwalk", "os.walk")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def wall_in(size: int) -> None:
    """Give up, for good, what reading a file of `size` bytes does not need."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # a pipe is no file
        pages = Path("/proc/self/statm")
        if pages.exists():
            used = int(pages.read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2 * size + _ROOM,) * 2)
    sys.addaudithook(_audit)


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open":
        flags = arguments[2]
        writes = isinstance(flags, int) and bool(flags & _WRITING)
    else:
        writes = event.startswith(_FORBIDDEN) and event not in _HARMLESS
    if writes:
        # an exception could be caught by what is being read
        os.write(2, f"{event} was tried while it was read".encode())
        os._exit(REFUSED)


def _end(status: int, reason: str) -> NoReturn:
    sys.stderr.write(reason[:4000])  # a pipe that nobody reads yet holds little more
    sys.exit(status)


def main(path: Path) -> None:
    """Write the tensors of a file to the standard output."""
    # what a library may print must not run into the numbers
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    import torch

    with path.open("rb") as file:
        mapped = file.read(4) == b"PK\x03\x04"  # the format since torch 1.6; the older one cannot be mapped
    torch.set_num_threads(1)
    wall_in(path.stat().st_size)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        _end(REFUSED if "GLOBAL" in str(error) or "weights_only" in str(error) else DAMAGED, str(error))
    except (RuntimeError, ValueError, EOFError, KeyError, AttributeError, OSError, MemoryError) as error:
        _end(DAMAGED, str(error))
    if not isinstance(state, dict):
        _end(REFUSED, f"it holds a {type(state).__name__}, not named tensors")
    for name, tensor in state.items():
        plain = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and not tensor.is_quantized
        if not plain or not isinstance(name, str):
            _end(REFUSED, f"its entry {name!r} is no plain tensor but a {type(tensor).__name__}")
        numbers = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        kind = str(tensor.dtype).removeprefix("torch.")
        keys = {"name": name, "dtype": kind, "shape": list(tensor.shape), "bytes": numbers.nbytes}
        header = json.dumps(keys).encode()
        pipe.write(len(header).to_bytes(8, "little") + header)
        pipe.write(memoryview(numbers))
    pipe.write(bytes(8))
    pipe.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
