"""Speed, side by side: the same federated training done by this library and by other simulators.

A developer's tool (`python -m benchmarks`, `make bench`); the library never imports it. Start with README.md.
"""
