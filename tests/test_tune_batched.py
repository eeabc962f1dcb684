"""Batched training gives the same models as a plain torch loop."""

import math
from typing import Any

import pytest
import torch

from polylosses import poly1
from polylosses.torch import PolyCrossEntropyLoss
from polylosses.tune import batched


def alone(
    X: torch.Tensor, labels: torch.Tensor, classes: int, epsilon: float, learning_rate: float, seed: int
) -> torch.nn.Sequential:
    model = batched.network(X.shape[1], classes, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    loss = PolyCrossEntropyLoss(epsilon=epsilon)
    epochs = batched.epochs_for(len(X))
    steps = epochs * math.ceil(len(X) / batched.batch_rows(len(X)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for epoch in range(epochs):
        for rows in torch.split(batched.order(len(X), epoch, seed), batched.batch_rows(len(X))):
            optimizer.zero_grad()
            loss(model(X[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return model


@pytest.mark.parametrize("rows", [5, 64, 150])
def test_weights_are_those_of_one_model_alone(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Rounding errors grow from step to step, so the runs are short.
    monkeypatch.setattr(batched, "MINIMUM_STEPS", 30)
    monkeypatch.setattr(batched, "MOST_STEPS", 2)
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(2, rows, 7, generator=generator)
    labels = torch.randint(3, (2, rows), generator=generator)
    epsilons, rates, seeds = [-1.0, 0.0, 5.0], [0.001, 0.01, 0.003], [3, 4]

    trained = batched.train(X, labels, 3, [poly1(epsilon) for epsilon in epsilons], rates, seeds)

    for repeat, seed in enumerate(seeds):
        for arm, (epsilon, rate) in enumerate(zip(epsilons, rates, strict=True)):
            model = alone(X[repeat], labels[repeat], 3, epsilon, rate, seed)
            index = repeat * len(epsilons) + arm
            for name, expected in model.named_parameters():
                torch.testing.assert_close(
                    trained.parameters[name][index],
                    expected.detach(),
                    rtol=1e-4,
                    atol=1e-5,
                    msg=f"{name} of repeat {repeat}, epsilon {epsilon}, learning rate {rate}",
                )
            torch.testing.assert_close(
                trained.logits(index, X[repeat]), model(X[repeat]).detach(), rtol=1e-4, atol=1e-4
            )


def test_large_tables_have_larger_batches() -> None:
    assert [batched.batch_rows(rows) for rows in (10, 25_600, 52_500, 176_800)] == [64, 64, 132, 442]
    assert batched.steps_for(176_800) == 10 * 400


def test_mean_p_t_is_that_of_the_training_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "MINIMUM_STEPS", 1)
    X, labels = torch.randn(1, 40, 4), torch.randint(3, (1, 40))
    trained = batched.train(X, labels, 3, [poly1(1.0)], [0.0], [0])  # a learning rate of 0 leaves the model as it is
    p = torch.softmax(trained.logits(0, X[0]), 1)
    assert trained.mean_p_t.shape == (1, batched.MINIMUM_EPOCHS)
    torch.testing.assert_close(trained.mean_p_t[0], p[range(40), labels[0]].mean().expand(batched.MINIMUM_EPOCHS))


@pytest.mark.parametrize(("steps", "taken"), [(0, 0), (3, 3), (7, 7), (math.inf, 10)])
def test_training_ends_after_so_many_steps(steps: float, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the epochs that would follow; here each has two steps."""
    monkeypatch.setattr(batched, "MINIMUM_STEPS", 10)
    monkeypatch.setattr(batched, "MINIMUM_EPOCHS", 5)
    step = batched.AdamW.step
    seen: list[Any] = []

    def counted(*given: Any) -> None:
        seen.append(given)
        step(*given)

    monkeypatch.setattr(batched.AdamW, "step", counted)
    batched.train(torch.randn(1, 100, 4), torch.randint(3, (1, 100)), 3, [poly1(1.0)], [0.1], [0], steps=steps)
    assert len(seen) == taken


def test_training_leaves_torchs_random_state_alone() -> None:
    state = torch.get_rng_state()
    batched.network(3, 2, 0)
    assert torch.equal(torch.get_rng_state(), state)
