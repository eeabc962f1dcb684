// What the CPU kernels share: numbers, the polynomial, the layout of logits, threads.
//
// Plain C++ with a C interface, so that building it needs a compiler and nothing of Python or torch. Loops are written
// for the compiler's vectorizer; on x86-64 they are compiled for three levels, chosen at run time.
//
// Logits are (outer, classes, inner) with any strides, as long as the classes of a row or the rows side by side are
// contiguous. There is one row for each (outer, inner), numbered outer * inners + inner.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

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

// `a` where the condition is true, or else `b`. With the operator ?:, the compiler loads what is in memory under a mask,
// and such a load waits for the stores before it: whole loops take twice the time.
INLINE float select(bool condition, float a, float b) {
    uint32_t of_a, of_b;
    std::memcpy(&of_a, &a, sizeof a);
    std::memcpy(&of_b, &b, sizeof b);
    const uint32_t mask = 0u - uint32_t(condition), bits = (of_a & mask) | (of_b & ~mask);
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
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

// One number for all elements, where others have an array of them.
struct Same {
    float value;
    INLINE float operator[](int64_t) const { return value; }
};

// sum = c[0] + c[1] q + ..., elementwise; two powers in each pass over the elements.
INLINE void horner(const float* c, int64_t terms, int64_t count, const float* q, float* sum) {
    int64_t k = terms - 1;
    if (terms % 2 == 1) {
        for (int64_t j = 0; j < count; j++) sum[j] = c[k];
    } else {
#pragma omp simd
        for (int64_t j = 0; j < count; j++) sum[j] = c[k] * q[j] + c[k - 1];
        k--;
    }
    for (; k > 0; k -= 2) {
#pragma omp simd
        for (int64_t j = 0; j < count; j++) sum[j] = (sum[j] * q[j] + c[k - 1]) * q[j] + c[k - 2];
    }
}

// S - log_weight log p, where q = 1 - p and nll = -log p.
template <class LogWeight>
INLINE void brackets(const Polynomial& of, const Powers& powers, int64_t count, LogWeight log_weight, const float* q,
                     const float* nll, float* bracket) {
    const float first = of.coefficients[0];
    horner(powers.values, of.degree, count, q, bracket);
    if (powers.careful) {
#pragma omp simd
        for (int64_t j = 0; j < count; j++) {
            const float logarithm = select(log_weight[j] == 0.f, 0.f, log_weight[j] * tail_of(q[j], nll[j]));
            bracket[j] = (log_weight[j] + first + bracket[j]) * q[j] + logarithm;
        }
    } else {
#pragma omp simd
        for (int64_t j = 0; j < count; j++)
            bracket[j] = bracket[j] * q[j] + select(log_weight[j] == 0.f, 0.f, log_weight[j] * nll[j]);
    }
}

// log_weight + p S'; dL/d log p is -q^gamma times the sum of this and gamma p / q times the bracket.
template <class LogWeight>
INLINE void slopes(const Polynomial& of, const Powers& powers, int64_t count, LogWeight log_weight, const float* p,
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
        slope[j] = select(q[j] < 0.5f, log_weight[j] + first + near_one[j], slope[j]);
}

// Whether q^gamma is a product of a few q, which is faster than an exponential.
INLINE bool is_power(float gamma) { return gamma == 1 || gamma == 2 || gamma == 3 || gamma == 4; }

// x *= q^gamma.
INLINE void times_power(const Polynomial& of, int64_t count, const float* q, const float* log_q, float* x) {
    const float gamma = of.gamma;
    if (is_power(gamma)) {
        for (float k = 0; k < gamma; k++) {
#pragma omp simd
            for (int64_t j = 0; j < count; j++) x[j] *= q[j];
        }
    } else if (gamma != 0) {
#pragma omp simd
        for (int64_t j = 0; j < count; j++) x[j] *= exponential(gamma * log_q[j]);
    }
}

// Terms of a loss whose coefficients are learned: q^gamma q^power, or -q^gamma log p where the power is 0. The derivative
// of the loss by a coefficient is the loss with that term alone.
struct Terms {
    static constexpr int64_t MOST = 3;
    int64_t count, powers[MOST];
};

// `values` are BLOCK numbers for each term.
INLINE void evaluate_terms(const Terms& terms, const Polynomial& of, int64_t count, const float* q, const float* nll,
                           const float* log_q, float* values) {
    for (int64_t k = 0; k < terms.count; k++, values += BLOCK) {
        const float* first = terms.powers[k] == 0 ? nll : q;
        for (int64_t j = 0; j < count; j++) values[j] = first[j];
        for (int64_t power = 1; power < terms.powers[k]; power++) {
#pragma omp simd
            for (int64_t j = 0; j < count; j++) values[j] *= q[j];
        }
        times_power(of, count, q, log_q, values);
    }
}

struct Strides {
    int64_t outer, classes, inner;
};

// The same in native.py.
struct Logits {
    void* data;
    int64_t in_bfloat16, outers, classes, inners;
    Strides by;
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
