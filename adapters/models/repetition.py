"""Notices when a small model has begun to go round in circles."""

import re
from collections import Counter

# A run shorter than this is 哈哈哈哈 or ……; from here on, three times the same is a loop.
_SHORTEST_RUN = 16
_LONGEST_UNIT = 48
_CLAUSE_ENDS = "，。！？；…～,.!?;~\n"
# A clause this long does not come three times by chance; 好呀 and 嗯嗯 do.
_LONG_CLAUSE = 5
_NO_WORDS = re.compile(r"\W+")


class LoopGuard:
    """Lets a reply through until it loops; where it stops does not depend on how the text is cut.

    A loop is the same run of up to 48 characters three times in a row, or the same clause three times anywhere.
    """

    def __init__(self) -> None:
        self._text = ""
        self._clause = ""
        self._clauses: Counter[str] = Counter()
        self.looping = False

    def feed(self, piece: str) -> str:
        """Take the next piece and return what may be said of it."""
        for place, char in enumerate(piece):
            if self.looping:
                return piece[:place]
            self._text = (self._text + char)[-3 * _LONGEST_UNIT :]
            self.looping = self._clause_returns(char) or self._tail_repeats()
        return piece

    def _clause_returns(self, char: str) -> bool:
        if char not in _CLAUSE_ENDS:
            self._clause += char
            return False
        said, self._clause = _NO_WORDS.sub("", self._clause), ""
        if len(said) < _LONG_CLAUSE:
            return False
        self._clauses[said] += 1
        return self._clauses[said] == 3

    def _tail_repeats(self) -> bool:
        for unit in range(1, _LONGEST_UNIT + 1):
            tail = self._text[-max(3 * unit, _SHORTEST_RUN) :]
            if len(tail) < max(3 * unit, _SHORTEST_RUN):
                return False
            if tail[unit:] == tail[:-unit]:
                return True
        return False
