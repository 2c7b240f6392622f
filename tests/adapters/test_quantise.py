import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import xllamacpp
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.language_model.transformers.config import Config
from adapters.language_model.transformers.loading import load
from adapters.language_model.transformers.text import Detokeniser
from adapters.language_model.transformers.weights import read_weights
from adapters.models import quantise as module
from adapters.models.fidelity import calibration
from adapters.models.formats import read_gguf
from adapters.models.quantise import quantise
from domain.errors import BackendUnavailable, BadConfiguration, BadInput
from tests import checkpoints
from tests.quantisable import FAMILIES, LINES, trained

pytestmark = pytest.mark.model

HALF_A_CHARACTER = "\ufffd"


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("llama") / "tiny")


def logits(model: torch.nn.Module, tokenizer) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=tokenizer(calibration()[0], return_tensors="pt").input_ids).logits


@pytest.mark.parametrize("to", ["nf4", "int8"])
def test_what_was_quantised_once_loads_directly_and_computes_the_same_bits(to: str, llama: Path, tmp_path: Path):
    steps: list[tuple[str, int, int]] = []
    report = quantise(llama, tmp_path / to, to, progress=lambda *step: steps.append(step))
    loaded = load(Config(model=str(tmp_path / to), adapter=None, device="cpu", threads=1, cache_dir=tmp_path))
    assert loaded.precision.precision == to
    fresh = read_weights("tiny", llama, to, "cpu")
    assert torch.equal(logits(loaded.model, loaded.tokenizer), logits(fresh, loaded.tokenizer))
    assert report.fidelity is not None
    assert loaded.precision.kl == report.fidelity.kl
    assert 0 < report.fidelity.kl < 0.5
    assert report.bytes_after < report.bytes_before
    assert steps[0] == ("quantise", 0, 1)
    assert steps[-1] == ("measure", 1, 1)
    assert json.loads((tmp_path / to / "quantised.json").read_text())["fidelity"]["kl"] == report.fidelity.kl


def continued(model: torch.nn.Module, tokenizer, words: str, tokens: int) -> str:
    given = tokenizer(words, return_tensors="pt").input_ids
    greedy = {"do_sample": False, "max_new_tokens": tokens, "eos_token_id": None, "pad_token_id": 0}
    said = model.generate(input_ids=given, attention_mask=torch.ones_like(given), **greedy)
    text = Detokeniser(tokenizer)
    return "".join(text.feed(token) for token in said[0, given.shape[1] :].tolist())


def continued_by_llama_cpp(gguf: Path, words: str, tokens: int) -> str:
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_ctx, params.n_parallel, params.verbosity = 512, 1, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = False
    server = xllamacpp.Server(params)
    answer = server.handle_completions({"prompt": words, "max_tokens": tokens, "temperature": 0, "ignore_eos": True})
    return str(answer["choices"][0]["text"])


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_goes_on_as_transformers_does(family: str, tmp_path: Path):
    folder = trained(tmp_path / "tiny", family)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for kind in ("f16", "q8_0"):
        report = quantise(folder, tmp_path / f"{kind}.gguf", "gguf", kind=kind)
        assert report.fidelity is not None
        assert report.fidelity.kl < 0.02
        assert read_gguf(tmp_path / f"{kind}.gguf").layers == model.config.num_hidden_layers
        for line in LINES[:3]:
            expected = continued(model, tokenizer, line[:6], 20)
            assert expected.startswith(line[6:9])
            assert continued_by_llama_cpp(tmp_path / f"{kind}.gguf", line[:6], 20).rstrip(HALF_A_CHARACTER) == expected


def test_an_architecture_without_a_gguf_of_ours_is_refused_with_what_to_do(llama: Path, tmp_path: Path):
    from tests.architectures import SHAPE

    folder = Path(shutil.copytree(llama, tmp_path / "glm"))
    keys = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**keys, **SHAPE, "model_type": "glm"}))
    with pytest.raises(BackendUnavailable, match="glm") as caught:
        quantise(folder, tmp_path / "glm.gguf", "gguf")
    assert "nf4 or int8" in caught.value.remedy


def test_a_gemma_whose_layers_slide_elsewhere_is_refused(tmp_path: Path):
    folder = checkpoints.gemma3(tmp_path / "gemma")
    with pytest.raises(BackendUnavailable, match="sliding layers"):
        quantise(folder, tmp_path / "gemma.gguf", "gguf")


def test_nothing_is_written_over_and_nothing_is_quantised_twice(llama: Path, tmp_path: Path):
    quantise(llama, tmp_path / "once", "int8")
    with pytest.raises(BadInput, match="already something"):
        quantise(llama, tmp_path / "once", "int8")
    with pytest.raises(BadInput, match="already in int8"):
        quantise(tmp_path / "once", tmp_path / "twice", "nf4")


def test_a_pickle_is_not_quantised(llama: Path, tmp_path: Path):
    (tmp_path / "model").mkdir()
    torch.save({}, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(BadConfiguration, match="pickled"):
        quantise(tmp_path / "model", tmp_path / "out", "nf4")
    with pytest.raises(BadInput, match="no folder"):
        quantise(tmp_path / "nowhere", tmp_path / "out", "nf4")


def test_a_full_disk_is_told_before_anything_is_written(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(BackendUnavailable, match="are free"):
        quantise(llama, tmp_path / "out", "int8")
    assert list(tmp_path.iterdir()) == []


DIES_WHILE_IT_MEASURES = """
import os, signal, sys
from pathlib import Path
from adapters.models.quantise import quantise

def die(step, done, total):
    if step == "measure":
        os.kill(os.getpid(), signal.SIGKILL)

quantise(Path(sys.argv[1]), Path(sys.argv[2]), "int8", progress=die)
"""


def test_a_run_that_is_killed_leaves_nothing_that_is_taken_for_a_model(llama: Path, tmp_path: Path):
    target = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", DIES_WHILE_IT_MEASURES, llama, target], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    assert quantise(llama, target, "int8").fidelity is not None
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["out"]


@pytest.mark.parametrize("to", ["gptq", "awq"])
def test_four_bits_by_gptqmodel_load_directly(to: str, tmp_path: Path):
    pytest.importorskip("gptqmodel", reason="gptqmodel needs an environment of its own: make gptq")
    # AWQ searches its clips in 64 rows at once
    folder = trained(tmp_path / "tiny", num_key_value_heads=4)
    report = quantise(folder, tmp_path / to, to)
    loaded = load(Config(model=str(tmp_path / to), adapter=None, device="cpu", threads=1, cache_dir=tmp_path))
    assert loaded.precision.precision == to
    assert loaded.precision.kl == report.fidelity.kl
    assert report.fidelity.kl < 0.3
    assert report.bytes_after < report.bytes_before


@pytest.mark.parametrize("to", ["gptq", "awq"])
def test_without_gptqmodel_its_forms_are_refused_with_the_way_to_it(to: str, llama: Path, tmp_path: Path):
    if module.installed("gptqmodel"):
        pytest.skip("here it is installed")
    with pytest.raises(BackendUnavailable, match="gptqmodel") as caught:
        quantise(llama, tmp_path / to, to)
    assert "make gptq" in caught.value.remedy
