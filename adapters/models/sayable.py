"""What a model may not say, whichever engine it runs on."""

# What bytes that are no UTF-8 arrive as, and the one character that no database keeps.
_UNSAYABLE = {0xFFFD: None, 0: None}


def sayable(text: str) -> str:
    """Return the text without replacement characters and without NUL."""
    return text.translate(_UNSAYABLE)
