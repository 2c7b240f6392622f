"""The rules of the character: standard library only, synchronous, no I/O, no clock, no randomness it was not given."""
