// The softmax kernels for class indices: row statistics and losses, and the gradient.

#include "common.hpp"

namespace {

// The statistics of rows: see operators.py. Without a polynomial, all scales are 1, and the tails and p are stored in
// place of the losses.
struct Statistics {
    const Polynomial* polynomial;
    const float* weight;
    float log_weight;
    float *scales, *q, *maximum, *inverse, *losses, *tail, *p;
};

// The labels of a block of rows, 0 where a row is ignored. Each target is read once and checked, since another thread
// may write to its memory. Targets out of range are reported, and their rows ignored.
struct Labels {
    int64_t of[BLOCK];
    bool ignored[BLOCK];

    INLINE Labels(const int64_t* target, int64_t ignore_index, int64_t classes, int64_t row, int64_t count,
                  int64_t* wrong) {
        for (int64_t j = 0; j < count; j++) {
            const int64_t label = target[row + j];
            ignored[j] = label == ignore_index || !in_range(label, classes);
            of[j] = ignored[j] ? 0 : label;
            if (ignored[j] && label != ignore_index) report(row + j, wrong);
        }
    }
};

// The statistics of `count` rows from `row` on: of their maxima, their sums of exp(z - maximum) over the other classes,
// and their labels' logits. Inlined into its four callers, it takes as long to compile as all the rest.
FOR_EACH_PROCESSOR void finish(int64_t row, int64_t count, const float* maximum, const double* others,
                               const float* labelled, const Labels& labels, const Statistics& out) {
    const bool* ignored = labels.ignored;
    float p[BLOCK], q[BLOCK], nll[BLOCK];
#pragma omp simd
    for (int64_t j = 0; j < count; j++) {
        const double own = exponential(labelled[j] - maximum[j]), total = own + others[j];
        const float exact = (maximum[j] - labelled[j]) + logarithm(float(total));
        p[j] = ignored[j] ? 1.f : float(own / total);
        q[j] = ignored[j] ? 0.f : float(others[j] / total);
        nll[j] = ignored[j] ? 0.f : q[j] < 0.25f ? q[j] + tail_of(q[j], 0.f) : exact;
        out.q[row + j] = q[j];
        out.maximum[row + j] = maximum[j];
        out.inverse[row + j] = ignored[j] ? 0.f : float(1. / total);
    }
    if (!out.polynomial) {
#pragma omp simd
        for (int64_t j = 0; j < count; j++) {
            out.tail[row + j] = tail_of(q[j], nll[j]);
            out.p[row + j] = p[j];
            out.scales[row + j] = 1.f;
        }
        return;
    }
    const Polynomial polynomial = *out.polynomial;
    const Powers powers(polynomial);
    const float gamma = polynomial.gamma;
    float log_weight[BLOCK], log_q[BLOCK], bracket[BLOCK], slope[BLOCK];
#pragma omp simd
    for (int64_t j = 0; j < count; j++) {
        log_weight[j] = out.log_weight;
        // For q = 0, a logarithm so small that exp(gamma log q) is 0.
        log_q[j] = q[j] < 1.1754944e-38f ? -3e38f : logarithm(q[j]);
    }
    brackets(polynomial, powers, count, log_weight, q, nll, bracket);
    slopes(polynomial, powers, count, log_weight, p, q, slope);
    if (gamma != 0) {
#pragma omp simd
        for (int64_t j = 0; j < count; j++) {
            const float finite = bracket[j] > 1e38f ? 1e38f : bracket[j];  // it is infinite where p = 0
            slope[j] += gamma * p[j] * finite / (q[j] == 0.f ? 1.f : q[j]);
        }
    }
    times_power(polynomial, count, q, log_q, bracket);
    times_power(polynomial, count, q, log_q, slope);
    for (int64_t j = 0; j < count; j++) {
        const float weight = ignored[j] ? 0.f : out.weight ? out.weight[labels.of[j]] : 1.f;
        out.losses[row + j] = ignored[j] ? 0.f : weight * bracket[j];
        out.scales[row + j] = weight * slope[j];
    }
}

template <class T>
INLINE float maximum_of(const T* z, int64_t count) {
    float maximum = -INFINITY;
#pragma omp simd reduction(max : maximum)
    for (int64_t k = 0; k < count; k++) {
        const float x = load(z + k);
        maximum = maximum > x ? maximum : x;
    }
    return maximum;
}

template <class T>
INLINE double sum_of_exponentials(const T* z, int64_t count, float maximum) {
    double total = 0;
    for (int64_t from = 0; from < count; from += 1024) {
        const int64_t to = count < from + 1024 ? count : from + 1024;
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (int64_t k = from; k < to; k++) part += exponential(load(z + k) - maximum);
        total += part;
    }
    return total;
}

// Rows one after another.
template <class T>
INLINE void long_rows(const T* z, Strides by, int64_t classes, int64_t inners, const Labels& labels, int64_t row,
                      int64_t count, const Statistics& out) {
    float maximum[BLOCK], labelled[BLOCK];
    double others[BLOCK];
    Rows<const T> rows(z, by, inners, row);
    for (int64_t j = 0; j < count; j++) {
        const T* at = rows.next();
        const int64_t y = labels.of[j];
        maximum[j] = labelled[j] = 0;
        others[j] = 0;
        if (labels.ignored[j]) continue;
        maximum[j] = maximum_of(at, classes);
        labelled[j] = load(at + y);
        others[j] = sum_of_exponentials(at, y, maximum[j]) + sum_of_exponentials(at + y + 1, classes - y - 1, maximum[j]);
    }
    finish(row, count, maximum, others, labelled, labels, out);
}

// Rows side by side: the same class of many rows is contiguous, in memory or in `held`.
template <class T>
INLINE void rows_together(const T* z, Strides by, int64_t classes, int64_t inners, const Labels& labels, int64_t row,
                          int64_t count, const Statistics& out) {
    float held[CLASS_BLOCK][BLOCK], maximum[BLOCK], shift[BLOCK], part[BLOCK], labelled[BLOCK];
    double others[BLOCK];
    int32_t label[BLOCK];
    const T* at[BLOCK];
    Rows<const T> rows(z, by, inners, row);
    for (int64_t j = 0; j < count; j++) {
        label[j] = int32_t(labels.of[j]);
        at[j] = rows.next();
        labelled[j] = classes == 0 ? 0.f : load(at[j] + label[j] * by.classes);
        maximum[j] = -INFINITY;
        others[j] = 0;
    }
    for (int64_t from = 0; from < classes; from += CLASS_BLOCK) {
        const int64_t many = classes - from < CLASS_BLOCK ? classes - from : CLASS_BLOCK;
        if (by.classes != 1) {
            for (int64_t k = 0; k < many; k++) {
                const T* line = at[0] + (from + k) * by.classes;
#pragma omp simd
                for (int64_t j = 0; j < count; j++) held[k][j] = load(line + j);
            }
        } else {
            for (int64_t j = 0; j < count; j++)
                for (int64_t k = 0; k < many; k++) held[k][j] = load(at[j] + (from + k) * by.classes);
        }
        for (int64_t j = 0; j < count; j++) shift[j] = maximum[j];
        for (int64_t k = 0; k < many; k++) {
#pragma omp simd
            for (int64_t j = 0; j < count; j++) shift[j] = shift[j] > held[k][j] ? shift[j] : held[k][j];
        }
#pragma omp simd
        for (int64_t j = 0; j < count; j++) {
            const float before = maximum[j];
            maximum[j] = shift[j];
            // While all classes are masked, the sum stays 0.
            shift[j] = shift[j] == -INFINITY ? 0.f : shift[j];
            others[j] *= exponential(before - shift[j]);
            part[j] = 0;
        }
        for (int64_t k = 0; k < many; k++) {
            const int32_t c = int32_t(from + k);
#pragma omp simd
            for (int64_t j = 0; j < count; j++) {
                const float e = exponential(held[k][j] - shift[j]);
                part[j] += label[j] == c ? 0.f : e;
            }
        }
#pragma omp simd
        for (int64_t j = 0; j < count; j++) others[j] += part[j];
    }
    finish(row, count, maximum, others, labelled, labels, out);
}

template <class T>
INLINE void statistics_of(const T* z, Strides by, int64_t classes, int64_t inners, const int64_t* target,
                          int64_t ignore_index, int64_t row, int64_t end, const Statistics& out, int64_t* wrong) {
    const bool side_by_side = by.classes != 1 || classes < SHORT_ROW;
    while (row < end) {
        int64_t count = end - row < BLOCK ? end - row : BLOCK;
        if (by.classes != 1 && inners - row % inners < count) count = inners - row % inners;
        const Labels labels(target, ignore_index, classes, row, count, wrong);
        if (side_by_side)
            rows_together(z, by, classes, inners, labels, row, count, out);
        else
            long_rows(z, by, classes, inners, labels, row, count, out);
        row += count;
    }
}

// The row statistics in the backward pass.
struct Scales {
    const float *scales, *q, *maximum, *inverse;
    // The incoming gradient: one number for each row, or one for all.
    const float* grad_output;
    int64_t grad_output_stride;

    INLINE float of(int64_t row) const { return scales[row] * grad_output[row * grad_output_stride]; }
};

// scale * (softmax - onehot) of each row; at the label, the difference is -q. Targets are checked again, since they may
// have changed since the forward pass.
template <class T>
INLINE void gradient_of(const T* z, Strides by, int64_t classes, int64_t inners, const int64_t* target,
                        const Scales& with, T* gradient, Strides to, int64_t row, int64_t end, int64_t* wrong) {
    if (by.classes == 1) {
        Rows<const T> rows(z, by, inners, row);
        Rows<T> gradients(gradient, to, inners, row);
        for (; row < end; row++) {
            const T* at = rows.next();
            T* into = gradients.next();
            if (with.inverse[row] == 0) {
                for (int64_t k = 0; k < classes; k++) store(into + k, 0.f);
                continue;
            }
            const float maximum = with.maximum[row], scale = with.of(row), factor = scale * with.inverse[row];
#pragma omp simd
            for (int64_t k = 0; k < classes; k++) store(into + k, factor * exponential(load(at + k) - maximum));
            const int64_t label = target[row];
            if (in_range(label, classes))
                store(into + label, -scale * with.q[row]);
            else
                report(row, wrong);
        }
        return;
    }
    float scale[BLOCK], factor[BLOCK];
    while (row < end) {
        int64_t count = end - row < BLOCK ? end - row : BLOCK;
        if (inners - row % inners < count) count = inners - row % inners;
        const T* at = z + row / inners * by.outer + row % inners;
        T* into = gradient + row / inners * to.outer + row % inners;
        const float* maximum = with.maximum + row;
        for (int64_t j = 0; j < count; j++) {
            scale[j] = with.of(row + j);
            factor[j] = scale[j] * with.inverse[row + j];
        }
        for (int64_t k = 0; k < classes; k++) {
            const T* line = at + k * by.classes;
            T* into_line = into + k * to.classes;
#pragma omp simd
            for (int64_t j = 0; j < count; j++)
                store(into_line + j, factor[j] * exponential(load(line + j) - maximum[j]));
        }
        for (int64_t j = 0; j < count; j++) {
            const int64_t label = target[row + j];
            if (with.inverse[row + j] == 0)
                for (int64_t k = 0; k < classes; k++) store(into + k * to.classes + j, 0.f);
            else if (in_range(label, classes))
                store(into + label * to.classes + j, -scale[j] * with.q[row + j]);
            else
                report(row + j, wrong);
        }
        row += count;
    }
}

#define KERNELS(T)                                                                                                      \
    FOR_EACH_PROCESSOR void statistics(const T* z, Strides by, int64_t classes, int64_t inners, const int64_t* target,  \
                                       int64_t ignore_index, int64_t row, int64_t end, const Statistics& out,           \
                                       int64_t* wrong) {                                                                \
        statistics_of(z, by, classes, inners, target, ignore_index, row, end, out, wrong);                              \
    }                                                                                                                   \
    FOR_EACH_PROCESSOR void gradient(const T* z, Strides by, int64_t classes, int64_t inners, const int64_t* target,    \
                                     const Scales& with, T* into, Strides to, int64_t row, int64_t end,                 \
                                     int64_t* wrong) {                                                                  \
        gradient_of(z, by, classes, inners, target, with, into, to, row, end, wrong);                                   \
    }
KERNELS(float)
KERNELS(bfloat16)

}  // namespace

extern "C" {

// Returns the first row whose target is neither a class nor ignored, else -1.
// With a polynomial, `sum` (if there is one) gets the sum of all losses, or their mean; then scales are the mean's.
int64_t polylosses_softmax_statistics(const Logits* z, const int64_t* target, int64_t ignore_index,
                                      const Statistics* out, float* sum, int mean, int threads) {
    const int64_t rows = z->outers * z->inners;
    int64_t wrong = -1;
    in_parallel(rows, threads, [=, &wrong](int64_t from, int64_t to) {
        const auto of = [=, &wrong](auto* data) {
            statistics(data, z->by, z->classes, z->inners, target, ignore_index, from, to, *out, &wrong);
        };
        z->in_bfloat16 ? of(static_cast<bfloat16*>(z->data)) : of(static_cast<float*>(z->data));
    });
    if (wrong >= 0 || !sum) return wrong;
    double total = 0, weights = 0;
    for (int64_t row = 0; row < rows; row++) total += out->losses[row];
    if (mean) {
        for (int64_t row = 0; row < rows; row++) {
            const int64_t label = target[row];
            if (label != ignore_index && in_range(label, z->classes)) weights += out->weight ? out->weight[label] : 1;
        }
        total /= weights;
        const float share = float(1 / weights);
        for (int64_t row = 0; row < rows; row++) out->scales[row] *= share;
    }
    *sum = float(total);
    return -1;
}

// Returns the first row that is not ignored and whose target is no class, else -1. Logits and gradient must have the
// same axis of stride 1: the classes, or else the rows side by side.
int64_t polylosses_softmax_gradient(const Logits* z, const int64_t* target, const Scales* with, const Logits* into,
                                    int threads) {
    const int64_t row_bytes = z->classes * (z->in_bfloat16 ? 2 : 4);
    // About a megabyte; of rows side by side, all those of one `outer`, which share their pages.
    const int64_t rows_at_once = z->inners > 1 && into->by.classes != 1 ? z->inners : (1 << 20) / (row_bytes + 1) + 1;
    const int64_t rows = z->outers * z->inners;
    int64_t wrong = -1;
    in_parallel_into(into->data, row_bytes, rows_at_once, rows, threads, [=, &wrong](int64_t from, int64_t to) {
        const auto of = [=, &wrong](auto* data) {
            gradient(data, z->by, z->classes, z->inners, target, *with, static_cast<decltype(data)>(into->data),
                     into->by, from, to, &wrong);
        };
        z->in_bfloat16 ? of(static_cast<bfloat16*>(z->data)) : of(static_cast<float*>(z->data));
    });
    return wrong;
}

// native_library.py compares both before it calls anything: what this was compiled from, and how large the structs are.
char polylosses_source[] = POLYLOSSES_SOURCE;
int64_t polylosses_softmax_sizes[] = {sizeof(Logits), sizeof(Polynomial), sizeof(Statistics), sizeof(Scales)};
}
