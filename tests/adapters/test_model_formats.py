import pickle
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.models.formats import read_gguf, refuse_pickle
from domain.errors import BadConfiguration
from tests.gguf_files import tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


def changed(model: Path, folder: Path, before: bytes, after: bytes) -> Path:
    content = model.read_bytes()
    assert content.count(before) == 1
    copy = folder / "changed.gguf"
    copy.write_bytes(content.replace(before, after))
    return copy


def number_after(key: bytes, model: Path) -> bytes:
    """Return a key and its 32-bit value as they stand in the file."""
    content = model.read_bytes()
    start = content.index(key)
    return content[start : start + len(key) + 8]


def test_the_header_of_a_model_tells_what_it_is(model: Path) -> None:
    header = read_gguf(model)
    assert header.architecture == "llama"
    assert header.layers == 2
    assert header.shapes["blk.1.ffn_down.weight"] == (64, 32)
    assert header.special_tokens == ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.PTH", "last.ckpt", "weights.pkl"])
def test_weights_with_the_name_of_a_pickle_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(BadConfiguration, match=r"safetensors or \.gguf"):
        refuse_pickle(tmp_path / name)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_under_another_name_is_refused(tmp_path: Path, protocol: int) -> None:
    disguised = tmp_path / "model.gguf"
    disguised.write_bytes(pickle.dumps({"weights": [1.0]}, protocol))
    with pytest.raises(BadConfiguration, match="pickled"):
        read_gguf(disguised)


def test_what_torch_saves_is_refused_under_any_name(tmp_path: Path) -> None:
    disguised = tmp_path / "model.safetensors"
    with zipfile.ZipFile(disguised, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(BadConfiguration, match="pickled"):
        refuse_pickle(disguised)


@pytest.mark.parametrize("content", [b"", b"GG", b"<!DOCTYPE html>", b"\x10\0\0\0\0\0\0\0{}"])
def test_what_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(BadConfiguration, match="no GGUF"):
        read_gguf(tmp_path / "model.gguf")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match=r"no file .*absent\.gguf"):
        read_gguf(tmp_path / "absent.gguf")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_model_that_is_cut_short_anywhere_is_refused(model: Path, tmp_path: Path, share: float) -> None:
    content = model.read_bytes()
    (tmp_path / "short.gguf").write_bytes(content[: 4 + int(share * (len(content) - 4))])
    with pytest.raises(BadConfiguration, match="cut short or corrupt"):
        read_gguf(tmp_path / "short.gguf")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(4, 6000), junk=st.binary(min_size=1, max_size=16))
def test_a_damaged_header_is_read_or_refused_but_never_anything_else(
    model: Path, tmp_path: Path, place: int, junk: bytes
) -> None:
    content = bytearray(model.read_bytes())
    content[place : place + len(junk)] = junk
    (tmp_path / "damaged.gguf").write_bytes(content)
    try:
        read_gguf(tmp_path / "damaged.gguf")
    except BadConfiguration as error:
        assert "corrupt" in error.problem


def test_a_model_from_the_future_is_refused(model: Path, tmp_path: Path) -> None:
    start = model.read_bytes()[:8]
    with pytest.raises(BadConfiguration, match="version 9"):
        read_gguf(changed(model, tmp_path, start, start[:4] + struct.pack("<I", 9)))


def test_a_number_of_layers_that_would_stop_the_program_is_refused(model: Path, tmp_path: Path) -> None:
    written = number_after(b"llama.block_count", model)
    with pytest.raises(BadConfiguration, match="1000000 layers and has 2"):
        read_gguf(changed(model, tmp_path, written, written[:-4] + struct.pack("<I", 1_000_000)))


def test_a_tensor_beyond_the_end_is_refused(model: Path, tmp_path: Path) -> None:
    content = model.read_bytes()
    (tmp_path / "short.gguf").write_bytes(content[:-64])
    with pytest.raises(BadConfiguration, match=r"tensor \S+ ends at byte"):
        read_gguf(tmp_path / "short.gguf")
