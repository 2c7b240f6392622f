"""The KL guard: measures once what a precision costs a model, decides what `auto` takes, and warns of the rest."""

import gc
import logging
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoTokenizer

from adapters.language_model.transformers.config import Config
from adapters.language_model.transformers.memory import fits, needed_bytes, too_large
from adapters.language_model.transformers.precision import (
    FAITHFUL,
    GUARD,
    Drift,
    PrecisionReport,
    chosen,
    refusal,
    stored_form,
)
from adapters.language_model.transformers.weights import made, read_weights
from adapters.models import fidelity
from adapters.models.fidelity import Fidelity
from adapters.models.profiles import Shelf

logger = logging.getLogger(__name__)


def installed(library: str) -> bool:
    """Tell whether a library can be imported, without importing it."""
    return find_spec(library) is not None


def decide(config: Config, folder: Path, device: str) -> PrecisionReport:
    """Return the precision for a model, measuring candidates where nobody did before.

    Raises:
        BadConfiguration: The setting does not go with the device or the checkpoint.
        BackendUnavailable: A library is missing, or nothing that keeps the model fits into memory.
    """
    stored = stored_form(folder)
    if refused := refusal(config.precision, device, stored, installed):
        raise refused
    if stored:
        cost = fidelity.recorded(folder)
        reason = "the checkpoint is written in it"
        return PrecisionReport(stored, reason, cost.kl, cost.top1) if cost else PrecisionReport(stored, reason)
    drift = partial(known_drift, config, folder, device)
    if config.precision != "auto":
        return _obeyed(config.precision, drift)
    report = chosen(device, native=computes_in_bf16(device), fits=partial(_can, folder, device), drift=drift)
    if report is None:
        raise too_large(config.model, folder, device, "bf16")
    if report.precision not in FAITHFUL and report.kl is None:
        logger.warning("Precision %s: %s.", report.precision, report.reason)
    return report


def known_drift(config: Config, folder: Path, device: str, precision: str) -> Drift | None:
    """Return what a precision costs: measured before, measured now where the reference fits, or of the profile."""
    weights = fidelity.fingerprint(folder)
    measured = fidelity.recall(config.cache_dir, weights, precision)
    if measured is None and _can_measure(folder, device, precision):
        logger.info("Measuring once what the precision %s costs this model.", precision)
        measured = measure(config.model, folder, device, precision)
        fidelity.keep(config.cache_dir, weights, precision, measured)
    if measured:
        return Drift(measured.kl, measured.top1)
    profile = Shelf(config.data_dir / "models").find(config.model)
    return Drift(profile.kl[precision]) if profile and precision in profile.kl else None


def measure(name: str, folder: Path, device: str, precision: str, *, reference: Path | None = None) -> Fidelity:
    """Return how far a precision strays from fp32 on the CPU; both are in memory for that time.

    Args:
        name: What to call the model in errors.
        folder: Its weights, in plain numbers or in the form that the precision names.
        device: Where the precision computes.
        precision: A key of `precision.FORMS`.
        reference: Plain weights to compare with, `folder` itself by default.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = made(read_weights(name, folder, precision, device, stored=stored_form(folder)), precision)
    plain = read_weights(name, reference or folder, "fp32", "cpu")
    try:
        return fidelity.compare(plain, model, tokenizer)
    finally:
        del plain, model
        gc.collect()


def computes_in_bf16(device: str) -> bool:
    """Tell whether the hardware computes in bf16; elsewhere it only costs."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _obeyed(precision: str, drift: Callable[[str], Drift | None]) -> PrecisionReport:
    """Return what was asked for, with a warning where it costs more than `auto` would let it."""
    if precision in FAITHFUL:
        return PrecisionReport(precision, "set by you")
    cost = drift(precision)
    if cost is None:
        logger.warning("Precision %s as set by you; what it costs this model was never measured.", precision)
        return PrecisionReport(precision, "set by you; what it costs was never measured")
    if cost.kl > GUARD:
        logger.warning("Precision %s as set by you costs %.3f nats a token, over %s.", precision, cost.kl, GUARD)
    return PrecisionReport(precision, f"set by you; it costs {cost.kl:.3f} nats a token", cost.kl, cost.top1)


def _can(folder: Path, device: str, precision: str) -> bool:
    return refusal(precision, device, None, installed) is None and fits(folder, device, precision)


def _can_measure(folder: Path, device: str, precision: str) -> bool:
    """Tell whether the reference fits into memory beside the model that is judged."""
    if device == "cuda":
        return fits(folder, "cuda", precision) and fits(folder, "cpu", "fp32")
    return fits(folder, "cpu", "fp32", beside=needed_bytes(folder, precision))
