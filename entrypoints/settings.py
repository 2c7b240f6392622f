"""The settings: flags, ZISHU_* variables, ./zishu.toml, the user's zishu.toml, the tier's file, then these defaults."""

from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_cache_path, user_config_path, user_data_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from adapters.postgres.engine import Config as DatabaseConfig
from application.converse import PromptBudget
from domain.errors import BadConfiguration
from domain.prompt import Sampling
from domain.routing import Router
from entrypoints.tiers import DEFAULT, Tier, TierSource

LOCAL_FILE = Path("zishu.toml")
_SAMPLING, _ROUTER = Sampling(), Router()


class PortKeys(BaseModel):
    """A section such as `[language_model]`: which backend to use, and one table for each backend that has settings.

    A backend checks its own table when it is chosen.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    use: str = "auto"

    def table(self, backend: str) -> dict[str, Any]:
        """Return what is set for one backend.

        Raises:
            BadConfiguration: A key of the section is neither `use` nor a table.
        """
        for key, value in (self.model_extra or {}).items():
            if not isinstance(value, dict):
                raise BadConfiguration(
                    f"The setting {key!r} stands beside `use`, where only tables of backends belong.",
                    f"Move it into the backend's own table, such as [….{backend}].",
                )
        return dict((self.model_extra or {}).get(backend, {}))


class SamplingKeys(BaseModel):
    """`[sampling]`: how her words are drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: Annotated[float, Field(ge=0, le=2)] = _SAMPLING.temperature
    top_p: Annotated[float, Field(gt=0, le=1)] = _SAMPLING.top_p
    repetition_penalty: Annotated[float, Field(ge=1, le=2)] = _SAMPLING.repetition_penalty
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = _SAMPLING.max_tokens
    seed: int | None = _SAMPLING.seed

    def sampling(self) -> Sampling:
        """Return the domain's value."""
        return Sampling(**self.model_dump())


class PromptKeys(BaseModel):
    """`[prompt]`: what a prompt may hold; tokens of the model, and the number of similar examples shown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    volatile_tokens: Annotated[int, Field(ge=100, le=20_000)] = 250
    history_tokens: Annotated[int, Field(ge=0, le=200_000)] = 800
    examples: Annotated[int, Field(ge=0, le=16)] = 2

    def budget(self) -> PromptBudget:
        """Return the application's value."""
        return PromptBudget(self.volatile_tokens, self.history_tokens)


class RoutingKeys(BaseModel):
    """`[routing]`: how sure an expert must be to answer, and how much surer than the one in charge."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    abstain_below: Annotated[float, Field(ge=0.05, le=0.99)] = _ROUTER.abstain_below
    stickiness: Annotated[float, Field(ge=0, le=0.5)] | None = None

    def router(self, engine: str) -> Router:
        """Return the rules; by default experts stick twice as long in llama.cpp, where a switch drops the cache.

        Args:
            engine: The language model in use.
        """
        default = _ROUTER.stickiness * (2 if engine == "llama_cpp" else 1)
        return Router(self.abstain_below, default if self.stickiness is None else self.stickiness)


class Settings(BaseSettings):
    """Everything that can be set; `docs/reference/settings.md` explains each key."""

    model_config = SettingsConfigDict(env_prefix="ZISHU_", env_nested_delimiter="__", extra="forbid", frozen=True)

    user: Annotated[str, Field(min_length=1, max_length=200)] = "local"
    character: Annotated[str, Field(pattern=r"^[\w-]{1,64}$")] = "zishu"
    language: Literal["zh", "en"] = "zh"
    tier: Tier = DEFAULT
    data_dir: Path = Field(default_factory=lambda: user_data_path("zishu"))
    cache_dir: Path = Field(default_factory=lambda: user_cache_path("zishu"))
    language_model: PortKeys = PortKeys()
    embedder: PortKeys = PortKeys()
    emotion_classifier: PortKeys = PortKeys()
    experts: PortKeys = PortKeys()
    expert_scorer: PortKeys = PortKeys()
    sessions: PortKeys = PortKeys()
    feedback: PortKeys = PortKeys()
    database: DatabaseConfig = DatabaseConfig()
    sampling: SamplingKeys = SamplingKeys()
    prompt: PromptKeys = PromptKeys()
    routing: RoutingKeys = RoutingKeys()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources, strongest first."""
        return (
            init_settings,
            env_settings,
            TomlConfigSettingsSource(settings_cls, LOCAL_FILE),
            TomlConfigSettingsSource(settings_cls, user_file()),
            TierSource(settings_cls),
        )


def user_file() -> Path:
    """Return where the user's own settings lie."""
    return user_config_path("zishu") / "zishu.toml"


def load_settings(**flags: object) -> Settings:
    """Read all sources; flags that are None count as not given.

    Raises:
        BadConfiguration: A file cannot be read, or a key is unknown or has a wrong value.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BadConfiguration(
            f"The setting {key!r} is wrong: {first['msg']}.",
            f"Mend it in {LOCAL_FILE}, in {user_file()}, in ZISHU_{key.upper().replace('.', '__')} or among the flags.",
        ) from error
    except (SettingsError, OSError, ValueError) as error:
        raise BadConfiguration(
            f"The settings cannot be read: {error}.", f"Mend {LOCAL_FILE} or {user_file()}; both are TOML."
        ) from error
