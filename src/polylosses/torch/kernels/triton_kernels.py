"""The Triton kernels that triton.py launches; what they compute is documented in operators.py.

A program works on a tile, some rows by some classes. Logits are (outer, classes, inner) with any strides, the rows are
all (outer, inner), and the rows of a tile are of one outer. All numbers are float32, all offsets have 64 bits.

What is done for each logit is written with `exp2`, one instruction of a GPU; what is done for each row may take longer.
"""

# ruff: noqa: D103
# mypy: ignore-errors
import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LOG_2: tl.constexpr = tl.constexpr(0.6931471805599453)
SMALLEST_NORMAL: tl.constexpr = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def horner(coefficients, q):
    """``coefficients[0] + coefficients[1] q + ...``."""
    total = coefficients[len(coefficients) - 1]
    for k in tl.static_range(1, len(coefficients)):
        total = total * q + coefficients[len(coefficients) - 1 - k]
    return total


@triton.jit
def tail_of(q, nll):
    """``-log(1 - q) - q``, where ``nll`` is ``-log(1 - q)``: see cpu/common.hpp."""
    y = 2.9731837e-1 * q + 7.2730668e-2
    y = y * q + 1.7972158e-1
    y = y * q + 1.9878992e-1
    y = y * q + 2.5005266e-1
    y = y * q + 3.3333248e-1
    y = y * q + 0.5
    return tl.where(q < 0.25, y * q * q, nll - q)


@triton.jit
def power_of(q, gamma):
    if gamma == 0.0:
        power = tl.full(q.shape, 1.0, tl.float32)
    elif gamma == 1.0:
        power = q
    elif gamma == 2.0:
        power = q * q
    else:
        # Below the smallest normal number, GPUs may take q for 0.
        power = tl.where(q < SMALLEST_NORMAL, 0.0, tl.exp2(gamma * tl.log2(q)))
    return power


@triton.jit
def value_and_slope(p, q, nll, gamma, log_weight, first, values, slopes, slopes_near_one):
    """``L`` and ``-dL / d log p``. The tuples are those of :func:`polylosses.torch.kernels.triton._powers`."""
    logarithm = tl.where(log_weight == 0.0, 0.0, log_weight * tail_of(q, nll))
    bracket = (log_weight + first + horner(values, q)) * q + logarithm
    slope = tl.where(q < 0.5, log_weight + first + horner(slopes_near_one, q), log_weight + p * horner(slopes, q))
    finite = tl.where(bracket > 1e38, 1e38, bracket)  # it is infinite where p = 0
    slope += gamma * p * finite / tl.where(q == 0.0, 1.0, q)
    power = power_of(q, gamma)
    return power * bracket, power * slope


@triton.jit
def tile_of(program, tiles, inners, by_outer, by_inner, ROWS: tl.constexpr):
    """The rows of a tile: their numbers, the offsets of their logits, and a mask of those that exist."""
    outer, tile = (program // tiles).to(tl.int64), program % tiles
    inner = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return outer * inners + inner, outer * by_outer + inner * by_inner, inner < inners


@triton.jit
def softmax_statistics(
    logits, target, weight, row_stats, losses, row_weights, gamma, log_weight, first, values, slopes, slopes_near_one,
    count, classes, inners, tiles, by_outer, by_class, by_inner, ignore_index,
    EVALUATED: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Writes four numbers of every row, one array of ``count`` after another: factor of the gradient, q, largest
    logit, 1 over the sum. If ``EVALUATED``, also losses and how much they count in the mean; else, there, tail and p.
    """
    row, base, there = tile_of(tl.program_id(0), tiles, inners, by_outer, by_inner, ROWS)
    label = tl.load(target + row, there, ignore_index)
    valid = there & (label != ignore_index)
    right = (label >= 0) & (label < classes)
    tl.device_assert(right | (label == ignore_index), "a target is out of bounds")
    labelled = tl.load(logits + base + label * by_class, valid & right, float("nan")).to(tl.float32)
    label = label.to(tl.int32)

    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    others = tl.full([ROWS], 0.0, tl.float32)
    for start in range(0, classes, CLASSES):
        k = start + tl.arange(0, CLASSES)
        at = logits + base[:, None] + k.to(tl.int64)[None, :] * by_class
        z = tl.load(at, valid[:, None] & (k < classes)[None, :], float("-inf")).to(tl.float32)
        larger = tl.maximum(maximum, tl.max(z, 1))
        # While all classes are masked, the sum stays 0.
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        part = tl.exp2((z - shift[:, None]) * LOG2_E)
        part = tl.where(k[None, :] == label[:, None], 0.0, part)
        others = others * tl.exp2((maximum - shift) * LOG2_E) + tl.sum(part, 1)
        maximum = larger

    own = tl.exp2((labelled - maximum) * LOG2_E)
    total = own + others
    q = others / total
    nll = tl.where(q < 0.25, q + tail_of(q, q), (maximum - labelled) + tl.log2(total) * LOG_2)
    p = tl.where(valid, own / total, 1.0)
    q = tl.where(valid, q, 0.0)
    nll = tl.where(valid, nll, 0.0)
    # Pointers are added to one at a time, since 3 * count might not fit 32 bits.
    at = row_stats + count + row
    tl.store(at, q, there)
    tl.store(at + count, tl.where(valid, maximum, 0.0), there)
    tl.store(at + count + count, tl.where(valid, 1.0 / total, 0.0), there)
    if EVALUATED:
        row_weight = tl.where(valid, 1.0, 0.0)
        if weight is not None:
            row_weight = tl.load(weight + label, valid & right, 0.0).to(tl.float32)
        value, slope = value_and_slope(p, q, nll, gamma, log_weight, first, values, slopes, slopes_near_one)
        tl.store(losses + row, tl.where(valid, row_weight * value, 0.0), there)
        tl.store(row_weights + row, row_weight, there)
        tl.store(row_stats + row, row_weight * slope, there)
    else:
        tl.store(losses + row, tail_of(q, nll), there)
        tl.store(row_weights + row, p, there)
        tl.store(row_stats + row, tl.where(there, 1.0, 0.0), there)


@triton.jit
def softmax_gradient(
    logits, target, row_stats, grad_output, gradient,
    count, classes, inners, tiles, class_tiles, by_outer, by_class, by_inner,
    gradient_by_outer, gradient_by_class, gradient_by_inner, grad_output_stride,
    ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row, base, there = tile_of(program // class_tiles, tiles, inners, by_outer, by_inner, ROWS)
    _, gradient_base, _ = tile_of(program // class_tiles, tiles, inners, gradient_by_outer, gradient_by_inner, ROWS)
    label = tl.load(target + row, there, -1).to(tl.int32)
    factor = tl.load(row_stats + row, there, 0.0) * tl.load(grad_output + row * grad_output_stride, there, 0.0).to(
        tl.float32
    )
    at = row_stats + count + row
    q = tl.load(at, there, 0.0)
    maximum = tl.load(at + count, there, 0.0)
    inverse = tl.load(at + count + count, there, 0.0)

    k = (program % class_tiles) * CLASSES + tl.arange(0, CLASSES)
    inside = there[:, None] & (k < classes)[None, :]
    at = logits + base[:, None] + k.to(tl.int64)[None, :] * by_class
    z = tl.load(at, inside, 0.0).to(tl.float32)
    p = tl.exp2((z - maximum[:, None]) * LOG2_E) * inverse[:, None]
    p = tl.where(k[None, :] == label[:, None], -q[:, None], p)
    # Ignored rows may hold anything.
    result = tl.where((inverse == 0.0)[:, None], 0.0, factor[:, None] * p)
    at = gradient + gradient_base[:, None] + k.to(tl.int64)[None, :] * gradient_by_class
    tl.store(at, result.to(gradient.dtype.element_ty), inside)


@triton.jit
def weights_of_classes(
    target, base, by_class, label, weight, k, inside, classes, keep, spread, DENSE: tl.constexpr
):  # fmt: skip
    """The weights t of a tile's classes: of probabilities if ``DENSE``, or else of labels. 0 outside of the tensor."""
    if DENSE:
        y = tl.load(target + base[:, None] + k.to(tl.int64)[None, :] * by_class, inside, 0.0).to(tl.float32)
        t = keep * y + spread
    else:
        t = tl.where(k[None, :] == label[:, None], keep, 0.0) + spread
    if weight is not None:
        t *= tl.load(weight + k, k < classes, 0.0).to(tl.float32)[None, :]
    return tl.where(inside, t, 0.0)


@triton.jit
def evaluated_classes(
    z, t, maximum, inverse, log_total, gamma, log_weight, first, values, slopes, slopes_near_one
):  # fmt: skip
    """``p``, and :func:`value_and_slope` there: finite where t is 0, and with all digits where p is at most 1/2."""
    distance = maximum[:, None] - z
    p = tl.exp2(-distance * LOG2_E) * inverse[:, None]
    # The logits of classes without a weight may be infinite.
    nll = tl.where(t == 0.0, 0.0, distance + log_total[:, None])
    value, slope = value_and_slope(p, 1.0 - p, nll, gamma, log_weight, first, values, slopes, slopes_near_one)
    return p, value, slope


@triton.jit
def soft_target_loss(
    logits, target, weight, row_stats, losses, keep, spread, gamma, log_weight, first, values, slopes, slopes_near_one,
    count, classes, inners, tiles, by_outer, by_class, by_inner,
    target_by_outer, target_by_class, target_by_inner, ignore_index,
    DENSE: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Writes the loss and five numbers of every row, one array of ``count`` after another: sum of t s; that without the
    largest logit; 1 - p of the largest logit; that logit; 1 over the sum.

    Only the class of the largest logit can have p > 1/2, where 1 - p would cancel. It is left out of all sums over
    classes, and added at the end from q, the sum of the others.
    """
    row, base, there = tile_of(tl.program_id(0), tiles, inners, by_outer, by_inner, ROWS)
    _, target_base, _ = tile_of(tl.program_id(0), tiles, inners, target_by_outer, target_by_inner, ROWS)
    others = tl.full([ROWS], 0.0, tl.float32)
    if DENSE:
        label = row  # not read
        valid = there
    else:
        label = tl.load(target + row, there, ignore_index)
        valid = there & (label != ignore_index)
        right = (label >= 0) & (label < classes)
        tl.device_assert(right | (label == ignore_index), "a target is out of bounds")
        others = tl.where(valid & (right == 0), float("nan"), others)
        label = label.to(tl.int32)

    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    ties = tl.full([ROWS], 0.0, tl.float32)
    for start in range(0, classes, CLASSES):
        k = start + tl.arange(0, CLASSES)
        at = logits + base[:, None] + k.to(tl.int64)[None, :] * by_class
        z = tl.load(at, valid[:, None] & (k < classes)[None, :], float("-inf")).to(tl.float32)
        larger = tl.maximum(maximum, tl.max(z, 1))
        # While all classes are masked, the sum stays 0.
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        distance = shift[:, None] - z
        of_largest = distance == 0.0
        part = tl.where(of_largest, 0.0, tl.exp2(-distance * LOG2_E))
        # What was the largest is one of the others now.
        rescaled = (others + ties) * tl.exp2((maximum - shift) * LOG2_E)
        others = tl.where(larger > maximum, rescaled, others) + tl.sum(part, 1)
        ties = tl.where(larger > maximum, 0.0, ties) + tl.sum(tl.where(of_largest, 1.0, 0.0), 1)
        maximum = larger

    total = ties + others
    p = 1.0 / total
    q = (ties - 1.0 + others) / total
    log_total = tl.log2(total) * LOG_2

    of_others = tl.full([ROWS], 0.0, tl.float32)
    rest = tl.full([ROWS], 0.0, tl.float32)
    top = tl.full([ROWS], 0.0, tl.float32)
    for start in range(0, classes, CLASSES):
        k = start + tl.arange(0, CLASSES)
        inside = valid[:, None] & (k < classes)[None, :]
        at = logits + base[:, None] + k.to(tl.int64)[None, :] * by_class
        z = tl.load(at, inside, float("-inf")).to(tl.float32)
        t = weights_of_classes(
            target, target_base, target_by_class, label, weight, k, inside, classes, keep, spread, DENSE
        )
        of_largest = z == maximum[:, None]
        top += tl.sum(tl.where(of_largest, t, 0.0), 1)
        t = tl.where(of_largest, 0.0, t)
        _p, value, slope = evaluated_classes(
            z, t, maximum, p, log_total, gamma, log_weight, first, values, slopes, slopes_near_one
        )
        of_others += tl.sum(t * value, 1)
        rest += tl.sum(t * slope, 1)

    nll = tl.where(q < 0.25, q + tail_of(q, q), log_total)
    value, slope = value_and_slope(p, q, nll, gamma, log_weight, first, values, slopes, slopes_near_one)
    tl.store(losses + row, tl.where(valid, top * value + of_others, 0.0), there)
    at = row_stats + row
    tl.store(at, tl.where(valid, top * slope + rest, 0.0), there)
    at += count
    tl.store(at, tl.where(valid, rest, 0.0), there)
    at += count
    tl.store(at, tl.where(valid, q, 0.0), there)
    at += count
    tl.store(at, tl.where(valid, maximum, 0.0), there)
    at += count
    tl.store(at, tl.where(valid, p, 0.0), there)


@triton.jit
def soft_target_gradient(
    logits, target, weight, row_stats, grad_output, gradient,
    keep, spread, gamma, log_weight, first, values, slopes, slopes_near_one,
    count, classes, inners, tiles, class_tiles, by_outer, by_class, by_inner,
    target_by_outer, target_by_class, target_by_inner,
    gradient_by_outer, gradient_by_class, gradient_by_inner, grad_output_stride,
    DENSE: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """``p A - t s`` times ``grad_output``, with A the sum of t s. For the largest logit it is ``(A - t s) - q A``."""
    program = tl.program_id(0)
    row, base, there = tile_of(program // class_tiles, tiles, inners, by_outer, by_inner, ROWS)
    _, target_base, _ = tile_of(program // class_tiles, tiles, inners, target_by_outer, target_by_inner, ROWS)
    _, gradient_base, _ = tile_of(program // class_tiles, tiles, inners, gradient_by_outer, gradient_by_inner, ROWS)
    label = row  # not read if DENSE
    if not DENSE:
        label = tl.load(target + row, there, -1).to(tl.int32)
    factor = tl.load(grad_output + row * grad_output_stride, there, 0.0).to(tl.float32)
    at = row_stats + row
    scale = tl.load(at, there, 0.0)
    at += count
    rest = tl.load(at, there, 0.0)
    at += count
    q = tl.load(at, there, 0.0)
    at += count
    maximum = tl.load(at, there, 0.0)
    at += count
    inverse = tl.load(at, there, 0.0)

    k = (program % class_tiles) * CLASSES + tl.arange(0, CLASSES)
    inside = there[:, None] & (k < classes)[None, :]
    at = logits + base[:, None] + k.to(tl.int64)[None, :] * by_class
    z = tl.load(at, inside, 0.0).to(tl.float32)
    t = weights_of_classes(target, target_base, target_by_class, label, weight, k, inside, classes, keep, spread, DENSE)
    log_total = -tl.log2(inverse) * LOG_2
    p, _, slope = evaluated_classes(
        z, t, maximum, inverse, log_total, gamma, log_weight, first, values, slopes, slopes_near_one
    )
    # Several classes may have the largest logit; then q is at least 1/2.
    alone = (z == maximum[:, None]) & (q < 0.5)[:, None]
    result = tl.where(alone, (rest - q * scale)[:, None], p * scale[:, None] - t * slope)
    # Ignored rows may hold anything.
    result = tl.where((inverse == 0.0)[:, None], 0.0, factor[:, None] * result)
    at = gradient + gradient_base[:, None] + k.to(tl.int64)[None, :] * gradient_by_class
    tl.store(at, result.to(gradient.dtype.element_ty), inside)


@triton.jit
def side(s, target_weight, of, margin, SHIFTED: tl.constexpr):
    """The loss at logit ``s`` of the side's class, times ``target_weight``, and its derivative by s.

    ``of`` is the factor, ``log_weight``, gamma, and what :func:`polylosses.torch.kernels.triton._powers` gives.
    """
    factor, log_weight, gamma, first, values, slopes, slopes_near_one = of
    # The logits of elements without a target weight may be infinite.
    s = tl.where(target_weight == 0.0, 0.0, s)
    small = tl.exp2(-tl.abs(s) * LOG2_E)
    less, more = small / (1.0 + small), 1.0 / (1.0 + small)
    q = tl.where(s >= 0.0, less, more)
    p = tl.where(s >= 0.0, more, less)
    chain = q
    if SHIFTED:
        chain = q * p
        p = tl.where(q < margin, 1.0, p + margin)
        q = tl.where(q < margin, 0.0, q - margin)
        chain = tl.where(q == 0.0, 0.0, chain / p)
        nll = tl.where(q < 0.25, q + tail_of(q, q), -tl.log2(p) * LOG_2)
    else:
        nll = tl.where(q < 0.25, q + tail_of(q, q), tl.where(s < 0.0, -s, 0.0) + tl.log2(1.0 + small) * LOG_2)
    value, slope = value_and_slope(p, q, nll, gamma, log_weight, first, values, slopes, slopes_near_one)
    target_weight = target_weight * factor
    return tl.where(target_weight == 0.0, 0.0, target_weight * value), tl.where(
        target_weight == 0.0, 0.0, -target_weight * slope * chain
    )


@triton.jit
def factor_of(weight, by, outer_tile, tiles, inners, k, inside, ROWS: tl.constexpr):
    """The weights of a tile's elements."""
    _, base, _ = tile_of(outer_tile, tiles, inners, by[0], by[2], ROWS)
    return tl.load(weight + base[:, None] + k[None, :] * by[1], inside, 1.0).to(tl.float32)


@triton.jit
def sigmoids(
    logits, target, into, grad_output, weight, pos_weight, neg_weight, negative, positive, margin,
    classes, inners, tiles, class_tiles, by, strides, grad_output_stride, ignore_index,
    DENSE: tl.constexpr, IGNORES: tl.constexpr, ALIKE: tl.constexpr, SHIFTED: tl.constexpr, WHAT: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Stores the losses, the gradient, or each program's sum of losses, as ``WHAT`` says."""
    program = tl.program_id(0)
    rows = program // class_tiles
    row, base, there = tile_of(rows, tiles, inners, by[0], by[2], ROWS)
    k = (program % class_tiles).to(tl.int64) * CLASSES + tl.arange(0, CLASSES)
    inside = there[:, None] & (k < classes)[None, :]
    at = base[:, None] + k[None, :] * by[1]
    z = tl.load(logits + at, inside, 0.0).to(tl.float32)
    if DENSE:
        y = tl.load(target + at, inside, 0.0).to(tl.float32)
        valid = inside
        if IGNORES:
            valid = inside & (y != ignore_index)
        y = tl.where(valid, y, 0.0)
    else:
        label = tl.load(target + row, there, 0)
        valid_rows = there
        if IGNORES:
            valid_rows = there & (label != ignore_index)
        right = (label >= 0) & (label < classes)
        tl.device_assert(right | (valid_rows == 0), "a class id is out of bounds")
        valid = inside & valid_rows[:, None]
        y = tl.where(k[None, :] == label[:, None], 1.0, 0.0)
    z = tl.where(valid, z, 0.0)
    of_yes = tl.full(z.shape, 1.0, tl.float32)
    if weight is not None:
        of_yes *= factor_of(weight, strides[0], rows, tiles, inners, k, inside, ROWS)
    of_no = of_yes
    if pos_weight is not None:
        of_yes *= factor_of(pos_weight, strides[1], rows, tiles, inners, k, inside, ROWS)
    if neg_weight is not None:
        of_no *= factor_of(neg_weight, strides[2], rows, tiles, inners, k, inside, ROWS)
    if DENSE or not ALIKE:
        value, slope = side(z, y * of_yes, positive, margin, False)
        value_of_no, slope_of_no = side(-z, (1.0 - y) * of_no, negative, margin, SHIFTED)
        value += value_of_no
        slope -= slope_of_no
    else:
        is_yes = y == 1.0
        sign = tl.where(is_yes, 1.0, -1.0)
        factor = tl.where(is_yes, positive[0], negative[0])
        log_weight = tl.where(is_yes, positive[1], negative[1])
        _, _, gamma, first, values, slopes, slopes_near_one = positive
        of = (factor, log_weight, gamma, first, values, slopes, slopes_near_one)
        value, slope = side(sign * z, tl.where(is_yes, of_yes, of_no), of, margin, False)
        slope *= sign
    if WHAT == "sum":
        tl.store(into + program, tl.sum(tl.where(valid, value, 0.0)))
    else:
        if WHAT == "gradient":
            value = slope * tl.load(grad_output + at * grad_output_stride, inside, 0.0).to(tl.float32)
        tl.store(into + at, tl.where(valid, value, 0.0).to(into.dtype.element_ty), inside)
