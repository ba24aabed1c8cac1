"""The term in a stranger's loop: the same gradient in both forms, the paper's step under SGD, and misuse by name."""

import copy

import pytest
import torch
from torch import nn

from fedprox_lib import FedProx, proximal, tree
from fedprox_lib.data import Examples
from fedprox_lib.models import logistic
from fedprox_lib.plan import ClientWork
from fedprox_lib.proximal import add_proximal_gradient, anchored, proximal_penalty
from fedprox_lib.simulation import Job, sequential

MU = 0.7


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 4, generator=generator, dtype=torch.float64)
    return list(zip(x, torch.randint(0, 3, (6, 5), generator=generator), strict=True))


def network(seed: int = 0) -> nn.Module:
    """Two layers with a batch normalisation between them, whose second bias nothing reaches."""
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    module.unused = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    with torch.no_grad():
        for w in module.parameters():
            w.copy_(torch.rand(w.shape, generator=generator, dtype=torch.float64) - 0.5)
    return module


OPTIMISERS = {
    "SGD": lambda w: torch.optim.SGD(w, lr=0.1),
    "momentum": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9),
    "Nesterov": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, nesterov=True),
    "weight decay": lambda w: torch.optim.SGD(w, lr=0.1, weight_decay=0.01),
    "Adam": lambda w: torch.optim.Adam(w, lr=0.01),
    "AdamW": lambda w: torch.optim.AdamW(w, lr=0.01, weight_decay=0.1),
}


def trained(batches, optimiser, *, in_place: bool, mu: float = MU, clip: float | None = None) -> dict:
    module = network()
    make = OPTIMISERS[optimiser](module.parameters())
    with anchored(module) as anchor:
        for x, y in batches:
            make.zero_grad()
            loss = nn.functional.cross_entropy(module(x), y)
            (loss if in_place else loss + proximal_penalty(module, anchor, mu)).backward()
            if in_place:
                add_proximal_gradient(module, anchor, mu)
            if clip:
                nn.utils.clip_grad_norm_(module.parameters(), clip)
            make.step()
    return dict(module.state_dict())


@pytest.mark.parametrize("clip", [None, 0.05], ids=["plain", "clipped"])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_both_forms_give_the_optimiser_the_same_gradient(batches, optimiser, clip):
    penalty, in_place = (trained(batches, optimiser, in_place=form, clip=clip) for form in (False, True))
    for name, w in penalty.items():
        assert torch.allclose(w, in_place[name], rtol=1e-12, atol=1e-12), name
    free = trained(batches, optimiser, in_place=True, mu=0.0, clip=clip)
    assert any(not torch.allclose(w, free[name], rtol=1e-6) for name, w in in_place.items())


def test_with_sgd_it_is_the_librarys_local_step():
    """The same federated client through FedProx of the library, coordinates on both sides of w_t."""
    model, generator = logistic(4, 3), torch.Generator().manual_seed(1)
    x, y = torch.randn(12, 4, generator=generator, dtype=torch.float64), torch.arange(12) % 3
    start = model.init(0, torch.float64)
    orders = torch.stack([torch.randperm(12, generator=generator) for _ in range(5)]).flatten()
    work = ClientWork(0, False, 12, orders.numpy(), torch.full((15,), 4).numpy())
    [expected] = sequential(model, Examples(x, y), [Job(start, work, 0.2, FedProx(mu=MU), {"mu": MU}, {}, {})])

    module = nn.Linear(4, 3).double()
    module.load_state_dict({"weight": start["dense.weight"], "bias": start["dense.bias"]})
    sgd = torch.optim.SGD(module.parameters(), lr=0.2)
    with anchored(module) as anchor:
        for rows in orders.split(4):
            sgd.zero_grad()
            (nn.functional.cross_entropy(module(x[rows]), y[rows]) + proximal_penalty(module, anchor, MU)).backward()
            sgd.step()
    delta = expected["dense.weight"] - start["dense.weight"]
    assert (delta > 0).any() and (delta < 0).any()
    assert torch.allclose(module.weight, expected["dense.weight"], rtol=1e-12, atol=1e-14)
    assert torch.allclose(module.bias, expected["dense.bias"], rtol=1e-12, atol=1e-14)


def test_the_value_is_half_mu_times_the_square_of_one_norm():
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    with anchored(module) as anchor:
        assert proximal_penalty(module, anchor, 5.0).item() == 0.0
        with torch.no_grad():
            for w, by in zip(module.parameters(), (1.0, -2.0, 3.0, -4.0), strict=True):
                w += by
        assert proximal_penalty(module, anchor, 0.5).item() == pytest.approx(0.25 * 30, rel=1e-6)


def test_frozen_parameters_and_buffers_are_left_out():
    module = network().train()
    module[0].requires_grad_(False)
    with anchored(module) as anchor:
        assert not any(name.startswith("0.") or "running" in name for name in anchor.weights)
        module(torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))  # moves the buffers
        with torch.no_grad():
            module[0].weight += 10
        assert proximal_penalty(module, anchor, 1.0).item() == 0.0
        add_proximal_gradient(module, anchor, 1.0)
        assert module[0].weight.grad is None and float(module.unused.grad.abs().max()) == 0.0


def test_the_anchor_is_a_copy_that_no_gradient_reaches():
    module = nn.Linear(2, 2)
    with anchored(module) as anchor:
        before = {name: w.clone() for name, w in anchor.weights.items()}
        sgd = torch.optim.SGD(module.parameters(), lr=0.5)
        (module(torch.ones(1, 2)).sum() + proximal_penalty(module, anchor, 1.0)).backward()
        sgd.step()
        assert all(torch.equal(w, before[name]) and not w.requires_grad for name, w in anchor.weights.items())
        assert proximal_penalty(module, anchor, 1.0).item() > 0


@pytest.mark.parametrize("use", [proximal_penalty, add_proximal_gradient], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda module: module.parameters(), "a generator: the first mini-batch uses it up"),
        (lambda module: module.named_parameters(), "a generator"),
        (lambda module: iter(list(module.parameters())), "a generator"),
        (lambda module: list(module.parameters()), "the module's own tensors: they move along"),
        (lambda module: module.state_dict(), "the module's own tensors"),
        (lambda module: {n: w.detach() for n, w in module.named_parameters()}, "the module's own tensors"),
        (lambda module: module, "the module's own tensors"),
        (copy.deepcopy, "got Linear"),
        (lambda module: [w.detach().clone() for w in module.parameters()], "got list"),
        (lambda module: None, "got NoneType"),
    ],
)
def test_what_is_no_anchor_is_refused_by_name(use, wrong, message):
    module = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=message):
        use(module, wrong(module), 1.0)


def test_misuse_of_an_anchor_is_refused_by_name():
    module, other = nn.Linear(2, 2), nn.Linear(3, 2)
    with anchored(module) as anchor:
        with pytest.raises(RuntimeError, match="has an anchor in this round already"), anchored(module):
            pass
        with pytest.raises(ValueError, match="does not belong to what this module trains now: 'weight' differs"):
            proximal_penalty(other, anchor, 1.0)
        module.bias.requires_grad_(False)
        with pytest.raises(ValueError, match="'bias' differs"):
            add_proximal_gradient(module, anchor, 1.0)
        module.bias.requires_grad_(True)
        for mu in (-0.1, float("nan"), float("inf"), "1"):
            with pytest.raises(ValueError, match="mu must be a finite number >= 0"):
                proximal_penalty(module, anchor, mu)
    with pytest.raises(RuntimeError, match="a round that is over"):
        proximal_penalty(module, anchor, 1.0)
    with anchored(module) as again:  # the next round
        assert again is not anchor
    module.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing in this module requires a gradient"), anchored(module):
        pass


def test_an_error_inside_a_round_ends_it():
    module = nn.Linear(2, 2)
    with pytest.raises(ZeroDivisionError), anchored(module):
        raise ZeroDivisionError
    with anchored(module):
        pass
    assert not proximal._anchored


def test_trees_of_the_library_have_the_same_norm():
    module = network()
    with anchored(module) as anchor:
        with torch.no_grad():
            for w in module.parameters():
                w *= 1.5
        moved = {name: w.detach() for name, w in module.named_parameters()}
        squared = float(tree.norm(tree.subtract(moved, anchor.weights))) ** 2
        assert proximal_penalty(module, anchor, 2.0).item() == pytest.approx(squared, rel=1e-12)
