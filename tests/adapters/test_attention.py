from itertools import product
from pathlib import Path

import pytest

from adapters.language_model.transformers import attention
from adapters.language_model.transformers.config import Config
from adapters.language_model.transformers.loading import load
from adapters.language_model.transformers.precision import FORMS
from domain.errors import BackendUnavailable, BadConfiguration, ZishuError
from tests import checkpoints

AMPERE, TURING = (8, 0), (7, 5)


def everything(_: str) -> bool:
    return True


def nothing(_: str) -> bool:
    return False


@pytest.mark.parametrize("precision", FORMS)
def test_auto_takes_flash_attention_wherever_it_is_not_refused_and_never_fails(precision: str):
    for device, capability, installed in product(("cpu", "cuda"), (None, TURING, AMPERE), (everything, nothing)):
        refused = attention.refusal(precision, device, capability, installed)
        chosen = attention.chosen("auto", precision, device, capability, installed)
        assert chosen == ("sdpa" if refused else "flash_attention_2")
        possible = device == "cuda" and capability == AMPERE and installed is everything
        assert (refused is None) == (possible and precision not in ("fp32", "int8_dynamic"))


@pytest.mark.parametrize(
    ("precision", "device", "capability", "installed", "why"),
    [
        ("bf16", "cpu", None, everything, "GPU only"),
        ("fp32", "cuda", AMPERE, everything, "fp32"),
        ("bf16", "cuda", TURING, everything, "Ampere"),
        ("bf16", "cuda", AMPERE, nothing, "not installed"),
    ],
)
def test_what_was_asked_for_and_cannot_be_had_is_refused_with_what_to_choose(
    precision, device, capability, installed, why
):
    with pytest.raises(ZishuError, match=why) as caught:
        attention.chosen("flash_attention_2", precision, device, capability, installed)
    assert 'attention = "sdpa"' in caught.value.remedy
    assert isinstance(caught.value, BackendUnavailable if installed is nothing else BadConfiguration)


@pytest.mark.parametrize("asked", ["sdpa", "eager"])
def test_the_others_are_obeyed_everywhere(asked: str):
    for precision, device in product(FORMS, ("cpu", "cuda")):
        assert attention.chosen(asked, precision, device, None, nothing) == asked


@pytest.mark.model
def test_a_loaded_model_computes_with_the_attention_that_was_chosen(tmp_path: Path):
    folder = checkpoints.llama(tmp_path / "tiny")

    def loaded(asked: str) -> str:
        keys = {"model": str(folder), "adapter": None, "device": "cpu", "threads": 1, "precision": "fp32"}
        return load(Config(**keys, attention=asked)).model.config._attn_implementation

    assert loaded("auto") == "sdpa"
    assert loaded("eager") == "eager"
    with pytest.raises(BadConfiguration, match="GPU only"):
        loaded("flash_attention_2")
