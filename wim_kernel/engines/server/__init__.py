"""The engine for servers with a prefix cache of their own, over the OpenAI-compatible API."""
