"""What every store of ratings promises."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from adapters.feedback.in_memory import InMemoryFeedback
from adapters.feedback.postgres import PostgresFeedback
from adapters.sessions.in_memory import InMemorySessions
from adapters.sessions.postgres.store import PostgresSessions
from domain.conversation import Scope, Turn
from domain.errors import NotFound
from domain.feedback import Rating
from domain.ports import Feedback, Sessions

NOW = datetime(2026, 11, 23, 9, 30, 15, 123456, tzinfo=UTC)


@pytest.fixture(params=["in_memory", pytest.param("postgres", marks=pytest.mark.postgres)])
def stores(request: pytest.FixtureRequest) -> tuple[Feedback, Sessions]:
    if request.param == "in_memory":
        sessions = InMemorySessions()
        return InMemoryFeedback(sessions), sessions
    database = request.getfixturevalue("database")
    return PostgresFeedback(database), PostgresSessions(database)


async def a_reply(sessions: Sessions, scope: Scope) -> Turn:
    turn = Turn(uuid4(), "讲个笑话", NOW, reply="从前有只乌龟……")
    await sessions.commit(await sessions.open(scope, now=NOW), turn)
    return turn


@pytest.fixture
def scope() -> Scope:
    return Scope(f"user-{uuid4()}", "zishu")


async def test_ratings_come_back_oldest_first(stores: tuple[Feedback, Sessions], scope: Scope) -> None:
    feedback, sessions = stores
    newer = Rating(scope, (await a_reply(sessions, scope)).id, True, NOW + timedelta(seconds=1), note="好\n笑")
    older = Rating(scope, (await a_reply(sessions, scope)).id, False, NOW)
    for rating in (newer, older):
        await feedback.rate(rating)
    assert await feedback.ratings(scope) == [older, newer]


async def test_a_later_rating_replaces_the_earlier(stores: tuple[Feedback, Sessions], scope: Scope) -> None:
    feedback, sessions = stores
    first = Rating(scope, (await a_reply(sessions, scope)).id, True, NOW)
    second = replace(first, good=False, at=NOW + timedelta(minutes=1), note="想了想，不好")
    for rating in (first, second, second):
        await feedback.rate(rating)
    assert await feedback.ratings(scope) == [second]


async def test_a_turn_of_another_scope_cannot_be_rated(stores: tuple[Feedback, Sessions], scope: Scope) -> None:
    feedback, sessions = stores
    rating = Rating(scope, (await a_reply(sessions, scope)).id, True, NOW)
    stranger = Scope(scope.owner, "lanzhou")
    for wrong in (replace(rating, scope=stranger), replace(rating, turn_id=uuid4())):
        with pytest.raises(NotFound):
            await feedback.rate(wrong)
    await feedback.rate(rating)
    assert await feedback.ratings(stranger) == []


async def test_a_reply_of_an_earlier_conversation_can_be_rated(stores: tuple[Feedback, Sessions], scope: Scope) -> None:
    feedback, sessions = stores
    rating = Rating(scope, (await a_reply(sessions, scope)).id, True, NOW)
    await sessions.start_new(scope, now=NOW)
    await feedback.rate(rating)
    assert await feedback.ratings(scope) == [rating]
