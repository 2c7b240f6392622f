"""What the profiles say of each model holds: the numbers add up, and memory is what real models take."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.models.convert.templates import TEMPLATES
from adapters.models.footprint import (
    LINEAR_BYTES,
    adapter_parameters,
    cache_bytes,
    footprint,
)
from adapters.models.profiles import CONVERTERS, PACKAGED, TIERS, Profile, Shelf, read_profile
from domain.errors import BadConfiguration, NotFound
from domain.prompt import LAYOUTS
from tests.architectures import ARCHITECTURES, SHAPE, random_model

PROFILES = {profile.name: profile for profile in Shelf().all()}
each = pytest.mark.parametrize("name", PROFILES)
profiles = st.sampled_from(sorted(PROFILES)).map(PROFILES.__getitem__)
precisions = st.sampled_from(sorted(LINEAR_BYTES))


@pytest.mark.model
@each
def test_the_shape_of_a_profile_gives_its_number_of_parameters(name: str):
    """Built by transformers on the meta device, where a model of any size takes no memory."""
    from transformers import AutoModelForCausalLM

    profile = PROFILES[name]
    config = type(ARCHITECTURES[profile.family](100))(
        vocab_size=profile.vocabulary,
        hidden_size=profile.hidden,
        intermediate_size=profile.intermediate,
        num_hidden_layers=profile.layers,
        num_attention_heads=profile.heads,
        num_key_value_heads=profile.kv_heads,
        head_dim=profile.head_dim,
        tie_word_embeddings=profile.tied,
        pad_token_id=0,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    assert sum(parameter.numel() for parameter in model.parameters()) == profile.parameters


@each
def test_a_profile_is_complete_and_speaks_the_users_language(name: str):
    profile = PROFILES[name]
    assert re.search(r"[\u4e00-\u9fff]", profile.purpose)
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", profile.huggingface)
    assert not profile.modelscope or re.fullmatch(r"[\w.-]+/[\w.-]+", profile.modelscope)
    assert profile.licence
    assert profile.layout in {"chat", "baichuan2", *LAYOUTS, *TEMPLATES}
    assert profile.download_bytes >= profile.parameters // 2
    assert profile.tiers


def test_every_model_of_the_seed_has_a_profile():
    seed = {"chinese-mistral-7b", "chinese-llama-2-1.3b", "chatglm3-6b", "qwen-7b", "baichuan2-7b-chat",
            "deepseek-math-7b", "llava-1.5-7b", "starter"}  # fmt: skip
    assert seed <= PROFILES.keys()


def test_every_converter_is_needed_by_a_profile():
    assert {profile.converter for profile in PROFILES.values()} == {*CONVERTERS, None}


@pytest.mark.parametrize("tier", TIERS[1:])
def test_what_a_tier_recommends_fits_into_its_memory_in_some_precision(tier: str):
    room = int(tier.removesuffix("gb")) * 1024**3
    for profile in PROFILES.values():
        if tier in profile.tiers:
            assert footprint(profile, "nf4", 4096, adapters=2).total < room, profile.name


def test_a_figure_of_kl_stands_only_where_it_was_measured():
    """Nobody can have measured a model on this machine that does not fit into it."""
    assert [name for name, profile in PROFILES.items() if profile.kl] == ["starter"]


# Files


def written(folder: Path, change: str = "", without: str = "") -> Path:
    """Write a profile of the user after ours, with a line more or one less."""
    text = (PACKAGED / "qwen3-0.6b.toml").read_text(encoding="utf-8")
    text = "".join(line + "\n" for line in text.splitlines() if not (without and line.startswith(without + " =")))
    path = folder / "mine.toml"
    path.write_text(text + change + "\n", encoding="utf-8")
    return path


def test_a_profile_of_the_user_shadows_ours_by_name(tmp_path: Path):
    written(tmp_path).rename(tmp_path / "chatglm3-6b.toml")
    shelf = Shelf(tmp_path)
    assert shelf.load("chatglm3-6b").title == "Qwen3-0.6B"
    assert shelf.load("qwen-7b").title == "Qwen-7B-Chat"
    assert shelf.names() == Shelf().names()


def test_figures_of_the_user_are_read(tmp_path: Path):
    assert read_profile(written(tmp_path, "[kl]\nnf4 = 0.02")).kl == {"nf4": 0.02}


@pytest.mark.parametrize(
    ("change", "without", "named"),
    [
        ("color = 'red'", "", "color"),
        ("", "layers", "layers"),
        ("layers = 'many'", "layers", "layers"),
        ("layers = 0", "layers", "layers"),
        ("layers = 2.5", "layers", "layers"),
        ("tied = 1", "tied", "tied"),
        ("kv_heads = 5", "kv_heads", "heads"),
        ("loading = 'magic'", "loading", "magic"),
        ("tiers = ['9gb']", "tiers", "9gb"),
        ("tiers = 'cpu'", "tiers", "tiers"),
        ("tiers = [1]", "tiers", "tiers"),
        ("kl = 3", "", "kl"),
        ("[kl]\nnf4 = 'low'", "", "low"),
        ("name = 'other'", "", "name"),
        ("this is no toml", "", "mine.toml"),
    ],
)
def test_a_broken_profile_is_named_with_what_is_wrong(change: str, without: str, named: str, tmp_path: Path):
    path = written(tmp_path, change, without)
    with pytest.raises(BadConfiguration, match=named) as caught:
        read_profile(path)
    assert str(path) in caught.value.problem
    assert caught.value.remedy


def test_a_profile_that_is_not_there_is_answered_with_the_list():
    assert Shelf().find("gpt9") is None
    with pytest.raises(NotFound, match="gpt9") as caught:
        Shelf().load("gpt9")
    assert "qwen3-0.6b" in caught.value.remedy


# Memory


def tiny(family: str) -> tuple[Profile, torch.nn.Module]:
    """A tiny model and its profile."""
    model = random_model(ARCHITECTURES[family](600))
    config = model.config
    profile = replace(
        PROFILES["qwen3-0.6b"],
        family=family,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=SHAPE["num_hidden_layers"],
        hidden=SHAPE["hidden_size"],
        intermediate=SHAPE["intermediate_size"],
        heads=SHAPE["num_attention_heads"],
        kv_heads=SHAPE["num_key_value_heads"],
        head_dim=config.head_dim if getattr(config, "head_dim", None) else 8,
        vocabulary=600,
        tied=False,
    )
    return profile, model


@pytest.mark.model
@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize(("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_weights_and_cache_take_what_those_of_a_real_model_take(family: str, precision: str, kind: torch.dtype):
    from transformers import DynamicCache

    profile, model = tiny(family)
    model = model.to(kind)
    part = footprint(profile, precision, context_tokens=50, conversations=3)
    assert part.weights == sum(tensor.nbytes for tensor in model.state_dict().values())
    cache = DynamicCache()
    with torch.inference_mode():
        model(torch.randint(0, 600, (3, 50)), past_key_values=cache, use_cache=True)
    assert part.cache == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@pytest.mark.model
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21 asks for it
def test_adapters_take_what_those_of_peft_take():
    from peft import LoraConfig, get_peft_model

    profile, model = tiny("llama")
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = sum(parameter.numel() for name, parameter in adapted.named_parameters() if "lora_" in name)
    assert adapter_parameters(profile) == trained
    assert footprint(profile, "bf16", 50, adapters=3).adapters == 3 * 2 * trained


@pytest.mark.model
def test_quantised_weights_take_what_bitsandbytes_makes_of_them():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    weight = torch.randn(256, 512)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    nested = state.state2.absmax.nbytes + state.offset.nbytes
    taken = packed.nbytes + state.absmax.nbytes + nested
    assert taken == pytest.approx(LINEAR_BYTES["nf4"] * weight.numel(), rel=0.01)


@given(profile=profiles, precision=precisions, tokens=st.integers(1, 100_000), conversations=st.integers(1, 16))
def test_memory_grows_with_what_is_asked_for_and_its_parts_add_up(
    profile: Profile, precision: str, tokens: int, conversations: int
):
    one = footprint(profile, precision, tokens, conversations)
    assert one.total == one.weights + one.cache + one.adapters + one.activations + one.runtime
    assert footprint(profile, precision, tokens, conversations + 1).total > one.total
    assert footprint(profile, precision, tokens + 1, conversations).total > one.total
    assert footprint(profile, precision, tokens, conversations, adapters=1).total > one.total
    assert one.cache == conversations * cache_bytes(profile, precision, tokens)


@given(profile=profiles)
def test_a_smaller_precision_never_takes_more_memory_for_weights(profile: Profile):
    order = ("gguf", "nf4", "int8", "bf16", "fp32")
    weights = [footprint(profile, precision, 1024).weights for precision in order[1:]]
    assert weights == sorted(weights)
