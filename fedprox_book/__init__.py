"""What only the book "FedProx, Run and Checked" needs: its sweeps, figures, audit, and the paper's own experiments.

Importing it registers the paper's algorithms, data sets and partitions by the names that records use. Layer: book; may
use all of ``fedprox_lib``, which never uses the book.
"""

from fedprox_lib.extras import brought_by

with brought_by("chapters"):
    from fedprox_book import paper  # noqa: F401 (registers)
