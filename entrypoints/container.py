"""The composition root: every object of the program and what it is made of, in one synchronous place."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from inspect import signature
from typing import Any
from uuid import uuid4

from dependency_injector import containers, providers
from pydantic import ValidationError

from adapters import plugins
from adapters.character import files
from adapters.models.vectors import CachedEmbedder
from adapters.postgres.engine import Database
from application.converse import Converse
from application.examples import Examples
from application.experts import ChooseExpert, ManyModels
from domain.errors import BadConfiguration, StoreUnavailable
from domain.ports import Characters, Embedder, Experts, LanguageModel
from domain.routing import OwnBackend, Router
from entrypoints.choices import choose
from entrypoints.settings import Settings, load_settings

# Reports a step of waking up: its message key, what is done, and of how much.
Report = Callable[[str, int, int], None]


def _backend(port: str, settings: Settings, **parts: object) -> Any:  # noqa: ANN401
    """Build the chosen backend of a port.

    Args:
        port: Name of the port's folder.
        settings: Where the choice and the backend's own table stand.
        parts: What else a backend may be made of; `build` gets those that it names.
    """
    section = getattr(settings, port)
    name = choose(port, section.use).name
    return _built(port, name, section.table(name), f"the table [{port}.{name}]", settings, **parts)


def _built(port: str, name: str, table: dict[str, Any], where: str, settings: Settings, **parts: object) -> Any:  # noqa: ANN401
    """Build a backend from a table of settings that stands somewhere."""
    module = plugins.load(port, name)
    for key, value in (
        ("cache_dir", settings.cache_dir),
        ("data_dir", settings.data_dir),
        ("folder", settings.data_dir / port),
    ):
        if key in module.Config.model_fields:
            table.setdefault(key, value)
    try:
        config = module.Config(**table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BadConfiguration(
            f"The setting {key!r} of the {port} backend {name!r} is wrong: {first['msg']}.",
            f"Mend it in {where}; it knows: {', '.join(module.Config.model_fields)}.",
        ) from error
    named = signature(module.build).parameters
    return module.build(config, **{name: part for name, part in parts.items() if name in named})


def _language_model(settings: Settings, experts: Experts) -> LanguageModel:
    def own(backend: OwnBackend) -> LanguageModel:
        where = "[backend] of the expert's expert.toml"
        made: LanguageModel = _built("language_model", backend.use, dict(backend.table), where, settings)
        return made

    return ManyModels(_backend("language_model", settings, experts=experts), experts, own)


def _router(settings: Settings) -> Router:
    return settings.routing.router(engine=choose("language_model", settings.language_model.use).name)


def _embedder(settings: Settings) -> Embedder:
    return CachedEmbedder(_backend("embedder", settings), settings.cache_dir / "vectors.sqlite")


def _characters(settings: Settings) -> Characters:
    return files.build(files.Config(folder=settings.data_dir / "characters"))


def _clock() -> datetime:
    return datetime.now().astimezone()


class Container(containers.DeclarativeContainer):
    """What the program is made of; tests override single parts."""

    settings = providers.Dependency(instance_of=Settings)
    clock = providers.Object(_clock)
    new_id = providers.Object(uuid4)

    database = providers.Singleton(Database, settings.provided.database, settings.provided.data_dir)
    sessions = providers.Singleton(
        _backend, "sessions", settings, database=database, data_folder=settings.provided.data_dir
    )
    feedback = providers.Singleton(_backend, "feedback", settings, database=database, sessions=sessions)
    characters = providers.Singleton(_characters, settings)
    experts = providers.Singleton(_backend, "experts", settings)
    language_model = providers.Singleton(_language_model, settings, experts)
    embedder = providers.Singleton(_embedder, settings)
    emotion_classifier = providers.Singleton(_backend, "emotion_classifier", settings, embedder=embedder)
    expert_scorer = providers.Singleton(_backend, "expert_scorer", settings, embedder=embedder)
    routing = providers.Singleton(ChooseExpert, experts, expert_scorer, providers.Singleton(_router, settings))
    examples = providers.Singleton(Examples, embedder, shown=settings.provided.prompt.examples)
    converse = providers.Factory(
        Converse,
        model=language_model,
        sessions=sessions,
        characters=characters,
        classifier=emotion_classifier,
        examples=examples,
        sampling=settings.provided.sampling.sampling.call(),
        budget=settings.provided.prompt.budget.call(),
        clock=clock,
        new_id=new_id,
        routing=routing,
    )


def build_container(settings: Settings | None = None) -> Container:
    """Wire everything; nothing is loaded, opened or started."""
    return Container(settings=settings or load_settings())


def uses_starter(settings: Settings) -> bool:
    """Tell whether the starter model answers, whose terms a new user should hear of."""
    section = settings.language_model
    name = choose("language_model", section.use).name
    return name in ("llama_cpp", "transformers") and section.table(name).get("model", "starter") == "starter"


@asynccontextmanager
async def awake(container: Container, report: Report) -> AsyncGenerator[None, None]:
    """Load side by side what the first reply needs, and let go of everything at the end.

    Raises:
        ZishuError: Something she cannot talk without is missing.
    """
    settings: Settings = container.settings()
    character = container.characters().load(settings.character)
    model, database = container.language_model(), container.database()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        stack.push_async_callback(model.close)
        report("waking", 0, 0)
        ended = await asyncio.gather(
            model.load(),
            container.examples().prepare(character, lambda done, total: report("examples", done, total)),
            container.routing().warm_up(),
            _connect(database) if choose("sessions", settings.sessions.use).name == "postgres" else asyncio.sleep(0),
            return_exceptions=True,
        )
        for error in ended:
            if isinstance(error, BaseException):
                raise error
        yield


async def _connect(database: Database) -> None:
    """Start the database early; where it cannot be had, the journal takes the turns and says so."""
    with suppress(StoreUnavailable):
        await database.connect()
