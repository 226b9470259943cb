"""The engine for chat models: a request for each branch, and the provider's prompt cache as the shared prefix."""
