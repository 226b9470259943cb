"""One question, from its options to its answer."""
