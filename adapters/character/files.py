"""Finds and reads character files: the user's folder first, then the packaged one."""

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from adapters.character.schema import CharacterFile, ExchangeFile
from domain.character import Character, Exchange
from domain.errors import BadConfiguration, NotFound
from domain.ports import Characters

PACKAGED = Path(__file__).parent
Keys = TypeVar("Keys", bound=BaseModel)


class Config(BaseModel):
    """Where the user's own characters lie; they shadow the packaged ones by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path | None = None


class CharacterFiles:
    """The characters of one or more folders; a file is read once."""

    def __init__(self, folders: tuple[Path, ...]) -> None:
        self._folders = folders
        self._read: dict[str, Character] = {}

    def names(self) -> list[str]:
        found = {path.stem for folder in self._folders for path in folder.glob("*.toml")}
        found |= {path.parent.name for folder in self._folders for path in folder.glob("*/character.toml")}
        return sorted(found)

    def load(self, name: str) -> Character:
        if name not in self._read:
            self._read[name] = self._parse(name)
        return self._read[name]

    def _parse(self, name: str) -> Character:
        if name in self.names():
            for folder in self._folders:
                if (single := folder / f"{name}.toml").is_file():
                    return _checked(CharacterFile, single).character(name, ())
                if (main := folder / name / "character.toml").is_file():
                    more = tuple(_exchanges(folder / name / "exchanges"))
                    return _checked(CharacterFile, main).character(name, more)
        raise NotFound(
            f"There is no character called {name!r}.",
            f"Choose one of: {', '.join(self.names())}; or put {name}.toml into {self._folders[0]}.",
        )


def _exchanges(folder: Path) -> list[Exchange]:
    """Read every file of a character's exchanges; the file's name is the topic."""
    return [
        keys.exchange(path.stem)
        for path in sorted(folder.glob("*.toml"))
        for keys in _checked(ExchangeFile, path).exchange
    ]


def _checked(schema: type[Keys], path: Path) -> Keys:
    """Parse and validate one file, naming the line or the key that is wrong."""
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadConfiguration(f"The character file {path} cannot be read: {error}.", "Mend the file.") from error
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadConfiguration(
            f"The character file {path} is wrong at {where}: {first['msg']}.",
            f"Compare it with {PACKAGED / 'zishu' / 'character.toml'}, which has every key.",
        ) from error


def build(config: Config) -> Characters:
    """Return the characters of the user's folder, if any, and the packaged ones."""
    return CharacterFiles((config.folder, PACKAGED) if config.folder else (PACKAGED,))
