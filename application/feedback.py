"""Rating what she said."""

from collections.abc import Callable
from datetime import datetime

from domain.conversation import Session
from domain.errors import NotFound
from domain.feedback import Rating
from domain.ports import Feedback


class RateReply:
    """Stores a thumb up or down on her last reply."""

    def __init__(self, feedback: Feedback, clock: Callable[[], datetime]) -> None:
        self._feedback = feedback
        self._clock = clock

    async def last(self, session: Session, *, good: bool, note: str = "") -> Rating:
        """Rate the newest answered turn of a session and return the rating.

        Raises:
            NotFound: She has not answered yet.
        """
        answered = [turn for turn in session.turns if turn.reply]
        if not answered:
            raise NotFound("There is no reply to rate yet.", "Talk to her first, then rate with /good or /bad.")
        rating = Rating(session.scope, answered[-1].id, good, self._clock(), note)
        await self._feedback.rate(rating)
        return rating
