"""Prefixes that outlive a question: found again, moved between levels, saved to disk."""
