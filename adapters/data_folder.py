"""What programs that share a data folder need: locks that die with their holder, whole files, words for full disks."""

import asyncio
import errno
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from domain.errors import StoreUnavailable

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Seconds between two looks at a lock that somebody else holds.
_LOOK = 0.02


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file alone, waiting for whoever holds it; the kernel frees it should the program be killed."""
    with lock_file(path) as descriptor:
        while not try_exclusive(descriptor):
            time.sleep(_LOOK)
        yield


@asynccontextmanager
async def exclusive_async(path: Path) -> AsyncIterator[None]:
    """Do the same as `exclusive` without blocking the event loop."""
    with lock_file(path) as descriptor:
        while not try_exclusive(descriptor):  # noqa: ASYNC110  other programs set no event of ours
            await asyncio.sleep(_LOOK)
        yield


@contextmanager
def lock_file(path: Path) -> Iterator[int]:
    """Lend the descriptor of a lock file, which is made if needed and never removed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def try_exclusive(descriptor: int) -> bool:
    """Lock a lock file if nobody else holds it.

    On POSIX whoever inherits the descriptor holds the lock too: it is free again when the last of them is gone.
    """
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the latter is what Windows says
        return False
    return True


class Membership:
    """One program's share in something that the last one to leave puts away."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if sys.platform != "win32":
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def is_last(self) -> bool:
        """Tell whether nobody else is left; asked only on leaving, because a no may cost the share.

        Windows has no shared locks: there nobody is ever the last.
        """
        return sys.platform != "win32" and try_exclusive(self._descriptor)

    def leave(self) -> None:
        """Give the share back."""
        os.close(self._descriptor)


def write_whole(path: Path, text: str) -> None:
    """Write a private file that is there whole or not at all, even after a power cut."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    unfinished.replace(path)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make new and renamed files of a folder survive a power cut."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_refused(error: OSError, folder: Path) -> StoreUnavailable:
    """Translate what the operating system says about a file in the data folder."""
    if error.errno in _FULL:
        return StoreUnavailable(f"The disk is full: nothing more can be written in {folder}.", "Free some space there.")
    return StoreUnavailable(
        f"The data folder {folder} cannot be used: {error.strerror or error}.",
        "Make it writable for you, or choose another one: ZISHU_DATA_DIR=/path zishu …",
    )
