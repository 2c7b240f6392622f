import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from time import sleep

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from adapters.language_model.transformers.config import Config  # noqa: E402
from adapters.language_model.transformers.experts import ExpertAdapters, needs_unmerged  # noqa: E402
from domain.residency import Place  # noqa: E402
from domain.routing import Expert, KnowledgeKind  # noqa: E402
from tests import checkpoints  # noqa: E402
from tests.gguf_files import lora  # noqa: E402

pytestmark = pytest.mark.model

SHAPES = {
    f"blk.{layer}.{name}.weight": shape
    for layer in range(2)
    for name, shape in (("attn_q", (32, 32)), ("ffn_down", (64, 32)))
}
TOKENS = torch.tensor([[5, 9, 17, 30, 41]])


@dataclass
class Plugged:
    """Experts in a list: the port without folders."""

    experts: dict[str, Expert] = field(default_factory=dict)

    def all(self) -> tuple[Expert, ...]:
        return tuple(self.experts.values())

    def refused(self) -> Mapping[str, str]:
        return {}

    def plug(self, folder: Path | None, name: str, **more: object) -> None:
        plain = Expert(name, name.upper(), name, KnowledgeKind.FACT, (0.3, 0.5), adapter=folder)
        self.experts[name] = replace(plain, **more)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.llama(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def model(folder: Path) -> object:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def plugged(tmp_path: Path) -> Plugged:
    """Three experts with different adapters, and one that has none."""
    experts = Plugged()
    for number, name in enumerate(("acgn", "culture", "logic")):
        experts.plug(made(tmp_path / name, seed=number), name)
    experts.plug(None, "style")
    return experts


def made(folder: Path, *, seed: int, scale: float = 0.5) -> Path:
    def redraw(tensors: dict[str, np.ndarray]) -> None:
        draw = np.random.default_rng(seed)
        for name, numbers in tensors.items():
            size = scale if "lora_B" in name else 1.0
            tensors[name] = (size * draw.standard_normal(numbers.shape)).astype(np.float32)

    return lora(folder, SHAPES, dtype="F32", change=redraw)


def settings(folder: Path, **more: object) -> Config:
    return Config(model=str(folder), adapter=None, **more)


def logits(model: object) -> torch.Tensor:
    with torch.inference_mode():
        return model(TOKENS, use_cache=False).logits[0]


def settled(adapters: ExpertAdapters) -> None:
    """Wait until everything is read that was to be read ahead."""
    adapters._thread.submit(lambda: None).result()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # peft 0.21 asks by the old name
@pytest.mark.parametrize("persona", [False, True])
def test_an_expert_answers_as_peft_would_let_it(
    folder: Path, model: object, plugged: Plugged, tmp_path: Path, persona: bool
) -> None:
    peft = pytest.importorskip("peft")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "culture")).eval()
    if persona:
        model = peft.PeftModel.from_pretrained(model, str(made(tmp_path / "persona", seed=9)), adapter_name="persona")
    before = logits(model)
    adapters = ExpertAdapters(model, plugged, settings(folder))
    key = adapters.activate("culture")
    assert key.startswith("culture@")
    assert len(key) == len("culture@") + 12
    assert torch.allclose(logits(model), logits(theirs), atol=1e-4)
    assert not torch.allclose(logits(model), before, atol=1e-2)
    assert adapters.activate("acgn") != key
    assert adapters.activate("base") == "base"
    assert torch.equal(logits(model), before)
    assert adapters.refused() == {}


def test_an_expert_without_an_adapter_is_the_base(folder: Path, model: object, plugged: Plugged) -> None:
    before = logits(model)
    adapters = ExpertAdapters(model, plugged, settings(folder))
    for name in ("style", "unheard-of", "base"):
        assert adapters.activate(name) == "base"
        assert torch.equal(logits(model), before)


def test_adapters_that_come_back_answer_bit_for_bit_the_same(folder: Path, model: object, plugged: Plugged) -> None:
    adapters = ExpertAdapters(model, plugged, settings(folder, expert_slots=1, expert_megabytes=0))
    first = {}
    for name in ("acgn", "culture", "logic", "base") * 3:
        key = adapters.activate(name)
        expected_key, expected = first.setdefault(name, (key, logits(model)))
        assert key == expected_key
        assert torch.equal(logits(model), expected)
    assert (adapters.counts.misses, adapters.counts.hits, adapters.counts.warm) == (9, 0, 0)
    assert adapters.stalled > 0


def test_device_and_memory_hold_what_they_can(folder: Path, model: object, plugged: Plugged) -> None:
    adapters = ExpertAdapters(model, plugged, settings(folder, expert_slots=1, expert_megabytes=1))
    for name in ("acgn", "culture", "acgn", "base", "acgn"):
        adapters.activate(name)
        assert len(adapters._device) <= 1
    assert (adapters.counts.misses, adapters.counts.warm, adapters.counts.hits) == (2, 1, 1)


def test_the_pinned_expert_stays_on_the_device(folder: Path, model: object, plugged: Plugged, tmp_path: Path) -> None:
    plugged.plug(tmp_path / "acgn", "acgn", pinned=True)
    adapters = ExpertAdapters(model, plugged, settings(folder, expert_slots=2, expert_megabytes=0))
    for name in ("acgn", *("culture", "logic") * 5, "acgn"):
        adapters.activate(name)
    assert adapters.counts.hits == 1


def test_what_is_likely_next_is_read_ahead(folder: Path, model: object, plugged: Plugged) -> None:
    adapters = ExpertAdapters(model, plugged, settings(folder))
    adapters.anticipate({"culture": 0.8, "acgn": 0.1, "base": 0.1})
    settled(adapters)
    assert adapters.counts.fetched == 1
    adapters.activate("culture")
    assert (adapters.counts.warm, adapters.counts.misses, adapters.counts.wasted) == (1, 0, 0)


def test_who_followed_before_is_read_ahead_without_a_word_of_the_router(
    folder: Path, model: object, plugged: Plugged
) -> None:
    adapters = ExpertAdapters(model, plugged, settings(folder, expert_slots=1, expert_megabytes=1))
    for name in ("base", "logic") * 4:
        adapters.activate(name)
    adapters.activate("acgn")
    adapters.activate("base")
    adapters._places = adapters._places.forget(next(iter(adapters._ram)))
    adapters._ram.clear()
    adapters.anticipate({"base": 1.0})
    settled(adapters)
    assert [read.key.partition("@")[0] for read in adapters._ram.values()] == ["logic"]


def test_a_better_prediction_stops_a_load_in_flight(folder: Path, model: object, plugged: Plugged) -> None:
    adapters = ExpertAdapters(model, plugged, settings(folder))
    begun, go_on = Event(), Event()
    read = adapters._read

    def paused(*parts: object) -> object:
        begun.set()
        assert go_on.wait(10)
        return read(*parts)

    adapters._read = paused
    adapters.anticipate({"culture": 0.9, "base": 0.1})
    assert begun.wait(10)
    adapters.anticipate({"logic": 0.9, "base": 0.1})
    go_on.set()
    settled(adapters)
    settled(adapters)
    assert [read.key.partition("@")[0] for read in adapters._ram.values()] == ["logic"]
    assert adapters.counts.fetched == 1


def test_whoever_needs_an_adapter_now_does_not_wait_for_what_is_read_ahead(
    folder: Path, model: object, plugged: Plugged
) -> None:
    adapters = ExpertAdapters(model, plugged, settings(folder))
    begun, read = Event(), adapters._read

    def slow(source: object, stopped: Callable[[], bool]) -> object:
        begun.set()
        while source.expert == "culture" and not stopped():
            sleep(0.001)
        return read(source, stopped)

    adapters._read = slow
    adapters.anticipate({"culture": 0.9, "base": 0.1})
    assert begun.wait(10)
    assert adapters.activate("logic").startswith("logic@")
    assert adapters.counts.fetched == 0


def test_anticipating_never_blocks(folder: Path, model: object, plugged: Plugged) -> None:
    adapters = ExpertAdapters(model, plugged, settings(folder))
    go_on = Event()
    busy = adapters._thread.submit(go_on.wait, 10)
    for _ in range(100):
        adapters.anticipate({"culture": 0.9, "base": 0.1})
    assert not busy.done()
    go_on.set()
    settled(adapters)
    assert adapters.counts.fetched == 1
    adapters.close()
    adapters.anticipate({"logic": 0.9})


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.5), ("fp16", 0.1), ("int8", 0.5)])
def test_every_expert_keeps_its_own_precision(
    folder: Path, model: object, plugged: Plugged, tmp_path: Path, precision: str, tolerance: float
) -> None:
    adapters = ExpertAdapters(model, plugged, settings(folder))
    adapters.activate("culture")
    exact = logits(model)
    plugged.plug(tmp_path / "culture", "culture", precision=precision)
    assert adapters.activate("culture").endswith(f".{precision}")
    assert torch.allclose(logits(model), exact, atol=tolerance)
    assert torch.equal(logits(model), exact) == (precision == "fp32")
    kept = next(read for read, _ in adapters._device.values() if read.key.endswith(precision))
    bytes_each = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}[precision]
    assert {half.numbers.itemsize for halves in kept.pairs.values() for half in halves} == {bytes_each}


def test_plugging_and_unplugging_takes_effect_at_the_next_switch(
    folder: Path, model: object, plugged: Plugged, tmp_path: Path
) -> None:
    before = logits(model)
    adapters = ExpertAdapters(model, plugged, settings(folder))
    plugged.plug(made(tmp_path / "vision", seed=7), "vision")
    key = adapters.activate("vision")
    assert key.startswith("vision@")
    made(tmp_path / "vision", seed=8)
    assert adapters.activate("vision").startswith("vision@")
    assert adapters.activate("vision") != key
    assert len(adapters._device) == 1
    del plugged.experts["vision"]
    assert adapters.activate("vision") == "base"
    assert torch.equal(logits(model), before)
    assert not adapters._device


@pytest.mark.parametrize(
    ("breakage", "reason"),
    [
        ("rank", "shapes do not fit"),
        ("nan", "not finite"),
        ("pickle", "pickled"),
        ("cut", "cut short"),
        ("gone", "no file"),
        ("base", "for the model 'starter'"),
        ("precision", "not kept in nf4"),
    ],
)
def test_a_broken_adapter_leaves_the_base_to_answer_and_says_why(
    folder: Path, model: object, plugged: Plugged, tmp_path: Path, breakage: str, reason: str
) -> None:
    broken, before = tmp_path / "culture", logits(model)
    weights, config = broken / "adapter_model.safetensors", broken / "adapter_config.json"
    match breakage:
        case "rank":
            config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 8}))
        case "nan":
            lora(broken, SHAPES, dtype="F32", change=lambda tensors: next(iter(tensors.values())).fill(np.nan))
        case "pickle":
            weights.rename(broken / "adapter_model.bin")
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-9])
        case "gone":
            weights.unlink()
        case "base":
            plugged.plug(broken, "culture", base="starter")
        case "precision":
            plugged.plug(broken, "culture", precision="nf4")
    adapters = ExpertAdapters(model, plugged, settings(folder))
    adapters.activate("acgn")
    adapters.anticipate({"culture": 0.9})
    settled(adapters)
    for _ in range(2):
        assert adapters.activate("culture") == "base"
        assert torch.equal(logits(model), before)
    assert reason in adapters.refused()["culture"]
    assert adapters.activate("acgn").startswith("acgn@")
    assert adapters.refused().keys() == {"culture"}
    plugged.plug(made(broken, seed=1), "culture")
    assert adapters.activate("culture").startswith("culture@")
    assert adapters.refused() == {}


def test_an_adapter_that_makes_numbers_overflow_is_refused(
    folder: Path, model: object, plugged: Plugged, tmp_path: Path
) -> None:
    made(tmp_path / "culture", seed=1, scale=1e37)
    adapters = ExpertAdapters(model, plugged, settings(folder))
    adapters.anticipate({"culture": 0.9})
    settled(adapters)
    assert adapters._ram
    assert adapters.activate("culture") == "base"
    assert "NaN" in adapters.refused()["culture"]
    assert not adapters._ram


def test_weights_that_went_bad_in_memory_are_read_again(folder: Path, model: object, plugged: Plugged) -> None:
    adapters = ExpertAdapters(model, plugged, settings(folder, expert_slots=1, expert_megabytes=1))
    adapters.activate("culture")
    healthy = logits(model)
    adapters.activate("acgn")
    read = next(iter(adapters._ram.values()))
    read.pairs["model.layers.1.self_attn.q_proj"][1].numbers[0, 0] = 1e4
    assert adapters.activate("culture") == read.key
    assert torch.equal(logits(model), healthy)
    assert adapters.refused() == {}
    assert adapters.counts.misses == 3


def test_weights_that_stay_bad_are_refused(folder: Path, model: object, plugged: Plugged) -> None:
    adapters = ExpertAdapters(model, plugged, settings(folder, expert_slots=1, expert_megabytes=0))
    key, before = adapters.activate("culture"), logits(model)
    adapters.activate("acgn")
    adapters._first_logits[key] = adapters._first_logits[key] + 10
    assert adapters.activate("culture") == "base"
    assert "answers otherwise" in adapters.refused()["culture"]
    assert not torch.equal(logits(model), before)
    assert adapters._places.where(next(iter(adapters._device))) is Place.DEVICE


def test_the_persona_is_kept_apart_only_where_an_expert_brings_an_adapter(plugged: Plugged) -> None:
    assert needs_unmerged(plugged)
    assert not needs_unmerged(None)
    assert not needs_unmerged(Plugged({"style": plugged.experts["style"]}))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8_weight_only", "int8", "int8_dynamic"])
def test_one_adapter_serves_a_base_in_any_precision(
    folder: Path, model: object, plugged: Plugged, precision: str
) -> None:
    from adapters.language_model.transformers.loading import load

    exact = ExpertAdapters(model, plugged, settings(folder))
    before = logits(model)
    exact.activate("culture")
    wanted = logits(model) - before
    held = load(settings(folder, precision=precision, threads=1), merge=False).model
    adapters = ExpertAdapters(held, plugged, settings(folder))
    bare = logits(held)
    assert adapters.activate("culture").startswith("culture@"), adapters.refused()
    changed = (logits(held) - bare).float()
    assert torch.nn.functional.cosine_similarity(changed.flatten(), wanted.flatten(), dim=0) > 0.8
    assert adapters.activate("base") == "base"
    assert torch.equal(logits(held), bare)
