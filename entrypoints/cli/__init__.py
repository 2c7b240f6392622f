"""The `zishu` program. Nothing heavy is imported before a command needs it: `--help` answers at once."""

import sys
from typing import Annotated

import typer

from domain.errors import ZishuError
from entrypoints.cli import db, experts, models

app = typer.Typer(
    name="zishu",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="紫舒老师: a Chinese anime companion who lives on your own machine. Start with: zishu cli",
)
app.add_typer(db.app, name="db")
app.add_typer(experts.app, name="experts")
app.add_typer(models.app, name="models")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.command()
def cli(
    once: Annotated[str | None, typer.Option(help='Say one thing, print the reply and leave: --once "你好".')] = None,
    user: Annotated[str | None, typer.Option(help="Whose conversation and memory: a name of your choice.")] = None,
    character: Annotated[str | None, typer.Option(help="Whom to talk to; see `zishu characters`.")] = None,
    backend: Annotated[str | None, typer.Option(help="Which language model; see `zishu backends`.")] = None,
    as_json: AsJson = False,
) -> None:
    r"""Talk to her in the terminal.

    With lines piped in, answers one after the other: printf '你好\\n' | zishu cli. With --json, prints one event a line
    (docs/events.md).
    """
    from entrypoints.cli.chat import run

    raise typer.Exit(run(once=once, user=user, character=character, backend=backend, as_json=as_json))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what works on this machine, what is missing, and the exact line that mends it."""
    from entrypoints.doctor import examine

    raise typer.Exit(examine(as_json=as_json))


@app.command()
def backends(as_json: AsJson = False) -> None:
    """List the backends of every port, and which one is chosen and why."""
    from entrypoints.cli.catalogue import print_backends

    print_backends(as_json=as_json)


@app.command()
def characters(as_json: AsJson = False) -> None:
    """List the characters that can be met here."""
    from entrypoints.cli.catalogue import print_characters

    print_characters(as_json=as_json)


def main() -> None:
    """Run the program; a deliberate error ends it with its problem, its remedy and status 1."""
    try:
        app()
    except ZishuError as error:
        from entrypoints.cli.display import print_zishu_error
        from entrypoints.messages import preferred

        print_zishu_error(error, preferred())
        sys.exit(1)
