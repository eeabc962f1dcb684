// The CPU kernels: all passes over logits. Everything else is Python, in operators.py.
//
// Plain C++ with a C interface, so that building it needs a compiler and nothing of Python or torch. Loops are written
// for the compiler's vectorizer; on x86-64 they are compiled for three levels, chosen at run time.
//
// Logits are (outer, classes, inner) with any strides, as long as the classes of a row or the rows side by side are
// contiguous. There is one row for each (outer, inner), numbered outer * inners + inner.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __linux__
#include <sys/mman.h>
#endif

#ifdef POLYLOSSES_PROCESSORS  // set by setup.py, which tests the compiler
#define FOR_EACH_PROCESSOR __attribute__((target_clones(POLYLOSSES_PROCESSORS)))
#else
#define FOR_EACH_PROCESSOR
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

using std::int32_t;
using std::int64_t;
using std::uint16_t;
using std::uint32_t;

struct bfloat16 {
    uint16_t bits;
};

INLINE float load(const float* at) { return *at; }

INLINE float load(const bfloat16* at) {
    const uint32_t bits = uint32_t(at->bits) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE void store(float* at, float x) { *at = x; }

INLINE void store(bfloat16* at, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t to_nearest_even = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    at->bits = uint16_t(x == x ? to_nearest_even : 0x7fc0u);
}

// exp(x) for x <= 0, with a relative error of 2e-7; 0 below the logarithm of the smallest normal number, nan for nan.
INLINE float exponential(float x) {
    x = -88.f > x ? -88.f : x;
    // 1.5 * 2^23 rounds to an integer, and leaves it, with the exponent's bias, in the lowest bits.
    const float shifted = x * 1.44269504f + (12582912.f + 127.f);
    const float n = shifted - (12582912.f + 127.f);
    float r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    // Minimax on [-log(2) / 2, log(2) / 2]. One more power gives an error of 1e-7 and takes 10 % longer.
    float y = 8.3124777e-3f;
    y = y * r + 4.1890550e-2f;
    y = y * r + 1.6667116e-1f;
    y = y * r + 4.9999228e-1f;
    y = y * r + 1.f;
    y = y * r + 1.f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits <<= 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return y * power;
}

// log(1 + u) for u in [-0.3, 1], with a relative error of 1e-7.
INLINE float log_of_one_and(float u) {
    // 2 artanh(s), minimax on [0, 1/3].
    const float s = u / (2.f + u), t = s * s;
    float y = 1.4012234e-1f;
    y = y * t + 1.3999569e-1f;
    y = y * t + 2.0010850e-1f;
    y = y * t + 3.3333206e-1f;
    return 2.f * s + 2.f * s * t * y;
}

// log(x) of a normal x.
INLINE float logarithm(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    // x = 2^n f with f in [0.7, 1.4].
    const int32_t n = (bits - 0x3f330000) >> 23;
    bits -= n * (1 << 23);
    float f;
    std::memcpy(&f, &bits, sizeof f);
    const float y = log_of_one_and(f - 1.f) + float(n) * 0.69314718f;
    return x == x ? y : x;
}

// -log(1 - q) - q = q^2 / 2 + q^3 / 3 + ..., where the difference would cancel for small q. `nll` is -log(1 - q).
INLINE float tail_of(float q, float nll) {
    // Minimax on [0, 1/4].
    float y = 2.9731837e-1f;
    y = y * q + 7.2730668e-2f;
    y = y * q + 1.7972158e-1f;
    y = y * q + 1.9878992e-1f;
    y = y * q + 2.5005266e-1f;
    y = y * q + 3.3333248e-1f;
    y = y * q + 0.5f;
    return q < 0.25f ? y * q * q : nll - q;
}

// Rows or elements of a block: so few that their numbers stay in the L1 cache.
constexpr int64_t BLOCK = 128;

struct Polynomial {
    // The coefficients of q, q^2, ...; at least one.
    const float* coefficients;
    int64_t degree;
    float gamma;
};

// Coefficients of 1, q, q^2, ... for the evaluation of S = sum_j c_j q^j and its derivative.
struct Powers {
    static constexpr int64_t MOST = 64;
    // S / q, without its first coefficient where that may cancel against the logarithm; S'; and p S' - c_1.
    float values[MOST], slopes[MOST], slopes_near_one[MOST + 1];
    // Whether there are negative coefficients, so that terms may cancel.
    bool careful = false;

    INLINE explicit Powers(const Polynomial& of) {
        for (int64_t k = 0; k < of.degree; k++) careful |= of.coefficients[k] < 0;
        for (int64_t k = 0; k <= of.degree; k++) {
            const float here = k == 0 ? 0.f : of.coefficients[k - 1], next = k < of.degree ? of.coefficients[k] : 0.f;
            slopes_near_one[k] = k == 0 ? 0.f : float(k + 1) * next - float(k) * here;
            if (k < of.degree) {
                values[k] = careful && k == 0 ? 0.f : next;
                slopes[k] = float(k + 1) * next;
            }
        }
    }
};

// sum = c[0] + c[1] q + ..., elementwise.
INLINE void horner(const float* c, int64_t terms, int64_t count, const float* q, float* sum) {
    for (int64_t j = 0; j < count; j++) sum[j] = c[terms - 1];
    for (int64_t k = terms - 2; k >= 0; k--) {
#pragma omp simd
        for (int64_t j = 0; j < count; j++) sum[j] = sum[j] * q[j] + c[k];
    }
}

// S - log_weight log p, where q = 1 - p and nll = -log p.
INLINE void brackets(const Polynomial& of, const Powers& powers, int64_t count, const float* log_weight, const float* q,
                     const float* nll, float* bracket) {
    const float first = of.coefficients[0];
    horner(powers.values, of.degree, count, q, bracket);
    if (powers.careful) {
#pragma omp simd
        for (int64_t j = 0; j < count; j++) {
            const float logarithm = log_weight[j] == 0.f ? 0.f : log_weight[j] * tail_of(q[j], nll[j]);
            bracket[j] = (log_weight[j] + first + bracket[j]) * q[j] + logarithm;
        }
    } else {
#pragma omp simd
        for (int64_t j = 0; j < count; j++)
            bracket[j] = bracket[j] * q[j] + (log_weight[j] == 0.f ? 0.f : log_weight[j] * nll[j]);
    }
}

// log_weight + p S'; dL/d log p is -q^gamma times the sum of this and gamma p / q times the bracket.
INLINE void slopes(const Polynomial& of, const Powers& powers, int64_t count, const float* log_weight, const float* p,
                   const float* q, float* slope) {
    horner(powers.slopes, of.degree, count, q, slope);
#pragma omp simd
    for (int64_t j = 0; j < count; j++) slope[j] = log_weight[j] + p[j] * slope[j];
    if (!powers.careful) return;
    // The above may cancel near p = 1, and the following near p = 0.
    float near_one[BLOCK];
    const float first = of.coefficients[0];
    horner(powers.slopes_near_one, of.degree + 1, count, q, near_one);
#pragma omp simd
    for (int64_t j = 0; j < count; j++)
        slope[j] = q[j] < 0.5f ? log_weight[j] + first + near_one[j] : slope[j];
}

// x *= q^gamma.
INLINE void times_power(const Polynomial& of, int64_t count, const float* q, const float* log_q, float* x) {
    const float gamma = of.gamma;
    if (gamma == 1) {
#pragma omp simd
        for (int64_t j = 0; j < count; j++) x[j] *= q[j];
    } else if (gamma == 2) {
#pragma omp simd
        for (int64_t j = 0; j < count; j++) x[j] *= q[j] * q[j];
    } else if (gamma != 0) {
#pragma omp simd
        for (int64_t j = 0; j < count; j++) x[j] *= exponential(gamma * log_q[j]);
    }
}

struct Strides {
    int64_t outer, classes, inner;
};

// Iterates over the addresses of rows, without the division for each that takes as long as ten logits.
template <class T>
struct Rows {
    T* at;
    Strides by;
    int64_t inners, inner;

    INLINE Rows(T* z, Strides by, int64_t inners, int64_t row)
        : at(z + row / inners * by.outer + row % inners * by.inner), by(by), inners(inners), inner(row % inners) {}

    INLINE T* next() {
        T* now = at;
        at += by.inner;
        if (++inner == inners) {
            inner = 0;
            at += by.outer - inners * by.inner;
        }
        return now;
    }
};

// The statistics of rows: see operators.py. Without a polynomial, all scales are 1, and the tails and p are stored in
// place of the losses.
struct Statistics {
    const Polynomial* polynomial;
    const float* weight;
    float log_weight;
    float *scales, *q, *maximum, *inverse, *losses, *tail, *p;
};

// Classes of a block, of rows side by side.
constexpr int64_t CLASS_BLOCK = 32;
// Shorter rows than this are processed side by side, like logits whose rows are contiguous.
constexpr int64_t SHORT_ROW = 128;

// Keeps the first row whose target is out of range; -1 is none.
INLINE void report(int64_t row, int64_t* wrong) {
    int64_t before = __atomic_load_n(wrong, __ATOMIC_RELAXED);
    while (before < 0 || row < before)
        if (__atomic_compare_exchange_n(wrong, &before, row, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return;
}

INLINE bool in_range(int64_t label, int64_t classes) { return uint64_t(label) < uint64_t(classes); }

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

// For sigmoids, every element is a row of its own. With s = z for a positive and -z for a negative, p = sigmoid(s).

// For negatives and positives, the factors of the whole loss and of the logarithm.
struct Sides {
    float factor[2], log_weight[2];
};

// The targets of sigmoids: probabilities of the logits' type, or else (ids) one class of each row.
template <class T>
struct Targets {
    const T* dense;
    const int64_t* ids;
    int64_t classes, inners;
    bool classes_last, ignores;
    int64_t ignore_index;
};

// The results: the elements' losses, their sums (one for each block), or their gradients; `grad_output` is one number
// for each element or one for all.
template <class T>
struct Results {
    T* losses;
    double* sums;
    T* gradient;
    const float* grad_output;
    int64_t grad_output_stride;
};

// A block of elements: those at `at`, or, if they are fewer, a copy padded with zeros: all loops have one length.
template <class T>
INLINE const T* made_whole(const T* at, int64_t count, T* copy) {
    if (count == BLOCK) return at;
    for (int64_t j = 0; j < BLOCK; j++) copy[j] = j < count ? at[j] : T{};
    return copy;
}

// The targets of elements [from, from + count) in memory order; `valid` is 0 where they are ignored, else 1. Returns
// whether any target is soft.
template <class T>
INLINE bool dense_targets(const Targets<T>& of, int64_t from, int64_t count, float* y, float* valid) {
    T copy[BLOCK];
    const T* at = made_whole(of.dense + from, count, copy);
    float between = 0;
    if (!of.ignores) {
#pragma omp simd reduction(+ : between)
        for (int64_t j = 0; j < BLOCK; j++) {
            y[j] = load(at + j);
            between += std::fabs(y[j] - y[j] * y[j]);
        }
    } else {
        const float ignore_index = float(of.ignore_index);
#pragma omp simd reduction(+ : between)
        for (int64_t j = 0; j < BLOCK; j++) {
            y[j] = load(at + j);
            valid[j] = y[j] == ignore_index ? 0.f : 1.f;
            between += valid[j] * std::fabs(y[j] - y[j] * y[j]);
        }
    }
    return !(between == 0);
}

template <class T>
INLINE void one_hot_targets(const Targets<T>& of, int64_t from, int64_t count, float* y, float* valid) {
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
        return;
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
}

// Each element's loss, or minus its derivative by s, times `factor`; added to `total` if `more`.
//
// One loop for each long chain of operations, so that the processor overlaps several elements: a single loop for the
// first three takes 1.3 times as long.
template <bool derivative>
INLINE void losses_of(const Polynomial& of, const Powers& powers, const float* factor, const float* log_weight,
                      const float* s, bool more, float* total) {
    float u[BLOCK], l[BLOCK], p[BLOCK], q[BLOCK], nll[BLOCK], result[BLOCK];
    const float gamma = of.gamma;
#pragma omp simd
    for (int64_t j = 0; j < BLOCK; j++) u[j] = exponential(-std::fabs(s[j]));
#pragma omp simd
    for (int64_t j = 0; j < BLOCK; j++) {
        const float large = 1.f / (1.f + u[j]), small = u[j] * large;
        const bool likely = s[j] >= 0;
        q[j] = likely ? small : large;
        if (derivative) p[j] = likely ? large : small;
    }
    if (!derivative || gamma != 0) {
#pragma omp simd
        for (int64_t j = 0; j < BLOCK; j++) {
            l[j] = log_of_one_and(u[j]);
            nll[j] = l[j] - (s[j] < 0 ? s[j] : 0.f);
        }
        brackets(of, powers, BLOCK, log_weight, q, nll, result);
    }
    if (derivative) {
        float slope[BLOCK];
        slopes(of, powers, BLOCK, log_weight, p, q, slope);
        if (gamma == 0) {
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
    const auto give = [&](auto power) __attribute__((always_inline)) {
        if (more) {
#pragma omp simd
            for (int64_t j = 0; j < BLOCK; j++) total[j] += factor[j] * (result[j] * power(j));
        } else {
#pragma omp simd
            for (int64_t j = 0; j < BLOCK; j++) total[j] = factor[j] * (result[j] * power(j));
        }
    };
    if (gamma == 0)
        give([](int64_t) { return 1.f; });
    else if (gamma == 1)
        give([&](int64_t j) { return q[j]; });
    else if (gamma == 2)
        give([&](int64_t j) { return q[j] * q[j]; });
    else
        give([&](int64_t j) { return exponential(-gamma * (l[j] + (s[j] > 0 ? s[j] : 0.f))); });
}

template <class T, bool derivative>
INLINE void sigmoids_of(const T* z, const Polynomial& of, const Sides& both, const Targets<T>& targets, int64_t from,
                        int64_t end, const Results<T>& into) {
    const Powers powers(of);
    const bool one_grad_output = derivative && into.grad_output_stride == 0;
    const float grad_output = one_grad_output ? *into.grad_output : 1.f;
    float y[BLOCK], valid[BLOCK], factor[BLOCK], log_weight[BLOCK], s[BLOCK], total_copy[BLOCK],
        grad_outputs_copy[BLOCK];  // copies, for arrays of another type or shorter than a block
    T z_copy[BLOCK];
    for (; from < end; from += BLOCK) {
        const int64_t count = end - from < BLOCK ? end - from : BLOCK;
        T* results = into.sums ? nullptr : (derivative ? into.gradient : into.losses) + from;
        float* total = total_copy;
        if constexpr (std::is_same_v<T, float>) total = results && count == BLOCK ? results : total_copy;
        const T* x = made_whole(z + from, count, z_copy);
        bool soft = false;
        if (targets.dense)
            soft = dense_targets(targets, from, count, y, valid);
        else
            one_hot_targets(targets, from, count, y, valid);
        // With soft targets, every element is a negative and a positive.
        for (int side = soft ? 0 : 1; side < 2; side++) {
            const bool negatives = !soft || side == 0, positives = side == 1;
            const float factor0 = negatives ? both.factor[0] * (derivative ? grad_output : 1.f) : 0.f;
            const float factor1 = positives ? both.factor[1] * (derivative ? -grad_output : 1.f) : 0.f;
            const float log_weight0 = both.log_weight[negatives ? 0 : 1];
            const float log_weight1 = both.log_weight[positives ? 1 : 0];
            const float sign = negatives ? -1.f : 1.f, step = soft ? 0.f : 2.f;
#pragma omp simd
            for (int64_t j = 0; j < BLOCK; j++) {
                // Sums instead of selections by y, which the compiler turns into branches.
                factor[j] = (1.f - y[j]) * factor0 + y[j] * factor1;
                log_weight[j] = y[j] == 1.f ? log_weight1 : log_weight0;
                s[j] = (sign + y[j] * step) * load(x + j);
            }
            if (factor0 == 0 || factor1 == 0) {
#pragma omp simd
                for (int64_t j = 0; j < BLOCK; j++) {
                    const float signed_logit = s[j];
                    s[j] = (factor[j] == 0.f) & (signed_logit == -INFINITY) ? 0.f : signed_logit;  // 0 log 0 = 0
                }
            }
            losses_of<derivative>(of, powers, factor, log_weight, s, soft && side == 1, total);
        }
        if (derivative && !one_grad_output) {
            const float* grad_outputs = made_whole(into.grad_output + from, count, grad_outputs_copy);
#pragma omp simd
            for (int64_t j = 0; j < BLOCK; j++) total[j] *= grad_outputs[j];
        }
        if (targets.ignores) {
#pragma omp simd
            for (int64_t j = 0; j < BLOCK; j++) total[j] = valid[j] == 0.f ? 0.f : total[j];
        }
        if (into.sums) {
            for (int64_t j = count; j < BLOCK; j++) total[j] = 0;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < BLOCK; j++) sum += total[j];
            into.sums[from / BLOCK] = sum;
            continue;
        }
        if (std::is_same_v<T, float> && count == BLOCK) continue;
        for (int64_t j = 0; j < count; j++) store(results + j, total[j]);
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
    }                                                                                                                   \
    FOR_EACH_PROCESSOR void sigmoids(const T* z, const Polynomial& of, const Sides& both, const Targets<T>& targets,    \
                                     int64_t from, int64_t end, const Results<T>& into) {                               \
        if (into.gradient)                                                                                              \
            sigmoids_of<T, true>(z, of, both, targets, from, end, into);                                                \
        else                                                                                                            \
            sigmoids_of<T, false>(z, of, both, targets, from, end, into);                                               \
    }
KERNELS(float)
KERNELS(bfloat16)

template <class F>
void in_parallel(int64_t rows, int threads, F part) {
    if (rows == 0) return;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; t++) part(rows * t / threads, rows * (t + 1) / threads);
}

// The same, for a result of `bytes` per row. The pages of a large result are new to the process, and page faults one by
// one, at the first write, take longer than the loops: 53 ms for 79 MB, against 35 ms with one request. So each thread
// populates the pages of `rows_at_once` rows before it writes them.
template <class F>
void in_parallel_into(void* result, int64_t bytes, int64_t rows_at_once, int64_t rows, int threads, F part) {
#ifdef MADV_POPULATE_WRITE
    // Smaller results may be in memory that was in use before, where populating is useless (45 ns a page); glibc keeps
    // no larger blocks.
    if (bytes * rows > (int64_t(1) << 25)) {
        in_parallel(rows, threads, [=](int64_t from, int64_t to) {
            for (int64_t at = from; at < to; at += rows_at_once) {
                const int64_t end = at + rows_at_once < to ? at + rows_at_once : to;
                // Whole pages only. Where rows are not contiguous, these may be another thread's pages; together the
                // threads populate all. Before Linux 5.14 the call fails, and pages fault one by one.
                const std::uintptr_t page = 4096, begin = std::uintptr_t(result) + at * bytes;
                const std::uintptr_t first = (begin + page - 1) / page * page;
                const std::uintptr_t last = (begin + (end - at) * bytes) / page * page;
                if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_POPULATE_WRITE);
                part(at, end);
            }
        });
        return;
    }
#endif
    in_parallel(rows, threads, part);
}

}  // namespace

extern "C" {

// These are the same in native.py.

struct Logits {
    void* data;
    int64_t in_bfloat16, outers, classes, inners;
    Strides by;
};

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

// The arguments of the sigmoid kernel: logits in memory order, targets, the two sides of the polynomial.
struct Sigmoids {
    const void* z;
    int64_t in_bfloat16, count;
    const void* dense;
    const int64_t* ids;
    int64_t rows, classes, inners, classes_last, ignores, ignore_index;
    Polynomial polynomial;
    Sides both;
};

int64_t polylosses_block() { return BLOCK; }

// Returns the first row whose class id is none and not ignored, and has written nothing then; else -1.
int64_t polylosses_sigmoids(const Sigmoids* of, void* losses, double* sums, void* gradient, const float* grad_output,
                            int64_t grad_output_stride, int threads) {
    if (of->ids)
        for (int64_t row = 0; row < of->rows; row++) {
            const int64_t id = of->ids[row];
            if (!(of->ignores && id == of->ignore_index) && (id < 0 || id >= of->classes)) return row;
        }
    const auto with = [&](auto* z) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(z)>>;
        const Targets<T> targets = {static_cast<const T*>(of->dense), of->ids, of->classes, of->inners,
                                    of->classes_last != 0, of->ignores != 0, of->ignore_index};
        const Results<T> into = {static_cast<T*>(losses), sums, static_cast<T*>(gradient), grad_output,
                                 grad_output_stride};
        const int64_t blocks = (of->count + BLOCK - 1) / BLOCK, bytes = BLOCK * int64_t(sizeof(T));
        void* result = losses ? losses : gradient;
        const int64_t bytes_written = result ? bytes : 0;
        in_parallel_into(result, bytes_written, (1 << 20) / bytes, blocks, threads, [&](int64_t from, int64_t to) {
            const int64_t end = to * BLOCK < of->count ? to * BLOCK : of->count;
            sigmoids(z, of->polynomial, of->both, targets, from * BLOCK, end, into);
        });
    };
    if (of->in_bfloat16)
        with(static_cast<const bfloat16*>(of->z));
    else
        with(static_cast<const float*>(of->z));
    return -1;
}

// native_library.py compares both before it calls anything: what this was compiled from, and how large the structs are.
char polylosses_source[] = POLYLOSSES_SOURCE;
int64_t polylosses_sizes[] = {sizeof(Logits), sizeof(Polynomial), sizeof(Statistics), sizeof(Scales), sizeof(Sigmoids)};
}
