import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from entrypoints.cli.models_quantize import quantize
from tests.quantisable import trained

pytestmark = pytest.mark.model

app = typer.Typer()
app.command()(quantize)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZISHU_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_says_what_was_written_what_it_costs_and_how_to_choose_it(tmp_path: Path, cache: Path):
    folder = trained(tmp_path / "tiny", steps=20)
    said = CliRunner().invoke(app, [str(folder), "--to", "int8"])
    target = cache / "quantised" / "tiny-int8"
    assert said.exit_code == 0, said.output
    assert "nats a token" in said.stdout
    assert f'[language_model.transformers] model = "{target}"' in said.stdout
    assert (target / "quantised.json").is_file()


def test_programs_get_json_and_nothing_else(tmp_path: Path, cache: Path):
    folder = trained(tmp_path / "tiny", steps=20)
    said = CliRunner().invoke(app, [str(folder), "--to", "gguf", "--out", str(tmp_path / "tiny.gguf"), "--json"])
    fields = json.loads(said.stdout)
    assert fields["to"] == "gguf-q8_0"
    assert fields["fidelity"]["kl"] < 0.02
    assert fields["next"] == f'[language_model.llama_cpp] model = "{tmp_path / "tiny.gguf"}"'
