"""Backends that continue a conversation."""
