"""The models, as pairs of pure functions: ``init(seed) -> parameters`` and ``logits(parameters, x) -> scores``.

====================  ============================================================================  ==========
:func:`logistic`      multinomial logistic regression, 784 -> 10 (Li et al. 2020, section 5.1)           7,850
:func:`cnn`           McMahan et al. 2017: 5x5 convolutions with "same" padding, 28-28-14-14-7       1,663,370
:func:`from_module`   any ``torch.nn.Module``, with a loss of your own or cross-entropy
====================  ============================================================================  ==========

Taught in "The model and one client". Layer: core (PyTorch).
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedprox_lib.rng import stream
from fedprox_lib.tree import Params


class Model(NamedTuple):
    """A model is its shapes and its forward function; no state lives in it.

    Attributes:
        name: for records and error messages.
        shapes: parameter names and shapes, weights before biases: ``(out, in)`` or ``(out, in, 5, 5)``.
        logits: ``logits(params, x)`` with x (b, 1, 28, 28) gives (b, 10) scores, before softmax. A row's scores depend
            on that row alone.
        is_linear: whether it is one dense layer, so that many models at once are a few matrix products.
        own_init: ``own_init(seed)`` gives initial parameters in place of PyTorch's rule for dense layers.
        own_loss: ``own_loss(scores, y)``, a mean over rows (0-d), is trained on in place of cross-entropy.
    """

    name: str
    shapes: dict[str, tuple[int, ...]]
    logits: Callable[[Params, Tensor], Tensor]
    is_linear: bool = False
    own_init: Callable[[int], Params] | None = None
    own_loss: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    def init(self, seed: int, dtype: torch.dtype = torch.float32) -> Params:
        """Initial parameters, a function of the seed alone: ``own_init``'s, or uniform on +-1/sqrt(fan_in).

        The latter is PyTorch's own rule for dense layers and convolutions.
        """
        if self.own_init is not None:
            return {name: p.to(dtype) for name, p in self.own_init(seed).items()}
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
        """F: mean cross-entropy (nats), or ``own_loss``, over the given rows; x (b, 1, 28, 28), y (b,) int64."""
        return (self.own_loss or F.cross_entropy)(self.logits(params, x), y)

    def gradient(self, params: Params, x: Tensor, y: Tensor) -> Params:
        """Gradient of :meth:`loss` with respect to the parameters."""
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        # A parameter that the loss does not reach has gradient 0.
        grads = torch.autograd.grad(self.loss(leaves, x, y), list(leaves.values()), materialize_grads=True)
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


# --- your own module --------------------------------------------------------------------------------------------------


def from_module(
    module: nn.Module, *, loss: Callable[[Tensor, Tensor], Tensor] | None = None, name: str | None = None
) -> Model:
    """A model from any module that gives (b, classes) scores for b rows; the module is copied and left alone.

    Parameters that require a gradient are trained, each under its name, tied ones once under their first. Frozen
    parameters and buffers are constants.

    The module keeps its own start: ``init(seed)`` resets a copy, inner layers first, by their ``reset_parameters``, so
    that scales of a normalisation begin at 1. A parameter that no ``reset_parameters`` sets keeps the value it came
    with, whatever the seed; what a constructor did to a layer after making it is not done again. For either, give the
    module a ``reset_parameters`` of its own, or replace the start: ``model._replace(own_init=...)``.

    Normalisation by a batch's own statistics (batch normalisation with ``track_running_stats=False``) makes a row's
    scores depend on the other rows: it is trained one client at a time, and measured on the batches in which the
    library evaluates. A call puts its weights into the copy for a moment, so threads must not share a model.

    Args:
        module: in training or evaluation mode, which is kept.
        loss: ``loss(scores, y)`` to train on, a mean over rows (0-d); None: cross-entropy, which is measured anyhow.
        name: for records and messages; None: that of the class.

    Raises:
        ValueError: if it has nothing to train, if it changes running statistics in training, or if it drops out at
            random; when called, if it changes its input or a buffer in place.

    Example:
        >>> model = from_module(nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.LayerNorm(32), nn.Linear(32, 10)))
        >>> model.num_parameters, model.init(seed=0)["2.weight"].unique().tolist()
        (25514, [1.0])
    """
    if not (isinstance(module, nn.Module) and any(p.requires_grad for p in module.parameters())):
        raise ValueError(f"from_module needs a torch.nn.Module with a parameter that requires_grad, got {module!r}.")
    for path, part in module.named_modules():
        if part.training:
            _require_pure(path or "the module", part)
    module = copy.deepcopy(module).cpu()
    held = dict([*module.named_parameters(), *module.named_buffers()])
    constants = {n: t.detach() for n, t in held.items() if not t.requires_grad}
    shapes = {n: tuple(t.shape) for n, t in held.items() if t.requires_grad}
    if not all(getattr(part, "track_running_stats", True) for part in module.modules()):
        loss = loss or F.cross_entropy  # as an own loss: no batch may be filled up with rows of weight 0
    scores, start = partial(_scores, module, constants), partial(_start, module)
    return Model(name or type(module).__name__, shapes, scores, own_init=start, own_loss=loss)


def _require_pure(path: str, part: nn.Module) -> None:
    """Raise if a part in training mode would keep something between calls, or draw at random."""
    if getattr(part, "track_running_stats", False):
        raise ValueError(
            f"{path} must keep nothing between batches, but {part!r} has running statistics, and averaging them over "
            "clients is another algorithm: use nn.GroupNorm or track_running_stats=False, or freeze them by eval()."
        )
    # Attention and recurrent layers hold the probability itself.
    p = part.p if isinstance(part, nn.modules.dropout._DropoutNd) else getattr(part, "dropout", 0)
    if isinstance(part, nn.RReLU) or isinstance(p, int | float) and p > 0:
        raise ValueError(
            f"{path} must be a function of its input, but {part!r} draws from PyTorch's global generator, so that no "
            "seed could repeat a run: set its probability to 0, leave it out, or switch it off by eval()."
        )


def _scores(module: nn.Module, constants: Params, params: Params, x: Tensor) -> Tensor:
    """Scores of a module with other parameters; the constants follow these to their device and dtype."""
    like = next(iter(params.values()))
    held = {n: c.to(like.device, like.dtype if c.is_floating_point() else c.dtype) for n, c in constants.items()}
    watched = {n: (t, t._version) for n, t in {"its input": x, **held}.items()}
    scores = torch.func.functional_call(module, params | held, (x,))
    if changed := [n for n, (t, version) in watched.items() if t._version != version]:
        raise ValueError(
            f"{type(module).__name__} must be a function of its input, but changes {changed[0]} in place, which the "
            "next client would see: let forward() work on a copy."
        )
    return scores


def _start(module: nn.Module, seed: int) -> Params:
    """Trained parameters of a copy that is reset under a seed; the global generator ends where it was."""
    module = copy.deepcopy(module)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(int(stream(seed, "init").integers(2**62)))
        module.apply(_reset)
    return {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}


def _reset(part: nn.Module) -> None:
    # nn.MultiheadAttention and nn.Transformer have theirs under a private name.
    getattr(part, "reset_parameters", getattr(part, "_reset_parameters", tuple))()
