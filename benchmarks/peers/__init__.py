"""One script a peer: each reads the task, trains in its own way, and answers in the words of ``benchmarks.protocol``."""
