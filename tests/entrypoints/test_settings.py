import re
import tomllib
from pathlib import Path

import pytest

from adapters import plugins
from domain.errors import BadConfiguration
from entrypoints.choices import PORTS, choose
from entrypoints.settings import Settings, load_settings

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without settings, and nobody's settings at home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def test_flags_win_over_variables_over_the_local_file_over_the_users_file(alone: Path, monkeypatch: pytest.MonkeyPatch):
    home = alone / "config" / "zishu" / "zishu.toml"
    home.parent.mkdir(parents=True)
    home.write_text('user = "home"\ncharacter = "home"\nlanguage = "en"\n[prompt]\nexamples = 5\n')
    (alone / "zishu.toml").write_text('user = "local-file"\ncharacter = "local-file"\n[prompt]\nhistory_tokens = 7\n')
    monkeypatch.setenv("ZISHU_USER", "variable")
    settings = load_settings(user="flag")
    assert (settings.user, settings.character, settings.language) == ("flag", "local-file", "en")
    assert (settings.prompt.examples, settings.prompt.history_tokens) == (5, 7)
    assert load_settings().user == "variable"


def test_changing_the_model_is_one_line(alone: Path):
    (alone / "zishu.toml").write_text('[language_model]\nuse = "scripted"\n')
    assert load_settings().language_model.use == "scripted"


def test_a_variable_reaches_into_a_backends_table(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ZISHU_LANGUAGE_MODEL__LLAMA_CPP__THREADS", "2")
    assert load_settings().language_model.table("llama_cpp") == {"threads": "2"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("usr = 'x'", "usr"),
        ("[prompt]\nexample = 2", "prompt.example"),
        ("[sampling]\ntemperature = 9", "sampling.temperature"),
        ("[database]\nurl = 'mysql://x'", "database.url"),
        ("character = '../../etc/passwd'", "character"),
        ("this is not toml", "cannot be read"),
    ],
)
def test_a_wrong_setting_is_named_with_a_remedy(alone: Path, text: str, named: str):
    (alone / "zishu.toml").write_text(text)
    with pytest.raises(BadConfiguration, match=re.escape(named)) as caught:
        load_settings()
    assert "zishu.toml" in caught.value.remedy


def test_a_key_beside_use_is_refused_with_its_place():
    settings = load_settings(language_model={"use": "llama_cpp", "threads": 2})
    with pytest.raises(BadConfiguration, match="threads"):
        settings.language_model.table("llama_cpp")


def test_a_table_of_any_port_needs_no_word_of_which_backend_is_used():
    for port in PORTS:
        settings = load_settings(**{port: {"scripted": {}}})
        assert choose(port, getattr(settings, port).use).name in plugins.names(port)


def test_the_page_names_every_key_and_its_examples_are_valid():
    text = PAGE.read_text(encoding="utf-8")
    for key in Settings.model_fields:
        assert f"| `{key}` |" in text, key
    for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL):
        Settings(**tomllib.loads(block))


def test_a_password_in_the_database_url_is_never_shown():
    assert "secret" not in repr(load_settings(database={"url": "postgresql://me:secret@host/zishu"}))
    with pytest.raises(BadConfiguration) as caught:
        load_settings(database={"url": "oops://me:secret@host/zishu"})
    assert "secret" not in str(caught.value)
