"""What the user thought of a reply."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from domain.conversation import Scope


@dataclass(frozen=True, slots=True)
class Rating:
    """A thumb up or down on one turn."""

    scope: Scope
    turn_id: UUID
    good: bool
    at: datetime
    note: str = ""
