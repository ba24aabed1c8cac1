"""Looking inside local training: how inexact, how far from the start, how curved, and what is forgotten.

Symbols are the paper's: F the local loss, h(w; w_t) = F(w) + (mu/2) ||w - w_t||^2, gamma of Definition 1.
Taught in "The model and one client" and "The proximal term". Room: PyTorch computation. May import data,
models, partition, tree.
"""

import numpy as np
import torch

from fedprox_lib import tree
from fedprox_lib.data import Examples
from fedprox_lib.models import Model
from fedprox_lib.partition import Partition
from fedprox_lib.rng import stream
from fedprox_lib.tree import Params


def drift(w: Params, w_t: Params) -> float:
    """||w - w_t||, over all tensors together."""
    return float(tree.norm(tree.subtract(w, w_t)))


def inexactness(model: Model, w: Params, w_t: Params, rows: Examples, mu: float) -> float:
    """gamma: how much of the gradient of the local objective is left, ||grad h(w; w_t)|| / ||grad h(w_t; w_t)||.

    1 before any work, 0 at a stationary point of h; above 1 if local work has made things worse (Li et al. 2020,
    Definition 1). At w_t the proximal gradient is 0, so the denominator is ||grad F(w_t)||.
    """
    g = model.gradient(w, *rows)
    h = tree.map(lambda g, w, w_t: g + mu * (w - w_t), g, w, w_t)
    return float(tree.norm(h) / tree.norm(model.gradient(w_t, *rows)))


@torch.no_grad()
def gradient_spread(model: Model, params: Params, train: Examples, partition: Partition) -> dict[str, torch.Tensor]:
    """How much the clients' gradients differ at w, for many models at once.

    ``gradient_variance`` is E_k ||grad F_k - grad f||^2 and ``dissimilarity`` is B(w) = sqrt(E_k ||grad F_k||^2 /
    ||grad f||^2) (Li et al. 2020, Definition 3; 1 where both are 0). E_k weighs client k by p_k = n_k / n, so
    grad f = E_k grad F_k.

    # differs from the authors' code: it weighs all clients alike in the variance that the paper's Fig. 2 shows.

    Args:
        model: the model.
        params: (1, m, ...), m models.
        train: the rows that ``partition`` counts.
        partition: who holds which.

    Returns:
        Two columns, (m,) float64 each.
    """
    params = model.packed(params)
    mean = {name: torch.zeros(p.shape[1:], dtype=torch.float64, device=p.device) for name, p in params.items()}
    square = torch.zeros(next(iter(params.values())).shape[1], dtype=torch.float64, device=train.y.device)
    total = int(partition.sizes.sum())
    for held in partition.rows:
        x, y = train.take(held)
        weights = torch.full((1, len(y)), 1 / len(y), dtype=x.dtype, device=x.device)
        with torch.enable_grad():
            gradients = model.gradients_together(params, model.packed_rows(x)[None], y[None], weights)
        for name, g in gradients.items():
            mean[name] += len(y) / total * g[0].double()
            square += len(y) / total * g[0].flatten(1).double().square().sum(1)
    of_mean = sum((g.flatten(1).square().sum(1) for g in mean.values()), torch.zeros_like(square))
    return {
        "gradient_variance": (square - of_mean).clamp(min=0),
        "dissimilarity": torch.where(square > 0, (square / of_mean).sqrt(), torch.ones_like(square)),
    }


def class_accuracy(model: Model, w: Params, rows: Examples) -> np.ndarray:
    """(10,) accuracy in [0, 1] label by label; NaN for a label that does not occur."""
    _, correct = model.loss_and_correct(w, *rows, chunk=100)
    return np.array([float(correct[rows.y == c].double().mean()) for c in range(10)])


def sharpness(model: Model, w: Params, rows: Examples, iterations: int = 30, seed: int = 0) -> float:
    """L at w: the Hessian eigenvalue of F of largest magnitude, by power iteration on Hessian-vector products.

    Local SGD with the proximal term is stable along that direction while lr (L + mu) < 2.
    """
    leaves = {name: p.detach().requires_grad_() for name, p in w.items()}
    grads = torch.autograd.grad(model.loss(leaves, *rows), list(leaves.values()), create_graph=True)
    rng = stream(seed, "sharpness")
    v = {name: torch.from_numpy(rng.standard_normal(p.shape)).to(p) for name, p in leaves.items()}
    value = 0.0
    for _ in range(iterations):
        length = tree.norm(v)
        v = tree.map(lambda t, length=length: t / length.to(t.dtype), v)
        product = torch.autograd.grad(grads, list(leaves.values()), list(v.values()), retain_graph=True)
        hv = dict(zip(leaves, product, strict=True))
        value, v = float(tree.dot(v, hv)), hv
    return value
