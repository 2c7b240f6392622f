"""What can be read off the user's words without a model: so far, the user's name."""

import re

# Precision comes before recall: a wrong name hurts more than a question asked twice. So a name counts only where it
# fills its clause, but for a particle, and 我是… is left alone: nothing tells 我是阿杰 from 我是护士.
_NAME = r"\s*(?P<name>[\u4e00-\u9fff]{1,4}?|[A-Za-z][A-Za-z0-9_'-]{0,19})"
_END = r"(?:就好|就行|就可以|就成|好了|[吧啦哦喔呀哈啊～~])*(?=$|[\s，。、！？；…,.!?;（(]|今[年天]|来自|是)"
# 我叫小明, 我的名字是小明
_I_AM_CALLED = re.compile(rf"(?<!如果|假如|要是|以为)(?:我的?[大本全小网]?名字?(?:是|叫)|我名?叫做?){_NAME}{_END}")
# 叫我小明就好, 你可以叫我小明; but neither 别叫我小明 nor 老板叫我加班
_CALL_ME = re.compile(
    r"(?:^|[\s，。、！？；…,.!?;]|(?<!什么)[你您]|请|就|(?<!不)可以|以后|还是|直接)叫我" + _NAME + _END
)
# 大家都叫我老王, 都叫我糖糖; but not 大家都叫我放弃: only what has the form of a pet name
_ALL_CALL_ME = re.compile(
    r"(?:大家|都)叫我\s*(?P<name>[小阿老大胖瘦黑白][\u4e00-\u9fff]{1,2}?|([\u4e00-\u9fff])\2|[A-Z][A-Za-z]{1,19})"
    + _END
)
# Questions, pronouns, people and services that one calls: 我叫什么, 我叫他来, 我叫了外卖, 我叫滴滴
_NO_NAME = re.compile(
    r".*[我你您他她它咱谁啥么吗呢的了]|[吧啦哦喔呀哈啊嘛好到得车人菜酒饭]$|[哪怎不没别过着]|一[下声句次起]|名字|大家|人家|老[板师]$"
    r"|[爸妈爷奶哥姐弟妹叔姨警保客]|师傅|司机|朋友|同[学事]|[室舍]友|邻居|医生|护士|服务|房东"
    r"|外卖|快递|滴滴|网约|出租|代驾|救护|奶茶|火锅|..+[帮带拿送买做吃喝陪接给]|..+(?<!未)[来去]$"
)
# What follows 叫我 in an order: 叫我起床; a doubled character is a pet name all the same: 多多, but not 等等
_ORDER = re.compile(
    r"(看看|听听|想想|等等|说说|试试|走走|坐坐|歇歇|好好|慢慢|小心|小声|小点|大声|大胆|老实|放心|冷静|快点|早点|如何|闭嘴)"
    r"|(?!(.)\2$)[起吃睡加回去来滚干说做等背写看听买拿送帮给把上下出进学跑喝玩站坐接交赶赔再先也还在到跟和陪洗开关打走有]"
)

_LATIN_END = r"(?=\s*(?:$|[^\sA-Za-z0-9'’-]|(?:and|but|from|please|plz)\b))"
_MY_NAME_IS = re.compile(
    r"(?i:\bmy name(?:['’]s| is))\s+(?P<name>[A-Za-z][A-Za-z'’-]*(?: [A-Z][A-Za-z'’-]+){0,2}|[\u4e00-\u9fff]{2,4})"
    + _LATIN_END
)
# I'm Kevin, call me Kevin: the capital tells a name from a mood; but not "don't call me Kevin"
_I_AM = re.compile(
    r"(?<!n't |n’t |ont |not )(?<!never )\b(?i:call me|i['’]?m|i am)\s+"
    r"(?P<name>[A-Z][a-z'’-][A-Za-z'’-]*(?: [A-Z][A-Za-z'’-]+){0,2})" + _LATIN_END
)
_NO_LATIN_NAME = re.compile(
    r"(?:a|the|not?|on|in|so|too|very|hard|long|short|secret|important|unknown|what|ok|okay|fine|sorry"
    r"|chinese|japanese|korean|taiwanese|asian|indian|american|canadian|british|english|irish|australian|european"
    r"|french|german|italian|russian|spanish|muslim|christian|catholic|buddhist|jewish|(?:mon|tues|wednes|thurs)day"
    r"|(?:fri|satur|sun)day)\b",
    re.IGNORECASE,
)


def told_name(words: str) -> str | None:
    """Return the name by which the user asks to be called in these words, verbatim, or None."""
    for frame in (_CALL_ME, _ALL_CALL_ME, _I_AM_CALLED, _MY_NAME_IS, _I_AM):
        for match in frame.finditer(words):
            name = match["name"]
            ordered = frame in (_CALL_ME, _ALL_CALL_ME) and _ORDER.match(name)
            if not (ordered or _NO_NAME.match(name) or _NO_LATIN_NAME.match(name)):
                return name
    return None
