"""What computes attention over a shared prefix: one file a backend, and one function that chooses."""
