"""Engines: what offers the two verbs, extend and decode."""
