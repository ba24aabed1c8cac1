"""One script a peer: it reads the task, trains in its own way, answers in the words of ``benchmarks.protocol``."""
