"""From streamed text to sentences that can be shown and spoken."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sentence:
    """One piece of a reply as it is shown and as it is spoken (empty where there is nothing to say aloud)."""

    index: int
    display: str
    speech: str


_FULL_ENDS = "。！？；…\n"
_LATIN_ENDS = "!?;."  # these also stand in numbers, links, abbreviations and initials
_ENDS = _FULL_ENDS + _LATIN_ENDS
_PAUSES = "，、：,:"
_CLOSERS = "”’」』)）】》'～~"
_PAIRS = {"「": "」", "『": "』", "“": "”", "（": "）", "(": ")", "《": "》", "【": "】", '"': '"', "*": "*"}
_NO_FULL_STOP = re.compile(r"(?:\b(?:mr|mrs|ms|dr|st|vs|etc|e\.g|i\.e|[a-z])|\d)$", re.IGNORECASE | re.ASCII)
_HAN = re.compile(r"[\u3400-\u9fff]")
_UNSPOKEN = re.compile(
    r"\*{2,}|\*[^*\n]{1,60}\*|（[^（）]{1,60}）|\([^()]{1,60}\)|https?://[A-Za-z0-9_./?!&=#%~:@,+-]+|[`*_#>]+"
    r"|[\u2194-\u2199\u21a9\u21aa\u231a\u231b\u23e9-\u23fa\u2600-\u27bf\u2b00-\u2bff\ufe0f\u200d\u20e3]"
    r"|[\U0001f000-\U0001faff]"
)

# The first piece may end at a comma from this Han character on, so that she starts to speak early.
FIRST_CLAUSE_HAN = 6


def spoken(display: str) -> str:
    """Return what is said aloud: no *actions*, asides in brackets, links, emoji or markdown."""
    words = " ".join(_UNSPOKEN.sub("", display).split()).strip("，、,：: ")
    return words if any(char.isalnum() for char in words) else ""


class SentenceSplitter:
    """Cuts a stream into sentences; the result is the same however the stream is cut.

    A sentence ends after 。！？；…, their Latin forms or a newline; the first one may end after a comma. Never inside a
    number, a link, brackets, quotes or an *action*.
    """

    def __init__(self) -> None:
        self._text = ""
        self._index = 0

    def feed(self, piece: str) -> list[Sentence]:
        """Take the next piece and return the sentences that are certainly complete."""
        self._text += piece
        return self._advance(final=False)

    def flush(self) -> list[Sentence]:
        """Return what is left at the end of the reply."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> list[Sentence]:
        done: list[Sentence] = []
        while (end := self._cut(final=final)) is not None:
            display, self._text = self._text[:end], self._text[end:]
            if display.strip():
                done.append(Sentence(self._index, display, spoken(display)))
                self._index += 1
        return done

    def _cut(self, *, final: bool) -> int | None:
        """Return where the next sentence ends, or None while that is uncertain."""
        text, open_until = self._text, ""
        place = 0
        while place < len(text):
            mark = text[place]
            if open_until:
                if mark in (open_until, "\n"):
                    open_until = ""
            elif mark in _PAIRS and not (mark in '*"' and text[place - 1 : place].isdigit()):
                open_until = _PAIRS[mark]  # but 3*4 and 5" open nothing
            if open_until or not (mark in _ENDS or (self._index == 0 and mark in _PAUSES)):
                place += 1
                continue
            after = place + 1
            while after < len(text) and (text[after] in _ENDS or text[after] in _CLOSERS):
                after += 1
            if after == len(text) and not final:
                return None
            if _ends_sentence(text, place, after):
                return after
            place = after
        return len(text) if final and text else None


def _ends_sentence(text: str, place: int, after: int) -> bool:
    """Tell whether the marks from `place` to `after` end a sentence, or the first clause of a reply."""
    marks, following = text[place:after], text[after : after + 1]
    if any(mark in _FULL_ENDS for mark in marks):
        return True
    if marks.isascii() and following.isascii() and following.strip():
        return False  # inside a number, a link or code
    if marks[0] in _PAUSES:
        inside_number = text[place - 1 : place].isdigit() and following.isdigit()
        return not inside_number and len(_HAN.findall(text[:place])) >= FIRST_CLAUSE_HAN
    return marks.strip(".") != "" or not _NO_FULL_STOP.search(text[max(0, place - 4) : place])
