r"""The proximal term alone, for anybody's own PyTorch loop: h_k(w; w_t) = F_k(w) + (mu/2) ||w - w_t||^2.

Everything of FedProx that happens inside a client, and nothing else of this library::

    model.load_state_dict(global_weights)                     # w_t
    with anchored(model) as anchor:                           # once per round: a detached copy of w_t
        for x, y in loader:
            optimizer.zero_grad()
            loss = criterion(model(x), y) + proximal_penalty(model, anchor, mu)
            loss.backward()
            optimizer.step()

The cheaper form leaves the loss alone and adds the term's gradient mu (w - w_t) after ``backward()``, with
:func:`add_proximal_gradient`. Both give the optimiser the same gradient; the reported loss differs, since the first
contains the term. What else stands between ``backward()`` and ``step()`` decides what the term means:

=====================  ================================================================================================
SGD                    w <- w - lr (g + mu (w - w_t)): the paper's local step; stable while lr (L + mu) < 2
momentum, Nesterov     the buffer collects g + mu (w - w_t): the pull of earlier steps goes on working
Adam and its like      the sum is rescaled entry by entry, so mu loses its unit: the pull is no longer mu (w - w_t)
weight decay in SGD    adds wd * w, a pull to 0 beside the pull to w_t; the two add up
AdamW's decoupled      does not pass through the rescaling, unlike the term
clipping               with the penalty, or added before clipping, the term is clipped too; added after it, it is not
mixed precision        the penalty is scaled with the loss; in place: after ``scaler.unscale_(optimizer)``, never before
accumulated gradients  the penalty once per optimiser step, not once per ``backward()``; in place: before ``step()``
=====================  ================================================================================================

The term covers the parameters that require a gradient when the anchor is taken. Frozen parameters and buffers (the
running statistics of batch normalisation, say) are left out: the paper's term knows only what is trained.

References: Li et al., MLSys 2020, Algorithm 2 and section 3.2. Taught in "The proximal term". Layer: core (PyTorch).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from fedprox_lib.tree import Params

_anchored: "WeakSet[nn.Module]" = WeakSet()


class Anchor:
    """w_t: a detached copy of what a module trains, taken at the start of a round by :func:`anchored`.

    Attributes:
        weights: parameter name -> copy, of the parameters that required a gradient.
        is_over: whether its round is.
    """

    def __init__(self, module: nn.Module) -> None:
        self.weights: Params = {name: w.detach().clone() for name, w in module.named_parameters() if w.requires_grad}
        self.is_over = False


@contextmanager
def anchored(module: nn.Module) -> Iterator[Anchor]:
    """Take the anchor of a round, once, before the first local step; it is valid inside the ``with``.

    Args:
        module: holds w_t now, as it came from the server.

    Raises:
        RuntimeError: if the module is anchored already: a second anchor within a round would pull towards where local
            training happens to be.
        ValueError: if nothing in the module requires a gradient.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> with anchored(model) as anchor, torch.no_grad():
        ...     _ = model.weight.add_(3.0)
        ...     print(round(float(proximal_penalty(model, anchor, mu=2.0)), 4))
        9.0
    """
    if module in _anchored:
        raise RuntimeError(
            "this module has an anchor in this round already: a second one would be taken at weights that local steps "
            "have moved. Take it once per round, before the first step."
        )
    anchor = Anchor(module)
    if not anchor.weights:
        raise ValueError("nothing in this module requires a gradient, so there is nothing that a proximal term holds.")
    _anchored.add(module)
    try:
        yield anchor
    finally:
        _anchored.discard(module)
        anchor.is_over = True


def proximal_penalty(module: nn.Module, anchor: Anchor, mu: float) -> Tensor:
    r"""The term (mu/2) ||w - w_t||^2 over all trained parameters together, to be added to the loss of a mini-batch.

    Squared, and one norm over everything: the sum of the tensors' norms, unsquared, is another method.

    Args:
        module: with the weights w of this step.
        anchor: from :func:`anchored`, in this round.
        mu: >= 0, in units of curvature.

    Returns:
        A 0-d tensor through which gradients flow; 0 where w = w_t.

    Raises:
        TypeError: if the anchor is not one: a generator, which the first mini-batch uses up; or the module's own
            tensors, which move along with it.
        RuntimeError: if the anchor's round is over.
        ValueError: if module and anchor do not belong together, or mu is not a finite number >= 0.
    """
    pairs = _pairs(module, anchor, mu)
    return mu / 2 * torch.stack([(w - w_t).square().sum() for w, w_t in pairs]).sum()


@torch.no_grad()
def add_proximal_gradient(module: nn.Module, anchor: Anchor, mu: float) -> None:
    r"""Add mu (w - w_t) to the gradients of the trained parameters, in place: after ``backward()``, before ``step()``.

    The same gradient as with :func:`proximal_penalty` in the loss, without a second graph. A parameter that the loss
    did not reach gets the term alone, as it would from the penalty. Arguments and errors as there.
    """
    for w, w_t in _pairs(module, anchor, mu):
        if w.grad is None:
            w.grad = torch.zeros_like(w)
        w.grad.add_(w - w_t, alpha=mu)


def _pairs(module: nn.Module, anchor: Anchor, mu: float) -> list[tuple[Tensor, Tensor]]:
    """(w, w_t) of every parameter that the term holds, after all checks."""
    if not isinstance(anchor, Anchor):
        raise TypeError(f"the anchor must come from `with anchored(module) as anchor:`, got {_what(module, anchor)}.")
    if anchor.is_over:
        raise RuntimeError(
            "this anchor belongs to a round that is over: take a new one from the weights of this round."
        )
    if not isinstance(mu, int | float) or not 0 <= mu < math.inf:
        raise ValueError(f"mu must be a finite number >= 0, got {mu!r}; mu=0 is FedAvg that keeps partial work.")
    trained = {name: w for name, w in module.named_parameters() if w.requires_grad}
    forms = [{name: tuple(w.shape) for name, w in each.items()} for each in (trained, anchor.weights)]
    if forms[0] != forms[1]:
        odd = sorted(name for name in forms[0].keys() | forms[1].keys() if forms[0].get(name) != forms[1].get(name))
        raise ValueError(
            f"the anchor does not belong to what this module trains now: {odd[0]!r} differs (of {len(odd)} such "
            "parameters). Freeze or unfreeze before the anchor is taken, and use the anchor of this module."
        )
    return [(w, anchor.weights[name]) for name, w in trained.items()]


def _what(module: nn.Module, given: Any) -> str:
    """What somebody passed as an anchor, and what would have come of it."""
    if isinstance(given, Iterator):
        return "a generator: the first mini-batch uses it up, and from the second on the term would be 0"
    tensors = (
        list(given.values()) if isinstance(given, dict) else list(given) if isinstance(given, list | tuple) else []
    )
    own = {w.data_ptr() for w in module.parameters()}
    if (
        isinstance(given, nn.Module)
        and given is module
        or any(isinstance(t, Tensor) and t.data_ptr() in own for t in tensors)
    ):
        return "the module's own tensors: they move along with it, so the term would always be 0"
    return f"{type(given).__name__}"
