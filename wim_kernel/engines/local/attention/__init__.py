"""Attention over a shared prefix and a branch's own tokens, by several backends."""
