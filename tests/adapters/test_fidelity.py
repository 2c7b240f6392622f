import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adapters.models.fidelity import Fidelity, calibration, compare, fingerprint, keep, recall
from tests import checkpoints

MEASURED = Fidelity(0.01, 0.9, 50.0, 49.0, 1000)


class Table(nn.Module):
    """A model whose next token depends on the last one alone: a row of logits for each."""

    device = torch.device("cpu")

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self._rows = logits

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> "Table":
        self.logits = self._rows[input_ids]
        return self


class Letters:
    """A tokenizer of the letters a to d."""

    def __call__(self, text: str) -> "Letters":
        self.input_ids = [ord(letter) - ord("a") for letter in text]
        return self


tables = (
    st.lists(st.lists(st.floats(-4, 4), min_size=4, max_size=4), min_size=4, max_size=4).map(torch.tensor).map(Table)
)
texts = st.lists(st.text("abcd", min_size=2, max_size=6), min_size=1, max_size=3)


@given(tables, texts)
def test_a_model_does_not_stray_from_itself(model: Table, lines: list[str]):
    same = compare(model, model, Letters(), lines)
    assert same.kl == 0
    assert same.top1 == 1
    assert same.perplexity == same.reference_perplexity >= 1


@given(tables, tables, texts)
def test_divergence_is_never_negative_and_is_the_textbooks(reference: Table, model: Table, lines: list[str]):
    measured = compare(reference, model, Letters(), lines)
    p, q = reference._rows.double().softmax(-1), model._rows.double().softmax(-1)
    places = [ord(letter) - ord("a") for line in lines for letter in line]
    expected = sum(float((p[each] * (p[each] / q[each]).log()).sum()) for each in places) / len(places)
    assert measured.kl >= 0
    assert measured.kl == pytest.approx(expected, abs=1e-5)
    assert measured.tokens == len(places)


def test_perplexity_is_that_of_the_tokens_that_came():
    sure = Table(torch.full((4, 4), -20.0) + 20 * torch.eye(4).roll(1, 1))  # b follows a, c follows b, …
    assert compare(sure, sure, Letters(), ["abcd"]).perplexity == pytest.approx(1, abs=1e-4)
    blind = Table(torch.zeros(4, 4))
    assert compare(sure, blind, Letters(), ["abcd"]).perplexity == pytest.approx(4)
    assert compare(sure, blind, Letters(), ["abcd"]).kl == pytest.approx(math.log(4), abs=1e-4)


def test_the_text_is_varied_and_mostly_chinese():
    lines = calibration()
    assert 40 <= len(lines) <= 60
    assert len(set(lines)) == len(lines)
    assert sum(any("\u4e00" <= char <= "\u9fff" for char in line) for line in lines) >= 0.8 * len(lines)


def test_a_measurement_is_kept_for_its_weights_and_precision_alone(tmp_path: Path):
    assert recall(tmp_path, "a" * 64, "nf4") is None
    keep(tmp_path, "a" * 64, "nf4", MEASURED)
    assert recall(tmp_path, "a" * 64, "nf4") == MEASURED
    assert recall(tmp_path, "a" * 64, "int8") is None
    assert recall(tmp_path, "b" * 64, "nf4") is None


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path):
    (tmp_path / "fidelity").write_text("in the way")
    keep(tmp_path, "a" * 64, "nf4", MEASURED)
    assert recall(tmp_path, "a" * 64, "nf4") is None


@pytest.mark.model
def test_a_fingerprint_tells_weights_apart_and_not_where_they_lie(tmp_path: Path):
    first = checkpoints.llama(tmp_path / "first")
    moved = Path(shutil.copytree(first, tmp_path / "moved"))
    assert fingerprint(first) == fingerprint(moved)
    assert fingerprint(first) != fingerprint(checkpoints.llama(tmp_path / "other", seed=1))
