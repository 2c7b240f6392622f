"""In which form a model's weights are held: what each form needs, what is refused, and what `auto` takes."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from domain.errors import BackendUnavailable, BadConfiguration, ZishuError

# Nats a token that `auto` lets a form cost against the reference; spec/runtime.md, section 1.
GUARD = 0.05
# Their rounding is what models are published in (bf16) or finer: 0.001 nats on the starter. They need no guard.
FAITHFUL = ("fp32", "bf16")
# Smallest first fit: on a GPU what computes fastest while it fits, on a CPU what reads the fewest bytes.
_PREFERRED = {"cuda": ("bf16", "int8", "nf4"), "cpu": ("int8_weight_only", "bf16", "fp32")}
_SECTION = "Set [language_model.transformers]"


@dataclass(frozen=True, slots=True)
class Form:
    """What a precision needs.

    Attributes:
        devices: Where it computes.
        library: What must be installed for it; empty for nothing beyond the extra.
        instead: What to set, by device, where it does not compute.
    """

    devices: tuple[str, ...]
    library: str = ""
    instead: str = "bf16"


FORMS: Mapping[str, Form] = {
    "fp32": Form(("cpu", "cuda")),
    "bf16": Form(("cpu", "cuda")),
    "int8": Form(("cpu", "cuda"), "bitsandbytes", "bf16"),
    "nf4": Form(("cpu", "cuda"), "bitsandbytes", "bf16"),
    "int8_weight_only": Form(("cpu",), instead="int8"),
    "int8_dynamic": Form(("cpu",), instead="int8"),
    # of checkpoints alone
    "gptq": Form(("cpu", "cuda"), "gptqmodel"),
    "awq": Form(("cpu", "cuda"), "gptqmodel"),
}


@dataclass(frozen=True, slots=True)
class Drift:
    """What a form costs against the reference: KL divergence in nats a token, and how often the likeliest agrees."""

    kl: float
    top1: float | None = None


@dataclass(frozen=True, slots=True)
class PrecisionReport:
    """The form a model is held in and why, for `zishu doctor` and the log.

    Attributes:
        precision: A key of `FORMS`.
        reason: One sentence.
        kl: Nats a token against fp32, where it was measured or recorded.
        top1: Share of tokens of which both think the same one likeliest, where it was measured.
    """

    precision: str
    reason: str
    kl: float | None = None
    top1: float | None = None


def stored_form(folder: Path) -> str | None:
    """Return the form that a checkpoint is already written in, or None for plain numbers.

    Raises:
        BadConfiguration: Its config.json names a form that is unknown here, or cannot be read.
    """
    file = folder / "config.json"
    try:
        keys = json.loads(file.read_text(encoding="utf-8")).get("quantization_config") if file.is_file() else None
        method = keys and keys["quant_method"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadConfiguration(f"{file} cannot be read: {error!r}.", "Download or convert the model again.") from error
    if not keys:
        return None
    if method in ("gptq", "awq"):
        return str(method)
    if method == "bitsandbytes" and (keys.get("load_in_8bit") or keys.get("bnb_4bit_quant_type") == "nf4"):
        return "int8" if keys.get("load_in_8bit") else "nf4"
    raise BadConfiguration(
        f"{folder} holds weights quantised by {method}, which are not read here.",
        "Take the model's plain safetensors, or one in NF4, int8, GPTQ or AWQ.",
    )


def refusal(precision: str, device: str, stored: str | None, installed: Callable[[str], bool]) -> ZishuError | None:
    """Return why a precision cannot be had, with what to choose instead; None where it can.

    Args:
        precision: `auto`, or a key of `FORMS`.
        device: `cpu` or `cuda`.
        stored: The form that the checkpoint is written in, None for plain numbers.
        installed: Tells whether a library is installed.
    """
    if stored and precision not in ("auto", stored):
        return BadConfiguration(
            f"The checkpoint is written in {stored} and cannot be held in {precision}.",
            f'{_SECTION} precision = "auto", or model to the unquantised one.',
        )
    form = FORMS.get(stored or precision)
    if form is None:  # `auto` chooses among what can be had
        return None
    if device not in form.devices:
        return BadConfiguration(
            f"The precision {precision} computes on the CPU only.",
            f'{_SECTION} precision = "{form.instead}" or "auto", or device = "cpu".',
        )
    if form.library and not installed(form.library):
        if form.library == "gptqmodel":
            return BackendUnavailable(
                f"A checkpoint in {stored} needs 'gptqmodel', which is not installed.",
                "Run: make gptq, which makes an environment of its own; or choose the unquantised model.",
            )
        return BackendUnavailable(
            f"The precision {stored or precision} needs '{form.library}', which is not installed.",
            f"Run: pip install -e '.[transformers]'; or set precision = \"{form.instead}\".",
        )
    return None


def chosen(
    device: str, *, native: bool, fits: Callable[[str], bool], drift: Callable[[str], Drift | None]
) -> PrecisionReport | None:
    """Return what `auto` takes: the most preferred that fits and is known to keep the model.

    On a GPU bf16, else int8, else nf4; on a CPU int8_weight_only, else bf16, else fp32. Where nothing that fits is
    known to keep the model, the first of unknown cost is taken.

    Args:
        device: `cpu` or `cuda`.
        native: Whether the device computes in bf16; a CPU that does not takes fp32.
        fits: Whether a precision fits into memory, and its library is there.
        drift: What a precision costs, None where nobody knows; asked only as long as none was good enough.

    Returns:
        None where nothing that fits keeps the model.
    """
    preferred = _PREFERRED[device] if native else ("fp32", *_PREFERRED[device][1:])
    unknown: list[str] = []
    for precision in dict.fromkeys(preferred):
        if not fits(precision):
            continue
        if precision in FAITHFUL:
            return PrecisionReport(precision, f"the best that this {device} computes and has memory for")
        if (cost := drift(precision)) is None:
            unknown.append(precision)
        elif cost.kl <= GUARD:
            return PrecisionReport(
                precision, f"it costs {cost.kl:.3f} nats a token, at most {GUARD}", cost.kl, cost.top1
            )
    if unknown:
        return PrecisionReport(unknown[0], "nothing else fits; what it costs was never measured")
    return None
