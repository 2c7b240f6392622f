"""Stores of conversations."""

# How many of the newest turns an opened conversation brings along; more than any prompt holds.
OPENED_TURNS = 200
# How much of a conversation's first line stands for it in a list, in characters.
FIRST_WORDS = 40
