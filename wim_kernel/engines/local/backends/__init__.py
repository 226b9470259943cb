"""Attention backends: one file for each, and one function that chooses."""
