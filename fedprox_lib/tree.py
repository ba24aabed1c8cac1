"""Arithmetic on models: a model's parameters are a dictionary ``{name: tensor}``, and these few functions act on it.

When w is eight tensors, w + lr * g is ``tree.map(lambda w, g: w + lr * g, w, g)``. Trees are never changed in place
here.

Layer: core (PyTorch).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Params = dict[str, Tensor]
"""Parameters, deltas, gradients, memories: one tensor per name."""


def map(function: Callable[..., Tensor], *trees: Params) -> Params:  # noqa: A001 (read as tree.map)
    """Apply ``function`` name by name.

    Example:
        >>> map(torch.add, {"w": torch.ones(2)}, {"w": torch.ones(2)})
        {'w': tensor([2., 2.])}
    """
    return {name: function(*(tree[name] for tree in trees)) for name in trees[0]}


def stack(trees: Sequence[Params]) -> Params:
    """K trees into one whose tensors have a leading axis of length K (clients)."""
    return {name: torch.stack([tree[name] for tree in trees]) for name in (trees[0] if trees else {})}


def subtract(a: Params, b: Params) -> Params:
    """a - b, name by name."""
    return map(torch.sub, a, b)


def laid_out(w: Tensor) -> Tensor:
    """Convolution weights in channels-last layout, which a CPU trains faster; anything else as it is.

    Values stay; but the layout decides in which order a convolution sums, so it is fixed and not left to chance.
    """
    return w.contiguous(memory_format=torch.channels_last) if w.dim() == 4 else w


def dot(a: Params, b: Params) -> Tensor:
    """Inner product over all names, a 0-d float64 tensor."""
    products = [(a[name].double() * b[name].double()).sum() for name in a]
    return torch.stack(products).sum()


def norm(tree: Params) -> Tensor:
    """Euclidean norm of the whole tree, a 0-d float64 tensor: the root of the sum of squares over *all* tensors.

    Not the sum of the tensors' norms, which is what several code bases penalise by mistake.

    Example:
        >>> float(norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}))
        5.0
    """
    return dot(tree, tree).sqrt()


def all_finite(tree: Params) -> bool:
    """Whether no entry is NaN or infinite."""
    return all(bool(torch.isfinite(t).all()) for t in tree.values())
