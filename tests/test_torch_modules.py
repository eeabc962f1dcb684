"""The modules are used like torch's own, and pass on every option."""

import copy
import inspect
import io
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polylosses
from cases import CELLS, Cell, arrays
from polylosses import Polynomial
from polylosses.torch import (
    LinearPolyCrossEntropyLoss,
    Poly1CrossEntropyLoss,
    Poly1FocalLoss,
    PolyBCEWithLogitsLoss,
    PolyCrossEntropyLoss,
    poly_binary_cross_entropy_with_logits,
    poly_cross_entropy,
)

Z = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.5]])
Y = torch.tensor([0, 2])
WEIGHT = torch.tensor([1.0, 2.0, 0.5])

MODULES: dict[str, PolyCrossEntropyLoss] = {
    "default": PolyCrossEntropyLoss(),
    "epsilon": PolyCrossEntropyLoss(epsilon=2.0, gamma=0.5),
    "several epsilons": PolyCrossEntropyLoss(epsilon=(1.0, 0.5)),
    "tensor": PolyCrossEntropyLoss(epsilon=torch.tensor([1.0, 0.5]), gamma=torch.tensor(2.0)),
    "parameter": PolyCrossEntropyLoss(epsilon=nn.Parameter(torch.tensor(2.0))),
    "polynomial": PolyCrossEntropyLoss(WEIGHT, polynomial=polylosses.taylor_cross_entropy(3)),
    "all options": PolyCrossEntropyLoss(WEIGHT, ignore_index=1, reduction="sum", label_smoothing=0.1, epsilon=-1.0),
    "Poly-1": Poly1CrossEntropyLoss(3.0, weight=WEIGHT, label_smoothing=0.1),
}


def test_the_defaults_of_focal_loss_are_its_papers() -> None:
    yes = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 1.0]])
    right = poly_binary_cross_entropy_with_logits(Z, yes, epsilon=1.0, gamma=2.0, alpha=0.25)
    assert torch.equal(Poly1FocalLoss()(Z, yes), right)


def test_they_are_torchs() -> None:
    for module in MODULES.values():
        assert isinstance(module, nn.CrossEntropyLoss)
        assert isinstance(module, PolyCrossEntropyLoss)


@pytest.mark.parametrize("cell", [c for c in CELLS if len(c.shape) == 3], ids=str)
def test_every_option_is_passed_on(cell: Cell) -> None:
    numbers = arrays(cell)
    z = torch.tensor(numbers.logits)
    y = torch.tensor(numbers.target, dtype=torch.float64 if cell.target == "probabilities" else torch.long)
    weight = None if numbers.weight is None else torch.tensor(numbers.weight)
    options: dict[str, Any] = {"reduction": cell.reduction, "label_smoothing": cell.label_smoothing}
    if cell.ignore_index is not None:
        options["ignore_index"] = cell.ignore_index
    for chosen in ({"epsilon": 2.0, "gamma": 0.5}, {"polynomial": polylosses.focal(2.0)}, {"epsilon": (1.0, 2.0)}):
        found = PolyCrossEntropyLoss(weight, **options, **chosen)(z, y)
        assert torch.equal(found, poly_cross_entropy(z, y, weight, **options, **chosen))
    found = Poly1CrossEntropyLoss(3.0, weight=weight, **options)(z, y)
    assert torch.equal(found, poly_cross_entropy(z, y, weight, **options, epsilon=3.0))


def test_signatures_are_the_functions() -> None:
    function = inspect.signature(poly_cross_entropy).parameters
    for name, parameter in inspect.signature(PolyCrossEntropyLoss).parameters.items():
        assert parameter == function[name]
    for name, parameter in inspect.signature(Poly1CrossEntropyLoss).parameters.items():
        assert parameter.default == function[name].default


@pytest.mark.parametrize("name", MODULES)
def test_copies_are_the_same_loss(name: str) -> None:
    module = MODULES[name]
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)):
        assert type(twin) is type(module)
        assert torch.equal(twin(Z, Y), module(Z, Y))
        assert repr(twin) == repr(module)


@pytest.mark.parametrize("name", MODULES)
def test_its_tensors_are_its_state(name: str) -> None:
    module = copy.deepcopy(MODULES[name])
    tensors = {n for n in ("weight", "epsilon", "gamma") if isinstance(getattr(module, n, None), Tensor)}
    assert set(module.state_dict()) == tensors
    changed = {n: t + 1 for n, t in module.state_dict().items()}
    before = module(Z, Y)
    module.load_state_dict(changed)
    if tensors:
        assert not torch.equal(module(Z, Y), before)
    module.to(torch.float64)
    assert all(t.dtype == torch.float64 for t in module.state_dict().values())
    assert module(Z.double(), Y).dtype == torch.float64
    module.to("meta")
    assert all(t.device.type == "meta" for t in module.state_dict().values())


def test_an_epsilon_that_is_learned() -> None:
    module = PolyCrossEntropyLoss(epsilon=nn.Parameter(torch.tensor(2.0)))
    assert [n for n, _ in module.named_parameters()] == ["epsilon"]
    assert not list(PolyCrossEntropyLoss(epsilon=torch.tensor(2.0)).parameters())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    loss = module(Z, Y)
    loss.backward()
    mean_of_q = (1 - Z.softmax(1).gather(1, Y[:, None])).mean()
    torch.testing.assert_close(module.epsilon.grad, mean_of_q)
    optimizer.step()
    torch.testing.assert_close(module.epsilon.detach(), 2.0 - 0.5 * mean_of_q)
    assert module(Z, Y) < loss


def test_epsilon_may_be_set() -> None:
    module = PolyCrossEntropyLoss(epsilon=2.0)
    for epsilon in (0.0, 5.0, -1.0):
        module.epsilon = epsilon
        assert torch.equal(module(Z, Y), poly_cross_entropy(Z, Y, epsilon=epsilon))
        assert f"epsilon={epsilon}" in repr(module)


@pytest.mark.parametrize(
    "make", [PolyCrossEntropyLoss, PolyBCEWithLogitsLoss, partial(LinearPolyCrossEntropyLoss, 3, 3)]
)
def test_a_polynomial_may_be_set_and_is_in_the_place_of_epsilon(make: Any) -> None:
    target = Z.softmax(1)
    modules = [
        make(polynomial=polylosses.focal(2.0)),
        make(epsilon=3.0),
        copy.deepcopy(make(gamma=nn.Parameter(Y + 1.0))),
    ]
    for module in (*modules, pickle.loads(pickle.dumps(modules[0]))):
        module.load_state_dict(modules[0].state_dict(), strict=False)
        module.polynomial = polylosses.poly_n(1.0, 0.5)
        for name, value in (("epsilon", 5.0), ("epsilon", torch.tensor(5.0)), ("gamma", 1.0)):
            with pytest.raises(AttributeError, match=rf"{name} = .*5?.* would have no effect: .* Set its polynomial"):
                setattr(module, name, value)
        right = make(polynomial=polylosses.poly_n(1.0, 0.5))
        right.load_state_dict(modules[0].state_dict(), strict=False)
        assert torch.equal(module(Z, target), right(Z, target))


def test_what_is_set_is_checked() -> None:
    module = PolyCrossEntropyLoss()
    for name, value, error in (
        ("epsilon", "2", TypeError),
        ("epsilon", float("nan"), ValueError),
        ("gamma", -1.0, ValueError),
        ("polynomial", 2.0, TypeError),
    ):
        with pytest.raises(error, match=name):
            setattr(module, name, value)
    assert torch.equal(module(Z, Y), PolyCrossEntropyLoss()(Z, Y))
    module.reduction = "foo"
    with pytest.raises(ValueError, match="'foo'"):
        module(Z, Y)


REPRS = {
    "default": "PolyCrossEntropyLoss(epsilon=1.0, gamma=0.0)",
    "epsilon": "PolyCrossEntropyLoss(epsilon=2.0, gamma=0.5)",
    "all options": (
        "PolyCrossEntropyLoss(epsilon=-1.0, gamma=0.0, ignore_index=1, reduction='sum', label_smoothing=0.1)"
    ),
    "Poly-1": "Poly1CrossEntropyLoss(epsilon=3.0, gamma=0.0, label_smoothing=0.1)",
    "polynomial": "PolyCrossEntropyLoss(polynomial=(1 - p) + 0.5 (1 - p)^2 + 0.333333 (1 - p)^3)",
}


@pytest.mark.parametrize("name", REPRS)
def test_repr_names_the_polynomial_and_what_is_not_default(name: str) -> None:
    assert repr(MODULES[name]) == REPRS[name]


def test_they_train_a_model() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator)
    y = x.argmax(1)
    for module in MODULES.values():
        model = nn.Linear(3, 3)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        criterion = copy.deepcopy(module)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = criterion(model(x), y).item()
        for _ in range(20):
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
        assert criterion(model(x), y).item() < before


def test_epsilon_of_a_loss_made_from_a_polynomial_cannot_be_set() -> None:
    for module in (
        PolyCrossEntropyLoss(polynomial=polylosses.focal()),
        PolyBCEWithLogitsLoss(polynomial=polylosses.focal()),
        LinearPolyCrossEntropyLoss(3, 5, polynomial=polylosses.focal()),
    ):
        for name in ("epsilon", "gamma"):
            with pytest.raises(AttributeError, match=rf"{name} = 5.0 would have no effect.*Set its polynomial"):
                setattr(module, name, 5.0)
        with pytest.raises(TypeError, match=r"polynomial must be a polylosses\.Polynomial.*got 5.0"):
            module.polynomial = 5.0


def test_a_parameter_that_would_not_be_registered_is_an_error() -> None:
    parameter = nn.Parameter(torch.tensor(2.0))
    polynomial = Polynomial((1.0, parameter))
    for given in (
        {"epsilon": [parameter, 1.0]},
        {"polynomial": polynomial},
        {"polynomial": Polynomial(gamma=parameter)},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(given))} holds a tensor with a gradient"):
            PolyCrossEntropyLoss(**given)
    with pytest.raises(ValueError, match="polynomial holds"):
        PolyBCEWithLogitsLoss(polynomial=(Polynomial(), polynomial))
    module = PolyCrossEntropyLoss()
    for name, value in (("epsilon", (parameter,)), ("polynomial", polynomial)):
        with pytest.raises(ValueError, match=f"{name} holds"):
            setattr(module, name, value)
    assert len(list(PolyCrossEntropyLoss(epsilon=nn.Parameter(torch.tensor([1.0, 2.0]))).parameters())) == 1


@pytest.mark.parametrize("epsilon", [2.0, torch.tensor(2.0), torch.nn.Parameter(torch.tensor(2.0))], ids=type)
def test_a_polynomial_can_be_set(epsilon: object) -> None:
    module = PolyCrossEntropyLoss(epsilon=epsilon, gamma=1.0)
    z, y = torch.randn(4, 3), torch.arange(4) % 3
    module.polynomial = polylosses.taylor_cross_entropy(3)
    assert torch.equal(module(z, y), poly_cross_entropy(z, y, polynomial=polylosses.taylor_cross_entropy(3)))
    assert "epsilon" not in repr(module)


def test_what_is_set_later_is_checked_then() -> None:
    module = PolyCrossEntropyLoss()
    with pytest.raises(ValueError, match="epsilon must be finite; got nan"):
        module.epsilon = float("nan")
    with pytest.raises(ValueError, match=r"gamma must be at least 0; got -1\.0"):
        module.gamma = -1.0
    assert (module.epsilon, module.gamma) == (1.0, 0.0)
    module.reduction = "average"
    with pytest.raises(ValueError, match="'average'"):
        module(torch.zeros(2, 3), torch.zeros(2).long())
