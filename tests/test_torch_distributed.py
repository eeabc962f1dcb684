"""Logits and parameters that are sharded over processes: results are those of a single process.

For every world size, processes are started once and run all checks. They return the differences as text.
"""

import itertools
import json
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import loss_parallel
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from cases import covering
from polylosses import asymmetric, focal, poly1
from polylosses.torch import (
    LinearPolyCrossEntropyLoss,
    PolyCrossEntropyLoss,
    linear,
    linear_poly_cross_entropy,
    poly_binary_cross_entropy_with_logits,
    poly_cross_entropy,
    poly_from_nll,
)

SECONDS = 120  # the timeout for deadlocked processes
ROWS, CLASSES = 6, 8
EPS = torch.finfo(torch.float64).eps


def run_in_processes(works: Sequence[Callable[..., list[str]]], world: int, folder: Path) -> None:
    """Runs ``works`` in ``world`` processes. Fails with the messages that they return, or with a traceback."""
    # Fork from a server that has imported the modules, since importing torch takes longer than the checks.
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    context = start_processes(  # type: ignore[no-untyped-call]
        process, args=(works, world, str(folder)), nprocs=world, join=False, start_method="forkserver"
    )
    end = time.monotonic() + SECONDS
    while not context.join(timeout=5):
        if time.monotonic() > end:
            for one in context.processes:
                one.kill()
            pytest.fail(f"{world} processes did not end within {SECONDS} seconds")
    failures = [line for rank in range(world) for line in json.loads((folder / f"{rank}.json").read_text())]
    if failures:
        pytest.fail("\n".join(failures[:20]))


def process(rank: int, works: Sequence[Callable[..., list[str]]], world: int, folder: str) -> None:
    warnings.simplefilter("error")
    # torch's own: DTensor calls a deprecated method.
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    rendezvous = (Path(folder) / "rendezvous").as_uri()
    dist.init_process_group(
        "gloo", init_method=rendezvous, rank=rank, world_size=world, timeout=timedelta(seconds=SECONDS / 2)
    )
    try:
        failures = [f"process {rank} of {world}: {line}" for work in works for line in work(rank, world)]
    finally:
        dist.destroy_process_group()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(failures))


class Exchanged(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records, for each collective operation, the largest number of elements exchanged at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # DTensor dispatches its local operations here again
        name = func.__name__.split(".")[0]
        if "c10d" in func.namespace and not name.startswith(("wait", "_wrap")):
            self.elements[name] = max(self.elements.get(name, 0), args[0].numel())
        return func(*args, **(kwargs or {}))


LOSSES: list[dict[str, Any]] = [
    {"epsilon": 0.0},
    {"epsilon": torch.tensor(-1.0, dtype=torch.float64), "gamma": 0.5},
    {"epsilon": (1.0, 0.5, -0.25)},
]
# (index of the loss, weighted, label_smoothing, reduction, ignore_index). ignore_index None: soft targets.
CELLS = list(itertools.product(range(3), [False, True], [0.0, 0.125], ["none", "mean", "sum"], [None, -100, 2]))


def softmax_cells(first: int) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yields (name, options, soft targets?). Different values of ``first`` give different cells."""
    for loss, weighted, smoothing, reduction, ignored in covering(CELLS, first):
        options: dict[str, Any] = {**LOSSES[loss], "label_smoothing": smoothing, "reduction": reduction}
        options |= {"weight": torch.linspace(0.5, 2.0, CLASSES, dtype=torch.float64)} if weighted else {}
        options |= {} if ignored is None else {"ignore_index": ignored}
        yield f"{options}, soft {ignored is None}", options, ignored is None


def compare(name: str, loss: Tensor, logits: Any, right: Tensor, right_gradient: Tensor) -> list[str]:
    wrong = []
    found = loss.full_tensor() if isinstance(loss, DTensor) else loss
    gradient = logits.grad.full_tensor()
    for what, one, other in (("loss", found, right), ("gradient", gradient, right_gradient)):
        # Sums over classes are computed in another order. Losses here are below 100.
        if one.shape != other.shape or not torch.allclose(one, other, rtol=64 * EPS, atol=64 * EPS):
            wrong.append(f"{name}: {what} {one.tolist()}, not {other.tolist()}")
    return wrong


def class_sharded(rank: int, world: int) -> list[str]:
    mesh = init_device_mesh("cpu", (world,))
    generator = torch.Generator().manual_seed(0)
    wrong = []
    # Four processes on fewer cores are slow, and one shape is enough.
    for first, shape in enumerate(((ROWS, CLASSES), (2, CLASSES, 3))[: 2 if world == 2 else 1]):
        z = torch.randn(*shape, generator=generator, dtype=torch.float64)
        places = (shape[0], *shape[2:])
        indices = torch.randint(CLASSES, places, generator=generator)
        indices.view(-1)[::3] = -100
        soft = z.flip(0).softmax(1)
        for name, options, is_soft in softmax_cells(29 * first + world):
            target = soft if is_soft else (indices if options["ignore_index"] == -100 else indices.clamp(min=0))
            single = z.clone().requires_grad_()
            right = poly_cross_entropy(single, target, **options)
            right.sum().backward()  # type: ignore[no-untyped-call]
            assert single.grad is not None
            # The target is the same tensor on every process, or a DTensor.
            spread = distribute_tensor(target, mesh, [Shard(1) if is_soft else Replicate()])
            for kind, given in (("", target), (", DTensor target", spread))[: 2 if world == len(shape) == 2 else 1]:
                logits = distribute_tensor(z, mesh, [Shard(1)]).requires_grad_()
                with loss_parallel(), Exchanged() as exchanged:
                    loss = poly_cross_entropy(logits, given, **options)
                    loss.sum().backward()  # type: ignore[no-untyped-call]
                cell = f"{shape}, {name}{kind}"
                wrong += compare(cell, loss, logits, right.detach(), single.grad)
                rows = single.numel() // CLASSES
                if not exchanged.elements or set(exchanged.elements) != {"all_reduce"}:
                    wrong.append(f"{cell}: exchanged by {exchanged.elements}")
                elif exchanged.elements["all_reduce"] > rows:
                    wrong.append(f"{cell}: {exchanged.elements} numbers exchanged for {rows} rows")
                if not isinstance(loss, DTensor):
                    wrong.append(f"{cell}: {type(loss)} where torch gives a DTensor")
        # exp overflows for these logits unless the largest is subtracted.
        logits = distribute_tensor(1e3 * z, mesh, [Shard(1)]).requires_grad_()
        single = (1e3 * z).requires_grad_()
        with loss_parallel():
            loss = poly_cross_entropy(logits, indices, label_smoothing=0.1, reduction="none", epsilon=2.0)
            loss.sum().backward()  # type: ignore[no-untyped-call]
        right = poly_cross_entropy(single, indices, label_smoothing=0.1, reduction="none", epsilon=2.0)
        right.sum().backward()  # type: ignore[no-untyped-call]
        assert single.grad is not None
        wrong += compare(f"{shape}, large logits", loss, logits, right.detach(), single.grad)
        # Likelihoods from F.cross_entropy under loss_parallel.
        logits = distribute_tensor(z, mesh, [Shard(1)]).requires_grad_()
        with loss_parallel():
            nll = F.cross_entropy(logits, indices, reduction="none")
            loss = poly_from_nll(nll, epsilon=2.0, gamma=0.5)
            loss.sum().backward()  # type: ignore[no-untyped-call]
        single = z.clone().requires_grad_()
        right = poly_cross_entropy(single, indices, reduction="none", epsilon=2.0, gamma=0.5)
        right.sum().backward()  # type: ignore[no-untyped-call]
        assert single.grad is not None
        wrong += compare(f"{shape}, poly_from_nll", loss, logits, right.detach(), single.grad)
    return wrong


def batch_sharded(rank: int, world: int) -> list[str]:
    """Rows sharded over processes, as a DTensor."""
    mesh = init_device_mesh("cpu", (world,))
    generator = torch.Generator().manual_seed(0)
    rows = 2 * world
    z = torch.randn(rows, CLASSES, generator=generator, dtype=torch.float64)
    indices, soft = torch.arange(rows) % CLASSES, z.flip(0).softmax(1)
    indices[1] = -100
    wrong = []
    for name, options, is_soft in softmax_cells(0):
        target = soft if is_soft else indices
        if options.get("ignore_index", -100) != -100:
            continue
        single = z.clone().requires_grad_()
        right = poly_cross_entropy(single, target, **options)
        right.sum().backward()  # type: ignore[no-untyped-call]
        assert single.grad is not None
        logits = distribute_tensor(z, mesh, [Shard(0)]).requires_grad_()
        loss = poly_cross_entropy(logits, distribute_tensor(target, mesh, [Shard(0)]), **options)
        loss.sum().backward()  # type: ignore[no-untyped-call]
        wrong += compare(f"rows spread, {name}", loss, logits, right.detach(), single.grad)
    return wrong


def sharded_sigmoids(rank: int, world: int) -> list[str]:
    """Elements of sigmoid losses sharded by rows, by classes, or not, with weights and a polynomial for each side."""
    mesh = init_device_mesh("cpu", (world,))
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2 * world, CLASSES, generator=generator, dtype=torch.float64)
    target, weight = z.flip(0).sigmoid(), torch.linspace(0.5, 2.0, CLASSES, dtype=torch.float64)
    learned = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    wrong = []
    cells: dict[str, dict[str, Any]] = {
        "pos_weight": {"pos_weight": weight, "reduction": "none"},
        "weight, focal": {"weight": weight, "gamma": 2.0, "alpha": 0.25},
        "asymmetric": {"polynomial": asymmetric()},
        "two sides": {"polynomial": (poly1(2.0), focal(1.5)), "pos_weight": weight},
        "learned": {"epsilon": learned},
    }
    for name, options in cells.items():
        for placement in ([Shard(0)], [Shard(1)], [Replicate()]):
            single = z.clone().requires_grad_()
            right = poly_binary_cross_entropy_with_logits(single, target, **options)
            right.sum().backward()  # type: ignore[no-untyped-call]
            assert single.grad is not None
            logits = distribute_tensor(z, mesh, placement).requires_grad_()
            learned.grad = None
            spread: dict[str, Any] = {
                key: distribute_tensor(value, mesh, [Replicate()]) if key.endswith("weight") else value
                for key, value in options.items()
            }
            loss = poly_binary_cross_entropy_with_logits(logits, distribute_tensor(target, mesh, placement), **spread)
            loss.sum().backward()  # type: ignore[no-untyped-call]
            learned.grad = None
            wrong += compare(f"{name}, {placement}", loss, logits, right.detach(), single.grad)
    return wrong


def a_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, CLASSES)).double()


def trained(model: nn.Module, criterion: nn.Module, x: Tensor, y: Tensor, steps: int = 5) -> list[float]:
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.5)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def fully_sharded(rank: int, world: int) -> list[str]:
    """Each process has its own rows. All have equally many, so that the mean of their means is the overall mean."""
    mesh = init_device_mesh("cpu", (world,))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8 * world, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (8 * world,), generator=generator)
    mine = slice(8 * rank, 8 * rank + 8)
    wrong = []
    criteria: dict[str, nn.Module] = {
        "Poly-1": PolyCrossEntropyLoss(epsilon=2.0),
        "smoothing, focal": PolyCrossEntropyLoss(epsilon=-1.0, gamma=0.5, label_smoothing=0.1),
    }
    for name, criterion in criteria.items():
        single, sharded = a_model(), a_model()
        for layer in sharded:  # type: ignore[attr-defined]
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        trained(single, criterion, x, y)
        trained(sharded, criterion, x[mine], y[mine])
        for (key, right), parameter in zip(single.named_parameters(), sharded.parameters(), strict=True):
            if not isinstance(parameter, DTensor):
                wrong.append(f"{name}: {key} is not sharded")
            elif not torch.allclose(parameter.full_tensor(), right, rtol=1e-12, atol=1e-13):
                wrong.append(f"{name}: {key} is off by {(parameter.full_tensor() - right).abs().max()}")

    class WithLoss(nn.Module):
        """A model that contains its loss, with a learned epsilon. It has shape (1,), since FSDP shards it."""

        def __init__(self) -> None:
            super().__init__()
            self.model = a_model()
            self.criterion = PolyCrossEntropyLoss(epsilon=nn.Parameter(torch.ones(1, dtype=torch.float64)))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            loss: Tensor = self.criterion(self.model(x), y)
            return loss

    one, many = WithLoss(), WithLoss()
    fully_shard(many, mesh=mesh)
    for model, inputs in ((one, (x, y)), (many, (x[mine], y[mine]))):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(*inputs)
            loss.backward()
            optimizer.step()
    learned: Any = many.criterion.epsilon
    if not torch.allclose(learned.full_tensor(), one.criterion.epsilon, rtol=1e-12):
        wrong.append(f"learned epsilon: {learned.full_tensor()}, not {one.criterion.epsilon}")
    if one.criterion.epsilon.item() == 1.0:
        wrong.append("nothing was learned")

    low = a_model().float()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fully_shard(low, mesh=mesh, mp_policy=policy)
    losses = trained(low, PolyCrossEntropyLoss(epsilon=2.0, gamma=0.5), x[mine].float(), y[mine], steps=30)
    if not losses[-1] < 0.8 * losses[0]:
        wrong.append(f"bfloat16: does not learn, {losses[0]} to {losses[-1]}")
    return wrong


class WithHead(nn.Module):
    """A model with a loss that contains the last layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 6).double()
        self.head = LinearPolyCrossEntropyLoss(6, CLASSES, bias=True, epsilon=2.0, gamma=0.5, label_smoothing=0.1)
        self.head.double()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = self.head(torch.tanh(self.body(x)), y)
        return loss


def head_in_chunks(rank: int, world: int) -> list[str]:
    """As :func:`fully_sharded`, for a linear head. Also a layer with sharded classes, which has no chunks."""
    linear._FEWEST_ROWS, linear._CHUNK_BYTES_ON_CPU = 3, 1
    mesh = init_device_mesh("cpu", (world,))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8 * world, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (8 * world,), generator=generator)
    mine = slice(8 * rank, 8 * rank + 8)
    single, sharded, copied = WithHead(), WithHead(), DistributedDataParallel(WithHead())
    for module in (sharded.head, sharded):
        fully_shard(module, mesh=mesh)
    models: dict[str, nn.Module] = {"fully_shard": sharded, "DistributedDataParallel": copied}
    for model, rows in ((single, slice(None)), (sharded, mine), (copied, mine)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            model(x[rows], y[rows]).backward()
            optimizer.step()
    wrong = []
    for name, trained_model in models.items():
        for (key, right), parameter in zip(single.named_parameters(), trained_model.parameters(), strict=True):
            found = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            if not torch.allclose(found, right, rtol=1e-12, atol=1e-13):
                wrong.append(f"{name}: {key} is off by {(found - right).abs().max()}")

    hidden, weight = torch.randn(8, 6, generator=generator).double(), single.head.linear.weight.detach()
    target = y[:8].masked_fill(torch.arange(8) == 3, -100)
    extra = {"sample_weight": torch.linspace(-0.5, 2.0, 8), "softcap": 3.0, "z_loss_weight": 0.1}
    for more in ({}, extra):
        spread: list[Any] = [
            distribute_tensor(hidden, mesh, [Replicate()]).requires_grad_(),
            distribute_tensor(weight, mesh, [Shard(0)]).requires_grad_(),
        ]
        alone: list[Any] = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        options: dict[str, Any] = {"epsilon": 2.0, "gamma": 0.5, **more}
        with loss_parallel(), Exchanged() as exchanged:
            loss: Any = linear_poly_cross_entropy(spread[0], spread[1], target, **options)
            loss.backward()
        loss = linear_poly_cross_entropy(alone[0], alone[1], target, **options)
        loss.backward()
        for tensor, other in zip(spread, alone, strict=True):
            if not torch.allclose(tensor.grad.full_tensor(), other.grad, rtol=1e-12, atol=1e-13):
                wrong.append(f"spread classes, {options}: {tensor.grad.full_tensor()}, not {other.grad}")
        if set(exchanged.elements) != {"all_reduce"}:
            wrong.append(f"spread classes, {options}: exchanged by {exchanged.elements}")
    return wrong


def always_wrong(rank: int, world: int) -> list[str]:
    return [f"wrong in {rank}"]


@pytest.mark.slow
def test_two_processes_are_as_one(tmp_path: Path) -> None:
    """Also, the test fails if a process returns an error."""
    works = [class_sharded, batch_sharded, sharded_sigmoids, fully_sharded, head_in_chunks, always_wrong]
    with pytest.raises(pytest.fail.Exception) as failed:
        run_in_processes(works, 2, tmp_path)
    assert str(failed.value) == "process 0 of 2: wrong in 0\nprocess 1 of 2: wrong in 1"


@pytest.mark.slow
def test_four_processes_are_as_one(tmp_path: Path) -> None:
    run_in_processes([class_sharded], 4, tmp_path)
