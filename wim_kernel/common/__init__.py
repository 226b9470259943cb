"""Shared values (chunks, margins, events, errors), and support for threads, forks and copies. No tensors."""
