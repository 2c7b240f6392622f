from adapters.language_model.scripted import Config, build
from domain.ports import LanguageModel
from domain.prompt import Prompt, Sampling

PROMPT = Prompt("同学", "紫舒", "老师", "我有点累。")


async def said(model: LanguageModel, prompt: Prompt = PROMPT) -> str:
    return "".join([piece async for piece in model.generate(prompt, expert="base", sampling=Sampling())])


async def test_it_says_its_replies_in_turn_and_begins_again() -> None:
    model = build(Config(replies=("一。", "二。")))
    assert [await said(model) for _ in range(3)] == ["一。", "二。", "一。"]


async def test_without_replies_it_answers_like_the_most_similar_example() -> None:
    found = (("我好累呀。", "辛苦啦，先歇一会儿。"), ("我饿了。", "去吃饭吧。"))
    prompt = Prompt("同学", "紫舒", "老师", "我有点累。", found=found)
    assert await said(build(Config()), prompt) == "辛苦啦，先歇一会儿。"


async def test_with_nothing_to_go_by_it_still_has_a_kind_word() -> None:
    assert "我在听" in await said(build(Config()))
