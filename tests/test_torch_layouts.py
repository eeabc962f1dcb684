"""Logits with overlapping elements or any order of strides, against torch's own losses; and memory's end."""

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from polylosses import focal, poly1
from polylosses.torch import poly_binary_cross_entropy_with_logits, poly_cross_entropy

# How an axis of the view is made: (size of the leaf's axis, slice of it that is read).
AXES: dict[str, tuple[Callable[[int], int], Callable[[int], slice]]] = {
    "whole": (lambda size: size, lambda size: slice(None)),
    "expanded": (lambda size: 1, lambda size: slice(None)),
    "sliced": (lambda size: size + 3, lambda size: slice(2, size + 2)),
    "every second": (lambda size: 2 * size, lambda size: slice(1, None, 2)),
}


def strided(leaf: Tensor, steps: tuple[slice, ...], sizes: list[int], order: list[int]) -> Tensor:
    return leaf[steps].expand(sizes).permute(order)


def windows(leaf: Tensor, size: int, step: int, order: tuple[int, ...]) -> Tensor:
    return leaf.unfold(-1, size, step).permute(order)


def views() -> Iterator[tuple[str, list[int], Callable[[Tensor], Tensor]]]:
    """Yields (name, shape of a leaf, function from the leaf to the logits): permuted axes, expanded or sliced."""
    for number, shape in enumerate([(4, 7), (3, 5, 4), (3, 1, 4), (2, 3, 2, 3)]):
        cases = list(product(permutations(range(len(shape))), product(AXES, repeat=len(shape))))
        # All cases of two dimensions, and a sample of the thousands of three and four that covers every order and axis.
        for order, done in cases[:: [1, 5, 11, 101][number]]:
            sizes = [shape[axis] for axis in order]
            steps = tuple(AXES[what][1](size) for what, size in zip(done, sizes, strict=True))
            back = [order.index(axis) for axis in range(len(shape))]
            leaf_shape = [AXES[what][0](size) for what, size in zip(done, sizes, strict=True)]
            yield f"{shape} {order} {done}", leaf_shape, partial(strided, steps=steps, sizes=sizes, order=back)
    for size, step in product((1, 4, 30), (1, 2)):
        for leaf_shape in ([40], [6, 36]):
            for order in permutations(range(len(leaf_shape) + 1)):
                name = f"windows of {size} by {step} of {leaf_shape} in the order {order}"
                yield name, leaf_shape, partial(windows, size=size, step=step, order=order)


VIEWS = list(views())


Losses = tuple[Callable[..., Tensor], Callable[..., Tensor]]
LOSSES: dict[str, Losses] = {
    "softmax": (lambda z, y, _: poly_cross_entropy(z, y, epsilon=0.0), lambda z, y, _: F.cross_entropy(z, y)),
    "softmax, epsilon a tensor": (
        lambda z, y, _: poly_cross_entropy(
            z, y, epsilon=torch.tensor(0.0, requires_grad=True), reduction="none", implementation="native"
        ),
        lambda z, y, _: F.cross_entropy(z, y, reduction="none"),
    ),
    "sigmoid": (
        lambda z, _, dense: poly_binary_cross_entropy_with_logits(z, dense, epsilon=0.0, reduction="none"),
        lambda z, _, dense: F.binary_cross_entropy_with_logits(z, dense, reduction="none"),
    ),
    "sigmoid, class ids": (
        lambda z, y, _: poly_binary_cross_entropy_with_logits(z, y, epsilon=0.0),
        lambda z, y, _: F.binary_cross_entropy_with_logits(z, torch.zeros_like(z).scatter(1, y.unsqueeze(1), 1.0)),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_views_are_torchs(name: str, dtype: torch.dtype) -> None:
    ours, torchs = LOSSES[name]
    random = torch.Generator().manual_seed(1)
    wrong = []
    for view, shape, view_of in VIEWS:
        leaf = torch.randn(shape, generator=random).to(dtype).requires_grad_()
        z = view_of(leaf)
        if name == "sigmoid, class ids" and z.shape[1] == 1:
            continue  # refused
        y = torch.randint(z.shape[1], (z.shape[0], *z.shape[2:]), generator=random)
        # Targets are not contiguous either.
        y = y.transpose(0, -1).contiguous().transpose(0, -1)
        dense = torch.randint(2, z.shape, generator=random).to(dtype).flip(0)
        found = ours(z, y, dense)
        (by_leaf,) = torch.autograd.grad(found.sum(), leaf)
        # The ground truth, in float64. added_up sums the absolute terms of a leaf's gradient, which may cancel.
        exact_leaf = leaf.detach().double().requires_grad_()
        exact_z = view_of(exact_leaf)
        right = torchs(exact_z, y, dense.double())
        exact, by_z = torch.autograd.grad(right.sum(), (exact_leaf, exact_z), retain_graph=True)
        (added_up,) = torch.autograd.grad(exact_z, exact_leaf, by_z.abs())
        unit = torch.finfo(dtype).eps
        if not (
            ((found.double() - right).abs() <= 8 * unit * (1 + right.abs())).all()
            and ((by_leaf.double() - exact).abs() <= 8 * unit * (added_up + by_z.abs().max())).all()
        ):
            wrong.append(view)
    assert not wrong, f"{len(wrong)} of {len(VIEWS)}, the first: {wrong[0]}"


# Memory that tensors point into.
GUARDED: list[mmap.mmap] = []


def before_a_guard(tensor: Tensor) -> Tensor:
    """A copy of a dense tensor whose memory ends where the process may not read."""
    size, strides = tensor.numel() * tensor.element_size(), tensor.stride()
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    GUARDED.append(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + pages), ctypes.c_size_t(mmap.PAGESIZE), 0) != 0:
        pytest.skip("no memory protection")
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=pages - size)
    return flat.as_strided(tensor.shape, strides).copy_(tensor)


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(5, 3), (9, 21), (150, 10), (3, 131), (2, 5, 3, 3), (2, 150, 3)], ids=str)
def test_kernels_read_nothing_beyond_the_end_of_a_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """A kernel that does so ends the process."""
    generator = torch.Generator().manual_seed(0)
    of_class = (shape[1], *(1 for _ in shape[2:]))
    z = torch.randn(shape, generator=generator).to(dtype)
    ids = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    soft, weight = z.flip(0).softmax(1), torch.rand(shape[1], generator=generator).to(dtype)
    options: dict[str, Any]
    layouts = [z, z.to(memory_format=torch.channels_last)] if z.dim() == 4 else [z]
    for logits, polynomial in product(layouts, (poly1(2.0), focal(1.5))):
        for target, options in (
            (ids, {"weight": weight}),
            (ids, {"label_smoothing": 0.1}),
            (soft, {"weight": weight}),
        ):
            loss = partial(poly_cross_entropy, polynomial=polynomial, implementation="native")
            guarded = {name: before_a_guard(x) if isinstance(x, Tensor) else x for name, x in options.items()}
            assert_same(partial(loss, **guarded), logits, target, loss(logits, target, **options))
        for target, factor in product((ids, soft), (weight.reshape(of_class), soft, soft[:1], soft[..., :1])):
            options = {"weight": factor, "pos_weight": factor}
            loss = partial(poly_binary_cross_entropy_with_logits, polynomial=polynomial, implementation="native")
            guarded = {name: before_a_guard(x.contiguous()) for name, x in options.items()}
            assert_same(partial(loss, **guarded), logits, target, loss(logits, target, **options))


def assert_same(loss: Callable[..., Tensor], logits: Tensor, target: Tensor, expected: Tensor) -> None:
    z = before_a_guard(logits).requires_grad_()
    found = loss(z, before_a_guard(target))
    found.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found.detach(), expected, rtol=0.0, atol=0.0)
