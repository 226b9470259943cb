"""Values that every part exchanges, and what threads, forks and copies need. No tensors."""
