"""Mutation testing: plants small faults in a copy of the source, one at a time, and checks that a test fails.

    python tests/mutants.py                    all faults, with the tests that should find each
    python tests/mutants.py jax tune/splits    the faults in these files
    python tests/mutants.py --all ...          where these tests pass, run all others too

The exit code is 1 if a fault is not found, or if the text to replace does not occur exactly once.
"""

import hashlib
import importlib
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src"


class Mutant(NamedTuple):
    file: str
    old: str
    new: str
    tests: str

    @property
    def path(self) -> Path:
        return Path("polylosses") / self.file


ORACLES = "test_softmax_laws.py -k 'oracles and {}'"
HEAD = "test_torch_linear.py -k softcapping"
BINARY = "test_sigmoid_laws.py -k 'oracles and {}'"
KERNELS = "test_torch_kernels.py test_torch_sigmoid_kernels.py -k native"
TWO_SIDED = "test_torch_two_sided.py -k 'not triton'"
SIGMOID_DTYPES = "test_torch_sigmoid_kernels.py -k dtypes"
SOFT = "test_torch_soft_targets.py"
GUARD = "test_torch_layouts.py -k beyond"
EPSILON = "test_torch_epsilon.py -k learned"
SOFT_TARGETS = "torch/kernels/cpu/soft_targets.cpp"
TRITON = "test_torch_kernels.py test_torch_sigmoid_kernels.py -k triton"
SOFT_TRITON = "test_torch_soft_targets.py -k triton"

TOOLS = "test_torch_derivative_tools.py"

PLANNED = "test_tune_plan.py"
BOOSTING = "test_boosting.py"
COMPILED = "test_boosting.py -k "
ESTIMATORS = "test_boosting_estimators.py -k "
SEQUENTIAL = "test_tune_sequential.py -k 'not rare and not power'"
STUDY = "test_tune_study.py -k 'not noise and not postgresql'"
PAGE = "test_study_page.py -k 'not database'"
WORKERS = "test_tune_workers.py -k "
SWEEP = "test_tune_sweep.py -k "
MODELS = "test_tune_models.py -k "
TABLES = "test_tune_tables.py test_tune_data.py"

MUTANTS = [
    Mutant("polynomial.py", "loss - self.log_weight * logp", "loss + self.log_weight * logp", "test_polynomial.py"),
    Mutant("polynomial.py", "ratio + horner(c, q)", "ratio - horner(c, q)", "test_polynomial.py"),
    Mutant("polynomial.py", "following[1:], strict=True)", "[*following[2:], 0.0], strict=True)", "test_polynomial.py"),
    Mutant("polynomial.py", "padded[j - 1] for", "padded[j] for", "test_polynomial.py"),
    Mutant(
        "polynomial.py", "bound = -polynomial.log_weight / j", "bound = -polynomial.log_weight", "test_polynomial.py"
    ),
    Mutant("polynomial.py", "(self.log_weight + first, *following)", "(first, *following)", ORACLES.format("torch")),
    Mutant("polynomial.py", 'as_nonnegative("gamma", gamma), 1.0)', "0.0, 1.0)", "test_polynomial.py"),
    Mutant("catalogue.py", "1 / j for j in range(1, order + 1)", "1 / j for j in range(1, order)", "test_catalogue.py"),
    Mutant("catalogue.py", "(beta * -A,), log_weight=alpha", "(alpha * -A,), log_weight=beta", "test_catalogue.py"),
    Mutant(
        "torch/targets.py",
        "target = upcast(self.target)",
        "target = upcast(self.target.detach())",
        ORACLES.format("torch"),
    ),
    Mutant("torch/cross_entropy.py", "each = 1 if", "each = 5 if", ORACLES.format("torch")),
    Mutant("torch/cross_entropy.py", "return mean(loss, rows, None)", "return loss", "test_torch_soft_targets.py"),
    Mutant(
        "torch/reduction.py",
        "return row_weight.sum() if isinstance(row_weight, Tensor) else row_weight * rows",
        "return rows",
        ORACLES.format("torch"),
    ),
    Mutant(
        "torch/reduction.py",
        "masked_fill(nothing, torch.nan)",
        "masked_fill(nothing, 0.0)",
        "test_softmax_laws.py -k 'ignored and torch'",
    ),
    Mutant(
        "torch/softmax.py",
        "logp.new_ones(()) if weight is None else weight)",
        "logp.new_ones(()))",
        ORACLES.format("torch"),
    ),
    Mutant("torch/softmax.py", "spread.masked_fill(ignored, 0.0)", "spread", ORACLES.format("torch")),
    Mutant(
        "torch/softmax.py",
        "smoothing_weight(logp.shape[dim])",
        "smoothing_weight(logp.shape[-1])",
        ORACLES.format("torch"),
    ),
    Mutant(
        "torch/softmax.py",
        "(target_weight == 0) & (logp < least)",
        "target_weight < 0",
        "test_softmax_laws.py -k 'extreme and torch'",
    ),
    Mutant(
        "torch/concrete.py",
        "low <= least.item() and most.item() <= high",
        "not (least.item() < low or most.item() > high)",
        "test_torch_derivatives.py",
    ),
    Mutant("torch/likelihood.py", "limits.eps**0.5, 1.0)", "0.0, 1.0)", "test_torch_derivatives.py"),
    Mutant(
        "torch/likelihood.py",
        "certain, hopeless = q < tiny,",
        "certain, hopeless = q < 0,",
        "test_softmax_laws.py -k 'extreme and torch'",
    ),
    Mutant(
        "torch/likelihood.py",
        "q.masked_fill(certain | hopeless, 1.0)",
        "q.masked_fill(certain, 1.0)",
        "test_posterior_laws.py",
    ),
    Mutant("torch/posterior.py", "[(j + gamma) * c for", "[j * c for", "test_posterior_laws.py -k torch"),
    Mutant("torch/posterior.py", "-torch.inf, -torch.inf)", "-torch.inf, 0.0)", "test_posterior_laws.py -k torch"),
    Mutant(
        "torch/posterior.py",
        "_log_density(polynomial, logq, logp)",
        "_log_density(polynomial, logq, logq)",
        "test_sigmoid_laws.py -k 'poly_sigmoid and torch'",
    ),
    Mutant("torch/precision.py", "return torch.float32 if dtype", "return dtype if dtype", "test_torch_transforms.py"),
    Mutant(
        "torch/sigmoid.py", "y = upcast(targets.target)", "y = upcast(targets.target.detach())", BINARY.format("torch")
    ),
    Mutant("torch/sigmoid.py", "side(negative, 1.0 - alpha)", "side(negative, alpha)", BINARY.format("torch")),
    Mutant("torch/sigmoid.py", "side(negative, 1.0 - alpha)", "side(negative, 1.0)", KERNELS),
    Mutant("torch/sigmoid.py", "F.relu(torch.sigmoid(wrong) - margin)", "torch.sigmoid(wrong) - margin", TWO_SIDED),
    Mutant("torch/sigmoid.py", "torch.log1p(-q.clamp(max=0.5))", "torch.log1p(-torch.sigmoid(wrong))", TWO_SIDED),
    Mutant("torch/sigmoid.py", "1.0 - y), sides.margin)", "1.0 - y))", TWO_SIDED),
    Mutant("torch/sigmoid.py", "if dense or not sides.are_alike():", "if dense:", TWO_SIDED),
    Mutant("torch/sigmoid.py", "_where(positive, pos_weight, 1.0, logits)", "pos_weight", BINARY.format("torch")),
    Mutant("torch/targets.py", "else target_weight * self.weight", "else target_weight", BINARY.format("torch")),
    Mutant("torch/sigmoid.py", "if alpha_on_epsilon:", "if True:", BINARY.format("torch")),
    Mutant("torch/binary_cross_entropy.py", "1 if ignored is None else ~ignored,", "1,", BINARY.format("torch")),
    Mutant(
        "torch/binary_cross_entropy.py",
        "if ignored is None else (~ignored).sum(), ignored)",
        "if ignored is None else (~ignored).sum() + 1, ignored)",
        KERNELS,
    ),
    Mutant("torch/targets.py", ".expand(logits.shape)", "", KERNELS),
    Mutant(
        "torch/linear.py",
        "by_bias = by_bias + upcast(by_logits)",
        "by_bias = upcast(by_logits)",
        "test_torch_linear.py",
    ),
    Mutant("torch/linear.py", "loss = loss + some.sum()", "loss = some.sum()", "test_torch_linear.py"),
    Mutant(
        "torch/linear.py",
        "targets.row_weight(ignored, loss.dtype)",
        "(~ignored)",
        "test_torch_linear.py",
    ),
    Mutant("torch/linear.py", "ctx.ready = ()", "ctx.ready = ready", "test_torch_linear.py"),
    Mutant(
        "torch/linear.py", "count(row_weight, rows.shape[0])", "count(row_weight, chunk_rows)", "test_torch_linear.py"
    ),
    Mutant("torch/linear.py", ".mul_(grad_output)", "", "test_torch_linear.py"),
    Mutant(
        "torch/kernels/operators.py",
        "(unit * grad_output).to(unit.dtype)",
        "unit",
        "test_torch_derivative_tools.py",
    ),
    Mutant(
        "torch/kernels/operators.py",
        "grad_output = grad_output.unsqueeze(class_dim(logits))",
        "pass",
        "test_torch_derivative_tools.py",
    ),
    Mutant("torch/linear.py", "        rows.shape[0] <= chunk_rows\n", "        True\n", "test_torch_linear.py"),
    Mutant("torch/linear.py", "upcast(a), upcast(b)\n", "a, b\n", "test_torch_linear.py"),
    Mutant("torch/linear.py", "targets.ignore_index, 0.0) if", "targets.ignore_index, 1.0) if", HEAD),
    Mutant("torch/linear.py", "row_weight * row_scale, row_scale == 0", "row_scale, None", HEAD),
    Mutant(
        "torch/linear.py",
        "torch.tanh(upcast(logits) / softcap)",
        "torch.tanh(logits / softcap)",
        "test_torch_linear.py -k autocast",
    ),
    Mutant(
        "torch/linear.py",
        "(along_chunk, *along_tensors)",
        "(None, *along_tensors)",
        "test_torch_linear.py -k derivatives",
    ),
    Mutant(
        "torch/linear.py",
        "logsumexp(upcast(logits), 1)",
        "torch.logsumexp(upcast(logits), 1)",
        "test_torch_distributed.py -k two",
    ),
    Mutant("torch/modules.py", "alpha: Any = 0.25,", "alpha: Any = 0.75,", "test_torch_modules.py"),
    Mutant(
        "torch/modules.py",
        "isinstance(value, Tensor) and not isinstance(value, nn.Parameter)",
        "isinstance(value, Tensor)",
        "test_torch_modules.py test_torch_epsilon.py",
    ),
    Mutant("torch/modules.py", "self.weight, self.pos_weight,", "self.weight, None,", "test_torch_binary.py"),
    Mutant(
        "torch/kernels/layout.py",
        "rows.shape, (classes * inners, inners, 1)",
        "rows.shape, (classes * inners, 1, classes)",
        "test_torch_layouts.py test_torch_kernels.py -k native",
    ),
    Mutant(
        "torch/kernels/layout.py",
        "if _classes_contiguous(rows) or _inner_contiguous(rows) else rows.contiguous()",
        "",
        "test_torch_layouts.py test_torch_kernels.py -k native",
    ),
    Mutant("torch/kernels/dispatch.py", "        _asked.reset(token)", "        pass", "test_torch_implementation.py"),
    Mutant("torch/kernels/dispatch.py", 'elif wanted == "triton"', "elif False", "test_torch_triton.py"),
    Mutant(
        "torch/kernels/internals.py",
        "tensor.numel() == 0 or tensor.untyped_storage().data_ptr() != 0",
        "True",
        "test_torch_derivative_tools.py",
    ),
    Mutant(
        "torch/kernels/native_library.py",
        "built_from != source() or ",
        "",
        "test_native_library.py",
    ),
    Mutant("torch/kernels/triton.py", "0 if grad_output.shape != target.shape else 1", "0", TRITON),
    Mutant(
        "torch/sharded.py",
        "input.detach().amax(dim, keepdim=True)",
        "input.detach().amin(dim, keepdim=True)",
        "test_torch_distributed.py",
    ),
    Mutant(
        "torch/sharded.py",
        "logsumexp.redistribute(placements=logsumexp.placements)",
        "logsumexp",
        "test_torch_distributed.py",
    ),
    Mutant("torch/kernels/operators.py", "(logits,), (grad_q, grad_tail))", "(logits,), (grad_q, grad_q))", KERNELS),
    Mutant(
        "torch/kernels/operators.py",
        "reduce(losses, reduction, row_weight, ignored)",
        "reduce(losses, reduction, 1, ignored)",
        KERNELS,
    ),
    Mutant(
        "torch/kernels/operators.py",
        "grad_nll = (logits, target, row_stats), grad_q * p +",
        "grad_nll = (logits, target, row_stats), grad_q +",
        KERNELS,
    ),
    Mutant(
        "torch/kernels/native.py",
        "by_outer, by_class, by_inner = rows.stride()",
        "by_inner, by_class, by_outer = rows.stride()",
        KERNELS,
    ),
    Mutant("torch/kernels/native.py", "0 if grad_output.shape != target.shape else 1", "0", KERNELS),
    Mutant("torch/kernels/cpu/common.hpp", "at += by.outer - inners * by.inner;", "at += by.outer;", KERNELS),
    Mutant("torch/kernels/cpu/softmax.cpp", "total += part;", "total = part;", KERNELS),
    Mutant("torch/kernels/cpu/common.hpp", "y = y * q + 0.5f;", "y = y * q + 0.4999f;", KERNELS),
    Mutant("torch/kernels/cpu/softmax.cpp", "store(into + label, -scale * with.q[row]);", ";", KERNELS),
    Mutant("torch/kernels/cpu/softmax.cpp", "others[j] *= exponential(before - shift[j]);", "(void)before;", KERNELS),
    Mutant("torch/kernels/cpu/common.hpp", "(bits + 0x7fff + (bits >> 16 & 1)) >> 16", "bits >> 16", KERNELS),
    Mutant("two_sided.py", "(-1.0, 1.25)", "(-1.0, 2.5)", TWO_SIDED),
    Mutant("two_sided.py", 'Polynomial(gamma=as_nonnegative("gamma_neg", gamma_neg))', "Polynomial()", TWO_SIDED),
    Mutant(
        "torch/binary_cross_entropy.py",
        "_warn_with_balance(pair.negative, 1.0 - float(alpha))",
        "_warn_with_balance(pair.negative, float(alpha))",
        TWO_SIDED,
    ),
    Mutant(
        "torch/binary_cross_entropy.py",
        "input.dtype if dtype == input.dtype else",
        "input.dtype if True else",
        SIGMOID_DTYPES,
    ),
    Mutant("torch/kernels/dispatch.py", "and number.requires_grad and torch", "and False and torch", TWO_SIDED),
    Mutant("torch/kernels/dispatch.py", "and gamma < 0.0:", "and False:", TWO_SIDED),
    Mutant("torch/kernels/operators.py", "upcast(weight) * factor), 1.0", "upcast(weight)), 1.0", SIGMOID_DTYPES),
    Mutant("torch/kernels/operators.py", "upcast(weight) * factor", "weight * factor", SIGMOID_DTYPES),
    Mutant("torch/kernels/native.py", "dims[-1][1] == stride * size", "True", TWO_SIDED),
    Mutant("torch/kernels/native.py", "    if len(dims) > 3:\n", "    if False:\n", TWO_SIDED),
    Mutant("torch/kernels/native.py", "axes = [axes[0], axes[2], axes[3], axes[1]]", "pass", TWO_SIDED),
    Mutant("torch/kernels/native.py", "0 if size == 1 else by", "by", TWO_SIDED),
    Mutant("torch/kernels/cpu/sigmoid.cpp", "if (inner >= period) inner -= period;", "", TWO_SIDED),
    Mutant("torch/kernels/cpu/sigmoid.cpp", "if (count == BLOCK) return at;", "return at;", GUARD),
    Mutant("torch/kernels/cpu/sigmoid.cpp", "copy[j - period]", "1.f", TWO_SIDED),
    Mutant("torch/kernels/cpu/sigmoid.cpp", "if (of.by_inner == 0) {", "if (false) {", TWO_SIDED),
    Mutant("torch/kernels/cpu/sigmoid.cpp", "of.inners && of.by_inner <= 1", "of.inners", TWO_SIDED),
    Mutant("torch/kernels/cpu/sigmoid.cpp", "if (++middle < of.middles) return;", "", TWO_SIDED),
    Mutant("torch/kernels/cpu/sigmoid.cpp", "inner + BLOCK <= of.inners", "true", TWO_SIDED),
    Mutant("torch/kernels/cpu/sigmoid.cpp", "shifted < 0 ? 0.f : shifted", "shifted", TWO_SIDED),
    Mutant("torch/kernels/cpu/sigmoid.cpp", "select(gamma == 0 ||", "select(true ||", TWO_SIDED),
    Mutant("torch/kernels/cpu/sigmoid.cpp", "of.alike && !kinds.soft", "!kinds.soft", TWO_SIDED),
    Mutant("torch/kernels/cpu/sigmoid.cpp", "more && !kinds.positives", "more", TWO_SIDED),
    Mutant(
        "torch/kernels/cpu/common.hpp", "for (float k = 0; k < gamma; k++)", "for (float k = 0; k < 1; k++)", KERNELS
    ),
    Mutant("torch/kernels/cpu/sigmoid.cpp", "select(valid[j] == 0.f, 0.f, total[j])", "total[j]", KERNELS),
    Mutant("torch/kernels/cpu/sigmoid.cpp", "k = line % of.classes,", "k = line,", KERNELS),
    Mutant("torch/kernels/cpu/common.hpp", "of.degree; k++) careful |=", "0; k++) careful |=", KERNELS),
    Mutant(
        SOFT_TARGETS,
        "const float e = is_top ? 0.f : exponential(-d), w = select(is_top, 0.f, t[k]);",
        "const float e = exponential(-d), w = select(is_top, 0.f, t[k]);",
        SOFT,
    ),
    Mutant(SOFT_TARGETS, "distance += w == 0.f ? 0.f : w * d;", "distance += w * d;", SOFT),
    Mutant(SOFT_TARGETS, "first = k + TOGETHER <= classes ? k : classes - TOGETHER;", "first = k;", GUARD),
    Mutant(SOFT_TARGETS, "write_together(gradient, last + 1,", "write_together(gradient, TOGETHER,", SOFT),
    Mutant(
        SOFT_TARGETS,
        "for (; j < count; j++)\n        for (int64_t k = 0; k < TOGETHER; k++)",
        "for (int64_t k = 0; false; k++)",
        SOFT,
    ),
    Mutant(SOFT_TARGETS, "keep = d == 0.f ? 0.f : of.keep", "keep = of.keep", SOFT),
    Mutant(SOFT_TARGETS, "spread * sums.ties + (of.keep - keep)", "spread * sums.ties", SOFT),
    Mutant(SOFT_TARGETS, "top += top_part;", "", SOFT),
    Mutant(SOFT_TARGETS, "sums[j].top += top[j];", "", SOFT),
    Mutant(SOFT_TARGETS, "of.degree, gamma - 1}", "of.degree, gamma}", SOFT),
    Mutant("torch/kernels/cpu/common.hpp", "* q[j] + c[k - 1]) * q[j]", "* q[j] + c[k - 1])", SOFT),
    Mutant("torch/kernels/operators.py", "[tensor.view_as(tensor) for tensor in inputs]", "list(inputs)", TOOLS),
    Mutant(SOFT_TARGETS, " && spread != 0; }", "; }", SOFT),
    Mutant(SOFT_TARGETS, "distance += t * d;", "distance += d;", SOFT),
    Mutant("torch/kernels/operators.py", "given[power] = tensor", "pass", EPSILON),
    Mutant("torch/kernels/operators.py", "(grad_output * derivative).sum()", "derivative.sum()", EPSILON),
    Mutant("torch/kernels/operators.py", "numbers_and_tensors(sides.positive.polynomial)[1]", "{}", EPSILON),
    Mutant("torch/kernels/native.py", "return total.clone(), totals_of_terms", "return total, totals_of_terms", TOOLS),
    Mutant("torch/kernels/native.py", "losses.stride(), term.storage_offset()", "losses.stride(), 0", EPSILON),
    Mutant("torch/kernels/triton.py", "float(k == power) for k", "1.0 for k", EPSILON),
    Mutant("torch/kernels/cpu/common.hpp", "terms.powers[k] == 0 ? nll : q;", "q;", EPSILON),
    Mutant("torch/kernels/cpu/common.hpp", "power = 1; power < terms", "power = 0; power < terms", EPSILON),
    Mutant("torch/kernels/cpu/common.hpp", "times_power(of, count, q, log_q, values);", "", EPSILON),
    Mutant(SOFT_TARGETS, "terms[k * BLOCK + j] *= weight[j];", ";", EPSILON),
    Mutant(SOFT_TARGETS, "terms[i * BLOCK] += part;", "terms[i * BLOCK] = part;", EPSILON),
    Mutant(SOFT_TARGETS, "            term_parts[i] = 0;\n", "", EPSILON),
    Mutant(SOFT_TARGETS, "sum.distance + sum.rest * nll[j] : sum.rest", "sum.distance : sum.rest", EPSILON),
    Mutant(SOFT_TARGETS, "sum.top * top_terms[k * BLOCK + j] + of_others", "of_others", EPSILON),
    Mutant(
        SOFT_TARGETS,
        "out.terms[k * out.rows + row + j] = ignored[j] ? 0.f :",
        "out.terms[k * out.rows + row + j] =",
        EPSILON,
    ),
    Mutant(
        "torch/kernels/cpu/sigmoid.cpp",
        "terms + k * BLOCK, more, term_totals",
        "terms + k * BLOCK, false, term_totals",
        EPSILON,
    ),
    Mutant("torch/kernels/cpu/sigmoid.cpp", "(k + 1) * groups + group", "k * groups + group", EPSILON),
    Mutant("torch/kernels/cpu/sigmoid.cpp", "i < results; i++", "i < 1; i++", EPSILON),
    Mutant(SOFT_TARGETS, "sums[j].ties - 1 + sums[j].others", "sums[j].others", SOFT),
    Mutant(
        SOFT_TARGETS,
        "top[j] = with.rest[row + j] - q * with.scale[row + j];",
        "top[j] = -q * with.scale[row + j];",
        SOFT,
    ),
    Mutant(
        SOFT_TARGETS,
        "with.maximum[row], inverse, -std::log(inverse), scale, with.rest[row] - q * scale,",
        "with.maximum[row], inverse, -std::log(inverse), scale, -q * scale,",
        SOFT,
    ),
    Mutant(SOFT_TARGETS, "for (int64_t j = 0; j < ignored_count; j++) here[ignored[j]] = 0;", "", SOFT),
    Mutant(
        SOFT_TARGETS,
        "weight * ((label[j] == c ? of.keep : 0.f) + of.spread)",
        "(label[j] == c ? of.keep : 0.f) + of.spread",
        SOFT,
    ),
    Mutant(SOFT_TARGETS, "step(inners == 1 ? by.outer : by.inner)", "step(by.inner)", SOFT),
    Mutant(SOFT_TARGETS, "p * (scale[j] - first * t[j]) - log_weight * t[j]", "p * scale[j] - log_weight * t[j]", SOFT),
    Mutant(SOFT_TARGETS, "process(holds ? held + k * count : lines[k],", "process(held + k % 8 * count,", SOFT),
    Mutant(
        "torch/kernels/cpu/softmax.cpp", "weights += out->weight ? out->weight[label] : 1;", "weights += 1;", KERNELS
    ),
    Mutant(
        "torch/kernels/triton_kernels.py",
        "others * tl.exp2((maximum - shift) * LOG2_E) + tl.sum(part, 1)",
        "others + tl.sum(part, 1)",
        TRITON,
    ),
    Mutant(
        "torch/kernels/triton_kernels.py",
        "row_weight = tl.load(weight + label, valid & right, 0.0).to(tl.float32)",
        "pass",
        TRITON,
    ),
    Mutant(
        "torch/kernels/triton_kernels.py",
        "inners, gradient_by_outer, gradient_by_inner, ROWS)\n    label = tl.load(",
        "inners, by_outer, by_inner, ROWS)\n    label = tl.load(",
        TRITON,
    ),
    Mutant("torch/kernels/triton_kernels.py", "slope *= sign", "pass", TRITON),
    Mutant("torch/kernels/triton_kernels.py", "-q[:, None], p)", "p - 1.0, p)", TRITON),
    Mutant("torch/kernels/triton_kernels.py", "rescaled = (others + ties) *", "rescaled = others *", SOFT_TRITON),
    Mutant("torch/kernels/triton_kernels.py", "& (q < 0.5)[:, None]", "", SOFT_TRITON),
    Mutant(
        "torch/kernels/triton_kernels.py", "(rest - q * scale)[:, None]", "p * scale[:, None] - t * slope", SOFT_TRITON
    ),
    Mutant(
        "torch/kernels/triton_kernels.py",
        "tl.where(t == 0.0, 0.0, distance",
        "tl.where(t < 0.0, 0.0, distance",
        SOFT_TRITON,
    ),
    Mutant(
        "torch/kernels/triton_kernels.py",
        "tile_of(program // class_tiles, tiles, inners, target_by_outer, target_by_inner, ROWS)",
        "tile_of(program // class_tiles, tiles, inners, by_outer, by_inner, ROWS)",
        SOFT_TRITON,
    ),
    Mutant(
        "jax/softmax.py",
        "(1.0 - label_smoothing) * losses + label_smoothing * smoothing_losses",
        "losses + label_smoothing * smoothing_losses",
        "test_jax.py -k one_hot",
    ),
    Mutant(
        "jax/softmax.py",
        "jnp.sum(class_mask, axes, keepdims=True), 1)",
        "wide.shape[axes[0]], 1)",
        "test_jax.py -k one_hot",
    ),
    Mutant("jax/softmax.py", "1.0 - exponentials / sum_exp", "exponentials / sum_exp", ORACLES.format("jax")),
    Mutant("jax/softmax.py", "jnp.where(valid, nll, 0.0), axis)", "nll, axis)", "test_jax.py -k masked_examples"),
    Mutant(
        "jax/softmax.py",
        "jnp.expand_dims(labels.astype(logits.dtype),",
        "jnp.expand_dims(jax.lax.stop_gradient(labels.astype(logits.dtype)),",
        ORACLES.format("jax"),
    ),
    Mutant("jax/softmax.py", "range(len(shape) - labels.ndim)", "()", "test_jax.py -k broadcast"),
    Mutant("jax/softmax.py", "if all(target_weight.shape", "if any(target_weight.shape", "test_jax.py -k broadcast"),
    Mutant(
        "jax/softmax.py",
        "epsilon * (total_weight - of",
        "epsilon * (1.0 - of",
        "test_jax.py -k broadcast",
    ),
    Mutant("jax/softmax.py", "shifted * (1.0 / classes)", "shifted", "test_jax.py -k infinity"),
    Mutant("jax/softmax.py", "shifted = jnp.where(excluded, 0.0, shifted)", "pass", "test_jax.py -k masked_classes"),
    Mutant("jax/softmax.py", "(target_weight == 0.0) & (shifted", "(shifted", "test_jax.py -k impossible"),
    Mutant("boosting/derivatives.py", "total < 1.5", "total < 0.5", BOOSTING),
    Mutant("boosting/derivatives.py", "total < 1.5", "total < 99.5", BOOSTING),
    Mutant("boosting/derivatives.py", "np.copyto(q, rest * scale, where=is_largest)", "pass", BOOSTING),
    Mutant("boosting/derivatives.py", "(np.abs(largest) < 1e300).all()", "True", BOOSTING),
    Mutant("boosting/derivatives.py", "[of_labels] = slope * q\n", "[of_labels] += slope\n", BOOSTING),
    Mutant("boosting/derivatives.py", "spread * at.q**2 +", "spread * at.q +", BOOSTING),
    Mutant("boosting/derivatives.py", "sure = at.p > 0.5", "sure = at.p > 1.0", BOOSTING),
    Mutant("boosting/derivatives.py", "- spreads[k] * p[c]", "- spreads[c] * p[k]", BOOSTING),
    Mutant("boosting/derivatives.py", "matrix[k][k] = diagonal[k]", "pass", BOOSTING),
    Mutant("boosting/derivatives.py", "result[label] = slope * q", "result[label] += slope", BOOSTING),
    Mutant("boosting/derivatives.py", "margins[label] - largest - math.log", "margins[label] - math.log", BOOSTING),
    Mutant("boosting/derivatives.py", "-345.0, 345.0", "-800.0, 800.0", BOOSTING),
    Mutant("boosting/derivatives.py", "np.where(yes, first, -first)", "first", BOOSTING),
    Mutant("boosting/derivatives.py", "+ p * force *", "+ q * force *", BOOSTING),
    Mutant("boosting/derivatives.py", "np.minimum(-z, 0.0) - rest", "np.minimum(z, 0.0) - rest", BOOSTING),
    Mutant("boosting/derivatives.py", "np.log(zero / one)", "np.log(one / zero)", BOOSTING),
    Mutant("boosting/derivatives.py", "scale = 1.0 + polynomial.gamma", "scale = 1.0", BOOSTING),
    Mutant("boosting/derivatives.py", "np.where(np.isinf(margins), margins,", "np.where(False, margins,", BOOSTING),
    Mutant("boosting/derivatives.py", "bend * q**2 - slope * p * q", "bend * q**2 + slope * p * q", BOOSTING),
    Mutant("boosting/derivatives.py", "return np.maximum(result, 0.0)", "return result", BOOSTING),
    Mutant(
        "boosting/derivatives.py",
        "convexity: Array = np.maximum(result, 0.0)",
        "convexity: Array = result + 0.0 * q",
        BOOSTING,
    ),
    Mutant("boosting/derivatives.py", "density * common *", "at.p *", BOOSTING),
    Mutant(
        "boosting/derivatives.py",
        "np.maximum(_second_derivative(spread, at), force * at.p * at.q)",
        "_second_derivative(spread, at)",
        BOOSTING,
    ),
    Mutant("boosting/derivatives.py", "np.maximum(second, force * other)", "second", BOOSTING),
    Mutant("boosting/derivatives.py", "if second.sum() > first.sum():", "if second.sum() < first.sum():", BOOSTING),
    Mutant("boosting/derivatives.py", "[[-float(force[0])", "[[float(force[0])", BOOSTING),
    Mutant("boosting/derivatives.py", "(slope < 0).all()", "True", BOOSTING),
    Mutant("boosting/derivatives.py", "np.abs(log_force(logp) - level).max() < 1e-6 and ", "", BOOSTING),
    Mutant("boosting/derivatives.py", "np.log(weights)[:, None] - _log_density", "-_log_density", BOOSTING),
    Mutant("boosting/derivatives.py", "(q - (gamma - 1.0) * p)", "(q + (gamma - 1.0) * p)", BOOSTING),
    Mutant("boosting/derivatives.py", "-(q**polynomial.gamma) * steepness", "-steepness", BOOSTING),
    Mutant("boosting/derivatives.py", "result - polynomial.gamma * np.log(q) if", "result if", BOOSTING),
    Mutant(
        "boosting/compiled.py",
        "for j in range(len(loss.coefficients), 0, -1):\n        total = (j + gamma)",
        "for j in range(1, 0, -1):\n        total = (j + gamma)",
        COMPILED + "'numba and the_exact and taylor'",
    ),
    Mutant(
        "boosting/compiled.py", "(j + gamma) * loss", "j * loss", COMPILED + "'numba and the_expected and logarithm'"
    ),
    Mutant(
        "boosting/compiled.py",
        "total = j * (j - 1) * loss",
        "total = j * j * loss",
        COMPILED + "'numba and the_exact and poly_n'",
    ),
    Mutant(
        "boosting/compiled.py",
        "(following - scaled) + total",
        "following + total",
        COMPILED + "'numba and the_exact and poly_n'",
    ),
    Mutant(
        "boosting/compiled.py",
        "total = (loss.log_weight + loss.coefficients[0]) + total * q",
        "total = loss.log_weight + total * q",
        COMPILED + "'numba and the_exact and poly1_focal'",
    ),
    Mutant(
        "boosting/compiled.py",
        "0.5 * q * q if q < 2.0**-26 else -logp - q",
        "-logp - q",
        COMPILED + "'numba and the_exact and focal'",
    ),
    Mutant(
        "boosting/compiled.py",
        "return result + loss.gamma * p *",
        "return result + loss.gamma *",
        COMPILED + "'numba and the_expected and focal'",
    ),
    Mutant(
        "boosting/compiled.py",
        "return q * q if gamma == 2.0",
        "return q if gamma == 2.0",
        COMPILED + "'numba and the_exact and focal'",
    ),
    Mutant(
        "boosting/compiled.py",
        "focal = (gamma - 1.0) * p *",
        "focal = gamma * p *",
        COMPILED + "'numba and the_expected and focal'",
    ),
    Mutant(
        "boosting/compiled.py", "return max(result, 0.0)", "return result", COMPILED + "'numba and below_the_bound'"
    ),
    Mutant(
        "boosting/compiled.py",
        "(q - (gamma - 1.0) * p)",
        "(q + (gamma - 1.0) * p)",
        COMPILED + "'numba and the_exact and focal'",
    ),
    Mutant("boosting/compiled.py", "range(13, 1, -1)", "range(9, 1, -1)", COMPILED + "'numba and exponential'"),
    Mutant("boosting/compiled.py", "range(23, 1, -2)", "range(15, 1, -2)", COMPILED + "'numba and exponential'"),
    Mutant("boosting/compiled.py", "large = x > 0.41", "large = x > 1.0", COMPILED + "'numba and exponential'"),
    Mutant("boosting/compiled.py", "0.6931471805599453 if large", "0.7 if large", COMPILED + "'numba and exponential'"),
    Mutant("boosting/compiled.py", "((bits >> 52) - 1023) *", "((bits >> 52) - 1022) *", COMPILED + "large_round"),
    Mutant("boosting/compiled.py", " - n * 1.4286068203094172e-06", "", COMPILED + "'numba and gradients and poly1'"),
    Mutant(
        "boosting/compiled.py",
        "z = min(max(z, -345.0), 345.0)",
        "z = min(max(z, -800.0), 800.0)",
        COMPILED + "'numba and too_large'",
    ),
    Mutant(
        "boosting/compiled.py",
        "max(zero, LEAST_FORCE) / max(one, LEAST_FORCE)",
        "max(one, LEAST_FORCE) / max(zero, LEAST_FORCE)",
        COMPILED + "large_round",
    ),
    Mutant(
        "boosting/compiled.py", "against = -margin if labels", "against = margin if labels", COMPILED + "large_round"
    ),
    Mutant("boosting/compiled.py", "= w * (max(against", "= (max(against", COMPILED + "large_round"),
    Mutant("boosting/compiled.py", "scale, one = 1.0 + loss.gamma,", "scale, one = 1.0,", COMPILED + "large_round"),
    Mutant(
        "boosting/compiled.py",
        "min(-z, 0.0) - rest",
        "min(z, 0.0) - rest",
        COMPILED + "'numba and the_expected and focal'",
    ),
    Mutant(
        "boosting/compiled.py",
        "* q**2 - first * p, 0.0",
        "* q**2 + first * p, 0.0",
        COMPILED + "'numba and the_exact and poly1'",
    ),
    Mutant("boosting/compiled.py", "+ p * force *", "+ q * force *", COMPILED + "'numba and the_expected and poly1'"),
    Mutant(
        "boosting/compiled.py", "max(second, force * other)", "second", COMPILED + "'numba and the_expected and poly1'"
    ),
    Mutant(
        "boosting/compiled.py",
        "return first if yes else -first, second",
        "return first, second",
        COMPILED + "'numba and gradients and poly1'",
    ),
    Mutant(
        "boosting/compiled.py", "= one * w, two * w", "= one * w, two", COMPILED + "'numba and gradients and poly1'"
    ),
    Mutant(
        "boosting/compiled.py",
        "of_margins(loss, curvature, 1, y",
        "of_margins(loss, curvature, 0, y",
        COMPILED + "'numba and one_against'",
    ),
    Mutant(
        "boosting/compiled.py",
        "of_margins(loss, curvature, k, y",
        "of_margins(loss, curvature, 1, y",
        COMPILED + "'numba and one_against'",
    ),
    Mutant(
        "boosting/compiled.py", "min(max(margins[k], -1e300), 1e300)", "margins[k]", COMPILED + "'numba and too_large'"
    ),
    Mutant(
        "boosting/compiled.py",
        "rest += p[k] if logp[k] else 0.0",
        "rest += p[k]",
        COMPILED + "'numba and the_exact and poly1'",
    ),
    Mutant(
        "boosting/compiled.py",
        "    if total >= 1.5:\n        rest = total - 1.0\n",
        "",
        COMPILED + "'numba and the_exact and poly1'",
    ),
    Mutant(
        "boosting/compiled.py",
        "q[k] = 1.0 - p[k] if logp[k] else rest * scale",
        "q[k] = 1.0 - p[k]",
        COMPILED + "'numba and the_exact and poly1'",
    ),
    Mutant(
        "boosting/compiled.py",
        "max(logp[k] - log_total, -1e300)",
        "logp[k]",
        COMPILED + "'numba and the_exact and focal'",
    ),
    Mutant("boosting/compiled.py", "1.0 if logp[k] >= MASKED else 0.0", "1.0", COMPILED + "'numba and masked'"),
    Mutant(
        "boosting/compiled.py",
        "force = max(power(r, loss.gamma) * force, LEAST)",
        "force = max(force, LEAST)",
        COMPILED + "'numba and the_expected and focal'",
    ),
    Mutant(
        "boosting/compiled.py",
        "unsure if p[k] > 0.5 else total - spread[k]",
        "total - spread[k]",
        COMPILED + "'numba and the_expected and poly1'",
    ),
    Mutant(
        "boosting/compiled.py",
        "spread[k] * q[k] ** 2 +",
        "spread[k] * q[k] +",
        COMPILED + "'numba and the_expected and poly1'",
    ),
    Mutant(
        "boosting/compiled.py",
        "two[k] = max(bent * moved**2 - of_label * p[k] * q[k], 0.0)",
        "two[k] = bent * moved**2 - of_label * p[k] * q[k]",
        COMPILED + "'numba and the_exact and poly1'",
    ),
    Mutant(
        "boosting/compiled.py",
        "max(two[k], force * p[k] * q[k])",
        "two[k]",
        COMPILED + "'numba and the_expected and poly1'",
    ),
    Mutant("boosting/compiled.py", "two[k] * factor * w", "two[k] * w", COMPILED + "'numba and xgboost_and_lightgbm'"),
    Mutant("boosting/compiled.py", "Loss((0.0,), 0.0, 1.0)", "Loss((0.0,), loss.gamma, 1.0)", COMPILED + "expected"),
    Mutant("boosting/compiled.py", "Loss(loss.coefficients, 2.0,", "Loss(loss.coefficients, 1.0,", BOOSTING),
    Mutant("boosting/compiled.py", "(labels[i] != 0 and labels[i] != 1)", "labels[i] < 0", COMPILED + "told_what"),
    Mutant("boosting/compiled.py", "or math.isnan(margins[i])", "", COMPILED + "told_what"),
    Mutant("boosting/compiled.py", "wrong += not 0.0 <= w < math.inf", "pass", COMPILED + "told_what"),
    Mutant("boosting/compiled.py", "if len(labels) != len(margins) or", "if", COMPILED + "told_what"),
    Mutant("boosting/compiled.py", "return math.nan, 0.0", "pass", COMPILED + "told_what"),
    Mutant(
        "boosting/compiled.py",
        "        return False\n    of_margins(",
        "        pass\n    of_margins(",
        COMPILED + "told_what",
    ),
    Mutant("boosting/compiled.py", "result[1, i] *= -factor", "result[1, i] *= -1.0", BOOSTING),
    Mutant("boosting/compiled.py", "weights[i] = w", "weights[i] = 1.0", COMPILED + "of_its_parts"),
    Mutant("boosting/compiled.py", "if len(weight) else 1.0) * (class", "if len(weight) else 1.0) / (class", BOOSTING),
    Mutant("boosting/compiled.py", "result[1 + c, k] = 0.0", "pass", COMPILED + "catboost_gets"),
    Mutant("boosting/compiled.py", "wrong += math.isnan(margins[k])", "pass", COMPILED + "told_what"),
    Mutant("boosting/compiled.py", "margins[k], k == label)", "margins[k], True)", COMPILED + "catboost_gets"),
    Mutant("boosting/compiled.py", "= factor * one, factor * two", "= factor * one, two", COMPILED + "catboost_gets"),
    Mutant("boosting/compiled.py", "> second.sum()", "< second.sum()", COMPILED + "catboost_gets"),
    Mutant("boosting/compiled.py", "= factor * of_label * moved", "= of_label * moved", COMPILED + "catboost_gets"),
    Mutant("boosting/compiled.py", "= factor * max(bent", "= -max(bent", COMPILED + "catboost_gets"),
    Mutant("boosting/compiled.py", "- spread[k] * p[c]", "- spread[c] * p[k]", COMPILED + "'numba and the_expected'"),
    Mutant("boosting/compiled.py", "= factor * (-force", "= -(-force", COMPILED + "catboost_gets"),
    Mutant("boosting/compiled.py", "= factor * (force * p[k]", "= -(force * p[k]", COMPILED + "catboost_gets"),
    Mutant("boosting/objectives.py", "if margins >= ENOUGH else None", "if margins > ENOUGH else None", BOOSTING),
    Mutant("boosting/objectives.py", "except Exception:  # no", "except ImportError:  # no", BOOSTING),
    Mutant(
        "boosting/objectives.py", '1.0 if self.curvature == "exact"', '1.0 if self.curvature == "expected"', BOOSTING
    ),
    Mutant(
        "boosting/objectives.py", "yield slice(start, start + rows)", "yield slice(start, start + rows - 1)", BOOSTING
    ),
    Mutant("boosting/objectives.py", "weight[rows, None]", "weight[: len(one), None]", BOOSTING),
    Mutant(
        "boosting/objectives.py",
        "y = margins[rows].astype(float, copy=False), labels[rows]",
        "y = margins[rows], labels[rows]",
        BOOSTING,
    ),
    Mutant(
        "boosting/objectives.py",
        "[[factor * one for one in row] for row in expected",
        "[[-one for one in row] for row in expected",
        BOOSTING,
    ),
    Mutant("boosting/objectives.py", "return 2.0\n", "return 1.0\n", BOOSTING),
    Mutant("boosting/objectives.py", "return classes / (classes - 1)", "return 1.0", BOOSTING),
    Mutant("boosting/objectives.py", "-1.0 if weight is None else -weight, out", "-1.0, out", BOOSTING),
    Mutant(
        "boosting/objectives.py",
        "self._block(approxes, targets, weights)",
        "self._block(approxes, targets, None)",
        BOOSTING,
    ),
    Mutant("boosting/objectives.py", "self._seen >= ENOUGH, 0", "self._seen >= ENOUGH, self._seen", BOOSTING),
    Mutant("boosting/objectives.py", "return self._class_weights(2), np", "return np.ones(2), np", BOOSTING),
    Mutant("boosting/objectives.py", "if not math.isnan(total):", "if True:", BOOSTING),
    Mutant(
        "boosting/objectives.py",
        "margins, labels)), float(factor.sum())",
        "margins, labels)), float(len(factor))",
        BOOSTING,
    ),
    Mutant("boosting/objectives.py", "if any(map(math.isnan, margins.tolist())):", "if False:", BOOSTING),
    Mutant("boosting/objectives.py", "*(given.coefficients or (0.0,))", "*given.coefficients", BOOSTING + " -k a_row"),
    Mutant("boosting/objectives.py", "label != target or not 0 <=", "not 0 <=", BOOSTING),
    Mutant("boosting/objectives.py", "weight = weight * self._class_weights", "weight = self._class_weights", BOOSTING),
    Mutant("boosting/objectives.py", "not weight.any():", "False:", BOOSTING),
    Mutant("boosting/objectives.py", "else factor * of_class", "else of_class", BOOSTING),
    Mutant("boosting/objectives.py", "return float(logp[1] - logp[0])", "return float(logp[1])", BOOSTING),
    Mutant("boosting/objectives.py", "(margins, labels), weights=weight)", "(margins, labels))", BOOSTING),
    Mutant("boosting/objectives.py", "if weight is None or len(weight) == 0 else", "if weight is None else", BOOSTING),
    Mutant("boosting/objectives.py", "(indices < 0)", "(indices < -1)", BOOSTING),
    Mutant("boosting/objectives.py", "[:2]) < version", "[:2]) < (0,)", "test_boosting_libraries.py -k missing"),
    Mutant(
        "boosting/estimators.py",
        "result = result * factors[labels]",
        "pass",
        ESTIMATORS + "'class_weights and 2-xgboost'",
    ),
    Mutant(
        "boosting/estimators.py",
        "probabilities / probabilities.sum(1, keepdims=True)",
        "probabilities",
        ESTIMATORS + "'saved_model and True-xgboost'",
    ),
    Mutant(
        "boosting/estimators.py",
        "np.asarray(margins > 0, np.intp)",
        "np.asarray(margins < 0, np.intp)",
        ESTIMATORS + "'saved_model and 2-False-xgboost'",
    ),
    Mutant(
        "boosting/estimators.py",
        "objective.probabilities(-margins), objective",
        "1.0 - margins, objective",
        ESTIMATORS + "'saved_model and 2-False-xgboost'",
    ),
    Mutant(
        "boosting/estimators.py",
        "PolyObjective(0.0, one_vs_all",
        "objective.__class__(0.5, one_vs_all",
        ESTIMATORS + "'without_a_finite and xgboost'",
    ),
    Mutant("boosting/estimators.py", "if not totals.all():", "if False:", ESTIMATORS + "'wrong and zero and xgboost'"),
    Mutant(
        "boosting/xgboost_classifier.py",
        "if name not in LOSS}",
        'if name != "epsilon"}',
        ESTIMATORS + "'scikit_learns_tools and xgboost'",
    ),
    Mutant(
        "boosting/xgboost_classifier.py",
        "self.base_score = base_score  #",
        "base_score = base_score  #",
        ESTIMATORS + "'loaded and 2-xgboost'",
    ),
    Mutant(
        "boosting/xgboost_classifier.py",
        "or [posterior_log_loss]",
        "or [lambda labels, margins, sample_weight=None: 0.0]",
        ESTIMATORS + "'stops_early and 2-xgboost'",
    ),
    Mutant(
        "boosting/lightgbm_classifier.py",
        "(tree, leaf) + start[tree]",
        "(tree, leaf) + start[0]",
        ESTIMATORS + "'saved_model and 3-False-lightgbm or shares and 3-False-lightgbm'",
    ),
    Mutant(
        "boosting/lightgbm_classifier.py",
        "self.class_weight = self._class_weight = None",
        "self._class_weight = None",
        ESTIMATORS + "'class_weights and 2-lightgbm'",
    ),
    Mutant(
        "boosting/lightgbm_classifier.py",
        "before_iteration = True",
        "before_iteration = False",
        ESTIMATORS + "no_feature",
    ),
    Mutant(
        "boosting/lightgbm_classifier.py",
        'parameters["metric"] = "None"',
        'parameters["metric"] = "binary_logloss"',
        ESTIMATORS + "'stops_early and 2-lightgbm'",
    ),
    Mutant(
        "boosting/lightgbm_classifier.py",
        "else evaluated[0]",
        'else options["eval_y"]',
        ESTIMATORS + "'stops_early and 2-lightgbm'",
    ),
    Mutant(
        "boosting/catboost_classifier.py",
        "bias = CatBoost().load_model(init_model).get_scale_and_bias()[1]",
        "pass",
        ESTIMATORS + "'goes_on and 2-catboost'",
    ),
    Mutant(
        "boosting/catboost_classifier.py",
        "if folder is not None:",
        "if False:",
        ESTIMATORS + "'itself and 2-catboost'",
    ),
    Mutant(
        "boosting/catboost_classifier.py",
        '{"thread_count": 1, **self',
        "{**self",
        ESTIMATORS + "one_thread",
    ),
    Mutant(
        "boosting/catboost_classifier.py",
        '"eval_metric", "classes_count"):',
        '"eval_metric"):',
        ESTIMATORS + "'anew and catboost'",
    ),
    Mutant("boosting/lightgbm_classifier.py", "if eval_init_score is None:", "if True:", ESTIMATORS + "from_the_start"),
    Mutant("boosting/estimators.py", "len(given) != len(sets)", "False", ESTIMATORS + "evaluation_sets"),
    Mutant("boosting/estimators.py", "or len(pair) != 2:", "or False:", ESTIMATORS + "evaluation_sets"),
    Mutant(
        "boosting/xgboost_classifier.py",
        "if xgb_model is not None and self.base_score is not None:",
        "if False:",
        ESTIMATORS + "one_start",
    ),
    Mutant("boosting/objectives.py", "if len(present) < classes:", "if False:", BOOSTING + " -k mistakes"),
    Mutant(
        "tune/tabular.py", "> max(others) if maximize", "!= max(others) if maximize", "test_tune_sweep.py -k advised"
    ),
    Mutant("tune/tabular.py", "< min(others)):", "!= min(others)):", "test_tune_sweep.py -k advised"),
    Mutant(
        "boosting/catboost_classifier.py",
        '"eval_metric": objective, **given',
        "**given",
        ESTIMATORS + "'stops_early and 2-catboost'",
    ),
    Mutant(
        "boosting/catboost_classifier.py",
        '"Probability", "LogProbability")',
        '"Probability")',
        ESTIMATORS + "'catboost_predicts and 2'",
    ),
    Mutant(
        "boosting/catboost_classifier.py",
        "margins.ndim == (0 if",
        "margins.ndim == (1 if",
        ESTIMATORS + "'catboost_predicts and 2'",
    ),
    Mutant("jax/sigmoid.py", "(1.0 - alpha) * negative", "alpha * negative", BINARY.format("jax")),
    Mutant(
        "jax/sigmoid.py",
        "positive, negative = labels, 1.0 - labels",
        "positive, negative = labels, jax.lax.stop_gradient(1.0 - labels)",
        BINARY.format("jax"),
    ),
    Mutant("jax/linear.py", "row = jnp.where(valid, row, 0.0)", "pass", "test_jax_linear.py"),
    Mutant(
        "jax/linear.py",
        "label_smoothing=label_smoothing, polynomial=polynomial",
        "polynomial=polynomial",
        "test_jax_linear.py",
    ),
    Mutant(
        "jax/likelihood.py", "log_factor = 1.0 + gamma", "log_factor = 1.0 - gamma", "test_posterior_laws.py -k jax"
    ),
    Mutant(
        "jax/likelihood.py",
        "certain, infinite = q < tiny,",
        "certain, infinite = q < 0.0,",
        "test_softmax_laws.py -k 'extreme and jax'",
    ),
    Mutant("jax/likelihood.py", "small = (q < sqrt_tiny)", "small = (q < 0.0)", "test_jax_derivatives.py"),
    Mutant("jax/likelihood.py", "jnp.where(gamma == 0, leading * q, 0.0)", "0.0", "test_jax_derivatives.py"),
    Mutant(
        "keras.py",
        "_num_classes(y_pred, axis), target_weight.dtype)",
        "_num_classes(y_pred, -1), target_weight.dtype)",
        "test_keras.py",
    ),
    Mutant(
        "keras.py",
        "alpha * positive, (1.0 - alpha) * negative",
        "(1.0 - alpha) * positive, alpha * negative",
        BINARY.format("keras"),
    ),
    Mutant("keras.py", "set_keras_mask(losses, valid)", "pass", "test_keras.py"),
    Mutant("keras.py", '{"alpha": alpha, "dtype"', '{"dtype"', "test_keras.py -k written"),
    Mutant("keras.py", "-1 if k == axis % rank else 1", "-1 if k == rank - 1 else 1", "test_keras.py -k alpha"),
    Mutant(
        "keras.py",
        "target_weight = target_weight * _class_weight(alpha, y_pred, axis)",
        "target_weight = ops.multiply(target_weight, alpha)",
        "test_keras.py -k alpha",
    ),
    Mutant(
        "keras.py",
        "losses = _weighted_loss(polynomial, target_weight, *_with_complement(logp))\n    losses =",
        "losses = target_weight * _polynomial_at(polynomial, *_with_complement(logp))\n    losses =",
        "test_keras.py -k alpha",
    ),
    Mutant(
        "keras.py",
        "_clip(y_pred / ops.sum(y_pred, axis=axis, keepdims=True))",
        "_clip(y_pred)",
        "test_keras.py",
    ),
    Mutant(
        "keras.py",
        "target = ops.cast(y_true, y_pred.dtype)",
        "target = ops.stop_gradient(ops.cast(y_true, y_pred.dtype))",
        ORACLES.format("keras"),
    ),
    Mutant("tune/data.py", "max_categories=MAX_CATEGORIES", "max_categories=MAX_CATEGORIES + 1", "test_tune_data.py"),
    Mutant("tune/columns.py", 'if (padded := (raw != text) & (text != "")).any():', "if False:", TABLES),
    Mutant("tune/data.py", 'strategy="median"', 'strategy="mean"', "test_tune_data.py"),
    Mutant("tune/splits.py", "rng.integers(1, classes,", "rng.integers(0, classes,", "test_tune_splits.py"),
    Mutant("tune/splits.py", "(len(order) - 1)", "len(order)", "test_tune_splits.py"),
    Mutant("tune/splits.py", "return rows[rest], rows[part]", "return rest, part", "test_tune_splits.py"),
    Mutant("tune/batched.py", "math.ceil(rows / MOST_STEPS)", "0", "test_tune_batched.py"),
    Mutant("tune/batched.py", "if number >= steps:", "if number == steps:", "test_tune_batched.py"),
    Mutant("tune/batched.py", "square.mul_(0.999)", "square.mul_(0.99)", "test_tune_batched.py"),
    Mutant("tune/batched.py", "rates * (1 - number / (epochs * len(batches)))", "rates", "test_tune_batched.py"),
    Mutant("tune/batched.py", "history.append(p_t / rows)", "history.append(p_t / BATCH_ROWS)", "test_tune_batched.py"),
    Mutant("tune/experiment.py", "int(rng.integers(2**31)),", "0,", SWEEP + "test_every_repeat"),
    Mutant("tune/experiment.py", "MODELS_AT_ONCE // len(same),", "10**9,", SWEEP + "interrupt_keeps"),
    Mutant(
        "tune/experiment.py", "one = drawn[model * len(drawn) // len(trials)]", "one = drawn[0]", SWEEP + "how_repeats"
    ),
    Mutant("tune/experiment.py", "(time.monotonic() - start) / steps", "time.monotonic() - start", SWEEP + "few_steps"),
    Mutant("tune/experiment.py", "len(trials) / len(batches[0])", "len(batches[0])", SWEEP + "few_steps"),
    Mutant(
        "tune/data.py",
        "fit_transform(self.numbers[train])",
        "fit(self.numbers).transform(self.numbers[train])",
        SWEEP + "every_repeat",
    ),
    Mutant(
        "tune/splits.py",
        "max(round(most * rows / len(y)), MINIMUM_ROWS)",
        "round(most * rows / len(y))",
        SWEEP + "fewer_rows",
    ),
    Mutant(
        "tune/splits.py",
        "np.cumsum(np.bincount(number)[drawn]) <= most",
        "np.arange(len(drawn)) < most",
        SWEEP + "fewer_rows",
    ),
    Mutant("tune/tabular.py", "and means[outer] > means[inner]", "", SWEEP + "no_edge"),
    Mutant("tune/tabular.py", "for _ in range(MOST_ADDED):", "for _ in range(0):", SWEEP + "learning_rate"),
    Mutant("tune/tabular.py", "UNDECIDED if edge else", "", SWEEP + "undecided"),
    Mutant(
        "tune/tabular.py", "total * TRAINING_SHARE * budget / seconds", "2 * total * budget / seconds", SWEEP + "budget"
    ),
    Mutant("tune/tabular.py", "if before is not None:", "if False:", SWEEP + "budget"),
    Mutant("tune/tabular.py", "if trial.key not in outcomes]):", "]):", SWEEP + "not_trained_again"),
    Mutant("tune/experiment.py", "zlib.crc32(numbers)", "0", SWEEP + "not_trained_again"),
    Mutant("tune/boosted.py", "zlib.crc32(rows.tobytes())", "0", MODELS + "not_trained_again"),
    Mutant(
        "tune/boosted.py", '{"model": self.model, **self.versions,', '{"model": self.model,', MODELS + "not_trained"
    ),
    Mutant(
        "tune/boosted.py", "sorted(X[name].unique())", 'sorted(self.frame["colour"].unique())', MODELS + "categories"
    ),
    Mutant("tune/boosted.py", "random_state=drawn.seed", "random_state=trial.seed", MODELS + "arms_share"),
    Mutant(
        "tune/boosted.py",
        "np.stack([np.zeros_like(margins), margins]",
        "np.stack([-margins, margins]",
        MODELS + "of_margins",
    ),
    Mutant(
        "tune/boosted.py",
        "return _Drawn(train, X, labels,",
        "return _Drawn(train, X, self.labelled.labels[train],",
        MODELS + "arms_share",
    ),
    Mutant("tune/boosted.py", "(trial.stage, trial.repeat), []", "(trial.stage, 0), []", MODELS + "arms_share"),
    Mutant("tune/boosted.py", "max(eleven - first, 0.0) / 10", "max(eleven - first, 0.0) / 11", MODELS + "few_rounds"),
    Mutant("tune/boosted.py", 'if "KeyboardInterrupt" in str(error):', "if False:", MODELS + "one_line"),
    Mutant(
        "tune/boosted.py",
        "p = torch.softmax(self._logits(model, drawn.features, first), 1)",
        "p = torch.softmax(self._logits(model, drawn.features, ROUNDS), 1)",
        MODELS + "says_which_model",
    ),
    Mutant(
        "tune/tabular.py", '1 if settings["model"] == "network" else boosted.EVERY', "1", MODELS + "says_which_model"
    ),
    Mutant("tune/result.py", "if model in LIBRARIES else", "if False else", MODELS + "says_which_model"),
    Mutant("cli.py", "check_model(model, device)  # before", "# before", "test_cli.py -k before_the_table"),
    Mutant("tune/tabular.py", "store.alone()", "pass", SWEEP + "one_sweep_at_a_time"),
    Mutant(
        "tune/tabular.py", "math.inf if (e := epsilon_of(losses[name])) is None else e", "0.0", SWEEP + "any_losses"
    ),
    Mutant("tune/analysis.py", "np.sqrt(1 / n + overlap)", "np.sqrt(1 / n)", PLANNED),
    Mutant("tune/analysis.py", "> sign * guessing + 1e-9", "> sign * guessing - 1e-9", "test_tune_study.py -k guess"),
    Mutant("tune/statistics.py", " - scores.mean() * (sizes - sizes.mean())", "", "test_tune_statistics.py"),
    Mutant("tune/sequential.py", "1 / (test_rows or rows)", "1 / rows", "test_tune_statistics.py"),
    Mutant(
        "tune/analysis.py", 'int(outcomes[trial.key].measures["test_rows"])', "None", "test_tune_study.py -k groups"
    ),
    Mutant(
        "tune/statistics.py", "(1 / repeats + evaluation_rows / train_rows)", "(1 / repeats)", "test_tune_statistics.py"
    ),
    Mutant("tune/statistics.py", "bins=15", "bins=10", "test_tune_statistics.py"),
    Mutant("tune/result.py", "{100 * value:+.2f}", "{100 * value:.2f}", "test_tune_sweep.py"),
    Mutant("named.py", "ast.Call(call, [], [])", "call", "test_cli.py -k 'plot or loss'"),
    Mutant("__main__.py", "    main()", "    pass", "test_tune_workers.py -k 'one_line and SystemExit'"),
    Mutant("tune/space.py", "low * (high / low) ** u if one.log else low", "low", PLANNED),
    Mutant("tune/space.py", "one.high + width", "one.high", PLANNED),
    Mutant("tune/space.py", "if combinations <= count:", "if combinations < count:", PLANNED),
    Mutant("tune/plan.py", "[self.seed, 1, repeat]", "[self.seed, 1, 0]", PLANNED),
    Mutant(
        "tune/plan.py", "if epsilon_of(loss) == 0:", "if loss == cross_entropy():", "test_tune_sweep.py -k any_losses"
    ),
    Mutant("tune/plan.py", "if name in found:", "if False:", PLANNED),
    Mutant("tune/sequential.py", "4 * ndtr(ndtri((1 - LEVEL) / 4)", "2 * ndtr(ndtri((1 - LEVEL) / 2)", SEQUENTIAL),
    Mutant("tune/sequential.py", "spent(information) - spent_before", "spent(information)", SEQUENTIAL),
    Mutant("tune/sequential.py", "weights @ (density * outside) > target", "outside.mean() > target", SEQUENTIAL),
    Mutant("tune/sequential.py", "of_seeds / seeds + of_rows", "of_seeds / seeds", SEQUENTIAL),
    Mutant(
        "tune/sequential.py",
        "math.sqrt(of_seeds / most + of_rows)",
        "math.sqrt((of_seeds + of_rows) / most)",
        SEQUENTIAL,
    ),
    Mutant(
        "tune/sequential.py", "estimate.uncorrected(-quantile), estimate.uncorrected(quantile)", "0.0, 0.0", SEQUENTIAL
    ),
    Mutant("tune/sequential.py", "a * t**2 / 3", "a * t**2 / 2", SEQUENTIAL),
    Mutant("tune/sequential.py", "stdtrit(freedom, 2.0**-seeds)", "stdtrit(freedom, 2.0 ** (-seeds - 1))", SEQUENTIAL),
    Mutant("tune/sequential.py", "or abs(self.statistic) < self.futility", "", SEQUENTIAL),
    Mutant("tune/sequential.py", "max(error, least)", "error", SEQUENTIAL),
    Mutant("tune/sequential.py", "round(before[-1] + 0.01, 2)", "before[-1]", SEQUENTIAL),
    Mutant("tune/sequential.py", "if seeds >= FEWEST_SEEDS", "if seeds > 0", SEQUENTIAL),
    Mutant("tune/analysis.py", "(confirmation.low > 0) == maximize", "confirmation.low > 0", SEQUENTIAL),
    Mutant("tune/analysis.py", "means if maximize else -means", "means", PLANNED),
    Mutant("tune/analysis.py", "(counts > 0) & (2 * counts >= repeats)", "counts > 0", PLANNED),
    Mutant("tune/analysis.py", "np.isfinite(scores) & np.isfinite(baseline)", "np.isfinite(scores)", PLANNED),
    Mutant("tune/analysis.py", "point, plan.repeats + seed)", "point, seed)", PLANNED),
    Mutant("tune/trials.py", "os._exit(0)", "pass", STUDY),
    Mutant("tune/trials.py", "except BaseException as error:", "except Exception as error:", STUDY),
    Mutant("tune/trials.py", '"validation" if stage == SELECTION else "test"', '"validation"', STUDY),
    Mutant("tune/trials.py", "if not np.isfinite(found[name]).all():", "if False:", STUDY),
    Mutant("tune/store.py", "TRIES, DEATHS = 2, 5", "TRIES, DEATHS = 1, 5", STUDY),
    Mutant("tune/locks.py", "            os.ftruncate(self._file, end)\n", "            pass\n", STUDY),
    Mutant("tune/store.py", 'self._set(trial, "interrupted", True)', "pass", STUDY),
    Mutant("tune/store.py", "raise ConnectionError(", "raise RuntimeError(", "test_tune_study.py -k stays_away"),
    Mutant("tune/store.py", "elif there != here:", "elif False:", STUDY),
    Mutant("tune/store.py", "and len(there) != len(here):", "and False:", STUDY),
    Mutant("tune/store.py", "pair[1][0].number == pair[0].number)", "False)", STUDY),
    Mutant("tune/store.py", "            self._waiting.clear()  # its next try comes first", "            pass", STUDY),
    Mutant(
        "tune/store.py",
        "if time.monotonic() - self._looked > GLANCE:",
        "if False:",
        "test_tune_study.py -k another_worker",
    ),
    Mutant("tune/locks.py", "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", WORKERS + "'share_a_folder'"),
    Mutant("tune/store.py", "error = (ended or {}).get(process)", "error = None", WORKERS + "'recorded and abort'"),
    Mutant("tune/studies.py", "not outcome.error and time", "time", STUDY),
    Mutant("tune/studies.py", "one.error != NOT_FINITE", "True", STUDY),
    Mutant("tune/studies.py", "CONFIRMATION_FACTOR * int(repeats)", "int(repeats)", STUDY),
    Mutant("tune/labelled.py", "validation if stage == SELECTION else test", "test", STUDY),
    Mutant("tune/labelled.py", "np.log(array) if is_distribution else array", "array", STUDY),
    Mutant("tune/labelled.py", "self.labels, self.seed, self.groups)", "self.labels, self.seed, None)", STUDY),
    Mutant(
        "tune/splits.py",
        "StratifiedGroupKFold(folds, shuffle=True,",
        "StratifiedGroupKFold(folds, shuffle=False,",
        "test_tune_splits.py",
    ),
    Mutant(
        "tune/files.py",
        "Path(unfinished, name).replace(directory / name)",
        "pass",
        "test_tune_workers.py -k two_workers",
    ),
    Mutant("tune/worker.py", "sys.path.insert(0, str(path.parent))", "pass", WORKERS + "beside"),
    Mutant("tune/worker.py", "signal.signal(signal.SIGTERM, stop)", "pass", WORKERS + "'goes_on and terminated'"),
    Mutant("tune/workers.py", "late = timeout is not None and", "late = False and", WORKERS + "'recorded and sleep'"),
    Mutant("tune/workers.py", "if code == NOT_LOADED:", "if False:", WORKERS + "'one_line and SystemExit'"),
    Mutant("tune/workers.py", "if in_vain >= IN_VAIN:", "if in_vain >= 1:", WORKERS + "before_its"),
    Mutant("tune/workers.py", 'found[worker.name] = ""', 'found[worker.name] = "killed"', WORKERS + "killed_worker"),
    Mutant("tune/tables.py", "numeric - mixed)", "numeric)", TABLES),
    Mutant("tune/tables.py", "if within and quotes:", "if False:", TABLES),
    Mutant("tune/tables.py", "skipinitialspace=True, strict=strict)", "strict=strict)", TABLES),
    Mutant(
        "tune/tabular.py",
        '"difference": (scores - baseline)',
        '"difference": (baseline - scores)',
        "test_tune_sweep.py",
    ),
    Mutant(
        "tune/figures.py",
        '"difference_high"] - row["difference"], row',
        '"difference"] - row["difference_low"], row',
        "test_plot.py",
    ),
    Mutant("plot.py", "for c in polynomial.series(8)]", "for c in polynomial.series(9)[1:]]", "test_plot.py"),
    Mutant("plot.py", "[-float(polynomial.slope(", "[float(polynomial.slope(", "test_plot.py"),
    Mutant("tune/figures.py", "share**0.5", "share", "test_plot.py"),
    Mutant("tune/figures.py", "key=epsilons.__getitem__", "key=str", "test_plot.py -k 'metric'"),
    Mutant("tune/figures.py", '"range": [len(arms) - 0.5, -0.5]', '"range": [-0.5, len(arms) - 0.5]', "test_plot.py"),
    Mutant("plot.py", "not highlighted or name in highlighted", "True", "test_plot.py -k highlighted"),
    Mutant("tune/sequential.py", "self.difference - self.high, self", "self.low - self.difference, self", PAGE),
    Mutant("tune/sequential.py", "within(futility) if futility", "within(boundary) if futility", PAGE),
    Mutant("tune/study_figures.py", "above if higher_is_better else below", "above", PAGE),
    Mutant("tune/study_figures.py", "theme.wrapped(line) for line", "line for line", PAGE),
    Mutant("tune/study_figures.py", "utc=True", "utc=False", PAGE),
    Mutant("tune/study_figures.py", '"type": "log", **_log_ticks(given', "**_log_ticks(given", PAGE),
    Mutant("tune/study_figures.py", "json.dumps(value)) + offset", "json.dumps(at[0])) + offset", PAGE),
    Mutant("tune/study_figures.py", 'means["point"] == means["loss"].map(first)', 'means["point"] == 0', PAGE),
    Mutant(
        "tune/store.py",
        "render_as_string(hide_password=True)\n    try",
        "render_as_string(False)\n    try",
        "test_study_page.py -k 'from_a_database'",
    ),
    Mutant("tune/store.py", "and not Path(address.database", "and Path(address.database", PAGE),
    Mutant("tune/studies.py", "if name not in own}", "}", PAGE),
    Mutant("tune/studies.py", "(*COLUMNS, *analysis.COLUMNS)", "analysis.COLUMNS", PAGE),
    Mutant(
        "tune/studies.py", "verdict in (analysis.WORSE, analysis.NO_DIFFERENCE)", "verdict != analysis.BETTER", PAGE
    ),
    Mutant("theme.py", "plotly.io.json.to_json_plotly(", "str(", "test_plot.py"),
    Mutant("tune/report.py", "return html.escape(str(given))", "return str(given)", "test_report.py"),
    Mutant("tune/report.py", 'else "undecided"', 'else "better"', "test_report.py"),
    Mutant("cli.py", "code = 2\n    except (Mem", "code = 1\n    except (Mem", "test_cli.py -k mistake"),
    Mutant("cli.py", "seed=seed,", "seed=0,", "test_cli.py"),
    Mutant("cli.py", "c in polynomial.series(3)", "c in polynomial.series(2)", "test_cli.py -k list"),
    Mutant("cli.py", "is_loss and among_losses and given", "is_loss and given", "test_cli.py -k 'follow_one'"),
    Mutant("cli.py", "    if theirs != source:", "    if False:", "test_cli.py -k 'same_name'"),
    Mutant("cli.py", "(errno.ENOSPC, errno.EDQUOT)", "()", "test_cli.py -k 'too_small'"),
    Mutant("cli.py", "        code = 1\n", "        code = 2\n", "test_cli.py -k 'enough'"),
    Mutant("cli.py", 'errors="backslashreplace"', 'errors="strict"', "test_cli.py -k 'narrow'"),
    Mutant("cli.py", ".minimum <= console.width", ".minimum > 0", "test_cli.py -k 'narrow'"),
    Mutant(
        "cli.py",
        "    try:\n        if as_json:",
        "    found.write(directory)\n    try:\n        if as_json:",
        WORKERS + "'shown_even'",
    ),
    Mutant("progress.py", "now + max(EVERY, SHARE * passed)", "now + EVERY", "test_cli.py -k 'now_and_then'"),
    Mutant("progress.py", "max(now, self._start + EVERY)", "now", "test_cli.py -k 'now_and_then'"),
    Mutant("progress.py", "(done - before)", "done", "test_cli.py -k 'now_and_then'"),
    Mutant("tune/data.py", "if size > LARGEST_DENSE:", "if False:", "test_tune_data.py -k sparse"),
    Mutant("tune/store.py", 'if kind not in ("postgresql", "sqlite"):', "if False:", "test_tune_study.py -k mysql"),
    Mutant("tune/store.py", "since > UNNAMED:", "since > 100 * UNNAMED:", "test_tune_study.py -k signing"),
    Mutant("tune/store.py", "SET TIME ZONE 'UTC'", "SELECT 1", WORKERS + "'clocks and Tokyo'"),
    Mutant("tune/trials.py", "error.errno in DISK_FULL", "False", WORKERS + "'training_that_finds'"),
    Mutant("tune/worker.py", "os._exit(NOT_WRITTEN)", "raise", WORKERS + "'training_that_finds'"),
    Mutant(
        "tune/workers.py",
        "            _remove(storage, logs)",
        "            pass",
        WORKERS + "'one_line and SystemExit'",
    ),
]


def plant(mutant: Mutant, folder: Path) -> None:
    path = folder / mutant.path
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.file}: this is there {text.count(mutant.old)} times, not once: {mutant.old}")
    path.write_text(text.replace(mutant.old, mutant.new))
    if path.suffix in (".cpp", ".hpp"):
        flags = ["-std=gnu++17", "-O1", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
        files = sorted(path.parent.glob("*.?pp"))
        sources = b"".join(file.read_bytes() for file in files)
        of_sources = f'-DPOLYLOSSES_SOURCE="{hashlib.sha256(sources).hexdigest()}"'
        library = path.parent.with_name("_native.so")
        subprocess.run(["g++", *flags, of_sources, *path.parent.glob("*.cpp"), "-o", library], check=True)


class FirstFailure:
    """A pytest plugin that records the first failing test."""

    found: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.when == "call":
            self.found = report.nodeid


def run(tests: list[str], folder: Path, answer: Connection) -> None:
    """Runs the tests on the source in ``folder`` until one fails. To be called in a child process."""
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = str(folder)
    os.chdir(HERE)
    first = FirstFailure()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        code = pytest.main(["-x", "-q", "-n0", "-m", "", "--tb=no", "-p", "no:cacheprovider", *tests], plugins=[first])
    answer.send((int(code), first.found))
    answer.close()
    os._exit(0)


def killer(tests: list[str], folder: Path) -> str | None:
    """The first test that fails, or None."""
    context = multiprocessing.get_context("fork")
    mine, its = context.Pipe()
    process = context.Process(target=run, args=(tests, folder, its))
    process.start()
    its.close()
    try:
        code, found = mine.recv()
    except EOFError:
        process.join()
        return f"a test that it ends with signal {-(process.exitcode or 0)}"
    process.join()
    if code not in (0, 1) or (code == 1 and found is None):
        raise SystemExit(f"the tests {shlex.join(tests)} do not run")
    return str(found) if found else None


def main() -> None:
    words = [word for word in sys.argv[1:] if word != "--all"]
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.file for word in words)]
    survivors = 0
    # Import slow packages once, before forking. conftest comes first, since it sets environment variables.
    for name in (
        "conftest",
        "jax",
        "keras",
        "mpmath",
        "optax",
        "plotly.graph_objects",
        "scipy.stats",
        "sklearn.metrics",
    ):
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        for number, mutant in enumerate(chosen, start=1):
            start = time.perf_counter()
            copy = Path(folder) / "src"
            shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            plant(mutant, copy)
            found = killer(shlex.split(mutant.tests), copy)
            if found is None and "--all" in sys.argv:
                found = killer([], copy)
            shutil.rmtree(copy)
            survivors += found is None
            took = time.perf_counter() - start
            what = f"{mutant.file}: {mutant.old.strip()!r}"
            print(f"{number}/{len(chosen)} {what}: {found or 'SURVIVES'} ({took:.0f} s)", flush=True)
    sys.exit(f"{survivors} of {len(chosen)} survive" if survivors else 0)


if __name__ == "__main__":
    main()
