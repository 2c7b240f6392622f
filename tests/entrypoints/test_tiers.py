from pathlib import Path

import pytest

from adapters import plugins
from entrypoints.settings import load_settings
from entrypoints.tiers import TIERS, keys
from entrypoints.tiers.fit import Machine, fits

GIB = 1024**3


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without settings, and nobody's settings at home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.mark.parametrize("tier", TIERS)
def test_a_tier_sets_only_what_the_settings_and_its_backend_know(tier: str) -> None:
    settings = load_settings(tier=tier)
    use = settings.language_model.use
    if use != "auto":
        plugins.load("language_model", use).Config(**settings.language_model.table(use))
    assert settings.prompt.volatile_tokens == keys(tier)["prompt"]["volatile_tokens"]


def test_the_smallest_tier_changes_nothing() -> None:
    assert load_settings(tier="cpu") == load_settings()


def test_what_the_user_sets_wins_over_the_tier(tmp_path: Path) -> None:
    (tmp_path / "zishu.toml").write_text(
        'tier = "12gb"\n[prompt]\nexamples = 1\n[language_model.transformers]\nprecision = "nf4"\n'
    )
    settings = load_settings()
    table = settings.language_model.table("transformers")
    assert (settings.prompt.examples, settings.prompt.volatile_tokens) == (1, 1200)
    assert (table["precision"], table["model"]) == ("nf4", "chinese-mistral-7b")


def test_changing_the_tier_is_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZISHU_TIER", "6gb")
    assert load_settings().language_model.table("transformers")["model"] == "chinese-llama-2-1.3b"


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [(0, {"cpu"}), (6, {"cpu", "6gb"}), (12, {"cpu", "6gb", "12gb"}), (24, {"cpu", "6gb", "12gb", "24gb"})],
)
def test_a_card_of_its_size_is_enough_for_a_tier(gpu: int, expected: set[str]) -> None:
    assert {fit.tier for fit in fits(Machine(16 * GIB, gpu * GIB)) if fit.fits} == expected


def test_without_memory_nothing_fits() -> None:
    assert not any(fit.fits for fit in fits(Machine(GIB // 2, 24 * GIB)))


def test_a_tier_is_estimated_part_by_part() -> None:
    for fit in fits(Machine(0, 0)):
        assert fit.model_bytes == sum(fit.model_parts.values())
        assert all(size > 0 for size in fit.model_parts.values()), fit
