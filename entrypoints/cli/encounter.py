"""Who talks to whom at a terminal."""

from domain.conversation import Scope
from domain.ports import Characters


class Encounter:
    """One user and the character in front of them.

    Args:
        user: Whose conversation and memory.
        characters: Who can be met.
        name: Whom to meet first.
    """

    def __init__(self, user: str, characters: Characters, name: str) -> None:
        self._user = user
        self._characters = characters
        self.meet(name)

    def meet(self, name: str) -> None:
        """Talk to this character from now on.

        Raises:
            NotFound: There is no such character; the old one stays.
        """
        self.character = self._characters.load(name)
        self.scope = Scope(self._user, name)
