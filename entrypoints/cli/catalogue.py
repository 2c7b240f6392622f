"""`zishu backends` and `zishu characters`: what there is to choose from."""

import json
import sys

from rich.console import Console
from rich.table import Table

from adapters import plugins
from entrypoints.choices import PORTS, choose
from entrypoints.container import build_container
from entrypoints.settings import load_settings


def print_backends(*, as_json: bool) -> None:
    """Print every port with its backends, the one in use, and why it is that one."""
    settings = load_settings()
    choices = {port: choose(port, getattr(settings, port).use) for port in PORTS}
    if as_json:
        rows = [
            {"port": port, "use": choice.name, "reason": choice.reason, "backends": plugins.names(port)}
            for port, choice in choices.items()
        ]
        sys.stdout.write(json.dumps(rows, ensure_ascii=False, indent=2) + "\n")
        return
    table = Table("port", "in use", "why", "all")
    for port, choice in choices.items():
        table.add_row(port, choice.name, choice.reason, ", ".join(plugins.names(port)))
    Console().print(table)


def print_characters(*, as_json: bool) -> None:
    """Print every character with its summary and the number of its examples."""
    shelf = build_container(load_settings()).characters()
    loaded = [shelf.load(name) for name in shelf.names()]
    if as_json:
        rows = [
            {"id": each.id, "name": each.display_name, "summary": each.persona.summary, "examples": len(each.exchanges)}
            for each in loaded
        ]
        sys.stdout.write(json.dumps(rows, ensure_ascii=False, indent=2) + "\n")
        return
    table = Table("id", "name", "examples", "who")
    for each in loaded:
        table.add_row(each.id, each.display_name, str(len(each.exchanges)), each.persona.summary)
    Console().print(table)
