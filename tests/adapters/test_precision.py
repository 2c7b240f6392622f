import json
import logging
import warnings
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adapters.language_model.transformers import weight_only
from adapters.language_model.transformers.config import Config, Precision
from adapters.language_model.transformers.guard import decide, measure
from adapters.language_model.transformers.loading import Loaded, load
from adapters.language_model.transformers.memory import disk_bytes, needed_bytes
from adapters.language_model.transformers.precision import FORMS, GUARD, Drift, chosen, refusal, stored_form
from adapters.language_model.transformers.weight_only import Int8Linear, TwoByteLinear
from adapters.language_model.transformers.weights import read_weights
from adapters.models.fidelity import calibration
from domain.errors import BackendUnavailable, BadConfiguration
from tests import checkpoints
from tests.quantisable import train, trained

SET = ("fp32", "bf16", "int8", "nf4", "int8_weight_only", "int8_dynamic")
LIBRARIES = {"int8": "bitsandbytes", "nf4": "bitsandbytes", "gptq": "gptqmodel", "awq": "gptqmodel"}


def everything(_: str) -> bool:
    return True


def nothing(_: str) -> bool:
    return False


# What is refused


def test_every_precision_of_the_settings_has_its_row():
    assert {"auto", *SET} == set(get_args(Precision))
    assert set(SET) < set(FORMS)


@pytest.mark.parametrize("stored", [None, "nf4", "int8", "gptq", "awq"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("asked", ["auto", *SET])
def test_the_whole_matrix_is_obeyed_or_refused_with_what_to_choose(asked: str, device: str, stored: str | None):
    for installed in (everything, nothing):
        refused = refusal(asked, device, stored, installed)
        form = stored or asked
        clash = bool(stored) and asked not in ("auto", stored)
        elsewhere = device == "cuda" and form in ("int8_weight_only", "int8_dynamic")
        missing = form in LIBRARIES and installed is nothing
        assert (refused is not None) == (clash or elsewhere or missing)
        if refused:
            assert isinstance(refused, BadConfiguration if clash or elsewhere else BackendUnavailable)
            assert "precision = " in refused.remedy or "make gptq" in refused.remedy


def test_what_is_named_instead_can_be_had():
    for precision, device in product(SET, ("cpu", "cuda")):
        if device not in FORMS[precision].devices:
            assert refusal(FORMS[precision].instead, device, None, everything) is None


# What `auto` takes


@st.composite
def machines(draw):
    fitting = draw(st.sets(st.sampled_from(SET)))
    costs = st.one_of(st.none(), st.floats(0, 1).map(Drift))
    return draw(st.sampled_from(["cpu", "cuda"])), draw(st.booleans()), fitting, {each: draw(costs) for each in SET}


@given(machines())
def test_auto_takes_what_fits_and_nothing_that_is_known_to_harm_the_model(machine):
    device, native, fitting, costs = machine
    report = chosen(device, native=native, fits=fitting.__contains__, drift=costs.get)
    if report is None:
        return
    assert report.precision in fitting
    assert device in FORMS[report.precision].devices
    assert report.precision in ("fp32", "bf16") or (report.kl or 0) <= GUARD
    assert report.kl == (None if report.precision in ("fp32", "bf16") else (costs[report.precision] or Drift(None)).kl)


@pytest.mark.parametrize(
    ("device", "native", "fitting", "costs", "expected"),
    [
        ("cuda", True, SET, {}, "bf16"),
        ("cuda", True, {"int8", "nf4"}, {"int8": 0.04}, "int8"),
        ("cuda", True, {"int8", "nf4"}, {"int8": 0.06, "nf4": 0.05}, "nf4"),
        ("cuda", True, {"int8", "nf4"}, {"int8": 0.06}, "nf4"),  # of unknown cost, and nothing else is left
        ("cuda", True, {"nf4"}, {"nf4": 0.33}, None),
        ("cpu", True, SET, {"int8_weight_only": 0.014}, "int8_weight_only"),
        ("cpu", True, SET, {"int8_weight_only": 0.06}, "bf16"),
        ("cpu", True, SET, {}, "bf16"),
        ("cpu", False, SET, {"int8_weight_only": 0.014}, "fp32"),
        ("cpu", True, {"fp32"}, {}, "fp32"),
        ("cpu", True, set(), {}, None),
    ],
)
def test_the_order_of_preference(device, native, fitting, costs, expected):
    drift = {precision: Drift(kl) for precision, kl in costs.items()}
    report = chosen(device, native=native, fits=set(fitting).__contains__, drift=drift.get)
    assert (report and report.precision) == expected


# Forms of weights


def bf16_linear(inner: int, outer: int, *, bias: bool = False) -> nn.Linear:
    torch.manual_seed(inner + outer)
    return nn.Linear(inner, outer, bias=bias, dtype=torch.bfloat16).requires_grad_(False)


HAS_VNNI = bool(torch.cpu.get_capabilities().get("avx512_vnni"))
FORMS_OF_EIGHT_BITS = [
    Int8Linear,
    pytest.param(TwoByteLinear, marks=pytest.mark.skipif(not HAS_VNNI, reason="the CPU has no AVX512-VNNI")),
]


@pytest.mark.parametrize("form", FORMS_OF_EIGHT_BITS)
@pytest.mark.parametrize("rows", [1, 3, 8, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_in_eight_bits_computes_what_its_rounded_weights_give(form, rows: int, bias: bool):
    linear = bf16_linear(96, 160, bias=bias)
    whole, factors = weight_only.rounded(linear.weight)
    given_rows = torch.randn(2, rows, 96).bfloat16()
    expected = given_rows.double() @ (whole.double() * factors.double()[:, None]).t()
    expected = expected + linear.bias.double() if bias else expected
    output = form(linear)(given_rows)
    assert output.dtype == torch.bfloat16
    assert output.shape == expected.shape
    assert (output - expected).norm() <= 6e-3 * expected.norm()


@given(st.integers(0, 2**32 - 1), st.floats(-20, 20))
def test_rounding_errs_by_half_a_step_whatever_the_scale(seed: int, exponent: float):
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(seed)) * 2**exponent
    whole, factors = weight_only.rounded(weight)
    # a factor that bf16 rounded down lets the largest weight be cut by up to 127 / 256 of a step
    assert ((whole * factors.float()[:, None] - weight).abs() <= 0.51 * factors.float()[:, None]).all()


@pytest.mark.skipif(not HAS_VNNI, reason="the CPU has no AVX512-VNNI")
@given(st.integers(0, 2**32 - 1), st.integers(2, 12))
def test_a_row_does_not_depend_on_the_rows_beside_it(seed: int, rows: int):
    given_rows = torch.randn(rows, 64, generator=torch.Generator().manual_seed(seed)).bfloat16()
    layer = TwoByteLinear(bf16_linear(64, 96))
    together = layer(given_rows)
    assert all(torch.equal(together[place], layer(given_rows[place : place + 1])[0]) for place in range(rows))


@pytest.mark.parametrize("form", FORMS_OF_EIGHT_BITS)
def test_rows_of_nothing_and_of_huge_activations_stay_finite(form):
    given_rows = torch.zeros(2, 64).bfloat16()
    given_rows[1, 3] = 1e30
    output = form(bf16_linear(64, 96))(given_rows)
    assert output.isfinite().all()
    assert not output[0].any()


# Loading


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("llama") / "tiny")


def loaded(folder: Path, cache: Path, *, merge: bool = True, **keys: object) -> Loaded:
    settings = {"adapter": None, "device": "cpu", "threads": 1, "cache_dir": cache, **keys}
    return load(Config(model=str(folder), **settings), merge=merge)


def logits(model: nn.Module, tokenizer) -> torch.Tensor:
    given = tokenizer(calibration()[0], return_tensors="pt").input_ids
    with torch.inference_mode():
        return model(input_ids=given).logits[0].float().log_softmax(-1)


def drift(reference: Loaded, other: Loaded) -> float:
    p, q = logits(reference.model, reference.tokenizer), logits(other.model, other.tokenizer)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.model
@pytest.mark.parametrize("precision", SET)
def test_every_precision_loads_without_a_warning_and_stays_near_the_reference(
    precision: str, llama: Path, tmp_path: Path
):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = loaded(llama, tmp_path, precision=precision)
        assert drift(loaded(llama, tmp_path, precision="fp32"), model) < 0.3
    assert model.precision.precision == precision
    assert (model.precision.kl is None) == (precision in ("fp32", "bf16"))


@pytest.mark.model
def test_auto_measures_once_and_takes_eight_bits_where_they_keep_the_model(llama: Path, tmp_path: Path):
    report = loaded(llama, tmp_path).precision
    if report.precision == "fp32":
        pytest.skip("the CPU does not compute in bf16")
    assert report.precision == "int8_weight_only"
    (file,) = (tmp_path / "fidelity").iterdir()
    assert json.loads(file.read_text())["kl"] == report.kl
    assert 0 < report.kl <= GUARD
    file.write_text(json.dumps({**json.loads(file.read_text()), "kl": 0.06}))  # as if it had been measured so
    assert loaded(llama, tmp_path).precision.precision == "bf16"
    file.write_text("half of a f")
    assert loaded(llama, tmp_path).precision == report


@pytest.mark.model
def test_a_precision_that_was_set_is_obeyed_with_a_warning_and_the_figure(
    llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    loaded(llama, tmp_path, precision="nf4")
    (file,) = (tmp_path / "fidelity").iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "kl": 0.331}))
    with caplog.at_level(logging.WARNING):
        report = decide(Config(model=str(llama), precision="nf4", cache_dir=tmp_path), llama, "cpu")
    assert report.precision == "nf4"
    assert report.kl == 0.331
    assert "0.331" in caplog.text


@pytest.mark.model
def test_where_the_reference_does_not_fit_the_profile_counts_and_else_nobody_knows(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    from adapters.language_model.transformers import guard

    monkeypatch.setattr(guard, "_can_measure", lambda *_: False)
    config = Config(model="starter", precision="int8_weight_only", cache_dir=tmp_path)
    assert decide(config, llama, "cpu").kl == guard.Shelf().load("starter").kl["int8_weight_only"]
    report = decide(config.model_copy(update={"model": str(llama)}), llama, "cpu")
    assert report.kl is None
    assert "never measured" in report.reason
    assert "never measured" in caplog.text


@pytest.mark.model
def test_narrow_layers_are_refused_in_nf4_before_they_fail(tmp_path: Path):
    with pytest.raises(BadConfiguration, match="multiple of 64") as caught:
        loaded(checkpoints.llama(tmp_path / "tiny"), tmp_path, precision="nf4")
    assert "int8_weight_only" in caught.value.remedy


@pytest.mark.model
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4"),
        (None, None),
    ],
)
def test_a_checkpoint_that_is_quantised_already_is_recognised(keys, expected, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": keys}))
    assert stored_form(tmp_path) == expected


@pytest.mark.parametrize("keys", [{"quant_method": "hqq"}, {"quant_method": "bitsandbytes", "load_in_4bit": True}])
def test_a_checkpoint_in_another_form_is_refused(keys, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": keys}))
    with pytest.raises(BadConfiguration, match="not read here"):
        stored_form(tmp_path)


@pytest.mark.model
def test_fewer_bits_take_less_memory_and_less_disk(llama: Path):
    sizes = [needed_bytes(llama, precision) for precision in ("nf4", "int8", "bf16", "fp32", "int8_dynamic")]
    assert sizes == sorted(set(sizes))
    assert disk_bytes(llama, "nf4") < disk_bytes(llama, "int8") < disk_bytes(llama, "bf16")


# Adapters


@pytest.fixture(scope="session")
def adapter(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter trained on the model in NF4."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    base = prepare_model_for_kbit_training(read_weights("tiny", llama, "nf4", "cpu"), use_gradient_checkpointing=False)
    with warnings.catch_warnings():
        # peft 0.21 asks for gradient checkpointing by a name that transformers will drop
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    train(model, AutoTokenizer.from_pretrained(llama), steps=20, rate=1e-2, lines=OTHER_LINES)
    model.save_pretrained(folder)
    return folder


OTHER_LINES = ("晚安，祝你做一个好梦。", "墨墨慢慢地爬过来了。")


@pytest.mark.model
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4", "int8_weight_only", "int8_dynamic"])
def test_an_adapter_trained_on_nf4_loads_unchanged_on_every_precision(
    precision: str, merge: bool, llama: Path, adapter: Path, tmp_path: Path
):
    if precision == "int8_dynamic" and not merge:
        with pytest.raises(BadConfiguration, match="int8_dynamic") as caught:
            loaded(llama, tmp_path, precision=precision, adapter=str(adapter), merge=False)
        assert "int8_weight_only" in caught.value.remedy
        return
    bare = loaded(llama, tmp_path, precision="fp32")
    reference = loaded(llama, tmp_path, precision="fp32", adapter=str(adapter))
    model = loaded(llama, tmp_path, precision=precision, adapter=str(adapter), merge=merge)
    strayed = drift(reference, model)
    assert strayed < 0.2
    assert strayed < drift(reference, bare) / 4  # what the adapter taught is far larger than what rounding costs
    beside = hasattr(model.model, "active_adapter")
    assert beside == (not merge or precision in ("int8", "nf4"))
    if beside:
        assert model.model.active_adapter == "persona"


# The real starter


@pytest.mark.model
@pytest.mark.slow
def test_the_starter_in_eight_bits_keeps_its_mind_and_in_four_it_does_not():
    from adapters.language_model.transformers.sources import weights_folder

    folder = weights_folder(Config())
    torch.set_num_threads(1)
    kept, lost = (measure("starter", folder, "cpu", precision) for precision in ("int8_weight_only", "nf4"))
    assert kept.kl <= 0.02
    assert kept.top1 > 0.9
    assert lost.kl > GUARD
    assert replace(kept, kl=0, top1=0, perplexity=0) == replace(lost, kl=0, top1=0, perplexity=0)
