"""Words of suicide and self-harm, answered with care and real help lines before any model speaks."""

import re
import unicodedata
from enum import StrEnum


class HelpLanguage(StrEnum):
    """The language to answer in."""

    CHINESE = "zh"
    ENGLISH = "en"


# Help lines were checked on 2026-11-23 against what their operators publish: 12356 (National Health Commission of
# China), Hope 24, the Samaritan Befrienders Hong Kong, 1925 (Ministry of Health and Welfare, Taiwan), 988, Samaritans
# UK and Ireland. No numbers in brackets: the voice leaves out what stands in brackets.
_HELP = {
    HelpLanguage.CHINESE: (
        "谢谢你愿意把这么重的话告诉我。不管痛苦的是你自己，还是你放心不下的人，我都不会评判，也不会走开。"
        "如果此刻有危险，请马上拨打 120 或 110，在香港打 999，在台湾打 119，再叫醒身边一个信得过的人来陪着。"
        "也请打给会好好听你说的人：全国统一心理援助热线 12356，希望24热线 400-161-9995；"
        "香港撒玛利亚防止自杀会 2389 2222；台湾安心专线 1925。"
        "打电话的时候，把能伤到人的东西放远一点，好吗？"
        "我是 AI，替代不了他们，但我会在这里陪你说话。要是我会错了意，跟我说一声就好。你现在安全吗？"
    ),
    HelpLanguage.ENGLISH: (
        "Thank you for telling me something this heavy. Whether it is you who is hurting or someone you care about, "
        "I am not judging, and I am not going away. "
        "If anyone is in danger right now, please call the emergency number: 911 in the US, 999 in the UK, "
        "112 in Europe, 120 or 110 in China; and wake someone you trust to stay with you. "
        "These people will listen: call or text 988 in the US, Samaritans at 116 123 in the UK and Ireland, "
        "12356 in China; elsewhere, findahelpline.com lists one near you. "
        "While you call, please put anything that could hurt out of reach. "
        "I am an AI and cannot replace them, but I am here to talk. If I misunderstood, just tell me. "
        "Are you safe right now?"
    ),
}


def help_text(language: HelpLanguage) -> str:
    """Return what she says, help lines included."""
    return _HELP[language]


# How the tables below are read: every line holds rules, "#" begins a comment, "…" is a short gap inside one sentence,
# "~" the rest of a word. Nothing repeats without a bound, so that a search takes time linear in the text.
_GAP_HAN, _GAP_LATIN, _REST_OF_WORD = r"[^。!?\n]{0,12}", r"[^.!?\n]{0,40}", r"[a-z]{0,9}"


def _table(rules: str, gap: str) -> re.Pattern[str]:
    """Compile a table of rules into one pattern."""
    lines = (line.strip().replace("…", gap).replace("~", _REST_OF_WORD) for line in rules.splitlines())
    return re.compile("|".join(line for line in lines if line and not line.startswith("#")))


# Chinese rules see simplified characters without spaces, quotes or decoration; of punctuation only 。,!? is left.

# Figures of speech, other senses and accidents that use the same words: cut out before the rules look.
_HARMLESS_ZH = _table(
    r"""
    # so hungry, so funny, so hot that one could die; longing for someone
    [笑累饿热冷困美爽吓气烦急渴疼痛撑忙闲酸臭吵慢帅愁甜苦难乐馋穷丑萌羞晒冻憋闷熬堵]死
    (无聊|尴尬|羡慕|可爱|开心|高兴|感动|好吃)死
    想死(?=[你妳您我他她它咱])
    # words that merely contain the characters
    社(会性)?死|生不如死|视死如归|安乐死|[找作该宁怕受]死
    死([线机党宅心磕角板锁守]|记硬背|胡同|脑筋|对头|循环)
    不想活[动得成跃]
    割(耳|草|麦|稻|韭菜|双眼皮|包皮|自己的耳)
    # sales, sports, tactics, statistics, prevention, teaware, barbecue
    跳楼(价|机|大?甩卖|清仓|促销)
    自杀(式|小队|突击队|率|论|现象|研究|预防|干预)|预?防止?自杀
    紫砂(?=[壶杯茶泥锅煲罐陶盆器])
    烧炭(?=火|烤|取暖|炉)
    # accidents
    (不小心|切菜|切肉|做饭|削|剪指甲|刮胡子|剃须|拆快递)…[割划切烫剪扎][到破伤了]
    """,
    _GAP_HAN,
)
# Talk about a story, a lesson or history, in which the bare names below mean somebody else's death.
_TOPIC_ZH = _table(
    r"""
    编剧|剧情|情节|结局|主角|[男女]主|反派|角色|小说|电影|电视剧|动漫|这部?[番剧]|第.{1,3}[集回章幕]
    游戏里|副本|课文|论文|辩论|社会学|历史|皇帝|典故|推理
    """,
    _GAP_HAN,
)
# Suicide, self-harm and their ways by name.
_NAME_ZH = (
    "((?<![各独亲暗])自(杀|残|缢|尽(?!力|兴|职|责|管|情)|伤(?![心感神]))|自我了[断结]|一死了之|抹脖子|寻短见|[寻求]死"
    "|(?<!年)轻生|割[腕脉]|吞药|服药过量|烧炭|卧轨|上吊(?![桥带灯床])|投河|跳[楼河江桥轨海](?!梯))"
)
_NAMES_ZH = _table(_NAME_ZH, _GAP_HAN)
_WILL_ZH = "(想|要|去|准备|打算|决定|试过|忍不住|差点)(要|去|过|着)?"
_RULES_ZH = _table(
    rf"""
    # an intention or a deed of one's own is no topic, whatever else is spoken of
    {_WILL_ZH}{_NAME_ZH}|我(又|刚|已经|昨[天晚]|今[天晚]){_NAME_ZH}
    # slang that slips past filters
    {_WILL_ZH}(zs|zisha|s|si|紫砂|紫沙|亖)(?![a-z级码号])|(?<![a-z])zs的?(念头|想法)|紫杀|自[鲨嘎噶]

    # no wish to live
    不[想愿]意?(再|继续)?活(?![在].{{0,2}}人)|没法活|失去活下去|没有?活(着|下去)的|不[配该]活|不应该活|没脸活
    活不下去|活[够腻]|我(真的|可能|怕)?[活撑]不[到过](明天|今晚)|不想再?(呼吸|看[到见]明天|存在(了|$|[。,!]))
    活着…没有?(什么|啥|任何)?(意思|意义|劲|盼头)|活着(真|好|太|就|实在)?[是像]?个?(累|受罪|折磨|煎熬|遭罪|多余)
    (不该|没|不曾|从来没|从未)被?(出生|生下来)|不该来到?(这个)?(世界|世上|人间)

    # a wish to die
    (?<![你不])想要?去?死|想就?这[么样]死|(我|不如|干脆)[去就]?死(了?算了|了?吧)|(我|不如|该|就)去死|不如死|早点死
    让我死|希望(我|自己)…死|死亡?的(念头|想法|冲动)|[才就]能死|一了百了|死…唯一的?(出路|办法|选择|解脱)
    死了(算了|就好|拉倒|[就才也都更]?(清静|干净|轻松|正好|解脱|不用|对.{{1,6}}好))
    我(要是|如果|真的)?死了…(后悔|难过|伤心|哭|在乎|在意|高兴|轻松)
    ([又总老]|一直|天天|每天)[会在都]?想[到着]死|(满脑子|脑子里)全?都?是死
    # or not to wake
    永远地?(不要|不会|不用|不再|不|别)醒|永远地?(睡(过去|着|下去)|闭上眼)|再也不[要用会]?醒|不用再?醒过?来
    (希望|但愿)…[不别](再|要|用|会)?醒过?来|让心跳停

    # ending it, leaving the world, a world that is better off
    结束(自己|我|这)?的?(这条|这)?(生命|性命|一切|命)|了[断结却](自己|生命|一切)|想了断|把自己弄[没死]
    弄死自己|[杀鲨][了死掉]?自己(?!的)
    {_WILL_ZH}…(离开|告别)(这个|这|人)[世间]|[和跟与]这个世界…(告别|再见)|再见了?,?世界(?!杯)
    从这?个?[世人][界间]上?…消失|(彻底|永远)消失
    没[有了]?我(?![们想要])…更(好|轻松|幸福|开心)|世界?上要?是?少了?我
    (消失|死|不在了)…没有?人会?(发现|在乎|在意|记得|难过|伤心)
    我的葬礼|(来世|下辈子)再[见做当还]|这辈子…(不想要|到此为止)|(以后|明天|下周|那时候?)…不在(了|人世|世上|这个?世)

    # ways and preparations
    (几楼|多高|多少|几[片颗粒]|什么药)…[会能才致]死|(?<!你)想怎[么样]死(?!的)|怎[么样]死(才|不|最|比较)
    ([不没]疼|[不没]痛|痛苦|无痛)的?(死|自杀)|死…(疼|痛|痛苦)[吗么]
    [想要会怕就]从…[楼台窗桥顶]…跳|[怕会想](自己)?会?跳下去|跳下去…(解脱|死|结束)
    往(铁轨|轨道|车流|窗外|楼下|桥下)上?[跳走冲扑]|(地铁|火车|列车)…想…(往前|跳|迈)|(想|希望|最好)[被让]?.{{0,2}}车撞
    (天台|楼顶|屋顶|窗台)的?边|(天台|楼顶|顶楼|悬崖)…(往前|跳下|解脱)|我(真的)?站?在楼顶了?($|[。,!])|(窗|栏杆)…[跨翻][出过]
    攒(?!钱)…药|吞(?![咽不])…药|[吃喝]了?(一?整|一大|半|好几|[一二两三])[瓶把盒板]…药|安眠药…[全都][部吞吃喝]|洗胃
    药…(数好|攒够|在手边)|喝了?下?(农药|百草枯|敌敌畏)|煤气…关…窗
    (?<!跳)绳子(都|也|已经)?[挂买备系]好|[挂买备系]好了?绳子|刀片?…(枕头|手边|床头)

    # hurting oneself
    [割划][了着破伤开]?(我|自己)?的?(手腕|手臂|胳膊|大腿|手(?![指机续术工柄册]))|[割划烫扎刺戳][着了伤]?自己(?!的(?![手腿胳身脸肉皮]))
    又[割划]了($|[,。!])|自己[割划](的[口伤疤痕]|出)|(伤害|弄伤)了?自己|(刀片|小刀|美工刀)…(手腕|手臂|胳膊|腿|身上)
    [掐打抓咬撞抽]自己.{{0,4}}([到才]|[流出]血|疼|痛)|(控制|忍)不住…[掐打抓咬撞抽](自己|墙)|头撞墙…[血才停]|绝食…死
    (手|手臂|胳膊|手腕|大腿)上的?…(([疤痕]|伤口|口子)…[添新多]|[添新多]…([疤痕]|刀口|口子))

    # farewells and what is left behind, attempts that failed
    写[好完了过着]?…遗书|遗书(都|已经|也)?写[到好完了]|最后一次[跟和]你(说话|聊|见)|(自己|我)的?后事
    我(走|不在)了?(以后|之后|后)…(给我[爸妈]|留给|交给|别[哭难])|我(就|已经|快)不在了|(最喜欢|所有|全部|心爱)…送人
    照顾好?…不[会能]再?回来|很远的地方…不会?再?回来|(想走|撑不下去)…别找我|先走一步…别救|一起走…去[她他]那边
    没死成|[选定]好了?日子…不用再|为什么[还非]?要?救我
    """,
    _GAP_HAN,
)

# English rules see lower-case letters without apostrophes: dont, im, isnt.

_SELF = "(my|him|her|them) ?sel(f|ves)"
_HARMLESS_EN = _table(
    rf"""
    # figures of speech
    kill(ing|s|ed)? (time|it|the|two|me|this)|killing myself laughing|dead (tired|serious|end|pixel)|deadline
    (die|dying|died) (of|from) (laugh~|embarrass~|shame|cringe|boredom|hunger|heat|thirst|curiosity|cute~)
    (die|dying) (laughing|trying|for|to (know|see|try|meet))|rather die than|sh(oo|o)t~ {_SELF} in the foot
    overdos~ on (sugar|coffee|caffeine|chocolate|cute~)
    # films, tactics, cars, studies
    suicide (squad|squeeze|mission|run|doors?|king|bomb~|rates?|prevention|awareness)
    (book|essay|paper|novel|film|movie|study|theory|chapter|poem|lecture)s? (on|about) suicide
    # sports and accidents
    (bungee|base|cliff) jump…
    (hurt|cut|burn~) {_SELF} (at|in|on|while|playing|lifting|shaving|cooking|laughing|chopping)
    cut myself (some|a)
    """,
    _GAP_LATIN,
)
_TOPIC_EN = _table(
    r"""
    \b(novel|story|plot|chapter|episode|season|movie|film|anime|manga|villain|hero|heroine|character|essay|history)\b
    """,
    _GAP_LATIN,
)
_NAMES_EN = _table(
    r"\bsuicid|\boverdos|\b(kill|killing|killed|hang|hanging|hanged|drown|drowning) (him|her|them)sel", _GAP_LATIN
)
# What a longing to live or not to live is not about: a place, a company, a way of life.
_NOT_ELSEWHERE = "(?! (in|with|at|near|like|on|off|under|out|alone|there|here))"
_RULES_EN = _table(
    rf"""
    # by name, and in the slang that slips past filters
    \bsuicidal|\b(i|im|ive|my)\b…(suicid|overdos)|\bself ?(harm|injur)|\bkms\b|\bun ?aliv(e|ing)|\bsewer ?slid
    \b(kill|killing|hang|hanging|drown|drowning|shoot|shooting|poison|off) ?my ?self
    \b(end|ends|ending|ended|take|taking|took) (my|his|her|their) (own )?li(fe|ves)\b|\bend(ing)? it all

    # no wish to live
    \bdont (want|wanna) (to )?(live{_NOT_ELSEWHERE}|be alive|exist|wake up(?! (early|at|so|yet|for)))
    \bdont (want|wanna) (to )?be (here|around) any ?more
    \b(point|reason) (in|to|for) (live|living|being alive){_NOT_ELSEWHERE}
    \blife (isnt|is not|not) worth|\btired of (living{_NOT_ELSEWHERE}|being alive|life)|\bhate being alive
    \b(nothing|nothing left) to live for|\b(give|giving|gave) up on life|\bcant go on( living|$|[.,!])
    \bwish i (was|were) (dead|never|gone)|\b(wish|hope) id? ?(would )?never ?(been )?(born|woken?|wake)

    # a wish to die, or not to wake
    \b(wants?|wanna|wanted|ready|rather|trying|i deserve|let me|plan~) (to )?(just )?(die|be dead)\b
    \bnever (wake|waking|woken) up(?! (early|at|so|before|on|in))|\b(to|just) not wake up|\bhope i dont wake
    \bsleep forever|\bdisappear forever|\bways? to die\b|\bpainless (death|way)
    \bthink~ (about|of) (dying|jumping off)|\bif i (was |were )?(just )?(dead|died|disappeared|vanished)\b
    \bwant (it all|everything|the pain) to (just )?(end|stop)

    # a world that is better off
    \bbetter off (dead|without me)
    \b(happier|easier|better)…(without me|my funeral|if i (was|were|wasnt|werent) (gone|dead|here|around|alive|born))

    # ways and preparations
    \bjump~ (off|from) (a|the|my|that|this) (bridge|roof|building|balcony|cliff)
    \b(jump|step|throw)~…(in front of|under) (a|the) (train|bus|truck)|\b(walk|step|jump)~ into traffic
    \bstanding on (the|a|my) (roof|ledge|railing)|\bbought a rope|\bnoose\b|\b(blade|razor) (in|on|against|to) my
    \b(took|take|taken|taking|swallow~)( a| the)? (whole|entire|full|too many|bunch|handful)( of)? (bottle|pills)
    \bhow (many|much)…(to die|kill me|not wake up|lethal|fatal)|\benough pills

    # hurting oneself
    \b(cut|cuts|cutting|hurt|hurting|burn|burned|burning|harm|harming) {_SELF}
    \b(been|started|start|im|relapsed) cutting( again|$|[.,!])|\buntil i bleed
    \b(cut|cutting|slit|slitting|slash~) (my|his|her|their) (wrist|arm|thigh|leg|skin)
    \bburn~ my (arm|leg|thigh|wrist|skin)…(on purpose|again|lighter|cigarette)

    # farewells and what is left behind
    \bgoodbye (letter|note)|\b(wont|never) hear from me again|\bpicked (the|a) (date|day)…(hurt|over|end)
    \bwont (be (here|around|alive) (next|much|any|tomorrow|after|long)|(be |live to )?see (tomorrow|next))
    """,
    _GAP_LATIN,
)

# Traditional forms of the characters in the rules above.
_SIMPLIFIED = str.maketrans(
    "乾來倉個們備傷價儘兩冊凍別剛劃劇勁動卻喫嗎噹嚇嚥墻壺夠媽學實寧寫尋對尷帥帶幹幾彆後從徹悶愛應懸戲掛撐撲擇"
    "擊攢敵數斷時曆曬書會桿條樂樓樣橋機檯欄歡歸殘殺氣決沒淨準滿為無煩熱燈燒燙爐爲牀牆獨現環甯當發盡睏碼禮窮箇"
    "節級紮結絕給絶經綫線編緻縊總繩繫繼續纍纔羨義職脈脫腦膩臉臥臺與興葯藥號術衝裏裡製見視親記試話該說説課論讓"
    "責買賣躍車軌較輕輩辦辯農這週遊過遞遠選遺邁還邊醜銷錢鍋鎖鐵閉開閒間闇關隊雙離難電靜頂須預頭顆願顧飯餓餘饞"
    "髮鬆鬍鬚鯊麥麼麽點黨齣",
    "干来仓个们备伤价尽两册冻别刚划剧劲动却吃吗当吓咽墙壶够妈学实宁写寻对尴帅带干几别后从彻闷爱应悬戏挂撑扑择"
    "击攒敌数断时历晒书会杆条乐楼样桥机台栏欢归残杀气决没净准满为无烦热灯烧烫炉为床墙独现环宁当发尽困码礼穷个"
    "节级扎结绝给绝经线线编致缢总绳系继续累才羡义职脉脱脑腻脸卧台与兴药药号术冲里里制见视亲记试话该说说课论让"
    "责买卖跃车轨较轻辈办辩农这周游过递远选遗迈还边丑销钱锅锁铁闭开闲间暗关队双离难电静顶须预头颗愿顾饭饿余馋"
    "发松胡须鲨麦么么点党出",
)
_HAN = re.compile(r"[\u3400-\u9fff]")
_TITLES = re.compile(r"《[^《》]{0,40}》")

# What is put between characters to slip past filters: marks around each one, and signs that are no punctuation.
_SPELLED_HAN = re.compile(r"(?<!\w\w)(?<=[\u3400-\u9fff])[。,!?]{1,3}(?=[\u3400-\u9fff](\W|$))")
_DECORATION = re.compile(r"[^\w。,!?\n]|_")
_APOSTROPHES = str.maketrans("", "", "'’")
_SPELLED_LATIN = re.compile(r"(?<=[a-z])[^a-z0-9\s]{1,3}(?=[a-z])|(?<=\b[a-z])\s{1,3}(?=[a-z]\b)")
_SIGNS = re.compile(r"[^a-z0-9.,!?]+")


def concern(words: str) -> HelpLanguage | None:
    """Return the language to answer in when the words speak of suicide or self-harm, else None.

    Deterministic and outside the persona, so that no model, prompt or character can talk it away. When in doubt it
    answers with care: a needless help line costs less than a missing one.
    """
    words = unicodedata.normalize("NFKC", words).lower()
    han = bool(_HAN.search(words))
    if (han and _said_in_chinese(words)) or _said_in_english(words):
        return HelpLanguage.CHINESE if han else HelpLanguage.ENGLISH
    return None


def _said_in_chinese(words: str) -> bool:
    text = _DECORATION.sub("", _SPELLED_HAN.sub("", _TITLES.sub("", words.translate(_SIMPLIFIED))))
    text = _HARMLESS_ZH.sub("。", text)
    return bool(_RULES_ZH.search(text) or (_NAMES_ZH.search(text) and not _TOPIC_ZH.search(text)))


def _said_in_english(words: str) -> bool:
    words = words.translate(_APOSTROPHES)
    for reading in (words, _SPELLED_LATIN.sub("", words)):
        text = _HARMLESS_EN.sub(".", _SIGNS.sub(" ", reading))
        if _RULES_EN.search(text) or (_NAMES_EN.search(text) and not _TOPIC_EN.search(text)):
            return True
    return False
