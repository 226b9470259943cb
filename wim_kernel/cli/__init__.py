"""The `wim` command."""
