"""The models, as pairs of pure functions: ``init(seed) -> parameters`` and ``logits(parameters, x) -> scores``.

==================  ============================================================================  ==========
:func:`logistic`    multinomial logistic regression, 784 -> 10 (Li et al. 2020, section 5.1)           7,850
:func:`cnn`         McMahan et al. 2017: 5x5 convolutions with "same" padding, 28-28-14-14-7       1,663,370
==================  ============================================================================  ==========

Taught in "The model and one client". Layer: core (PyTorch).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedprox_lib.rng import stream
from fedprox_lib.tree import Params


class Model(NamedTuple):
    """A model is its shapes and its forward function; no state lives in it.

    Attributes:
        name: for records and error messages.
        shapes: parameter names and shapes, weights before biases: ``(out, in)`` or ``(out, in, 5, 5)``.
        logits: ``logits(params, x)`` with x (b, 1, 28, 28) gives (b, 10) scores, before softmax.
        is_linear: whether it is one dense layer, so that many models at once are a few matrix products.
    """

    name: str
    shapes: dict[str, tuple[int, ...]]
    logits: Callable[[Params, Tensor], Tensor]
    is_linear: bool = False

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    def init(self, seed: int, dtype: torch.dtype = torch.float32) -> Params:
        """Initial parameters, uniform on +-1/sqrt(fan_in) (PyTorch's own rule), a function of the seed alone."""
        generator = torch.Generator().manual_seed(int(stream(seed, "init").integers(2**62)))
        params: Params = {}
        fan_in = 1
        for name, shape in self.shapes.items():
            # A bias follows its weight in ``shapes`` and shares its fan-in.
            fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else fan_in
            unit = torch.rand(shape, generator=generator, dtype=torch.float64)
            params[name] = ((2 * unit - 1) / fan_in**0.5).to(dtype)
        return params

    def loss(self, params: Params, x: Tensor, y: Tensor) -> Tensor:
        """F: mean cross-entropy (nats) over the given rows; x (b, 1, 28, 28), y (b,) int64."""
        return F.cross_entropy(self.logits(params, x), y)

    def gradient(self, params: Params, x: Tensor, y: Tensor) -> Params:
        """Gradient of :meth:`loss` with respect to the parameters."""
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        grads = torch.autograd.grad(self.loss(leaves, x, y), list(leaves.values()))
        return dict(zip(leaves, grads, strict=True))

    @torch.no_grad()
    def loss_and_correct(self, params: Params, x: Tensor, y: Tensor, chunk: int = 1000) -> tuple[Tensor, Tensor]:
        """Cross-entropy (n,) float64 and whether the prediction is right (n,) bool, row by row, in chunks."""
        scores = torch.cat([self.logits(params, part) for part in x.split(chunk)])
        return F.cross_entropy(scores.double(), y, reduction="none"), scores.argmax(1) == y


def _logistic(p: Params, x: Tensor) -> Tensor:
    return F.linear(x.flatten(1), p["dense.weight"], p["dense.bias"])  # (b, d) -> (b, 10)


def logistic(num_features: int = 784, num_classes: int = 10) -> Model:
    """Multinomial logistic regression on d features; 60 of them on the paper's synthetic data: 610 parameters.

    Example:
        >>> logistic(60).num_parameters
        610
    """
    shapes: dict[str, tuple[int, ...]] = {"dense.weight": (num_classes, num_features), "dense.bias": (num_classes,)}
    return Model("logistic", shapes, _logistic, is_linear=True)


def channels_last(x: Tensor) -> Tensor:
    """The same activations laid out so that pooling is fast; said by permuting, which vmap understands."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _cnn(p: Params, x: Tensor) -> Tensor:
    x = channels_last(F.conv2d(x, p["conv1.weight"], p["conv1.bias"], padding=2))  # (b, 32, 28, 28)
    x = F.relu(F.max_pool2d(x, 2))  # (b, 32, 14, 14); relu after pooling is the same and has less to do
    x = F.conv2d(x, p["conv2.weight"], p["conv2.bias"], padding=2)  # (b, 64, 14, 14)
    x = F.relu(F.max_pool2d(x, 2))  # (b, 64, 7, 7)
    return head(p, x)


def head(p: Params, x: Tensor) -> Tensor:
    x = F.relu(F.linear(x.flatten(1), p["dense.weight"], p["dense.bias"]))  # (b, 3136) -> (b, 512)
    return F.linear(x, p["out.weight"], p["out.bias"])  # (b, 10)


CNN_SHAPES = {
    "conv1.weight": (32, 1, 5, 5),
    "conv1.bias": (32,),
    "conv2.weight": (64, 32, 5, 5),
    "conv2.bias": (64,),
    "dense.weight": (512, 7 * 7 * 64),
    "dense.bias": (512,),
    "out.weight": (10, 512),
    "out.bias": (10,),
}
"""Of the two layers of convolutions and the two dense layers; the blog's network has the same."""


def cnn() -> Model:
    """The CNN of McMahan et al. 2017 for images of 28 x 28 pixels and 10 classes.

    Example:
        >>> cnn().num_parameters
        1663370
    """
    return Model("cnn", dict(CNN_SHAPES), _cnn)
