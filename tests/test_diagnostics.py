"""Diagnostics against what one can compute by hand or by finite differences."""

import numpy as np
import pandas as pd
import pytest
import torch

from fedprox_book import chapters, diagnostics
from fedprox_book.figures import show
from fedprox_lib import tree
from fedprox_lib.sweeps.statistics import interval, paired, rounds_to


def test_inexactness_is_1_at_the_start_and_0_at_the_minimiser(toy):
    model, train, _ = toy
    w_t = model.init(0, torch.float64)
    assert diagnostics.inexactness(model, w_t, w_t, train, mu=3.0) == pytest.approx(1.0)
    w, mu = w_t, 50.0
    for _ in range(400):
        g = model.gradient(w, *train)
        w = tree.map(lambda w, g, s: w - 0.01 * (g + mu * (w - s)), w, g, w_t)
    assert diagnostics.inexactness(model, w, w_t, train, mu) < 1e-10
    assert diagnostics.inexactness(model, w, w_t, train, 0.0) > 0.1


def test_sharpness_is_the_largest_hessian_eigenvalue(toy):
    """For logistic regression the whole Hessian can be written down (on 8 pixels here)."""
    from fedprox_lib.data import Examples
    from fedprox_lib.models import Model

    _, train, _ = toy

    def logits(p, x):
        return torch.nn.functional.linear(x.flatten(1)[:, :8], p["dense.weight"], p["dense.bias"])

    small = Model("tiny", {"dense.weight": (10, 8), "dense.bias": (10,)}, logits)
    w = small.init(0, torch.float64)

    def loss(flat):
        p = {"dense.weight": flat[:80].reshape(10, 8), "dense.bias": flat[80:]}
        return small.loss(p, *train)

    flat = torch.cat([w["dense.weight"].flatten(), w["dense.bias"]])
    top = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat)).max()
    assert diagnostics.sharpness(small, w, Examples(*train), iterations=300) == pytest.approx(float(top), rel=1e-6)


def test_drift_is_the_norm_over_all_tensors_together():
    a = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    assert diagnostics.drift(a, tree.map(torch.zeros_like, a)) == 5.0


def test_class_accuracy(toy):
    model, train, _ = toy
    w = model.init(0, torch.float64)
    per_class = diagnostics.class_accuracy(model, w, train)
    predicted = model.logits(w, train.x).argmax(1)
    for c in range(10):
        assert per_class[c] == pytest.approx(float((predicted[train.y == c] == c).double().mean()))


def test_metrics_are_means_over_rows_for_any_chunk(toy):
    model, train, _ = toy
    w = model.init(0, torch.float64)
    losses, _ = model.loss_and_correct(w, *train, chunk=7)
    assert float(losses.mean()) == pytest.approx(float(model.loss(w, *train)), abs=1e-12)
    assert len(losses) == len(train.y)


def test_students_t_interval():
    """By hand: mean 2, sd 1, n 3, t = 4.303."""
    assert interval([1, 2, 3]) == pytest.approx((2, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)
    assert np.isnan(interval([1.0])[1])


def test_paired_differences_use_the_pairs():
    """Replicates differ by 10, arms by 1 with hardly any spread: pairing finds it."""
    import pandas as pd

    table = pd.DataFrame(
        [
            {"arm": arm, "straggler_fraction": 0.5, "seed": s, "acc": 10.0 * s + (arm == "b") * (1 + 0.01 * s)}
            for arm in "ab"
            for s in range(4)
        ]
    )
    row = paired(table, "acc", "b", "a").iloc[0]
    assert row["replicates"] == 4 and row["low"] > 0.9 and row["high"] < 1.2
    assert row["difference"] == pytest.approx(1.015)


def test_a_figure_without_alt_text_is_refused():
    import matplotlib.pyplot as plt

    with pytest.raises(ValueError, match="needs an alt text and a caption"):
        show(plt.figure(), name="fig-x", alt="", caption="Five words are needed here.")


def curve(record: str, **accuracy_by_round: float) -> pd.DataFrame:
    rounds = [int(name[1:]) for name in accuracy_by_round]
    return pd.DataFrame({"record": record, "round": rounds, "test_accuracy": list(accuracy_by_round.values())})


def test_rounds_to_a_target_are_read_off_the_best_so_far():
    """By hand: 0.80 in round 4 is forgotten at 6 and passed at 8, between which the best so far rises 0.80 -> 0.90."""
    found = rounds_to(curve("a", r0=0.1, r4=0.8, r6=0.5, r8=0.9, r12=0.95), 0.85)
    assert found["rounds"].tolist() == pytest.approx([7.0]) and found["ran"].tolist() == [12]


def test_rounds_to_a_target_at_its_edges():
    table = pd.concat([curve("start", r0=0.9, r1=0.2), curve("exact", r0=0.1, r5=0.9), curve("never", r0=0.1, r9=0.8)])
    found = rounds_to(table.sample(frac=1, random_state=0), 0.9).set_index("record")["rounds"]
    assert found["start"] == 0 and found["exact"] == 5 and np.isnan(found["never"])


def test_rounds_in_words_do_not_hide_who_never_got_there():
    words = lambda *rounds: chapters.rounds_text(pd.DataFrame({"rounds": rounds, "ran": 40}))  # noqa: E731
    assert words(30.0, 36.4, 34.0) == "34 (30 to 36)"
    assert words(30.0, np.nan, 34.0) == "34 (30 or more, 2 of 3 got there)"
    assert words(30.0, np.nan, np.nan) == "more than 40 (1 of 3 got there)"
    assert words(30.0, np.nan) == "more than 40 (1 of 2 got there)"
    assert words(np.nan, np.nan) == "not in 40" and words(7.4) == "7"
