"""Experts are folders: the user's shadow the packaged ones by name, and a changed one is noticed at the next look.

A folder holds `expert.toml`, `routing.toml` with what users say who need it, and `adapter/` once there is one.
"""

import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from os import getpid
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapters import plugins
from adapters.data_folder import disk_refused
from domain.errors import BadConfiguration, BadInput, NotFound
from domain.ports import Experts
from domain.routing import BASE, Boundaries, Expert, KnowledgeKind, OwnBackend

PACKAGED = Path(__file__).parent
CARD, ROUTING, ADAPTER = "expert.toml", "routing.toml", "adapter"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
# `care` answers words of self-harm, and is no expert.
_RESERVED = {BASE, "care"}

Line = Annotated[str, Field(min_length=1, max_length=500)]
Phrase = Annotated[str, Field(min_length=1, max_length=40)]
Warmth = Annotated[float, Field(ge=0, le=2)]
Keys = TypeVar("Keys", bound=BaseModel)
# Path, nanoseconds and bytes of every file that an expert is made of.
Signature = tuple[tuple[str, int, int], ...]


class Config(BaseModel):
    """Where the user's own experts lie.

    Attributes:
        folder: The folder with a folder for each of them; it need not exist.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path | None = None


class _Keys(BaseModel):
    """A table of a file: an unknown key is a mistake, not a wish."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BoundaryKeys(_Keys):
    """`[boundaries]`."""

    in_favour: tuple[Phrase, ...] = ()
    against: tuple[Phrase, ...] = ()


class BackendKeys(BaseModel):
    """`[backend]`: a language model of the expert's own; the keys beside `use` are that backend's."""

    model_config = ConfigDict(extra="allow", frozen=True)

    use: Annotated[str, Field(min_length=1)]


class ExpertKeys(_Keys):
    """`expert.toml`; the temperature is that of its kind where it is left out."""

    title: Annotated[str, Field(min_length=1, max_length=40)]
    tag: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,31}$")]
    kind: KnowledgeKind
    temperature: tuple[Warmth, Warmth] | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    pinned: bool = False
    base: Annotated[str, Field(max_length=200)] = ""
    backend: BackendKeys | None = None
    boundaries: BoundaryKeys = BoundaryKeys()

    @model_validator(mode="after")
    def _fits_together(self) -> "ExpertKeys":
        if self.temperature and self.temperature[0] > self.temperature[1]:
            raise ValueError("temperature is [lowest, highest]")
        if self.tag == BASE.upper():
            raise ValueError(f"the tag {self.tag} is the base model's")
        if self.backend and self.backend.use not in plugins.names("language_model"):
            known = ", ".join(plugins.names("language_model"))
            raise ValueError(f"no language model is called {self.backend.use!r}; choose one of: {known}")
        return self

    def expert(self, folder: Path, examples: tuple[str, ...]) -> Expert:
        """Return the domain's value."""
        adapter = folder / ADAPTER
        return Expert(
            name=folder.name,
            tag=self.tag,
            title=self.title,
            kind=self.kind,
            temperature=self.temperature or self.kind.temperature,
            precision=self.precision,
            priority=self.priority,
            pinned=self.pinned,
            base=self.base,
            adapter=adapter if adapter.is_dir() else None,
            backend=OwnBackend(self.backend.use, self.backend.model_extra or {}) if self.backend else None,
            boundaries=Boundaries(self.boundaries.in_favour, self.boundaries.against),
            examples=examples,
            folder=folder,
        )


class RoutingKeys(_Keys):
    """`routing.toml`."""

    examples: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class _Read:
    """What a folder held when it was last looked at: an expert, or why there is none."""

    signature: Signature
    expert: Expert | None
    refusal: str = ""


class ExpertFolders:
    """The experts of the user's folder and the packaged ones.

    Args:
        own: The user's folder.
    """

    def __init__(self, own: Path | None) -> None:
        self._own = own.expanduser() if own else None
        self._read: dict[Path, _Read] = {}
        self._usable: tuple[Expert, ...] = ()
        self._refused: Mapping[str, str] = {}

    def all(self) -> tuple[Expert, ...]:
        self._look()
        return self._usable

    def refused(self) -> Mapping[str, str]:
        self._look()
        return self._refused

    def check(self, folder: Path) -> Expert:
        """Return the expert that a folder would be if it were plugged in.

        Raises:
            BadConfiguration: It holds no usable expert, or one whose tag another one has.
            BackendUnavailable: A library that its own backend needs is missing.
        """
        expert = _expert(folder)
        if expert.backend:
            own_backend_config(expert.backend)  # what the backend would refuse at the expert's first turn
        for other in self.all():
            if other.tag == expert.tag and other.name != expert.name:
                raise _same_tag(expert, other)
        return expert

    def add(self, folder: Path) -> Expert:
        """Copy a folder into the user's, whole or not at all, and return the expert.

        Raises:
            BadConfiguration: It holds no usable expert, or the user's folder has one of that name.
            StoreUnavailable: The disk refuses.
        """
        own, source = self._own_folder(), folder.expanduser().resolve()
        name = self.check(source).name
        target, unfinished = own / name, own / f".{name}.{getpid()}"
        if target.exists():
            raise BadConfiguration(f"There is already an expert in {target}.", f"Run: zishu experts remove {name}")
        links = [path for path in source.rglob("*") if path.is_symlink()]
        if links:
            raise BadConfiguration(f"{links[0]} is a link.", "Put the file itself into the expert's folder.")
        try:
            own.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, unfinished)
            unfinished.rename(target)
        except OSError as error:
            raise disk_refused(error, own) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return _expert(target)

    def remove(self, name: str) -> None:
        """Delete an expert of the user's folder, usable or not.

        Raises:
            NotFound: There is no such expert.
            BadInput: It is a packaged one.
            StoreUnavailable: The disk refuses.
        """
        own = self._own_folder()
        target, leaving = own / name, own / f".{name}.{getpid()}"
        if not _NAME.fullmatch(name) or not target.is_dir():
            if (PACKAGED / name / CARD).is_file():
                raise BadInput(
                    f"The expert {name!r} comes with the program and cannot be removed.",
                    f"To change it, copy {PACKAGED / name}, mend the copy, and run: zishu experts add COPY",
                )
            raise NotFound(f"There is no expert called {name!r}.", "Run: zishu experts list")
        try:
            target.rename(leaving)  # gone at once for whoever looks
            shutil.rmtree(leaving)
        except OSError as error:
            raise disk_refused(error, own) from error

    def _own_folder(self) -> Path:
        if self._own is None:
            raise BadConfiguration("There is no folder for your own experts.", "Set [experts.folders] folder.")
        return self._own

    def _look(self) -> None:
        """Read what has changed since the last look; where nothing has, this costs a few calls of stat."""
        found = dict(self._folders())
        seen = {folder: _signature(folder) for folder in found.values()}
        if seen == {folder: read.signature for folder, read in self._read.items()}:
            return
        read = dict[Path, _Read]()  # whole before anybody sees it: an engine's thread may look at the same time
        for folder, signature in seen.items():
            known = self._read.get(folder)
            read[folder] = known if known and known.signature == signature else _look_into(folder, signature)
        usable, refused = list[Expert](), dict[str, str]()
        # the packaged ones first: who comes later must bring a tag of its own
        for name, folder in sorted(found.items(), key=lambda item: (item[1].parent != PACKAGED, item[0])):
            expert = read[folder].expert
            if expert is None:
                refused[name] = read[folder].refusal
            elif same := next((other for other in usable if other.tag == expert.tag), None):
                refused[name] = str(_same_tag(expert, same))
            else:
                usable.append(expert)
        self._usable = tuple(sorted(usable, key=lambda expert: (-expert.priority, expert.name)))
        self._refused, self._read = refused, read

    def _folders(self) -> Iterator[tuple[str, Path]]:
        """Yield name and folder of everything that may be an expert; of two with one name, the user's comes last."""
        for place in (PACKAGED, self._own):
            children: list[Path] = []
            with suppress(OSError):  # the user's folder may not exist, or not be readable
                children = sorted(place.iterdir()) if place else []
            for folder in children:
                if folder.is_dir() and not folder.name.startswith((".", "_")):
                    yield folder.name, folder


def _signature(folder: Path) -> Signature:
    files = [folder / CARD, folder / ROUTING, *sorted(folder.glob("*.json"))]  # statistics for a scorer
    with suppress(OSError):
        files += sorted((folder / ADAPTER).iterdir())
    signature = []
    for file in files:
        with suppress(OSError):
            stat = file.stat()
            signature.append((file.name, stat.st_mtime_ns, stat.st_size))
    return tuple(signature)


def _look_into(folder: Path, signature: Signature) -> _Read:
    try:
        return _Read(signature, _expert(folder))
    except BadConfiguration as error:
        return _Read(signature, None, str(error))


def _expert(folder: Path) -> Expert:
    """Read and check one folder."""
    if not _NAME.fullmatch(folder.name) or folder.name in _RESERVED:
        raise BadConfiguration(
            f"An expert cannot be called {folder.name!r}.",
            f"Give its folder a name of lower-case letters, digits, - and _; not {' or '.join(sorted(_RESERVED))}.",
        )
    card = _checked(ExpertKeys, folder / CARD)
    routing = folder / ROUTING
    expert = card.expert(folder, _checked(RoutingKeys, routing).examples if routing.exists() else ())
    if expert.adapter:
        _check_adapter(expert.adapter)
    return expert


def _check_adapter(folder: Path) -> None:
    """Refuse an adapter that is not whole; what its weights hold is checked when they are loaded."""
    lacking = [name for name in _ADAPTER_FILES if not (folder / name).is_file()]
    if lacking:
        raise BadConfiguration(
            f"The adapter {folder} lacks {' and '.join(lacking)}.",
            "Copy the whole folder that peft has written, or take adapter/ away.",
        )


def own_backend_config(backend: OwnBackend) -> Any:  # noqa: ANN401
    """Return the validated settings of an expert's own model.

    Raises:
        BadConfiguration: A key is unknown or wrong.
        BackendUnavailable: A library that the backend needs is missing.
    """
    module = plugins.load("language_model", backend.use)
    try:
        return module.Config(**backend.table)
    except ValidationError as error:
        raise _wrong("[backend]", error, ", ".join(module.Config.model_fields)) from error


def _checked(schema: type[Keys], path: Path) -> Keys:
    """Parse and validate one file, naming the key that is wrong."""
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadConfiguration(f"{path} cannot be read: {error}.", "Mend the file.") from error
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise _wrong(str(path), error, ", ".join(schema.model_fields)) from error


def _wrong(where: str, error: ValidationError, known: str) -> BadConfiguration:
    errors = error.errors(include_url=False)
    # a key that is misspelt says more than the one that is missing for it
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    key = ".".join(str(part) for part in first["loc"])
    what = f"The key {key!r} of {where}" if key else where
    return BadConfiguration(f"{what} is wrong: {first['msg']}.", f"Mend it; the keys are: {known}.")


def _same_tag(newcomer: Expert, other: Expert) -> BadConfiguration:
    return BadConfiguration(
        f"The experts {other.name!r} and {newcomer.name!r} have the same tag {newcomer.tag}.",
        f"Give {newcomer.name!r} another tag in {CARD}.",
    )


def build(config: Config) -> Experts:
    """Return the experts of the user's folder, if any, and the packaged ones."""
    return ExpertFolders(config.folder)
