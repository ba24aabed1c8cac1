"""This library on the task as one run of a sweep: see :mod:`benchmarks.ours`."""

from benchmarks.ours import main

if __name__ == "__main__":
    main(sweep=True)
