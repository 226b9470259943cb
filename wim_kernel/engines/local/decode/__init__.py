"""Branches token by token: sampling, grammars, and steps shared between callers."""
