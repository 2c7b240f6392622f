from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from domain.routing import BASE, Boundaries, Decision, Expert, KnowledgeKind, OwnBackend, Router, is_factual

KINDS = {
    "anime": KnowledgeKind.CORE,
    "facts": KnowledgeKind.FACT,
    "maths": KnowledgeKind.FACT,
    "voice": KnowledgeKind.STYLE,
}
EXPERTS = tuple(
    Expert(name, name.upper(), f"专家{name}", kind, kind.temperature, priority=place)
    for place, (name, kind) in enumerate(KINDS.items())
)
ANIME, FACTS, MATHS, VOICE = EXPERTS
HAVING_WEIGHTS = tuple(replace(expert, adapter=Path(expert.name)) for expert in EXPERTS)


def shares(names: list[str]) -> st.SearchStrategy[dict[str, float]]:
    """Distributions over the base and some experts."""
    weights = st.dictionaries(st.sampled_from(names), st.integers(0, 100), min_size=1)
    return weights.filter(lambda each: sum(each.values()) > 0).map(
        lambda each: {name: weight / sum(each.values()) for name, weight in {BASE: 0, **each}.items()}
    )


posteriors = shares([BASE, *KINDS])
routers = st.builds(
    Router, abstain_below=st.floats(0.1, 0.9), stickiness=st.floats(0, 0.5), close=st.floats(0, 0.3),
    evidence=st.floats(1, 4),
)  # fmt: skip
in_charge = st.sampled_from([BASE, *KINDS, "unplugged"])
said = st.sampled_from(["你好", "谁写的", "作画真好，是谁画的", "不算作画", "how many episodes", ""])
plugged = st.sampled_from([(), EXPERTS, HAVING_WEIGHTS])


@given(routers, posteriors, in_charge, said, plugged)
def test_whoever_is_chosen_was_scored_and_the_user_is_told_why(
    router: Router, scores: dict[str, float], current: str, words: str, experts: tuple[Expert, ...]
) -> None:
    decision = router.choose(scores, in_charge=current, words=words, experts=experts)
    assert decision.expert in scores
    assert 0 <= decision.confidence <= 1
    assert decision.reason
    others = [share for _, share in decision.runners_up]
    assert others == sorted(others, reverse=True)
    assert decision.expert not in dict(decision.runners_up)


@given(routers, posteriors, in_charge)
def test_the_base_answers_where_nobody_is_sure(router: Router, scores: dict[str, float], current: str) -> None:
    unsure = {name: share * router.abstain_below * 0.49 for name, share in scores.items() if name != BASE}
    unsure[BASE] = 1 - sum(unsure.values())
    assert router.choose(unsure, in_charge=current).expert == BASE


@given(routers, posteriors)
def test_an_expert_answers_only_where_the_likeliest_ones_are_sure_together(
    router: Router, scores: dict[str, float]
) -> None:
    decision = router.choose(scores)
    if decision.expert != BASE:
        best = max(share for name, share in scores.items() if name != BASE)
        assert sum(share for name, share in scores.items() if name != BASE and share > best - router.close) >= (
            router.abstain_below
        ) or best == pytest.approx(router.abstain_below)
        assert scores[decision.expert] >= scores[BASE]


@given(routers, posteriors, in_charge, said, plugged)
def test_the_order_of_scores_and_experts_decides_nothing(
    router: Router, scores: dict[str, float], current: str, words: str, experts: tuple[Expert, ...]
) -> None:
    there = router.choose(scores, in_charge=current, words=words, experts=experts)
    back = router.choose(
        dict(reversed(scores.items())), in_charge=current, words=words, experts=tuple(reversed(experts))
    )
    assert there.expert == back.expert
    assert there.confidence == pytest.approx(back.confidence)


@given(routers, posteriors, st.sampled_from(list(KINDS)))
def test_the_expert_in_charge_yields_only_to_a_clear_winner_or_loses_the_thread(
    router: Router, scores: dict[str, float], current: str
) -> None:
    chosen = router.choose(scores, in_charge=current, experts=HAVING_WEIGHTS).expert
    held = scores.get(current, 0.0)
    assume(chosen != current)
    assert scores[chosen] >= held + router.stickiness or held < router.abstain_below


@given(routers, posteriors, in_charge, said, plugged)
def test_asked_again_the_router_stays_with_its_choice(
    router: Router, scores: dict[str, float], current: str, words: str, experts: tuple[Expert, ...]
) -> None:
    chosen = router.choose(scores, in_charge=current, words=words, experts=experts).expert
    assert router.choose(scores, in_charge=chosen, words=words, experts=experts).expert == chosen


@given(st.lists(posteriors, min_size=2, max_size=12))
def test_a_stickier_router_never_switches_more_often_between_the_same_two(turns: list[dict[str, float]]) -> None:
    turns = [{BASE: 0.0, "anime": each.get("anime", 0.0), "facts": 1 - each.get("anime", 0.0)} for each in turns]

    def switches(router: Router) -> int:
        current, chosen = "anime", ["anime"]
        for each in turns:
            current = router.choose(each, in_charge=current, experts=HAVING_WEIGHTS).expert
            chosen.append(current)
        return sum(before != after for before, after in pairwise(chosen))

    assert switches(Router(stickiness=0.4)) <= switches(Router(stickiness=0.0))


def test_without_experts_the_base_answers_and_is_sure() -> None:
    decision = Router().choose({})
    assert (decision.expert, decision.confidence) == (BASE, 1.0)
    assert Router().choose({BASE: 1.0}).expert == BASE


def test_a_tie_goes_to_the_one_in_charge_then_by_priority_and_else_by_the_alphabet() -> None:
    tied = {"maths": 0.45, "anime": 0.45, BASE: 0.1}
    assert Router().choose(tied, in_charge="maths").expert == "maths"
    assert Router().choose(tied, experts=EXPERTS).expert == "maths"
    assert Router().choose(tied).expert == "anime"


def test_on_a_question_of_fact_the_factual_expert_wins_a_close_call_even_against_the_one_in_charge() -> None:
    close = {"anime": 0.5, "facts": 0.42, BASE: 0.08}
    for current in (BASE, "anime", "facts"):
        decision = Router().choose(close, in_charge=current, words="这部片子是谁导演的", experts=EXPERTS)
        assert decision.expert == "facts"
        assert "这是在问事实" in decision.reason
    assert Router().choose(close, words="你怎么看这部片子", experts=EXPERTS).expert == "anime"
    clear = {"anime": 0.8, "facts": 0.15, BASE: 0.05}
    assert Router().choose(clear, words="这部片子是谁导演的", experts=EXPERTS).expert == "anime"


def test_a_boundary_decides_between_two_that_are_close_and_the_reason_names_the_phrase() -> None:
    drawing = replace(ANIME, boundaries=Boundaries(in_favour=("作画",)))
    speaking = replace(VOICE, boundaries=Boundaries(against=("作画",)))
    close = {"anime": 0.45, "voice": 0.47, BASE: 0.08}
    assert Router().choose(close, words="画得好", experts=(drawing, speaking)).expert == "voice"
    decision = Router().choose(close, words="作画好", experts=(drawing, speaking))
    assert decision.expert == "anime"
    assert "作画" in decision.reason
    assert decision.confidence > 0.6


def test_phrases_of_latin_letters_are_whole_words_and_their_width_and_case_do_not_matter() -> None:
    limits = Boundaries(in_favour=("ED", "片头曲"))
    assert limits.found("这首ED好听") == ("ED", None)
    assert limits.found("ｅｄ是哪首") == ("ED", None)
    assert limits.found("I edited it") == (None, None)
    assert limits.found("片頭曲不同，片头曲一样") == ("片头曲", None)


def test_an_expert_without_weights_of_its_own_is_chosen_and_said_to_be_answered_by_the_base_model() -> None:
    sure = {"anime": 0.9, BASE: 0.1}
    notice = "没有可用的适配器，先由基础模型回答"
    assert Router().choose(sure, experts=EXPERTS).reason.endswith(notice)
    assert notice not in Router().choose(sure, experts=HAVING_WEIGHTS).reason
    by_server = replace(ANIME, backend=OwnBackend("openai_compatible", {}))
    assert notice not in Router().choose(sure, experts=(by_server,)).reason


def test_a_switch_that_drops_no_cache_needs_half_the_margin() -> None:
    close = {"anime": 0.44, "voice": 0.51, BASE: 0.05}
    router = Router(stickiness=0.1)
    assert router.choose(close, in_charge="anime", experts=HAVING_WEIGHTS).expert == "anime"
    assert router.choose(close, in_charge="anime", experts=EXPERTS).expert == "voice"


def test_an_expert_in_charge_keeps_a_topic_that_has_become_vague() -> None:
    vague = {"anime": 0.44, BASE: 0.5, "facts": 0.06}
    router = Router(stickiness=0.1)
    assert router.choose(vague, experts=HAVING_WEIGHTS).expert == BASE
    stayed = router.choose(vague, in_charge="anime", experts=HAVING_WEIGHTS)
    assert stayed == Decision(
        "anime", 0.44, "话题延续，仍由「专家anime」回答", ((BASE, 0.5), ("facts", 0.06))
    )  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        "谁是导演", "哪一年播的", "一共几集", "声优是谁呀", "路飞的生日是几月几号", "这片子多长", "票房多少",
        "出自哪里", "女主叫啥", "什么时候发售", "who directed it", "How many episodes are there",
        "which studio made it", "what year did it air",
    ],
)  # fmt: skip
def test_a_question_of_fact_is_recognised(words: str) -> None:
    assert is_factual(words)


@pytest.mark.parametrize(
    "words",
    [
        "谁懂啊", "为什么他要走", "你觉得谁更强", "多少有点难过", "怎么评价第几集都好看这件事", "今天好累",
        "谁都不理我", "我喜欢哪一集你猜", "who do you think is right", "why did she leave", "I watched it", "",
    ],
)  # fmt: skip
def test_a_view_a_feeling_or_a_manner_of_speaking_is_no_question_of_fact(words: str) -> None:
    assert not is_factual(words)


def test_the_bands_of_temperature_are_those_of_the_kinds_of_knowledge() -> None:
    assert {kind: kind.temperature for kind in KnowledgeKind} == {
        KnowledgeKind.CORE: (0.5, 0.7),
        KnowledgeKind.STYLE: (0.7, 0.8),
        KnowledgeKind.FACT: (0.3, 0.5),
    }
