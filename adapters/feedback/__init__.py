"""Stores of ratings."""
