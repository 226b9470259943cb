"""Branches as rows of one batch."""
