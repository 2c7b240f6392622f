import json
import struct
from pathlib import Path

import numpy as np
import pytest

from adapters.models.lora import SETTINGS, WEIGHTS, Abandoned, Base, check_adapter, model_names, read_adapter
from domain.errors import BackendUnavailable, BadConfiguration
from tests.gguf_files import lora

SHAPES = {
    f"blk.{layer}.{name}.weight": shape
    for layer in range(2)
    for name, shape in (("attn_q", (16, 24)), ("ffn_down", (32, 16)))
}
BASE = Base(
    frozenset({"starter", "google/gemma-3-270m"}),
    {
        f"model.layers.{layer}.{name}": shape
        for layer in range(2)
        for name, shape in (("self_attn.q_proj", (16, 24)), ("mlp.down_proj", (32, 16)), ("mlp.up_proj", (16, 32)))
    },
    vocabulary=512,
)


def table_of(folder: Path) -> tuple[dict, bytes]:
    content = (folder / WEIGHTS).read_bytes()
    (size,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def write(folder: Path, table: dict, data: bytes) -> Path:
    header = json.dumps(table).encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + data)
    return folder


def with_settings(folder: Path, **changed: object) -> Path:
    settings = json.loads((folder / SETTINGS).read_text()) | changed
    (folder / SETTINGS).write_text(json.dumps(settings))
    return folder


def test_a_card_says_what_an_adapter_is(tmp_path: Path) -> None:
    folder = with_settings(lora(tmp_path / "lora", SHAPES), base_model_name_or_path="google/gemma-3-270m")
    card = check_adapter(folder, BASE, trained_on="starter")
    assert (card.rank, card.scale, card.base) == (4, 2.0, "google/gemma-3-270m")
    assert card.size == 2 * (2 * 4 * (16 + 24) + 2 * 4 * (32 + 16))
    assert check_adapter(folder, BASE).fingerprint == card.fingerprint
    assert check_adapter(with_settings(folder, lora_alpha=16), BASE).fingerprint != card.fingerprint


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
def test_the_numbers_are_those_of_the_file(tmp_path: Path, kind: str) -> None:
    kept: dict[str, np.ndarray] = {}
    adapter = read_adapter(lora(tmp_path / "lora", SHAPES, dtype=kind, change=kept.update), BASE)
    assert adapter.pairs.keys() == {name for name in BASE.shapes if "up_proj" not in name}
    for layer, halves in adapter.pairs.items():
        for letter, half in zip("AB", halves, strict=True):
            original = kept[f"base_model.model.{layer}.lora_{letter}.weight"]
            assert np.allclose(half.numbers(), original, rtol=0.01, atol=0.001)


def test_an_adapter_may_change_some_layers_only(tmp_path: Path) -> None:
    def second(tensors: dict) -> None:
        for name in [name for name in tensors if "layers.0." in name]:
            del tensors[name]

    folder = lora(tmp_path / "lora", SHAPES, change=second)
    with pytest.raises(BadConfiguration, match="should change 4 layers and changes 2"):
        check_adapter(folder, BASE)
    assert check_adapter(with_settings(folder, layers_to_transform=[1]), BASE).rank == 4


@pytest.mark.parametrize(
    ("changed", "trained_on", "reason"),
    [
        ({"base_model_name_or_path": "Qwen/Qwen3-0.6B"}, "", r"trained on Qwen/Qwen3-0\.6B, and gemma-3-270m is"),
        ({}, "chinese-mistral-7b", "for the model 'chinese-mistral-7b'"),
        ({"r": 8}, "", "shapes do not fit"),
        ({"r": 0}, "", "cannot be used"),
        ({"lora_alpha": "much"}, "", "cannot be used"),
        ({"lora_alpha": float("inf")}, "", "scale is inf"),
        ({"fan_in_fan_out": True}, "", "fan_in_fan_out"),
        ({"target_modules": ["q_proj"]}, "", "should change 2 layers and changes 4"),
        ({"target_modules": ["q_proj", "down_proj", "up_proj"]}, "", "should change 6 layers and changes 4"),
        ({"target_modules": ["query_key_value"]}, "", "no layer that is called query_key_value"),
        ({"peft_type": "LOHA"}, "", "no LoRA but LOHA"),
    ],
)
def test_an_adapter_of_something_else_is_refused(
    tmp_path: Path, changed: dict[str, object], trained_on: str, reason: str
) -> None:
    folder = with_settings(lora(tmp_path / "lora", SHAPES), **changed)
    with pytest.raises(BadConfiguration, match=reason) as refused:
        check_adapter(folder, BASE, trained_on=trained_on)
    assert refused.value.remedy


def test_the_folder_that_an_adapter_was_trained_from_may_have_moved(tmp_path: Path) -> None:
    folder = with_settings(lora(tmp_path / "lora", SHAPES), base_model_name_or_path="/home/mo/models/gemma")
    assert check_adapter(folder, BASE)


def test_an_adapter_for_another_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = lora(tmp_path / "lora", SHAPES)
    table, data = table_of(folder)
    assert check_adapter(write(folder, table | {"__metadata__": {"vocabulary": "512"}}, data), BASE)
    write(folder, table | {"__metadata__": {"vocabulary": "64000"}}, data)
    with pytest.raises(BadConfiguration, match="64,000 tokens, that of the model 512"):
        check_adapter(folder, BASE)


def test_an_adapter_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    folder = lora(tmp_path / "lora", SHAPES)
    wide, name = 1 << 38, "model.layers.0.mlp.up_proj"
    halves = {"A": (4, wide), "B": (16, 4)}
    table, start = {}, 0
    for letter, (rows, columns) in halves.items():
        end = start + 4 * rows * columns
        key = f"base_model.model.{name}.lora_{letter}.weight"
        table[key] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [start, end]}
        start = end
    write(folder, table, b"")
    with_settings(folder, target_modules=["up_proj"])
    with pytest.raises(BackendUnavailable, match=r"takes 4398\.0 GB;"):
        check_adapter(folder, Base(frozenset(), {name: (wide, 16)}))


@pytest.mark.parametrize("written", [b"\x80\x04old torch", b"PK\x03\x04torch"])
def test_pickled_weights_are_refused_by_content_and_by_name(tmp_path: Path, written: bytes) -> None:
    folder = lora(tmp_path / "lora", SHAPES)
    (folder / WEIGHTS).write_bytes(written)
    with pytest.raises(BadConfiguration, match="pickled"):
        check_adapter(folder, BASE)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(BadConfiguration, match=r"adapter_model\.bin holds pickled"):
        check_adapter(folder, BASE)


def test_a_table_that_lies_about_its_numbers_is_refused(tmp_path: Path) -> None:
    folder = lora(tmp_path / "lora", SHAPES)
    table, data = table_of(folder)
    entry = next(entry for name, entry in table.items() if name != "__metadata__")
    begin, end = entry["data_offsets"]
    for wrong in ([begin, end - 2], [end, begin], [begin - 10**6, end - 10**6], [begin + 10**6, end + 10**6]):
        with pytest.raises(BadConfiguration, match=r"bytes for|cut short"):
            check_adapter(write(folder, _placed(table, entry, wrong), data), BASE)
    for broken in ("[]", "null", '{"a": 1}', "{", '"text"'):
        header = broken.encode()
        (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(BadConfiguration, match="cannot be used"):
            check_adapter(folder, BASE)


def _placed(table: dict, entry: dict, offsets: list[int]) -> dict:
    return {name: one | {"data_offsets": offsets} if one is entry else one for name, one in table.items()}


@pytest.mark.parametrize("settings", [b"", b"{", b"[]", b"\xff", b"{}"])
def test_settings_that_are_none_are_refused(tmp_path: Path, settings: bytes) -> None:
    folder = lora(tmp_path / "lora", SHAPES)
    (folder / SETTINGS).write_bytes(settings)
    with pytest.raises(BadConfiguration, match="cannot be used"):
        check_adapter(folder, BASE)


def test_reading_ends_as_soon_as_nobody_wants_it(tmp_path: Path) -> None:
    folder = lora(tmp_path / "lora", SHAPES)
    with pytest.raises(Abandoned):
        read_adapter(folder, BASE, stopped=lambda: True)


def test_a_model_goes_by_its_name_its_profile_and_its_ids_on_hubs() -> None:
    assert model_names("starter") == {"starter", "google/gemma-3-270m"}
    assert {"qwen3-0.6b", "Qwen/Qwen3-0.6B"} <= model_names("Qwen/Qwen3-0.6B") & model_names("qwen3-0.6b")
    assert model_names("/models/mine.gguf") == {"/models/mine.gguf", "mine.gguf", "mine"}
