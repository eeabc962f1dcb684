// The sigmoid kernels. Every element is a row of its own: with s = z for a positive and -z for a negative,
// p = sigmoid(s).
//
// Logits and targets pass in blocks of floats, so that the kernel is compiled once for all dtypes.

#include "common.hpp"

namespace {

// The loss of negatives or of positives.
struct Side {
    Polynomial polynomial;
    float factor, log_weight;
};

// A factor for each element that is broadcast along the memory order of the logits, whose shape is (outer, middle, inner)
// here; none if there is no data.
struct Broadcast {
    const float* data;
    int64_t middles, inners, by_outer, by_middle, by_inner;
};

// The arguments: logits in memory order; dense targets or else (ids) one class of each row; factors; and the sides, of
// negatives and positives. The same in native.py.
struct Sigmoids {
    const void* z;
    int64_t in_bfloat16, count;
    const void* dense;
    int64_t dense_in_bfloat16;
    const int64_t* ids;
    int64_t rows, classes, inners, classes_last, ignores, ignore_index;
    Broadcast weight, weight_of[2];
    Side sides[2];
    // Of both sides.
    Terms learned;
    // Whether both sides have the same polynomial, and no margin.
    int64_t alike;
    // Losses and gradients.
    int64_t result_in_bfloat16;
    // Of negatives: their q is sigmoid(z) - margin, or 0.
    float margin;
};

// The results: the elements' losses, their sums (one for each group of blocks), or their gradients; with losses or sums,
// the same of the learned terms, those of one after those of another; `grad_output` is one number for each element or one
// for all.
struct Results {
    void* losses;
    double* sums;
    float* term_losses;
    void* gradient;
    const float* grad_output;
    int64_t grad_output_stride;
};

// Blocks of which the losses are added up to one sum.
constexpr int64_t GROUP = 8;

// A block of numbers, in place or else in `copy`, padded with zeros: all loops have one length.
INLINE const float* block_of(const void* data, bool in_bfloat16, int64_t from, int64_t count, float* copy) {
    if (in_bfloat16) {
        const bfloat16* at = static_cast<const bfloat16*>(data) + from;
        if (count == BLOCK) {
#pragma omp simd
            for (int64_t j = 0; j < BLOCK; j++) copy[j] = load(at + j);
            return copy;
        }
        for (int64_t j = 0; j < BLOCK; j++) copy[j] = j < count ? load(at + j) : 0.f;
        return copy;
    }
    const float* at = static_cast<const float*>(data) + from;
    if (count == BLOCK) return at;
    for (int64_t j = 0; j < BLOCK; j++) copy[j] = j < count ? at[j] : 0.f;
    return copy;
}

// The blocks of a factor, one after another; ones if there is none.
class Factors {
    // Longer periods are read in place.
    static constexpr int64_t LONGEST_PERIOD = 512;
    Broadcast of;
    int64_t inner, middle, outer, period, step;
    // A block, or the numbers of a period, again and again.
    float copy[LONGEST_PERIOD + BLOCK];

  public:
    INLINE Factors(const Broadcast& factor, int64_t from) : of(factor) {
        if (!of.data) of = {nullptr, 1, 1, 0, 0, 0};
        period = of.middles * of.inners;
        const bool repeats = of.by_outer == 0 && period <= LONGEST_PERIOD;
        if (repeats) {
            for (int64_t j = 0; j < period + BLOCK; j++) {
                const int64_t at = j < period ? j / of.inners * of.by_middle + j % of.inners * of.by_inner : 0;
                copy[j] = j >= period ? copy[j - period] : of.data ? of.data[at] : 1.f;
            }
            of = {copy, 1, period, 0, 0, 1};
        } else {
            period = 0;
        }
        step = period ? BLOCK % period : 0;
        inner = from % of.inners;
        middle = from / of.inners % of.middles;
        outer = from / of.inners / of.middles;
    }

    // The next `count` factors; others follow in a block that is not full.
    INLINE const float* next(int64_t count) {
        if (period) {
            const float* here = copy + inner;
            inner += step;
            if (inner >= period) inner -= period;
            return here;
        }
        const float* here = of.data + outer * of.by_outer + middle * of.by_middle + inner * of.by_inner;
        if (inner + BLOCK <= of.inners && of.by_inner <= 1) {
            if (of.by_inner == 0) {
                for (int64_t j = 0; j < BLOCK; j++) copy[j] = *here;
                here = copy;
            }
            advance(BLOCK);
            return here;
        }
        for (int64_t j = 0; j < count;) {
            const int64_t end = j + of.inners - inner < count ? j + of.inners - inner : count;
            const float* factor = of.data + outer * of.by_outer + middle * of.by_middle + inner * of.by_inner;
            advance(end - j);
            for (; j < end; j++, factor += of.by_inner) copy[j] = *factor;
        }
        for (int64_t j = count; j < BLOCK; j++) copy[j] = 1;
        return copy;
    }

  private:
    INLINE void advance(int64_t count) {
        inner += count;
        if (inner < of.inners) return;
        inner = 0;
        if (++middle < of.middles) return;
        middle = 0;
        outer++;
    }
};

// What is known of the targets of a block.
struct Kinds {
    bool soft, negatives, positives;
};

// `valid` is 0 where targets are ignored, else 1.
INLINE Kinds dense_targets(const Sigmoids& of, const float* y, float* valid) {
    float between = 0, positive = 0, negative = 0;
    if (of.ignores) {
        const float ignore_index = float(of.ignore_index);
#pragma omp simd
        for (int64_t j = 0; j < BLOCK; j++) valid[j] = y[j] == ignore_index ? 0.f : 1.f;
#pragma omp simd reduction(+ : between, positive, negative)
        for (int64_t j = 0; j < BLOCK; j++) {
            between += valid[j] * std::fabs(y[j] - y[j] * y[j]);
            positive += valid[j] * std::fabs(y[j]);
            negative += valid[j] * std::fabs(1.f - y[j]);
        }
    } else {
#pragma omp simd reduction(+ : between, positive, negative)
        for (int64_t j = 0; j < BLOCK; j++) {
            between += std::fabs(y[j] - y[j] * y[j]);
            positive += std::fabs(y[j]);
            negative += std::fabs(1.f - y[j]);
        }
    }
    return {!(between == 0), !(negative == 0), !(positive == 0)};
}

INLINE Kinds one_hot_targets(const Sigmoids& of, int64_t from, int64_t count, float* y, float* valid) {
    for (int64_t j = 0; j < BLOCK; j++) y[j] = 0;
    if (of.ignores)
        for (int64_t j = 0; j < BLOCK; j++) valid[j] = 1;
    if (of.classes_last) {
        for (int64_t row = from / of.classes; row * of.classes < from + count; row++) {
            const int64_t first = row * of.classes - from;
            if (of.ignores && of.ids[row] == of.ignore_index) {
                const int64_t end = first + of.classes < count ? first + of.classes : count;
                for (int64_t j = first < 0 ? 0 : first; j < end; j++) valid[j] = 0;
            } else if (const int64_t id = of.ids[row]; in_range(id, of.classes) && in_range(first + id, count)) {
                y[first + id] = 1;
            }
        }
        return {false, true, true};
    }
    int64_t j = 0;
    while (j < count) {
        const int64_t line = (from + j) / of.inners, inner = (from + j) % of.inners;
        const int64_t k = line % of.classes, end = j + of.inners - inner < count ? j + of.inners - inner : count;
        const int64_t* id = of.ids + line / of.classes * of.inners + inner - j;
        for (int64_t i = j; i < end; i++) y[i] = id[i] == k ? 1.f : 0.f;
        if (of.ignores)
            for (int64_t i = j; i < end; i++) valid[i] = id[i] == of.ignore_index ? 0.f : 1.f;
        j = end;
    }
    return {false, true, true};
}

// to = factor x, or to += factor x if `more`.
INLINE void multiply(const float* factor, const float* x, bool more, float* to) {
    if (more) {
#pragma omp simd
        for (int64_t j = 0; j < BLOCK; j++) to[j] += factor[j] * x[j];
    } else {
#pragma omp simd
        for (int64_t j = 0; j < BLOCK; j++) to[j] = factor[j] * x[j];
    }
}

// Each element's loss and learned terms, or minus the loss's derivative by s, times `factor`; added to `total` and
// `term_totals` if `more`. q is less by `margin`.
//
// One loop for each long chain of operations, so that the processor overlaps several elements: a single loop for the
// first three takes 1.3 times as long.
template <bool derivative>
INLINE void losses_of(const Polynomial& of, const Powers& powers, const float* factor, const float* log_weight,
                      const float* s, float margin, const Terms& learned, bool more, float* total,
                      float* term_totals) {
    float u[BLOCK], l[BLOCK], p[BLOCK], q[BLOCK], nll[BLOCK], chain[BLOCK], log_q[BLOCK], result[BLOCK];
    const float gamma = of.gamma;
#pragma omp simd
    for (int64_t j = 0; j < BLOCK; j++) u[j] = exponential(-std::fabs(s[j]));
#pragma omp simd
    for (int64_t j = 0; j < BLOCK; j++) {
        const float large = 1.f / (1.f + u[j]), small = u[j] * large;
        const bool likely = s[j] >= 0;
        q[j] = likely ? small : large;
        p[j] = likely ? large : small;
    }
    if (margin != 0) {
#pragma omp simd
        for (int64_t j = 0; j < BLOCK; j++) {
            const float given = q[j] * p[j], shifted = q[j] - margin;
            q[j] = shifted < 0 ? 0.f : shifted;
            p[j] = shifted < 0 ? 1.f : p[j] + margin;
            chain[j] = q[j] == 0 ? 0.f : given / p[j];
            nll[j] = q[j] < 0.25f ? -log_of_one_and(-q[j]) : -logarithm(p[j]);
        }
    } else if (!derivative || gamma != 0) {
#pragma omp simd
        for (int64_t j = 0; j < BLOCK; j++) {
            l[j] = log_of_one_and(u[j]);
            nll[j] = l[j] - (s[j] < 0 ? s[j] : 0.f);
        }
    }
    if (!derivative || gamma != 0) brackets(of, powers, BLOCK, log_weight, q, nll, result);
    if (derivative) {
        float slope[BLOCK];
        slopes(of, powers, BLOCK, log_weight, p, q, slope);
        if (margin != 0) {
#pragma omp simd
            for (int64_t j = 0; j < BLOCK; j++)
                result[j] = chain[j] * (slope[j] + select(gamma == 0 || q[j] == 0, 0.f, gamma * p[j] * result[j] / q[j]));
        } else if (gamma == 0) {
#pragma omp simd
            for (int64_t j = 0; j < BLOCK; j++) result[j] = q[j] * slope[j];
        } else {
#pragma omp simd
            for (int64_t j = 0; j < BLOCK; j++) {
                const float finite = result[j] > 1e38f ? 1e38f : result[j];  // it is infinite where p = 0
                result[j] = q[j] * slope[j] + gamma * p[j] * finite;
            }
        }
    }
    if (gamma != 0) {
        if (is_power(gamma)) {
            // Not read.
        } else if (margin != 0) {
#pragma omp simd
            for (int64_t j = 0; j < BLOCK; j++) log_q[j] = q[j] < 1e-30f ? -69.f : logarithm(q[j]);
        } else {
#pragma omp simd
            for (int64_t j = 0; j < BLOCK; j++) log_q[j] = -(l[j] + (s[j] > 0 ? s[j] : 0.f));
        }
        times_power(of, BLOCK, q, log_q, result);
    }
    multiply(factor, result, more, total);
    if (derivative || learned.count == 0) return;
    float terms[Terms::MOST * BLOCK];
    evaluate_terms(learned, of, BLOCK, q, nll, log_q, terms);
    for (int64_t k = 0; k < learned.count; k++) multiply(factor, terms + k * BLOCK, more, term_totals + k * BLOCK);
}

// The end of a block: writes the results `to` an array, from `at` on, or else adds them to `sums[part]`; 0 where elements
// are ignored.
INLINE void finish(bool ignores, const float* valid, int64_t count, float* total, double* sums, int64_t part, void* to,
                   bool in_bfloat16, int64_t at) {
    if (ignores) {
#pragma omp simd
        for (int64_t j = 0; j < BLOCK; j++) total[j] = select(valid[j] == 0.f, 0.f, total[j]);
    }
    if (!to) {
        for (int64_t j = count; j < BLOCK; j++) total[j] = 0;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < BLOCK; j++) sum += total[j];
        sums[part] += sum;
    } else if (in_bfloat16) {
        bfloat16* here = static_cast<bfloat16*>(to) + at;
        for (int64_t j = 0; j < count; j++) store(here + j, total[j]);
    } else if (float* here = static_cast<float*>(to) + at; here != total) {
        std::memcpy(here, total, size_t(count) * sizeof(float));
    }
}

template <bool derivative>
INLINE void sigmoids_of(const Sigmoids& of, int64_t from, int64_t end, const Results& into) {
    const Powers powers[2] = {Powers(of.sides[0].polynomial), Powers(of.sides[1].polynomial)};
    const bool one_grad_output = derivative && into.grad_output_stride == 0;
    const float grad_output = one_grad_output ? *into.grad_output : 1.f;
    const bool weighted = of.weight.data || of.weight_of[0].data || of.weight_of[1].data;
    Factors weights(of.weight, from), weights_of[2] = {Factors(of.weight_of[0], from), Factors(of.weight_of[1], from)};
    float y_copy[BLOCK], valid[BLOCK], factor[BLOCK], log_weight[BLOCK], s[BLOCK], x_copy[BLOCK], total_copy[BLOCK],
        term_totals[Terms::MOST * BLOCK], grad_outputs_copy[BLOCK];
    void* results = derivative ? into.gradient : into.losses;
    for (; from < end; from += BLOCK) {
        const int64_t count = end - from < BLOCK ? end - from : BLOCK;
        const bool direct = results && !of.result_in_bfloat16 && count == BLOCK;
        float* total = direct ? static_cast<float*>(results) + from : total_copy;
        const float* x = block_of(of.z, of.in_bfloat16, from, count, x_copy);
        const float* y = y_copy;
        Kinds kinds;
        if (of.dense) {
            y = block_of(of.dense, of.dense_in_bfloat16, from, count, y_copy);
            kinds = dense_targets(of, y, valid);
        } else {
            kinds = one_hot_targets(of, from, count, y_copy, valid);
        }
        // With soft targets, every element is a negative and a positive.
        const bool together = of.alike && !kinds.soft;
        bool more = false;
        const float* const weight = weighted ? weights.next(count) : nullptr;
        const float* const weight_of[2] = {weighted ? weights_of[0].next(count) : nullptr,
                                           weighted ? weights_of[1].next(count) : nullptr};
        for (int side = together || !kinds.negatives ? 1 : 0; side < 2; side++) {
            if (side == 1 && more && !kinds.positives) break;
            const bool negatives = together || side == 0, positives = side == 1;
            const float factor0 = negatives ? of.sides[0].factor * (derivative ? grad_output : 1.f) : 0.f;
            const float factor1 = positives ? of.sides[1].factor * (derivative ? -grad_output : 1.f) : 0.f;
            const float log_weight0 = of.sides[negatives ? 0 : 1].log_weight;
            const float log_weight1 = of.sides[positives ? 1 : 0].log_weight;
            const float sign = negatives ? -1.f : 1.f, step = together ? 2.f : 0.f;
            if (weighted) {
                const float *const weight0 = weight_of[negatives ? 0 : 1], *const weight1 = weight_of[positives ? 1 : 0];
#pragma omp simd
                for (int64_t j = 0; j < BLOCK; j++) {
                    // Sums instead of selections by y, which the compiler turns into branches.
                    factor[j] = ((1.f - y[j]) * factor0 + y[j] * factor1) * weight[j] *
                                select(together & (y[j] == 1.f), weight1[j], weight0[j]);
                    log_weight[j] = y[j] == 1.f ? log_weight1 : log_weight0;
                    s[j] = (sign + y[j] * step) * x[j];
                }
            } else {
#pragma omp simd
                for (int64_t j = 0; j < BLOCK; j++) {
                    factor[j] = (1.f - y[j]) * factor0 + y[j] * factor1;
                    log_weight[j] = y[j] == 1.f ? log_weight1 : log_weight0;
                    s[j] = (sign + y[j] * step) * x[j];
                }
            }
            if (weighted || factor0 == 0 || factor1 == 0) {
#pragma omp simd
                for (int64_t j = 0; j < BLOCK; j++) {
                    const float signed_logit = s[j];
                    // 0 log 0 = 0, also where numbers stand for infinity, and their multiples would overflow.
                    s[j] = (factor[j] == 0.f) & (signed_logit < -1e19f) ? 0.f : signed_logit;
                }
            }
            losses_of<derivative>(of.sides[side].polynomial, powers[side], factor, log_weight, s,
                                  side == 0 ? of.margin : 0.f, of.learned, more, total, term_totals);
            more = true;
        }
        if (derivative && !one_grad_output) {
            const float* grad_outputs = block_of(into.grad_output, false, from, count, grad_outputs_copy);
#pragma omp simd
            for (int64_t j = 0; j < BLOCK; j++) total[j] *= grad_outputs[j];
        }
        const int64_t group = from / (GROUP * BLOCK), groups = (of.count + GROUP * BLOCK - 1) / (GROUP * BLOCK);
        finish(of.ignores, valid, count, total, into.sums, group, results, of.result_in_bfloat16, from);
        for (int64_t k = 0; !derivative && k < of.learned.count; k++)
            finish(of.ignores, valid, count, term_totals + k * BLOCK, into.sums, (k + 1) * groups + group,
                   into.term_losses, false, k * of.count + from);
    }
}

FOR_EACH_PROCESSOR void sigmoid_losses(const Sigmoids& of, int64_t from, int64_t end, const Results& into) {
    sigmoids_of<false>(of, from, end, into);
}

FOR_EACH_PROCESSOR void sigmoid_gradients(const Sigmoids& of, int64_t from, int64_t end, const Results& into) {
    sigmoids_of<true>(of, from, end, into);
}

}  // namespace

extern "C" {

// How many elements are added up to one of `sums`.
int64_t polylosses_sigmoid_group() { return GROUP * BLOCK; }

// Gives the losses, their sums, or the gradient. Returns the first row whose class id is none and not ignored, and has
// written nothing then; else -1. Sums are of the elements and of each learned term: `totals`; `sums` is for their parts.
int64_t polylosses_sigmoids(const Sigmoids* of, void* losses, float* term_losses, double* sums, float* totals,
                            void* gradient, const float* grad_output, int64_t grad_output_stride, int threads) {
    if (of->ids)
        for (int64_t row = 0; row < of->rows; row++) {
            const int64_t id = of->ids[row];
            if (!(of->ignores && id == of->ignore_index) && !in_range(id, of->classes)) return row;
        }
    const int64_t group = GROUP * BLOCK, groups = (of->count + group - 1) / group, results = 1 + of->learned.count;
    const Results into = {losses, sums, term_losses, gradient, grad_output, grad_output_stride};
    void* result = losses ? losses : gradient;
    const int64_t bytes = group * (of->result_in_bfloat16 ? 2 : 4);
    if (totals)
        for (int64_t k = 0; k < results * groups; k++) sums[k] = 0;
    in_parallel_into(result, result ? bytes : 0, (1 << 20) / bytes, groups, threads, [=](int64_t from, int64_t to) {
        const int64_t end = to * group < of->count ? to * group : of->count;
        if (into.gradient)
            sigmoid_gradients(*of, from * group, end, into);
        else
            sigmoid_losses(*of, from * group, end, into);
    });
    for (int64_t i = 0; totals && i < results; i++) {
        double total = 0;
        for (int64_t k = 0; k < groups; k++) total += sums[i * groups + k];
        totals[i] = float(total);
    }
    return -1;
}

int64_t polylosses_sigmoid_sizes[] = {sizeof(Sigmoids)};
}
