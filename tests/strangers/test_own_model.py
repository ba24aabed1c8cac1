"""A stranger's network: any module in one call, its own start, its own loss; what cannot be averaged is refused."""

import copy
import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedprox_lib import FedAvg, Federation, FedProx, LocalWork, batched, models, sequential, simulate, tree
from fedprox_lib.data import Examples
from fedprox_lib.models import from_module
from fedprox_lib.partition import IID
from fedprox_lib.plan import UniformPlanner
from fedprox_lib.rng import stream
from fedprox_lib.simulation import State, round_jobs

MU, LR = 0.3, 0.1


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.norm, self.out = nn.Linear(64, 12), nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x):
        return self.out(F.relu(self.norm(self.hidden(x.flatten(1)))))


class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.conv2, self.norm2 = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.GroupNorm(3, 6)
        self.out = nn.Linear(6 * 2 * 2, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        return self.out(F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2).flatten(1))


class Attention(nn.Module):
    """Eight rows of pixels look at each other: a layer whose reset is private."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.attend, self.out = nn.MultiheadAttention(8, 2, dropout=dropout, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        x = x.flatten(1, 2)
        return self.out(self.attend(x, x, x)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.out = nn.GRU(8, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.cells(x.flatten(1, 2))[0][:, -1])


class Tied(nn.Module):
    """One matrix under two names, one number without a reset, one layer that nothing reaches."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3)
        self.second.weight = self.first.weight
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.gain * self.out(self.second(F.relu(self.first(x.flatten(1)))))


class Fixed(nn.Module):
    """A frozen layer, and constants of three kinds in buffers."""

    def __init__(self):
        super().__init__()
        self.features, self.out = nn.Linear(64, 16).requires_grad_(False), nn.Linear(16, 3)
        self.register_buffer("mean", torch.full((64,), 0.1))
        self.register_buffer("kept", torch.arange(0, 64, 2).repeat(2), persistent=False)

    def forward(self, x):
        return self.out(torch.tanh(self.features((x.flatten(1) - self.mean)[:, self.kept])))


MODULES = [MLP, CNN, Attention, Recurrent, Tied, Fixed]
each = pytest.mark.parametrize("make", MODULES, ids=lambda make: make.__name__)
any_dtype = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])


def images(dtype, n=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return Examples(x, torch.randint(0, 3, (n,), generator=generator))


def jobs_of(model, train, algorithm, num_clients=2, seed=0):
    partition = IID(num_clients).split(train.labels, data_seed=0)
    planner = UniformPlanner(partition, LocalWork(epochs=2, batch_size=7, lr=LR), seed, num_clients, 0.5, "1..E")
    w = tree.map(tree.laid_out, model.init(seed, train.x.dtype))
    return round_jobs(State(0, w, algorithm.init_server(w), {}), planner.round_plan(1), algorithm, LR)


def by_hand(module, w_t, train, work, loss=F.cross_entropy):
    """FedProx's local steps as one writes them for a module, optimiser and all."""
    net = copy.deepcopy(module).to(train.x.dtype)
    net.load_state_dict(w_t, strict=False)
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=LR)
    for rows in work.batches():
        optimiser.zero_grad()
        away = sum(((p - w_t[name]) ** 2).sum() for name, p in net.named_parameters() if p.requires_grad)
        x, y = train.take(rows)
        (loss(net(x), y) + MU / 2 * away).backward()
        optimiser.step()
    return {name: p.detach() for name, p in net.named_parameters()}


def distance(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@each
@any_dtype
def test_sequential_is_the_loop_that_one_writes_by_hand(make, dtype, tolerance):
    module, train = make(), images(dtype)
    model = from_module(module)
    jobs = jobs_of(model, train, FedProx(mu=MU))
    assert len({job.work.num_steps for job in jobs}) == 2  # one of the two is a straggler
    for job, w in zip(jobs, sequential(model, train, jobs), strict=True):
        assert w.keys() == model.shapes.keys() and distance(w, job.start) > 1e-3
        assert distance(w, by_hand(module, job.start, train, job.work)) < tolerance


@each
@any_dtype
def test_batched_is_sequential(make, dtype, tolerance):
    train = images(dtype)
    model = from_module(make())
    jobs = jobs_of(model, train, FedProx(mu=MU), num_clients=5)
    jobs += jobs_of(model, train, FedAvg(), num_clients=5)
    slow, fast = sequential(model, train, jobs), batched(model, train, jobs)
    assert max(map(distance, slow, fast)) < tolerance
    assert min(distance(w, job.start) for w, job in zip(fast, jobs, strict=True)) > 1e-3


@each
def test_the_start_is_the_module_s_own_and_the_seed_s(make):
    torch.manual_seed(5)
    model = from_module(make())
    before = torch.get_rng_state()
    a, again, b = model.init(0), model.init(0), model.init(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert a.keys() == model.shapes.keys() and distance(a, again) == 0 and distance(a, b) > 0
    assert {name: tuple(w.shape) for name, w in a.items()} == model.shapes
    assert not any(w.requires_grad for w in a.values())
    assert {w.dtype for w in model.init(0, torch.float64).values()} == {torch.float64}
    assert distance(model.init(0, torch.float64), a) == 0
    # As if PyTorch had been seeded, before the module was made.
    torch.manual_seed(int(stream(0, "init").integers(2**62)))
    made = {name: p.detach() for name, p in make().named_parameters()}
    if make is Tied:  # resetting its second layer draws into the weights of the first
        del a["first.weight"]
    assert all(torch.equal(w, made[name]) for name, w in a.items())


def test_scales_start_at_one():
    for make, scales in ((MLP, ["norm"]), (CNN, ["norm1", "norm2"])):
        for seed in range(3):
            w = from_module(make()).init(seed)
            assert all((w[f"{name}.weight"] == 1).all() and (w[f"{name}.bias"] == 0).all() for name in scales)


def test_parameters_without_a_reset_keep_their_values():
    module = Tied()
    model = from_module(module)
    assert "second.weight" not in model.shapes  # tied: trained once, under its first name
    assert model.num_parameters == sum(p.numel() for p in module.parameters())
    assert all(float(model.init(seed)["gain"]) == 0.5 for seed in range(3))


def test_the_global_generator_is_restored_after_an_error():
    class Broken(nn.Linear):
        def reset_parameters(self):
            super().reset_parameters()
            if hasattr(self, "made"):
                raise RuntimeError("broken")

    module = Broken(2, 2)
    module.made = True
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="broken"):
        from_module(module).init(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_module_is_copied_and_left_alone():
    module = CNN()
    state = copy.deepcopy(module.state_dict())
    train = images(torch.float32)
    model = from_module(module)
    start = model.init(0)
    jobs = jobs_of(model, train, FedProx(mu=MU))
    ends = sequential(model, train, jobs)
    assert all(torch.equal(w, module.state_dict()[name]) for name, w in state.items())
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(9)
    module.norm1 = nn.Identity()
    assert distance(model.init(0), start) == 0
    assert max(map(distance, sequential(model, train, jobs), ends)) == 0


def test_a_model_travels_to_other_processes():
    model = from_module(CNN(), loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    other = pickle.loads(pickle.dumps(model))
    x, y = images(torch.float32)
    assert distance(other.init(3), model.init(3)) == 0
    assert distance(other.gradient(other.init(3), x, y), model.gradient(model.init(3), x, y)) == 0


def test_frozen_parameters_and_buffers_are_constants():
    module = Fixed()
    model = from_module(module)
    assert list(model.shapes) == ["out.weight", "out.bias"]
    x, _ = images(torch.float64)
    w = model.init(0, torch.float64)
    double = copy.deepcopy(module).double()
    double.load_state_dict(w, strict=False)
    assert torch.equal(model.logits(w, x), double(x)) and not torch.equal(w["out.weight"], module.out.weight.double())


def test_a_parameter_that_the_loss_does_not_reach_stays():
    train = images(torch.float64)
    model = from_module(Tied())
    (job, *_) = jobs = jobs_of(model, train, FedProx(mu=MU))
    for backend in (sequential, batched):
        w = backend(model, train, jobs)[0]
        assert torch.equal(w["unused.weight"], job.start["unused.weight"])


@any_dtype
def test_an_own_loss_is_trained_on_and_cross_entropy_reported(dtype, tolerance):
    def smoothed(scores, y):
        return F.cross_entropy(scores, y, label_smoothing=0.4)

    module, train = MLP(), images(dtype)
    model, plain = from_module(module, loss=smoothed), from_module(module)
    jobs = jobs_of(model, train, FedProx(mu=MU))
    ends = sequential(model, train, jobs)
    for job, w, other in zip(jobs, ends, sequential(plain, train, jobs), strict=True):
        assert distance(w, by_hand(module, job.start, train, job.work, smoothed)) < tolerance
        assert distance(w, other) > 1e-3
    with pytest.warns(UserWarning, match="one client at a time"):
        assert max(map(distance, batched(model, train, jobs), ends)) < tolerance
    scores = model.logits(ends[0], train.x)
    losses, correct = model.loss_and_correct(ends[0], *train, chunk=7)
    assert torch.allclose(losses, F.cross_entropy(scores.double(), train.y, reduction="none"))
    assert torch.equal(correct, scores.argmax(1) == train.y)
    assert float(model.loss(ends[0], *train)) == float(smoothed(scores, train.y))


@any_dtype
def test_batch_statistics_are_never_mixed_with_rows_that_fill_up(dtype, tolerance):
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 3)
    )
    model, train = from_module(module), images(dtype)
    jobs = jobs_of(model, train, FedProx(mu=MU), num_clients=3)
    assert len({int(size) for job in jobs for size in job.work.batch_sizes}) > 1
    ends = sequential(model, train, jobs)
    with pytest.warns(UserWarning, match="one client at a time"):
        assert max(map(distance, batched(model, train, jobs), ends)) < tolerance
    for job, w in zip(jobs, ends, strict=True):
        assert distance(w, by_hand(module, job.start, train, job.work)) < tolerance


def test_running_statistics_that_are_switched_off_are_constants():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    module[2].running_mean += 1
    module[2].eval()
    module[3].eval()
    model, train = from_module(module), images(torch.float64)
    jobs = jobs_of(model, train, FedProx(mu=MU))
    for job, w in zip(jobs, sequential(model, train, jobs), strict=True):
        net = copy.deepcopy(module)
        assert distance(w, by_hand(net, job.start, train, job.work)) < 1e-10


class InPlace(nn.Module):
    """Counts its calls, or centres the rows it is given, in place."""

    def __init__(self, what):
        super().__init__()
        self.what, self.out = what, nn.Linear(64, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.what == "x":
            x -= 1
        else:
            self.calls += 1
        return self.out(x.flatten(1))


@pytest.mark.parametrize(("what", "named"), [("x", "its input"), ("calls", "calls")])
def test_what_a_forward_pass_would_leave_behind_is_refused(what, named):
    train = images(torch.float32)
    federation = Federation(train, train, IID(2).split(train.labels, data_seed=0), from_module(InPlace(what)))
    run = simulate(federation, FedAvg(), work=LocalWork(epochs=1, batch_size=7, lr=LR), rounds=1, cohort_size=2, seed=0)
    with pytest.raises(ValueError, match=f"InPlace must be a function of its input, but changes {named} in place"):
        next(run)


def deep(part):
    return nn.Sequential(nn.Sequential(nn.Linear(4, 4), part), nn.Linear(4, 3))


REFUSED = {
    "batch": (deep(nn.BatchNorm1d(4)), r"0\.1 must keep nothing .*BatchNorm1d.*another algorithm: use nn.GroupNorm"),
    "instance": (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), r"the module must keep nothing"),
    "dropout": (
        deep(nn.Dropout(0.1)),
        r"0\.1 must be a function of its input, but Dropout\(p=0.1.*set its probability",
    ),
    "channels": (deep(nn.Dropout2d(0.5)), r"0\.1 must be a function"),
    "attention": (Attention(dropout=0.2), r"attend must be a function"),
    "recurrent": (nn.LSTM(4, 4, num_layers=2, dropout=0.5), r"LSTM.* draws from PyTorch's global generator"),
    "slope": (deep(nn.RReLU()), r"RReLU.* draws from PyTorch's global generator"),
    "nothing to train": (nn.ReLU(), r"with a parameter that requires_grad, got ReLU\(\)"),
    "frozen": (nn.Linear(2, 2).requires_grad_(False), r"with a parameter that requires_grad"),
    "a class": (MLP, r"needs a torch.nn.Module with a parameter that requires_grad, got <class"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_named(case):
    module, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        from_module(module)


def test_harmless_dropout_passes():
    train = images(torch.float32)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Dropout(0.0), nn.Linear(6, 3))
    with_it, without = from_module(module), from_module(nn.Sequential(*module[:2], nn.Identity(), module[3]))
    w = without.init(0)
    assert torch.equal(with_it.logits(w, train.x), without.logits(w, train.x))


def test_names():
    assert from_module(MLP()).name == "MLP" and from_module(MLP(), name="small").name == "small"


def test_a_start_of_one_s_own():
    module = MLP()
    trained = {name: p.detach() for name, p in module.named_parameters()}
    model = from_module(module)._replace(own_init=lambda seed: trained)
    assert distance(model.init(0), trained) == 0 and model.init(0, torch.float64)["out.bias"].dtype == torch.float64


def test_the_library_s_models_start_as_ever():
    """Uniform on +-1/sqrt(fan_in) from one generator in the order of the shapes."""
    for model in (models.logistic(60), models.cnn()):
        generator = torch.Generator().manual_seed(int(stream(7, "init").integers(2**62)))
        fan_in = 1
        for name, w in model.init(7).items():
            fan_in = np.prod(w.shape[1:], dtype=int) if w.dim() > 1 else fan_in
            unit = torch.rand(w.shape, generator=generator, dtype=torch.float64)
            assert torch.equal(w, ((2 * unit - 1) / float(fan_in) ** 0.5).float()), name
        assert model.own_init is None and model.own_loss is None


def test_the_example_learns(capsys):
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "own_model.py"))
    accuracies = example["main"](rounds=2)
    assert accuracies[0] < 0.2 < 0.4 < accuracies[2]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "Net: 9,274 parameters; scales start at" + 8 * " 1.0" and len(said) == 4
