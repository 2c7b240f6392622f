"""Experts' adapters as they lie on the disk now."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adapters.models.lora import SETTINGS, WEIGHTS
from domain.ports import Experts


@dataclass(frozen=True, slots=True)
class Plugged:
    """The adapter of an expert; whatever changes about it makes another value.

    Attributes:
        expert: Whose it is.
        folder: Where it lies.
        trained_on: The model that the expert's card says it belongs to; may be "".
        precision: What its numbers are kept in.
        pinned: Whether it stays in fast memory.
        files: Bytes and time of its files, as far as they are there.
    """

    expert: str
    folder: Path
    trained_on: str
    precision: str
    pinned: bool
    files: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of its weights on the disk."""
        return sum(self.files[:1])

    @property
    def name(self) -> str:
        """What it is called among other versions of itself."""
        return f"{self.expert} {self.folder} {self.precision} {self.files}"


def plugged_adapters(experts: Experts | None) -> Mapping[str, Plugged]:
    """Return the adapters that are plugged in now, by their experts."""
    found = {}
    for expert in experts.all() if experts else ():
        if expert.adapter:
            files = (*_state(expert.adapter / WEIGHTS), *_state(expert.adapter / SETTINGS))
            found[expert.name] = Plugged(
                expert.name, expert.adapter, expert.base, expert.precision, expert.pinned, files
            )
    return found


def _state(path: Path) -> tuple[int, ...]:
    with suppress(OSError):  # reading it will tell what is wrong
        state = path.stat()
        return state.st_size, state.st_mtime_ns
    return ()
