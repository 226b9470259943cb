"""The prefix cache: prefixes that outlive a question, in the engine's memory, the host's memory and on disk."""
