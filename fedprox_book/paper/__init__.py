"""The paper's own experiments: its data, its algorithms beside FedProx, its claims and its theory (Li et al. 2020).

Importing it registers what its experiments name. Layer: book.
"""

from functools import partial

from fedprox_book.chapters import cnn_blog
from fedprox_book.paper.adaptive import AdaptiveFedProx
from fedprox_book.paper.by_size import BySizePlanner
from fedprox_book.paper.feddane import FedDane
from fedprox_book.paper.femnist import LogNormalSizes, letters_a_to_j
from fedprox_book.paper.synthetic import SPREADS, AsGenerated, generated_federation
from fedprox_lib.sweeps import registry

registry.register(
    __name__,
    algorithms=[AdaptiveFedProx, FedDane],
    partitions=[LogNormalSizes, AsGenerated],
    image_models={"cnn_blog": cnn_blog},
    datasets={
        "femnist": registry.DataSet(784, 15_000, images=letters_a_to_j),
        **{name: registry.DataSet(60, 9_000, generate=partial(generated_federation, name)) for name in SPREADS},
    },
    samplings={
        "by_size": lambda e, partition, drawn: BySizePlanner(partition, e.work, e.seed, e.cohort_size),
    },
)

__all__ = ["AdaptiveFedProx", "AsGenerated", "BySizePlanner", "FedDane", "LogNormalSizes"]
