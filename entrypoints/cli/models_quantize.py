"""`zishu models quantize`: a model in fewer bits, written once and loaded directly from then on."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from adapters.models.quantise import QuantisedReport
    from entrypoints.settings import Settings

# What `auto` lets a precision cost; docs/decisions/0007-precision-and-the-kl-guard.md.
_GUARD = 0.05


class Form(StrEnum):
    """What weights become."""

    NF4 = "nf4"
    INT8 = "int8"
    GPTQ = "gptq"
    AWQ = "awq"
    GGUF = "gguf"


class Matrices(StrEnum):
    """What the matrices of a GGUF become."""

    Q8_0 = "q8_0"
    F16 = "f16"


def quantize(
    model: Annotated[str, typer.Argument(help="A model of `zishu models list`, `starter`, or a folder.")],
    to: Annotated[Form, typer.Option("--to", help="What its weights become.")],
    out: Annotated[
        Path | None, typer.Option(help="Where it goes; by default into the folder `quantised` of the cache.")
    ] = None,
    kind: Annotated[Matrices, typer.Option(help="What the matrices of a GGUF become.")] = Matrices.Q8_0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Write a model in fewer bits once, and say what that costs.

    nf4 (4 bits) and int8 load with bitsandbytes, on a GPU or a CPU. gguf is for llama.cpp. gptq and awq (4 bits,
    calibrated) need an environment of their own: make gptq.

    The cost is the KL divergence to the model in fp32, in nats a token, on Chinese and English text of our own; up to
    0.05 nobody notices. It is printed, and lies beside the weights (quantised.json). The original stays.
    """
    from adapters.models.quantise import quantise
    from entrypoints.settings import load_settings

    settings = load_settings()
    source = _source(model, settings)
    target = out.expanduser() if out else _target(model, to, kind, settings)
    with _progress(f"{model} -> {to}", as_json) as progress:
        report = quantise(source, target, to.value, kind=kind.value, progress=progress)
    if as_json:
        sys.stdout.write(json.dumps({**asdict(report), "next": _setting(report)}, ensure_ascii=False, indent=2) + "\n")
    else:
        sys.stdout.write(_words(report))


def _source(model: str, settings: "Settings") -> Path:
    """Return the folder of a model's plain weights, put together or converted where that was not done yet."""
    from adapters.language_model.transformers.config import Config
    from adapters.language_model.transformers.sources import weights_folder

    hub = settings.language_model.table("transformers").get("hub")
    keys = {"hub": hub} if hub else {}
    return weights_folder(Config(model=model, cache_dir=settings.cache_dir, **keys))


def _target(model: str, to: Form, kind: Matrices, settings: "Settings") -> Path:
    name = Path(model).expanduser().name
    return settings.cache_dir / "quantised" / (f"{name}-{kind}.gguf" if to is Form.GGUF else f"{name}-{to}")


def _setting(report: "QuantisedReport") -> str:
    backend = "llama_cpp" if report.to.startswith("gguf") else "transformers"
    return f'[language_model.{backend}] model = "{report.target}"'


def _words(report: "QuantisedReport") -> str:
    lines = [f"{report.target}: {report.bytes_before / 1e6:,.0f} MB -> {report.bytes_after / 1e6:,.0f} MB"]
    if cost := report.fidelity:
        lines += [
            f"It costs {cost.kl:.3f} nats a token; the likeliest is the same in {cost.top1:.0%} of {cost.tokens}.",
            f"Perplexity: {cost.reference_perplexity:.1f} before, {cost.perplexity:.1f} after.",
        ]
        if cost.kl > _GUARD:
            lines.append(
                f"That is more than {_GUARD}: she will talk noticeably worse. Take more bits, or a larger model."
            )
    else:
        lines.append("What it costs could not be measured: the model in fp32 does not fit into memory.")
    return "\n".join([*lines, f"Choose it with: {_setting(report)}"]) + "\n"


@contextmanager
def _progress(what: str, as_json: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Lend a function that is told of steps; on a terminal they become bars."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), disable=as_json or not sys.stderr.isatty()) as shown:

        def report(step: str, done: int, total: int) -> None:
            if step not in bars:
                bars[step] = shown.add_task(f"{what}: {step}", total=None)
            # a step that is one piece has no middle: its bar swings until it is done
            shown.update(bars[step], completed=done, total=total if done or total > 1 else None)

        yield report
