"""Every deliberate error says what is wrong and what to do about it."""


class ZishuError(Exception):
    """Something the user or operator can act on.

    Attributes:
        problem: What is wrong, one sentence.
        remedy: What to do about it, one sentence or one command.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem = problem
        self.remedy = remedy


class BadInput(ZishuError):
    """What was said or given cannot be used as it is."""


class BadConfiguration(ZishuError):
    """A setting, a character file or another file of the user is wrong."""


class BackendUnavailable(ZishuError):
    """A model or a service cannot be loaded or reached now."""


class StoreUnavailable(ZishuError):
    """The database cannot be reached, or the disk refuses to take more."""


class NotFound(ZishuError):
    """There is no such thing under this scope."""
