"""The models, as pairs of pure functions: ``init(seed) -> parameters`` and ``logits(parameters, x) -> scores``.

=============  ============================================================================  ==========
``logistic``   multinomial logistic regression, 784 -> 10 (Li et al. 2020, section 5.1)           7,850
``cnn``        McMahan et al. 2017: 5x5 convolutions with "same" padding, 28-28-14-14-7       1,663,370
``cnn_blog``   the blog's code: padding 1 and padded pooling, 28-26-14-12-7                   1,663,370
=============  ============================================================================  ==========

The two CNNs have the same number of parameters and are different networks. Taught in "The model and one client".
Room: PyTorch computation. May import rng, tree.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from fedprox_lib import tree
from fedprox_lib.rng import stream
from fedprox_lib.tree import Params


class Model(NamedTuple):
    """A model is its shapes and its forward function; no state lives in it.

    Attributes:
        name: as in ``MODELS`` and in records.
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

    # --- many models at once: u groups of m models; the models of a group look at the same rows ----------------------
    # A linear model is packed for it: the bias becomes the last column of the weights, and rows get a last entry of 1.

    def packed(self, params: Params) -> Params:
        """Parameters (..., shape), or anything shaped like them, as the methods below take them."""
        if not self.is_linear:
            return params
        return {"dense": torch.cat([params["dense.weight"], params["dense.bias"][..., None]], -1)}

    def unpacked(self, params: Params) -> Params:
        """The inverse of :meth:`packed`, in memory of its own."""
        if not self.is_linear:
            return {name: p.clone() for name, p in params.items()}
        w = params["dense"]
        return {"dense.weight": w[..., :-1].contiguous(), "dense.bias": w[..., -1].contiguous()}

    def packed_rows(self, x: Tensor) -> Tensor:
        """Rows (n, ...) as the methods below take them."""
        return F.pad(x.flatten(1), (0, 1), value=1.0) if self.is_linear else x

    def logits_together(self, params: Params, x: Tensor) -> Tensor:
        """Scores (u, b, m, 10) of packed parameters (u, m, ...) on packed rows x (u, b, ...)."""
        if self.is_linear:
            w = params["dense"]  # (u, m, 10, d + 1)
            return torch.bmm(x, w.flatten(1, 2).transpose(1, 2)).unflatten(2, w.shape[1:3])
        return vmap(vmap(self.logits, (0, None)))(params, x).transpose(1, 2)

    def gradients_together(self, params: Params, x: Tensor, y: Tensor, weights: Tensor) -> Params:
        """Gradients (u, m, ...) of the weighted sum of cross-entropies over packed rows x (u, b, ...).

        y and weights are (u, b). Weights of 1/b make it the mean; a weight of 0 leaves a row out.
        """
        if self.is_linear:
            p = _softmax(self.logits_together(params, x))
            label = y[:, :, None, None].expand(*p.shape[:3], 1)
            p.scatter_(3, label, -1.0, reduce="add")
            p *= weights[:, :, None, None]  # d loss / d scores
            return {"dense": torch.bmm(p.flatten(2).transpose(1, 2), x).view(params["dense"].shape)}

        def loss(params: Params, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
            return (weights * F.cross_entropy(self.logits(params, x), y, reduction="none")).sum()

        if weights.shape[0] == next(iter(params.values())).shape[1] == 1:  # one model: no need to batch convolutions
            leaves = {name: p[0, 0].detach().requires_grad_() for name, p in params.items()}
            grads = torch.autograd.grad(loss(leaves, x[0], y[0], weights[0]), list(leaves.values()))
            return {name: g[None, None] for name, g in zip(leaves, grads, strict=True)}
        return vmap(vmap(grad(loss), (0, None, None, None)))(params, x, y, weights)

    @torch.no_grad()
    def evaluate_together(
        self, params: Params, x: Tensor, y: Tensor, rows: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy and accuracy, (m,) float64 each, of parameters (1, m, ...) on the given rows; None: all.

        A single model is evaluated by :meth:`loss_and_correct`, in float64 from the scores on.
        """
        index = torch.from_numpy(np.arange(len(y)) if rows is None else rows).to(y.device)
        num_models = next(iter(params.values())).shape[1]
        if num_models == 1:
            one = {name: p[0, 0] for name, p in params.items()}
            every = len(index) == len(y)
            losses, right = self.loss_and_correct(one, *((x, y) if every else (x[index], y[index])), chunk=100)
            return losses.mean()[None], right.double().mean()[None]
        loss, correct = (torch.zeros(num_models, dtype=torch.float64, device=y.device) for _ in range(2))
        params = self.packed(params)
        for part in index.split(1000):
            scores = self.logits_together(params, self.packed_rows(x[part])[None])[0].transpose(1, 2)  # (b, 10, m)
            labels = y[part][:, None].expand(-1, num_models)
            loss += F.cross_entropy(scores, labels, reduction="none").double().sum(0)
            correct += (scores.argmax(1) == labels).sum(0)
        return loss / len(index), correct / len(index)


def _softmax(scores: Tensor) -> Tensor:
    """Over the last axis, which is short: there torch.softmax is slow, except on little."""
    if scores.numel() < 1000:
        return torch.softmax(scores, -1)
    p = (scores - scores.amax(-1, keepdim=True)).exp_()
    return p.div_(p.sum(-1, keepdim=True))


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


def _channels_last(x: Tensor) -> Tensor:
    """The same activations laid out so that pooling is fast; said by permuting, which vmap understands."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _cnn(p: Params, x: Tensor) -> Tensor:
    x = _channels_last(F.conv2d(x, p["conv1.weight"], p["conv1.bias"], padding=2))  # (b, 32, 28, 28)
    x = F.relu(F.max_pool2d(x, 2))  # (b, 32, 14, 14); relu after pooling is the same and has less to do
    x = F.conv2d(x, p["conv2.weight"], p["conv2.bias"], padding=2)  # (b, 64, 14, 14)
    x = F.relu(F.max_pool2d(x, 2))  # (b, 64, 7, 7)
    return _head(p, x)


def _cnn_blog(p: Params, x: Tensor) -> Tensor:
    x = _channels_last(F.conv2d(x, p["conv1.weight"], p["conv1.bias"], padding=1))  # (b, 32, 26, 26)
    x = F.relu(F.max_pool2d(x, 2, padding=1))  # (b, 32, 14, 14)
    x = F.conv2d(x, p["conv2.weight"], p["conv2.bias"], padding=1)  # (b, 64, 12, 12)
    x = F.relu(F.max_pool2d(x, 2, padding=1))  # (b, 64, 7, 7)
    return _head(p, x)


def _head(p: Params, x: Tensor) -> Tensor:
    x = F.relu(F.linear(x.flatten(1), p["dense.weight"], p["dense.bias"]))  # (b, 3136) -> (b, 512)
    return F.linear(x, p["out.weight"], p["out.bias"])  # (b, 10)


_CNN_SHAPES = {
    "conv1.weight": (32, 1, 5, 5),
    "conv1.bias": (32,),
    "conv2.weight": (64, 32, 5, 5),
    "conv2.bias": (64,),
    "dense.weight": (512, 7 * 7 * 64),
    "dense.bias": (512,),
    "out.weight": (10, 512),
    "out.bias": (10,),
}

MODELS = {
    model.name: model
    for model in (
        logistic(),
        Model("cnn", _CNN_SHAPES, _cnn),
        Model("cnn_blog", _CNN_SHAPES, _cnn_blog),
    )
}
"""The models by name."""


def get(name: str, num_features: int = 784) -> Model:
    """The model of that name, for rows of that many features.

    Example:
        >>> get("cnn").num_parameters
        1663370
    """
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {name!r}.")
    if name == "logistic":
        return logistic(num_features)
    if num_features != 784:
        raise ValueError(f"model {name!r} needs images of 28 x 28 = 784 pixels, got rows of {num_features} features.")
    return MODELS[name]


def layer_shapes(model: Model, image_size: int = 28) -> list[tuple[int, ...]]:
    """The shapes of the activations from input to scores, found by running the model on a blank image."""
    seen: list[tuple[int, ...]] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if getattr(func, "__name__", "") in ("conv2d", "max_pool2d", "boolean_dispatch", "linear", "fn"):
                seen.append(tuple(out.shape[1:]))
            return out

    blank = torch.zeros(1, 1, image_size, image_size)
    with Watch():
        model.logits(tree.map(torch.clone, model.init(0)), blank)
    return [(1, image_size, image_size), *seen]
