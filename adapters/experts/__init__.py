"""Backends that find experts."""
