"""Engines: they extend prefixes and decode branches, in this process or on a server."""
