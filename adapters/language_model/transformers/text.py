"""From token ids to text: no half characters, nothing from a stop string on."""

import codecs
from collections.abc import Sequence
from functools import cache
from typing import Any

from adapters.models.sayable import sayable

# The classes of transformers carry no types that say anything.
Tokenizer = Any


class Detokeniser:
    """Turns the tokens of one reply into text as they come.

    A character that is spread over several tokens comes out whole with the last of them. Bytes that are no UTF-8 come
    out as nothing.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._byte_level = _is_byte_level(tokenizer)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("ignore")

    def feed(self, token: int) -> str:
        """Take the next token and return the characters that are complete by now."""
        return sayable(self._utf8.decode(self._bytes(token)))

    def _bytes(self, token: int) -> bytes:
        piece: str | None = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # the model's vocabulary may be padded beyond the tokenizer's
            return b""
        if self._byte_level:
            table = _byte_of()
            known = all(char in table for char in piece)
            return bytes(table[char] for char in piece) if known else piece.encode()
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes.fromhex(piece[3:5])
        return piece.replace("▁", " ").encode()


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    """Tell whether pieces are spelled in GPT-2's alphabet of bytes, not in SentencePiece's."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and b'"ByteLevel"' in bytes(backend.decoder.__getstate__())


@cache
def _byte_of() -> dict[str, int]:
    """Return GPT-2's alphabet: printable bytes stand for themselves, the others for what follows U+00FF.

    Source: `bytes_to_unicode` in github.com/openai/gpt-2, src/encoder.py.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


class StopStrings:
    """Lets a text through up to the first stop string; what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._held = ""
        self.reached = False

    def feed(self, piece: str) -> str:
        """Take the next piece and return what is certainly part of the reply."""
        passed = ""
        for char in piece:
            if not self.reached:
                passed += self._take(char)
        return passed

    def flush(self) -> str:
        """Return what was held back: at the end of the reply, half a stop string is text."""
        held, self._held = self._held, ""
        return held

    def _take(self, char: str) -> str:
        text = self._held + char
        for stop in self._stops:
            if text.endswith(stop):
                self.reached, self._held = True, ""
                return text.removesuffix(stop)
        begun = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of the text may be the beginning of the stop string."""
    return next((size for size in range(len(stop) - 1, 0, -1) if text.endswith(stop[:size])), 0)
