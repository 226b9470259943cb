"""A reading's keys, values and states."""
