"""One run over a reading: from a question's options to its margins and its answer."""
