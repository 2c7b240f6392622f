"""Profiles: what is known of each model that she can be made of, so that a name in the settings is enough."""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import GenericAlias
from typing import Any, get_origin

from domain.errors import BadConfiguration, NotFound

PACKAGED = Path(__file__).with_name("profiles")
TIERS = ("cpu", "6gb", "12gb", "24gb")
# How its files become what the engine reads: as they are, put together from wheels, or by one of our converters.
NATIVE, WHEELS = "native", "wheels"
CONVERTERS = ("pickle", "chatglm3", "qwen1", "baichuan2", "llava")
_LOADING = (NATIVE, WHEELS, *CONVERTERS)


@dataclass(frozen=True, slots=True)
class Profile:
    """A model, as a TOML file describes it.

    Attributes:
        name: What the settings call it; also the name of its file.
        title: What its makers call it.
        purpose: What it is good for here, one line in Chinese.
        family: The class of transformers that runs it: `llama`, `mistral`, `glm`, `qwen2`, `qwen3`, `gemma3_text`.
        huggingface: Its id on Hugging Face and on the mirrors of it.
        modelscope: Its id on ModelScope; empty where it has none that we know of.
        licence: Name of the licence of its weights.
        parameters: How many weights it has.
        layers: How many blocks.
        hidden: Width of the residual stream.
        intermediate: Width of the gated feed-forward layer.
        heads: Query heads.
        kv_heads: Heads of keys and values.
        head_dim: Width of one head.
        vocabulary: Rows of the embedding.
        tied: Whether the embedding is the output layer too.
        context: Tokens that it was made for.
        download_bytes: What is fetched, in the precision it is published in.
        loading: `native`, `wheels`, or the name of the converter that makes it native.
        layout: `chat` for the chat template that comes with it, `script` for none, else the name of a template of ours.
        tiers: Where it is recommended: `cpu`, `6gb`, `12gb`, `24gb`.
        note: What a user should know: conditions of the licence, and which of these figures nobody could check.
        kl: What each precision costs in KL divergence to the reference, nats a token, where it was measured.
    """

    name: str
    title: str
    purpose: str
    family: str
    huggingface: str
    licence: str
    parameters: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    context: int
    download_bytes: int
    loading: str
    layout: str
    tiers: tuple[str, ...]
    modelscope: str = ""
    note: str = ""
    kl: Mapping[str, float] = field(default_factory=dict)

    @property
    def converter(self) -> str | None:
        """The converter that its published files need, or None."""
        return self.loading if self.loading in CONVERTERS else None


@dataclass(frozen=True, slots=True)
class Shelf:
    """All profiles: those in a folder of the user shadow the packaged ones by name."""

    folder: Path | None = None

    def names(self) -> list[str]:
        """Return the names of all profiles."""
        return sorted(path.stem for path in {path.stem: path for path in self._files()}.values())

    def all(self) -> list[Profile]:
        """Return all profiles by name.

        Raises:
            BadConfiguration: One of the files is broken.
        """
        return [self.load(name) for name in self.names()]

    def load(self, name: str) -> Profile:
        """Return a profile.

        Raises:
            NotFound: There is none of this name.
            BadConfiguration: Its file has a missing, unknown or wrong key.
        """
        found = self.find(name)
        if found is None:
            raise NotFound(f"There is no model profile {name!r}.", f"Choose one of: {', '.join(self.names())}.")
        return found

    def find(self, name: str) -> Profile | None:
        """Return a profile, or None where there is none of this name.

        Raises:
            BadConfiguration: Its file has a missing, unknown or wrong key.
        """
        files = {path.stem: path for path in self._files()}
        return read_profile(files[name]) if name in files else None

    def _files(self) -> list[Path]:
        """Return the files, the user's last."""
        users = sorted(self.folder.glob("*.toml")) if self.folder else []
        return [*sorted(PACKAGED.glob("*.toml")), *users]


def read_profile(path: Path) -> Profile:
    """Read one file.

    Raises:
        BadConfiguration: It cannot be read, or has a missing, unknown or wrong key.
    """
    try:
        keys = tomllib.loads(path.read_text(encoding="utf-8"))
        profile = Profile(name=path.stem, **_typed(keys))
        _check(profile)
    except (OSError, ValueError, TypeError) as error:
        raise BadConfiguration(
            f"The model profile {path} cannot be used: {error}.",
            f"Mend it after the example of {PACKAGED / 'qwen3-0.6b.toml'}.",
        ) from error
    return profile


def _typed(keys: dict[str, Any]) -> dict[str, Any]:
    """Return the keys as the constructor takes them; a ValueError names the first that is wrong."""
    known = {each.name: each for each in fields(Profile) if each.name != "name"}
    if unknown := sorted(keys.keys() - known.keys()):
        raise ValueError(f"it has the unknown key {unknown[0]!r}")
    required = {name for name, each in known.items() if each.default is MISSING and each.default_factory is MISSING}
    if missing := sorted(required - keys.keys()):
        raise ValueError(f"it lacks the key {missing[0]!r}")
    return {name: _value(name, known[name].type, value) for name, value in keys.items()}


def _value(name: str, kind: Any, value: object) -> object:  # noqa: ANN401  a type of the typing module
    origin = get_origin(kind) or kind
    if origin is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if origin is Mapping and isinstance(value, dict):
        return {str(key): float(item) for key, item in value.items()}
    if isinstance(kind, GenericAlias) or type(value) is not kind:
        raise ValueError(f"its key {name!r} has the value {value!r}")
    return value


def _check(profile: Profile) -> None:
    """Raise a ValueError where the values do not go together."""
    counts = (
        "parameters",
        "layers",
        "hidden",
        "intermediate",
        "heads",
        "kv_heads",
        "head_dim",
        "vocabulary",
        "context",
    )
    for name in counts:
        if getattr(profile, name) < 1:
            raise ValueError(f"its {name} is {getattr(profile, name)}")
    if profile.heads % profile.kv_heads:
        raise ValueError(f"its {profile.heads} heads cannot share {profile.kv_heads} heads of keys and values")
    if profile.loading not in _LOADING:
        raise ValueError(f"its loading is {profile.loading!r}, known are {', '.join(_LOADING)}")
    if strange := set(profile.tiers) - set(TIERS):
        raise ValueError(f"it names the tier {min(strange)!r}, known are {', '.join(TIERS)}")
