import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.extraction import told_name


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("我叫小明，今天考试没考好。", "小明"),
        ("我叫林晚啦", "林晚"),
        ("我叫晴。", "晴"),
        ("我叫朵朵今年七岁", "朵朵"),
        ("我叫初音未来", "初音未来"),
        ("我叫Kevin！", "Kevin"),
        ("老师好 我叫陈一诺 上初二", "陈一诺"),
        ("我的名字是林小溪", "林小溪"),
        ("我小名叫糖糖，大名保密", "糖糖"),
        ("我不叫小明，我叫小红", "小红"),
        ("叫我糖糖就好", "糖糖"),
        ("考研二战，叫我思齐", "思齐"),
        ("你可以叫我Amy吧～", "Amy"),
        ("叫我多多", "多多"),
        ("大家都叫我老王", "老王"),
        ("大家叫我胖虎，我今天跑了三公里", "胖虎"),
        ("家里人都叫我桐桐", "桐桐"),
        ("我叫吴桐，叫我桐桐就行", "桐桐"),
        ("my name is Kevin", "Kevin"),
        ("my name is kevin and i like cats", "kevin"),
        ("My name’s Mary-Jane O'Neil.", "Mary-Jane O'Neil"),
        ("I'm Kevin", "Kevin"),
        ("Hi I'm Jack，今天面试通过了！", "Jack"),
        ("call me Lily plz", "Lily"),
    ],
)
def test_a_name_that_is_told_is_taken_as_it_was_told(words: str, name: str) -> None:
    assert told_name(words) == name


@pytest.mark.parametrize(
    "words",
    [
        "你还记得我叫什么吗", "我叫啥来着", "我的名字是什么", "我名字叫什么，还记得吗", "一百六十个。考考你，我叫什么",
        "我叫了外卖", "我叫滴滴", "我叫车了", "我叫他别走", "我叫朋友来", "我叫妈妈来接我", "我叫你呢",
        "输了我叫你一天大王", "叫我起床", "叫我一声", "老师你叫我一声听听", "他们没叫我，发了照片", "叫我吃饭",
        "老板叫我加班", "大家都叫我放弃", "妈妈叫我小心点", "老公开玩笑叫我气球", "别叫我小明",
        "客人都叫我老师，没人记得我", "不要叫我老王", "为什么你叫我小明", "如果我叫小明",
        "我是阿杰", "我是护士", "叫我", "我叫", "",
        "call me later", "Call me Monday.", "don't call me Kevin", "I'm fine", "I'm Chinese", "I'm INFP",
        "my name is not important", "what's my name?",
    ],
)  # fmt: skip
def test_what_is_no_telling_of_a_name_gives_none(words: str) -> None:
    assert told_name(words) is None


@given(
    st.text()
    | st.lists(st.sampled_from([*"我叫是的名字就好啦，。 ", "我叫", "叫我", "小明", "I'm ", "Kevin"])).map("".join)
)
def test_a_name_is_always_a_part_of_what_was_said(words: str) -> None:
    name = told_name(words)
    assert name is None or (name and name in words)


@given(
    st.text("林晚苏禾周述雨晴明月星河", min_size=1, max_size=3), st.sampled_from(["", "，", "。", "啦", "哦！", "～"])
)
def test_any_short_name_at_the_end_of_its_clause_is_heard(name: str, end: str) -> None:
    assert told_name(f"你好，我叫{name}{end}") == name
    assert told_name(f"叫我{name}就好{end}") == name
