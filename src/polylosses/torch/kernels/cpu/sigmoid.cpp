// The sigmoid kernels. Every element is a row of its own: with s = z for a positive and -z for a negative,
// p = sigmoid(s).

#include <type_traits>

#include "common.hpp"

namespace {

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
    FOR_EACH_PROCESSOR void sigmoids(const T* z, const Polynomial& of, const Sides& both, const Targets<T>& targets,    \
                                     int64_t from, int64_t end, const Results<T>& into) {                               \
        if (into.gradient)                                                                                              \
            sigmoids_of<T, true>(z, of, both, targets, from, end, into);                                                \
        else                                                                                                            \
            sigmoids_of<T, false>(z, of, both, targets, from, end, into);                                               \
    }
KERNELS(float)
KERNELS(bfloat16)

}  // namespace

extern "C" {

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

int64_t polylosses_sigmoid_sizes[] = {sizeof(Sigmoids)};
}
