"""Writes a model in fewer bits once, so that the next start reads it directly, with a report of what that costs."""

import gc
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import AutoConfig, AutoTokenizer

from adapters.data_folder import flush_folder, write_whole
from adapters.language_model.transformers.guard import installed, measure
from adapters.language_model.transformers.memory import check_memory, disk_bytes
from adapters.language_model.transformers.precision import FORMS, refusal, stored_form
from adapters.language_model.transformers.weights import read_weights
from adapters.models import fidelity
from adapters.models.fidelity import Fidelity, calibration
from adapters.models.formats import refuse_pickle
from adapters.models.model_gguf import restored, supported, write_gguf
from domain.errors import BackendUnavailable, BadInput

To = Literal["nf4", "int8", "gptq", "awq", "gguf"]
# Says which step is done: what it is, how much of it, and of how much.
Progress = Callable[[str, int, int], None]

# Columns of a row that share a scale in GPTQ and AWQ, where the width allows.
_GROUPS = (128, 64, 32)


@dataclass(frozen=True, slots=True)
class QuantisedReport:
    """What was written.

    Attributes:
        source: The folder that was read.
        target: The folder or file that was written.
        to: Its form; for `gguf` the kind of its matrices, such as `gguf-q8_0`.
        bytes_before: Size of the weights before.
        bytes_after: And after.
        fidelity: What the form costs, measured on our calibration text; None where the reference did not fit into
            memory. For GGUF it is what rounding the weights costs; that llama.cpp rounds activations too, while it
            computes with them, is not in it.
    """

    source: str
    target: str
    to: str
    bytes_before: int
    bytes_after: int
    fidelity: Fidelity | None


def quantise(
    source: Path, target: Path, to: To, *, kind: str = "q8_0", progress: Progress | None = None
) -> QuantisedReport:
    """Write the model of a folder in a form of fewer bits.

    What is written appears whole or not at all, with its report: `quantised.json` in the folder, or the name of the
    GGUF file with `.json`.

    Args:
        source: A folder with safetensors, config.json and a tokenizer.
        target: The folder to make, for `gguf` the file.
        to: `nf4` and `int8` are those of bitsandbytes; `gptq` and `awq` are of four bits and need gptqmodel.
        kind: For `gguf`, what matrices become: `q8_0` or `f16`.
        progress: Told of every step.

    Raises:
        BadInput: There is something at the target, or the source is quantised already.
        BadConfiguration: The source is not safe to read.
        BackendUnavailable: A library, memory or disk is missing, or the architecture cannot be written so.
    """
    report = progress or (lambda step, done, total: None)
    _check(source, target, to)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        if to == "gguf":
            return _as_gguf(source, target, unfinished / target.name, kind, report)
        return _as_folder(source, target, unfinished, to, report)
    except OSError as error:
        raise BackendUnavailable(
            f"The quantised model cannot be written to {target.parent}: {error.strerror or error}.",
            "Free some space there, or choose another target.",
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check(source: Path, target: Path, to: To) -> None:
    """Refuse before anything is read or written."""
    if to not in get_args(To):
        raise BadInput(f"There is no form {to!r}.", f"Choose one of: {', '.join(get_args(To))}.")
    if not any(source.glob("*.safetensors")):
        for file in sorted(source.iterdir()) if source.is_dir() else []:
            refuse_pickle(file)
        raise BadInput(f"{source} is no folder with safetensors.", "Download or convert the model first.")
    if target.exists():
        raise BadInput(f"There is already something at {target}.", "Remove it, or choose another target.")
    if stored := stored_form(source):
        raise BadInput(f"{source} is already in {stored}.", "Quantise the model in plain numbers that it was made of.")
    if to != "gguf" and (refused := refusal(to, _device(), None, installed)):
        raise refused if FORMS[to].library != "gptqmodel" else _needs_gptqmodel(to)
    if to == "gguf":
        supported(AutoConfig.from_pretrained(source, trust_remote_code=False))
    else:
        check_memory(source.name, source, _device(), "bf16" if FORMS[to].library == "gptqmodel" else to)
    needed = disk_bytes(source, to)
    place = next(folder for folder in target.absolute().parents if folder.exists())
    if (free := shutil.disk_usage(place).free) < needed:
        raise BackendUnavailable(
            f"The model in {to} needs {needed / 1e9:.2f} GB in {place}, and {free / 1e9:.2f} GB are free.",
            "Free some space there, or choose another target.",
        )


def _as_folder(source: Path, target: Path, unfinished: Path, to: To, report: Progress) -> QuantisedReport:
    report("quantise", 0, 1)
    if FORMS[to].library == "gptqmodel":
        _with_gptqmodel(source, unfinished, to)
    else:
        # written before it computes anything: on a CPU bitsandbytes rearranges NF4 for itself on the first token
        read_weights(source.name, source, to, _device()).save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(unfinished)
    gc.collect()
    report("quantise", 1, 1)
    measured = _measured(source, partial(measure, source.name, unfinished, _device(), to, reference=source), report)
    written = _report(source, target, unfinished, to, measured)
    write_whole(unfinished / fidelity.REPORT, _as_json(written))
    unfinished.rename(target)
    flush_folder(target.parent)
    return written


def _as_gguf(source: Path, target: Path, unfinished: Path, kind: str, report: Progress) -> QuantisedReport:
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    write_gguf(source, unfinished, config, tokenizer, kind, partial(report, "quantise"))
    measured = _measured(source, partial(_measure_gguf, source, kind), report)
    written = _report(source, target, unfinished, f"gguf-{kind}", measured)
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    write_whole(target.with_name(f"{target.name}.json"), _as_json(written))
    unfinished.rename(target)
    flush_folder(target.parent)
    return written


def _measured(source: Path, measuring: Callable[[], Fidelity], report: Progress) -> Fidelity | None:
    """Measure, unless the reference in fp32 does not fit into memory."""
    report("measure", 0, 1)
    try:
        check_memory(source.name, source, "cpu", "fp32")
    except BackendUnavailable:
        return None
    measured = measuring()
    report("measure", 1, 1)
    return measured


@torch.inference_mode()
def _measure_gguf(source: Path, kind: str) -> Fidelity:
    """Return what rounding to a kind of GGUF costs, computed by transformers with the rounded weights."""
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    plain, rounded = (read_weights(source.name, source, "fp32", "cpu") for _ in range(2))
    for weight in rounded.parameters():
        if weight.dim() == 2:
            weight.copy_(torch.from_numpy(restored(weight.numpy(), kind)))
    return fidelity.compare(plain, rounded, tokenizer)


def _with_gptqmodel(source: Path, target: Path, to: To) -> None:
    """Quantise to four bits with the library gptqmodel on our own text, layer after layer."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # with fewer cores than it expects it fails without
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig  # type: ignore[import-not-found]

    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    widths = (config.hidden_size, config.intermediate_size)
    group = next((size for size in _GROUPS if not any(width % size for width in widths)), -1)
    settings: dict[str, Any] = {"bits": 4, "group_size": group, "quant_method": to}
    # by itself it takes a kernel that needs CUDA for AWQ
    backend = BACKEND.AWQ_TORCH if to == "awq" and _device() == "cpu" else BACKEND.AUTO
    with redirect_stdout(sys.stderr):  # it talks a lot
        model = GPTQModel.load(str(source), QuantizeConfig(**settings), device=_device())
        model.quantize(list(calibration()), batch_size=1, backend=backend)
        model.save(str(target))


def _needs_gptqmodel(to: To) -> BackendUnavailable:
    return BackendUnavailable(
        f"Quantising to {to} needs 'gptqmodel', which is not installed.",
        "Run: make gptq, which makes an environment of its own for it; or quantise to nf4 or int8.",
    )


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _report(source: Path, target: Path, written: Path, to: str, measured: Fidelity | None) -> QuantisedReport:
    return QuantisedReport(str(source), str(target), to, _size(source), _size(written), measured)


def _size(place: Path) -> int:
    files = [place] if place.is_file() else place.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def _as_json(report: QuantisedReport) -> str:
    return json.dumps(asdict(report), ensure_ascii=False, indent=2) + "\n"
