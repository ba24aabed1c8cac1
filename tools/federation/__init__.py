"""A deployment of the book's federation on this machine: a SuperLink with TLS and SuperNodes with keys of their own.

``python -m tools.federation`` starts one, runs the app on it and compares every weight with one process. ``comparison``
compares and records, ``deployment`` starts and stops, ``keys`` makes certificates and keys, ``processes`` looks after
the processes.
"""
