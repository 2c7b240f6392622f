from hypothesis import given
from hypothesis import strategies as st

from domain.routing import BASE, Router
from tests.domain.strategies import share

EXPERTS = ["anime", "history", "maths", "writing"]
posteriors = st.dictionaries(st.sampled_from(EXPERTS), share)
routers = st.builds(Router, abstain_below=st.floats(0.1, 0.9), stickiness=st.floats(0, 0.5))
in_charge = st.sampled_from([BASE, *EXPERTS])


@given(routers, posteriors, in_charge)
def test_only_an_expert_that_is_sure_enough_answers(router: Router, scores: dict[str, float], current: str) -> None:
    decision = router.choose(scores, in_charge=current)
    assert decision.expert == BASE or scores[decision.expert] >= router.abstain_below
    assert 0 <= decision.confidence <= 1
    assert decision.reason


@given(routers, posteriors, in_charge)
def test_the_base_answers_where_nobody_is_sure(router: Router, scores: dict[str, float], current: str) -> None:
    unsure = {name: score * router.abstain_below * 0.99 for name, score in scores.items()}
    assert router.choose(unsure, in_charge=current).expert == BASE


@given(routers, posteriors, in_charge)
def test_the_order_of_the_scores_decides_nothing(router: Router, scores: dict[str, float], current: str) -> None:
    backwards = dict(reversed(scores.items()))
    assert router.choose(scores, in_charge=current) == router.choose(backwards, in_charge=current)


@given(routers, posteriors, st.sampled_from(EXPERTS))
def test_the_expert_in_charge_yields_only_to_a_clear_winner(
    router: Router, scores: dict[str, float], current: str
) -> None:
    chosen = router.choose(scores, in_charge=current).expert
    held = scores.get(current, 0.0)
    if chosen != current and held >= router.abstain_below:
        assert scores[chosen] >= held + router.stickiness


@given(routers, posteriors, in_charge)
def test_asked_again_the_router_stays_with_its_choice(router: Router, scores: dict[str, float], current: str) -> None:
    chosen = router.choose(scores, in_charge=current).expert
    assert router.choose(scores, in_charge=chosen).expert == chosen


def test_without_experts_the_base_answers_and_is_sure() -> None:
    decision = Router().choose({})
    assert (decision.expert, decision.confidence) == (BASE, 1.0)


def test_a_tie_goes_to_the_one_in_charge_and_else_by_the_alphabet() -> None:
    assert Router().choose({"maths": 0.8, "anime": 0.8}, in_charge="maths").expert == "maths"
    assert Router().choose({"maths": 0.8, "anime": 0.8}).expert == "anime"
