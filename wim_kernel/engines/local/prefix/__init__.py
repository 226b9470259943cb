"""Prefixes: keys, values and cache states of document tokens."""
