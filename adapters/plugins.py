"""Backends by name: the modules of a port's folder and what other packages announce under `zishu.<port>`."""

import re
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, requires
from pkgutil import iter_modules
from types import ModuleType

from domain.errors import BackendUnavailable, BadConfiguration

_OURS = ("adapters", "application", "domain")


def names(port: str) -> list[str]:
    """Return the backends that can be chosen for a port; none of them is imported."""
    return sorted(_modules(port) | _announced(port).keys())


def load(port: str, name: str) -> ModuleType:
    """Import a backend: a module with `Config` and `build`.

    Raises:
        BadConfiguration: The port has no backend of this name.
        BackendUnavailable: A library that it needs is missing.
    """
    try:
        if name in _modules(port):
            return import_module(f"adapters.{port}.{name}")
        if announced := _announced(port).get(name):
            return import_module(announced.module)
    except ImportError as error:
        raise missing(port, name, error) from error
    raise BadConfiguration(
        f"No {port} backend is called {name!r}.", f"Set [{port}] use to one of: {', '.join(names(port))}."
    )


def missing(port: str, name: str, error: ImportError) -> BackendUnavailable:
    """Return what to tell the user when a backend cannot import a library; an error of our own is raised again."""
    library = (error.name or "").partition(".")[0]
    if not library or library in _OURS:
        raise error
    problem = f"The {port} backend {name!r} needs {library!r}, which is not installed."
    if not isinstance(error, ModuleNotFoundError):
        problem = f"The {port} backend {name!r} needs {library!r}, which cannot be loaded: {error}."
    try:
        extra = extra_with(library, requires("zishu-sensei") or (), preferred=name)
    except PackageNotFoundError:
        extra = None
    return BackendUnavailable(problem, f"Run: pip install -e '.[{extra}]'" if extra else f"Install {library}.")


def extra_with(library: str, requirements: Sequence[str], *, preferred: str) -> str | None:
    """Return the extra whose requirements hold a library, given as in a package's metadata; None if there is none.

    Args:
        library: The name it is imported by.
        requirements: Such as `torch==2.13.0; extra == "voice"`.
        preferred: The extra to choose where several have it.
    """
    pattern = re.compile(rf"{re.sub('[-_.]+', '[-_.]+', library)}\b(?![-_.]).*extra == ['\"]([\w-]+)", re.IGNORECASE)
    extras = [match[1] for requirement in requirements if (match := pattern.match(requirement))]
    return preferred if preferred in extras else next(iter(extras), None)


def _modules(port: str) -> set[str]:
    return {module.name for module in iter_modules(import_module(f"adapters.{port}").__path__)}


def _announced(port: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"zishu.{port}")}
