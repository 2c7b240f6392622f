"""`zishu experts`: who can answer, who would answer, and how one is plugged in or taken out."""

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from adapters.experts.folders import ExpertFolders
    from domain.routing import Expert
    from entrypoints.container import Container
    from entrypoints.messages import Language

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

app = typer.Typer(no_args_is_help=True, help="The experts that she can answer through, and who would answer what.")


@app.command("list")
def list_experts(as_json: AsJson = False) -> None:
    """List the experts by priority, and the folders that hold none, with the reason."""
    container, language = _container()
    experts = container.experts()
    usable, refused = experts.all(), experts.refused()
    if as_json:
        _print_json({"experts": [_fields(expert) for expert in usable], "refused": dict(refused)})
        return
    from rich.console import Console
    from rich.table import Table

    from entrypoints.messages import say

    heads = ("name", "title", "tag", "kind", "weights", "priority")
    table = Table(*(say(f"expert.{head}", language) for head in heads))
    for expert in usable:
        kind, weights = say(f"expert.kind.{expert.kind}", language), _weights(expert, language)
        table.add_row(expert.name, expert.title, expert.tag, kind, weights, str(expert.priority))
    Console().print(table)
    for name, why in refused.items():
        sys.stdout.write(say("expert.refused", language, name=name, why=why) + "\n")


@app.command()
def show(name: str, as_json: AsJson = False) -> None:
    """Show all about one expert."""
    container, language = _container()
    expert = _named(container, name)
    if as_json:
        _print_json({**_fields(expert), "examples": list(expert.examples)})
        return
    from entrypoints.messages import say

    low, high = expert.temperature
    lines = {
        "title": expert.title,
        "tag": f"[EXPERT={expert.tag}]",
        "kind": say(f"expert.kind.{expert.kind}", language),
        "weights": _weights(expert, language),
        "base": expert.base,
        "temperature": f"{low}-{high}",
        "precision": expert.precision,
        "priority": f"{expert.priority}" + (say("expert.pinned", language) if expert.pinned else ""),
        "in_favour": " ".join(expert.boundaries.in_favour),
        "against": " ".join(expert.boundaries.against),
        "examples": str(len(expert.examples)),
        "folder": str(expert.folder or ""),
    }
    for key, value in lines.items():
        if value:
            sys.stdout.write(f"{say('expert.' + key, language)}  {value}\n")


@app.command()
def route(words: str, as_json: AsJson = False) -> None:
    """Say who would answer these words as the first of a conversation, how surely, and why."""
    container, language = _container()
    from application.experts import ChooseExpert
    from entrypoints.messages import say

    # the scorer may learn as long as it takes: nobody waits for an answer here
    routing = ChooseExpert(container.experts(), container.expert_scorer(), container.routing().router, patience_s=None)
    choice = asyncio.run(routing.choose(words))
    decision = choice.decision
    if as_json:
        _print_json(
            {
                "expert": decision.expert,
                "title": choice.expert.title if choice.expert else None,
                "confidence": round(decision.confidence, 4),
                "reason": decision.reason,
                "speaks_itself": bool(choice.expert and choice.expert.speaks_itself),
                "runners_up": {name: round(share, 4) for name, share in decision.runners_up},
            }
        )
        return
    title = choice.expert.title if choice.expert else say("expert.base_model", language)
    sys.stdout.write(f"{decision.expert}  {title}  {decision.confidence:.0%}\n{decision.reason}\n")
    others = "  ".join(f"{name} {share:.0%}" for name, share in decision.runners_up if share >= 0.005)
    if others:
        sys.stdout.write(say("expert.runners_up", language, others=others) + "\n")


@app.command()
def add(folder: Path, as_json: AsJson = False) -> None:
    """Check an expert's folder and copy it among your own; a running program notices it at the next turn."""
    container, language = _container()
    expert = _folders(container).add(folder)
    if as_json:
        _print_json(_fields(expert))
        return
    from entrypoints.messages import say

    sys.stdout.write(say("expert.added", language, title=expert.title, folder=expert.folder) + "\n")


@app.command()
def remove(name: str, as_json: AsJson = False) -> None:
    """Delete an expert of your own; one that comes with the program stays."""
    container, language = _container()
    _folders(container).remove(name)
    if as_json:
        _print_json({"removed": name})
        return
    from entrypoints.messages import say

    sys.stdout.write(say("expert.removed", language, name=name) + "\n")


def _container() -> "tuple[Container, Language]":
    from entrypoints.container import build_container
    from entrypoints.settings import load_settings

    settings = load_settings()
    return build_container(settings), settings.language


def _folders(container: "Container") -> "ExpertFolders":
    """Return the backend that keeps experts in folders.

    Raises:
        BadConfiguration: Experts come from somewhere else.
    """
    from adapters.experts.folders import ExpertFolders
    from domain.errors import BadConfiguration

    experts = container.experts()
    if not isinstance(experts, ExpertFolders):
        raise BadConfiguration("The experts do not lie in folders here.", 'Set [experts] use = "folders".')
    return experts


def _named(container: "Container", name: str) -> "Expert":
    from domain.errors import BadConfiguration, NotFound

    experts = container.experts()
    usable: dict[str, Expert] = {expert.name: expert for expert in experts.all()}
    if name in usable:
        return usable[name]
    if why := experts.refused().get(name):
        raise BadConfiguration(f"The expert {name!r} is refused: {why}", "Then run: zishu experts list")
    raise NotFound(f"There is no expert called {name!r}.", f"Choose one of: {', '.join(usable)}.")


def _fields(expert: "Expert") -> dict[str, Any]:
    return {
        "name": expert.name,
        "title": expert.title,
        "tag": expert.tag,
        "kind": expert.kind,
        "temperature": list(expert.temperature),
        "precision": expert.precision,
        "priority": expert.priority,
        "pinned": expert.pinned,
        "base": expert.base,
        "adapter": str(expert.adapter) if expert.adapter else None,
        "backend": expert.backend.use if expert.backend else None,
        "in_favour": list(expert.boundaries.in_favour),
        "against": list(expert.boundaries.against),
        "folder": str(expert.folder) if expert.folder else None,
    }


def _weights(expert: "Expert", language: "Language") -> str:
    from entrypoints.messages import say

    if expert.backend:
        return say("expert.own_model", language, use=expert.backend.use)
    return say("expert.adapter" if expert.adapter else "expert.no_adapter", language)


def _print_json(fields: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(fields, ensure_ascii=False, indent=2) + "\n")
