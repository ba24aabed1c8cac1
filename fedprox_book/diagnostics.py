"""Looking inside local training: how inexact, how far from the start, how curved, and what is forgotten.

Symbols are the paper's: F the local loss, h(w; w_t) = F(w) + (mu/2) ||w - w_t||^2, gamma of Definition 1.
Taught in "The model and one client" and "The proximal term". Layer: book (PyTorch).
"""

import numpy as np
import torch

from fedprox_lib import tree
from fedprox_lib.data import Examples
from fedprox_lib.models import Model
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


def class_accuracy(model: Model, w: Params, rows: Examples) -> np.ndarray:
    """(10,) accuracy in [0, 1] of each label; NaN for one that does not occur."""
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
