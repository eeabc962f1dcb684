// The softmax kernels for targets that give a weight t_c to every class: probabilities, label smoothing.
//
// The loss of a row is sum_c t_c L(p_c). With s_c = -dL/d log p_c and A = sum_c t_c s_c, its gradient is p_k A - t_k s_k, so
// that a few numbers of every row are all that has to be kept.
//
// Only the class of the largest logit can have p > 1/2, where 1 - p would cancel. It is left out of all sums over
// classes, and added at the end of a row from q, the sum of the others. Its gradient is (A - t s) - q A, with the same sum.
//
// Logits and targets pass in blocks of floats, so that the functions below are compiled once for all dtypes and layouts.

#include "common.hpp"

namespace {

// Probabilities y, or class indices if there are none: t_c = weight_c (keep y_c + spread).
struct SoftTargets {
    const void* probabilities;
    int64_t in_bfloat16;
    Strides by;
    const int64_t* labels;
    int64_t ignore_index;
    const float* weight;
    float keep, spread;

    // Whether all classes but the label have the same weight, which is not 0.
    INLINE bool even() const { return !probabilities && !weight && spread != 0; }
};

struct Loss {
    Polynomial polynomial;
    float log_weight;
    Terms learned;

    // Its sums over classes are those of t, t log p and t p.
    INLINE bool linear() const { return polynomial.degree == 1 && polynomial.gamma == 0; }
};

// Numbers of every row: A; A without the class of the largest logit; that class's q, logit and p, which is 0 if the row
// is ignored; the loss; and the learned terms, those of one for all rows after those of another.
struct SoftStatistics {
    float *scale, *rest, *q, *maximum, *inverse, *losses, *terms;
    int64_t rows;
};

// Sums over the classes of a row but for those of the largest logit, of exp(z - maximum), t, t (maximum - z) and
// t exp(z - maximum); and how many classes have the largest logit, and their t.
struct Sums {
    double others = 0, rest = 0, distance = 0, likelihood = 0, ties = 0, top = 0;
};

FOR_EACH_PROCESSOR void upcast(const bfloat16* at, int64_t count, float* to) {
#pragma omp simd
    for (int64_t j = 0; j < count; j++) to[j] = load(at + j);
}

FOR_EACH_PROCESSOR void downcast(const float* from, int64_t count, bfloat16* to) {
#pragma omp simd
    for (int64_t j = 0; j < count; j++) store(to + j, from[j]);
}

// `count` numbers, `step` apart, as contiguous floats: in place if they are, or else in `copy`.
const float* read(const void* data, bool in_bfloat16, int64_t offset, int64_t step, int64_t count, float* copy) {
    if (in_bfloat16) {
        const bfloat16* at = static_cast<const bfloat16*>(data) + offset;
        if (step == 1)
            upcast(at, count, copy);
        else
            for (int64_t j = 0; j < count; j++) copy[j] = load(at + j * step);
        return copy;
    }
    const float* at = static_cast<const float*>(data) + offset;
    if (step == 1) return at;
    for (int64_t j = 0; j < count; j++) copy[j] = at[j * step];
    return copy;
}

void write(const float* from, void* data, bool in_bfloat16, int64_t offset, int64_t step, int64_t count) {
    if (in_bfloat16) {
        bfloat16* at = static_cast<bfloat16*>(data) + offset;
        if (step == 1)
            downcast(from, count, at);
        else
            for (int64_t j = 0; j < count; j++) store(at + j * step, from[j]);
        return;
    }
    float* at = static_cast<float*>(data) + offset;
    for (int64_t j = 0; j < count; j++) at[j * step] = from[j];
}

// Classes that are copied at once where these are contiguous, and the rows side by side are not.
constexpr int64_t TOGETHER = 4;

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HAS_SHUFFLES
#endif
#endif

// to[k * to_step + j] = from[j * from_step + k] for `count` values of j, and TOGETHER of k, in a third of the time of one by one.
INLINE void transpose(const float* from, int64_t from_step, int64_t count, float* to, int64_t to_step) {
    int64_t j = 0;
#ifdef HAS_SHUFFLES
    typedef float Four __attribute__((vector_size(16)));
    for (; j + TOGETHER <= count; j += TOGETHER) {
        Four a, b, c, d;
        std::memcpy(&a, from + j * from_step, sizeof a);
        std::memcpy(&b, from + (j + 1) * from_step, sizeof b);
        std::memcpy(&c, from + (j + 2) * from_step, sizeof c);
        std::memcpy(&d, from + (j + 3) * from_step, sizeof d);
        const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
        const Four ab2 = __builtin_shufflevector(a, b, 2, 6, 3, 7), cd2 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
        a = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
        b = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
        c = __builtin_shufflevector(ab2, cd2, 0, 1, 4, 5);
        d = __builtin_shufflevector(ab2, cd2, 2, 3, 6, 7);
        std::memcpy(to + j, &a, sizeof a);
        std::memcpy(to + to_step + j, &b, sizeof b);
        std::memcpy(to + 2 * to_step + j, &c, sizeof c);
        std::memcpy(to + 3 * to_step + j, &d, sizeof d);
    }
#endif
    for (; j < count; j++)
        for (int64_t k = 0; k < TOGETHER; k++) to[k * to_step + j] = from[j * from_step + k];
}

// Writes up to TOGETHER contiguous classes of rows side by side.
void write_together(const float* from, int64_t classes, float* to, int64_t step, int64_t count) {
    int64_t j = 0;
    if (classes == TOGETHER)
        for (; j + TOGETHER <= count; j += TOGETHER) transpose(from + j, BLOCK, TOGETHER, to + j * step, step);
    for (; j < count; j++)
        for (int64_t k = 0; k < classes; k++) to[j * step + k] = from[k * BLOCK + j];
}

// t of classes from `from` on in a row, from their probabilities or else the row's label.
FOR_EACH_PROCESSOR void weigh_classes(const SoftTargets& of, const float* y, int64_t label, int64_t from, int64_t count,
                                      float* t) {
    if (y) {
#pragma omp simd
        for (int64_t k = 0; k < count; k++) t[k] = of.keep * y[k] + of.spread;
    } else {
        for (int64_t k = 0; k < count; k++) t[k] = of.spread;
        if (label >= from && label < from + count) t[label - from] += of.keep;
    }
    if (of.weight) {
#pragma omp simd
        for (int64_t k = 0; k < count; k++) t[k] *= of.weight[from + k];
    }
}

// t of one class in rows side by side.
FOR_EACH_PROCESSOR void weigh_rows(const SoftTargets& of, const float* y, const int32_t* label, int64_t k, int64_t count,
                                   float* t) {
    const float weight = of.weight ? of.weight[k] : 1.f;
    const int32_t c = int32_t(k);
    if (y) {
#pragma omp simd
        for (int64_t j = 0; j < count; j++) t[j] = weight * (of.keep * y[j] + of.spread);
    } else {
#pragma omp simd
        for (int64_t j = 0; j < count; j++) t[j] = weight * ((label[j] == c ? of.keep : 0.f) + of.spread);
    }
}

FOR_EACH_PROCESSOR float largest(const float* x, int64_t count) {
    float maximum = -INFINITY;
#pragma omp simd reduction(max : maximum)
    for (int64_t k = 0; k < count; k++) maximum = maximum > x[k] ? maximum : x[k];
    return maximum;
}

FOR_EACH_PROCESSOR void larger(const float* x, int64_t count, float* maximum) {
#pragma omp simd
    for (int64_t j = 0; j < count; j++) maximum[j] = maximum[j] > x[j] ? maximum[j] : x[j];
}

FOR_EACH_PROCESSOR void add_classes(const float* x, const float* t, int64_t count, float maximum, Sums& to) {
    float others = 0, rest = 0, distance = 0, likelihood = 0, ties = 0, top = 0;
#pragma omp simd reduction(+ : others, rest, distance, likelihood, ties, top)
    for (int64_t k = 0; k < count; k++) {
        const float d = maximum - x[k];
        const bool is_top = d == 0.f;
        const float e = is_top ? 0.f : exponential(-d), w = select(is_top, 0.f, t[k]);
        others += e;
        rest += w;
        distance += w == 0.f ? 0.f : w * d;
        likelihood += w * e;
        ties += is_top ? 1.f : 0.f;
        top += select(is_top, t[k], 0.f);
    }
    to.others += others;
    to.rest += rest;
    to.distance += distance;
    to.likelihood += likelihood;
    to.ties += ties;
    to.top += top;
}

// The same for classes of one weight: only the sums of exp(z - maximum) and t (maximum - z), and the ties.
FOR_EACH_PROCESSOR void add_evenly(const float* x, float t, int64_t count, float maximum, Sums& to) {
    float others = 0, distance = 0, ties = 0;
#pragma omp simd reduction(+ : others, distance, ties)
    for (int64_t k = 0; k < count; k++) {
        const float d = maximum - x[k];
        const bool is_top = d == 0.f;
        others += is_top ? 0.f : exponential(-d);
        distance += t * d;
        ties += is_top ? 1.f : 0.f;
    }
    to.others += others;
    to.distance += distance;
    to.ties += ties;
}

// The sums with one weight, and `keep` more for a label, from these; `d` is the label's distance.
INLINE void weigh_evenly(const SoftTargets& of, int64_t classes, float d, Sums& sums) {
    const double spread = of.spread, keep = d == 0.f ? 0.f : of.keep;
    sums.rest = spread * (double(classes) - sums.ties) + keep;
    if (keep != 0) sums.distance += keep * d;
    sums.likelihood = spread * sums.others + keep * exponential(-d);
    sums.top = spread * sums.ties + (of.keep - keep);
}

// Sums of rows side by side, in float, for some classes.
struct Parts {
    float others[BLOCK], rest[BLOCK], distance[BLOCK], likelihood[BLOCK], ties[BLOCK], top[BLOCK];
};

FOR_EACH_PROCESSOR void add_rows(const float* x, const float* t, int64_t count, const float* maximum, Parts& to) {
#pragma omp simd
    for (int64_t j = 0; j < count; j++) {
        const float d = maximum[j] - x[j];
        const bool is_top = d == 0.f;
        const float e = is_top ? 0.f : exponential(-d), w = select(is_top, 0.f, t[j]);
        to.others[j] += e;
        to.rest[j] += w;
        to.distance[j] += w == 0.f ? 0.f : w * d;
        to.likelihood[j] += w * e;
        to.ties[j] += is_top ? 1.f : 0.f;
        to.top[j] += select(is_top, t[j], 0.f);
    }
}

FOR_EACH_PROCESSOR void add_unweighted_rows(const float* x, int64_t count, const float* maximum, Parts& to) {
#pragma omp simd
    for (int64_t j = 0; j < count; j++) {
        const float d = maximum[j] - x[j];
        const bool is_top = d == 0.f;
        to.others[j] += is_top ? 0.f : exponential(-d);
        to.ties[j] += is_top ? 1.f : 0.f;
    }
}

void flush(Parts& from, int64_t count, Sums* to) {
    for (int64_t j = 0; j < count; j++) {
        to[j].others += from.others[j];
        to[j].rest += from.rest[j];
        to[j].distance += from.distance[j];
        to[j].likelihood += from.likelihood[j];
        to[j].ties += from.ties[j];
        to[j].top += from.top[j];
    }
    from = Parts{};
}

// log(x) for x in [0, 1], and a number of which any power is 0 for x = 0.
INLINE float logarithm_or_least(float x) { return x < 1.1754944e-38f ? -3e38f : logarithm(x); }

// q^gamma bracket, unless only the slope is wanted, and q^gamma (slope + gamma p / q bracket), with finite numbers at
// p = 0, where the bracket is infinite, and at q = 0.
INLINE void times_powers(const Polynomial& of, int64_t count, bool slope_only, const float* p, const float* q,
                         float* bracket, float* slope) {
    const float gamma = of.gamma;
    if (gamma == 0) return;
    if (is_power(gamma)) {
#pragma omp simd
        for (int64_t j = 0; j < count; j++) {
            const float finite = bracket[j] > 1e38f ? 1e38f : bracket[j];
            slope[j] = q[j] * slope[j] + gamma * p[j] * finite;
        }
        const Polynomial one_less = {of.coefficients, of.degree, gamma - 1};
        times_power(one_less, count, q, nullptr, slope);
        if (!slope_only) times_power(of, count, q, nullptr, bracket);
        return;
    }
    float log_q[BLOCK];
#pragma omp simd
    for (int64_t j = 0; j < count; j++) {
        const float finite = bracket[j] > 1e38f ? 1e38f : bracket[j];
        slope[j] += gamma * p[j] * finite / (q[j] == 0.f ? 1.f : q[j]);
        log_q[j] = logarithm_or_least(q[j]);
    }
    if (!slope_only) times_power(of, count, q, log_q, bracket);
    times_power(of, count, q, log_q, slope);
}

INLINE void evaluate_terms(const Loss& loss, int64_t count, const float* q, const float* nll, float* values) {
    if (loss.learned.count == 0) return;
    float log_q[BLOCK];
    if (loss.polynomial.gamma != 0 && !is_power(loss.polynomial.gamma)) {
#pragma omp simd
        for (int64_t j = 0; j < count; j++) log_q[j] = logarithm_or_least(q[j]);
    }
    evaluate_terms(loss.learned, loss.polynomial, count, q, nll, log_q, values);
}

// p, q, -log p, s and, unless only these are wanted, L(p) of every element; some finite L(p) where the weight is 0.
template <class Each>
INLINE void evaluate(const Loss& loss, const Powers& powers, bool slope_only, const float* x, const float* weight,
                     int64_t count, Each maximum, Each inverse, Each log_total, float* p, float* q, float* nll,
                     float* value, float* slope) {
    const Same log_weight{loss.log_weight};
#pragma omp simd
    for (int64_t j = 0; j < count; j++) {
        const float d = maximum[j] - x[j];
        p[j] = exponential(-d) * inverse[j];
        q[j] = 1.f - p[j];
        nll[j] = select(weight[j] == 0.f, 0.f, d + log_total[j]);
    }
    if (!slope_only || loss.polynomial.gamma != 0)
        brackets(loss.polynomial, powers, count, log_weight, q, nll, value);
    slopes(loss.polynomial, powers, count, log_weight, p, q, slope);
    times_powers(loss.polynomial, count, slope_only, p, q, value, slope);
}

// t L(p), t s and t times the learned terms of every element, 0 for the largest logit.
template <class Each>
INLINE void weighed(const Loss& loss, const Powers& powers, const float* x, const float* t, int64_t count, Each maximum,
                    Each inverse, Each log_total, float* value, float* slope, float* terms) {
    float p[BLOCK], q[BLOCK], nll[BLOCK], weight[BLOCK];
#pragma omp simd
    for (int64_t j = 0; j < count; j++) weight[j] = select(x[j] == maximum[j], 0.f, t[j]);
    evaluate(loss, powers, false, x, weight, count, maximum, inverse, log_total, p, q, nll, value, slope);
#pragma omp simd
    for (int64_t j = 0; j < count; j++) {
        value[j] *= weight[j];
        slope[j] *= weight[j];
    }
    evaluate_terms(loss, count, q, nll, terms);
    for (int64_t k = 0; k < loss.learned.count; k++) {
#pragma omp simd
        for (int64_t j = 0; j < count; j++) terms[k * BLOCK + j] *= weight[j];
    }
}

FOR_EACH_PROCESSOR void evaluate_classes(const Loss& loss, const Powers& powers, const float* x, const float* t,
                                         int64_t count, float maximum, float inverse, float log_total, double& value,
                                         double& slope, double* terms, double& top) {
    float values[BLOCK], slopes[BLOCK], each_term[Terms::MOST * BLOCK], value_part = 0, slope_part = 0, top_part = 0;
    weighed(loss, powers, x, t, count, Same{maximum}, Same{inverse}, Same{log_total}, values, slopes, each_term);
#pragma omp simd reduction(+ : value_part, slope_part, top_part)
    for (int64_t k = 0; k < count; k++) {
        value_part += values[k];
        slope_part += slopes[k];
        top_part += select(x[k] == maximum, t[k], 0.f);
    }
    value += value_part;
    slope += slope_part;
    top += top_part;
    for (int64_t i = 0; i < loss.learned.count; i++) {
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (int64_t k = 0; k < count; k++) part += each_term[i * BLOCK + k];
        terms[i * BLOCK] += part;
    }
}

FOR_EACH_PROCESSOR void evaluate_rows(const Loss& loss, const Powers& powers, const float* x, const float* t,
                                      int64_t count, const float* maximum, const float* inverse, const float* log_total,
                                      float* value, float* slope, float* terms, float* top) {
    float values[BLOCK], slopes[BLOCK], each_term[Terms::MOST * BLOCK];
    weighed(loss, powers, x, t, count, maximum, inverse, log_total, values, slopes, each_term);
#pragma omp simd
    for (int64_t j = 0; j < count; j++) {
        value[j] += values[j];
        slope[j] += slopes[j];
        top[j] += select(x[j] == maximum[j], t[j], 0.f);
    }
    for (int64_t i = 0; i < loss.learned.count; i++) {
#pragma omp simd
        for (int64_t j = 0; j < count; j++) terms[i * BLOCK + j] += each_term[i * BLOCK + j];
    }
}

// The end of rows: adds the class of the largest logit to what the others give, which is `value`, `slope` and `terms`
// unless the loss is linear.
FOR_EACH_PROCESSOR void finish(const Loss& loss, const Powers& powers, int64_t row, int64_t count, const Sums* sums,
                               const float* maximum, const bool* ignored, const float* value, const float* slope,
                               const double* terms, const SoftStatistics& out) {
    float p[BLOCK], q[BLOCK], nll[BLOCK], top_value[BLOCK], top_slope[BLOCK], top_terms[Terms::MOST * BLOCK];
    const Same log_weight{loss.log_weight};
    for (int64_t j = 0; j < count; j++) {
        const double wrong = sums[j].ties - 1 + sums[j].others, total = 1 + wrong;
        p[j] = ignored[j] ? 1.f : float(1 / total);
        q[j] = ignored[j] ? 0.f : float(wrong / total);
        nll[j] = q[j] < 0.25f ? q[j] + tail_of(q[j], 0.f) : logarithm(float(total));
    }
    brackets(loss.polynomial, powers, count, log_weight, q, nll, top_value);
    slopes(loss.polynomial, powers, count, log_weight, p, q, top_slope);
    times_powers(loss.polynomial, count, false, p, q, top_value, top_slope);
    const double first = loss.polynomial.coefficients[0];
    for (int64_t j = 0; j < count; j++) {
        const Sums& sum = sums[j];
        double of_others, rest;
        if (loss.linear()) {
            const double likelihood = sum.likelihood * p[j];
            of_others = first * (sum.rest - likelihood);
            if (loss.log_weight != 0) of_others += loss.log_weight * (sum.distance + sum.rest * nll[j]);
            rest = loss.log_weight * sum.rest + first * likelihood;
        } else {
            of_others = value[j];
            rest = slope[j];
        }
        out.maximum[row + j] = maximum[j];
        out.q[row + j] = q[j];
        out.inverse[row + j] = ignored[j] ? 0.f : p[j];
        out.rest[row + j] = ignored[j] ? 0.f : float(rest);
        out.scale[row + j] = ignored[j] ? 0.f : float(sum.top * top_slope[j] + rest);
        out.losses[row + j] = ignored[j] ? 0.f : float(sum.top * top_value[j] + of_others);
    }
    evaluate_terms(loss, count, q, nll, top_terms);
    for (int64_t k = 0; k < loss.learned.count; k++) {
        for (int64_t j = 0; j < count; j++) {
            const Sums& sum = sums[j];
            double of_others = terms[k * BLOCK + j];
            if (loss.linear())
                of_others = loss.learned.powers[k] == 0 ? sum.distance + sum.rest * nll[j] : sum.rest - sum.likelihood * p[j];
            out.terms[k * out.rows + row + j] = ignored[j] ? 0.f : float(sum.top * top_terms[k * BLOCK + j] + of_others);
        }
    }
}

// factor (p A - t s) of every element, or factor top where the largest logit is alone.
template <class Each>
INLINE void gradient_of(const Loss& loss, const Powers& powers, const float* x, const float* t, int64_t count,
                        Each maximum, Each inverse, Each log_total, Each scale, Each top, Each alone, Each factor,
                        float* gradient) {
    if (loss.linear()) {
        const float first = loss.polynomial.coefficients[0], log_weight = loss.log_weight;
#pragma omp simd
        for (int64_t j = 0; j < count; j++) {
            const float d = maximum[j] - x[j], p = exponential(-d) * inverse[j];
            const float other = p * (scale[j] - first * t[j]) - log_weight * t[j];
            gradient[j] = factor[j] * select((d == 0.f) & (alone[j] != 0.f), top[j], other);
        }
        return;
    }
    float p[BLOCK], q[BLOCK], nll[BLOCK], value[BLOCK], slope[BLOCK];
    evaluate(loss, powers, true, x, t, count, maximum, inverse, log_total, p, q, nll, value, slope);
#pragma omp simd
    for (int64_t j = 0; j < count; j++) {
        const float other = p[j] * scale[j] - t[j] * slope[j];
        gradient[j] = factor[j] * select((x[j] == maximum[j]) & (alone[j] != 0.f), top[j], other);
    }
}

FOR_EACH_PROCESSOR void gradient_of_classes(const Loss& loss, const Powers& powers, const float* x, const float* t,
                                            int64_t count, float maximum, float inverse, float log_total,
                                            float scale, float top, float alone, float factor, float* gradient) {
    gradient_of(loss, powers, x, t, count, Same{maximum}, Same{inverse}, Same{log_total}, Same{scale}, Same{top},
                Same{alone}, Same{factor}, gradient);
}

FOR_EACH_PROCESSOR void gradient_of_rows(const Loss& loss, const Powers& powers, const float* x, const float* t,
                                         int64_t count, const float* maximum, const float* inverse,
                                         const float* log_total, const float* scale, const float* top,
                                         const float* alone, const float* factor, float* gradient) {
    gradient_of(loss, powers, x, t, count, maximum, inverse, log_total, scale, top, alone, factor, gradient);
}

// Rows of a tensor that are side by side, or the only one: where they begin, and how far apart they are.
struct Place {
    int64_t offset, step;

    Place(Strides by, int64_t inners, int64_t row)
        : offset(row / inners * by.outer + row % inners * by.inner), step(inners == 1 ? by.outer : by.inner) {}
};

// Reads rows side by side, class by class.
class Lines {
    const void* data;
    bool in_bfloat16, together;
    int64_t classes, count, by_class, first = -1;
    Place at;
    float copy[TOGETHER * BLOCK];

  public:
    Lines(const void* data, bool in_bfloat16, Strides by, int64_t classes, int64_t inners, int64_t row, int64_t count)
        : data(data), in_bfloat16(in_bfloat16), classes(classes), count(count), by_class(by.classes),
          at(by, inners, row) {
        together = !in_bfloat16 && by_class == 1 && at.step != 1 && classes >= TOGETHER;
    }

    // Valid until the next call.
    const float* operator[](int64_t k) {
        if (!together) return read(data, in_bfloat16, at.offset + k * by_class, at.step, count, copy);
        if (first < 0 || k < first || k >= first + TOGETHER) {
            first = k + TOGETHER <= classes ? k : classes - TOGETHER;
            transpose(static_cast<const float*>(data) + at.offset + first, at.step, count, copy, BLOCK);
        }
        return copy + (k - first) * BLOCK;
    }
};

// How many rows from `row` on are processed side by side; 0 if they are processed one after another.
int64_t rows_together(const Logits& z, int64_t row, int64_t end) {
    if (z.by.classes == 1 && (z.classes >= SHORT_ROW || (z.inners > 1 && z.inners < 16))) return 0;
    int64_t count = end - row < BLOCK ? end - row : BLOCK;
    if (z.inners > 1 && z.inners - row % z.inners < count) count = z.inners - row % z.inners;
    return count;
}

// A row's logit of class `k`.
float logit_of(const Logits& z, Place at, int64_t k) {
    float copy;
    return *read(z.data, z.in_bfloat16, at.offset + k * z.by.classes, 1, 1, &copy);
}

// The label of a row that is not ignored, or -1 if it is out of range, which is reported: another thread may write to
// labels, and they may have changed since the forward pass.
int64_t checked_label(const SoftTargets& of, int64_t classes, int64_t row, int64_t* wrong) {
    const int64_t label = of.labels[row];
    if (in_range(label, classes)) return label;
    report(row, wrong);
    return -1;
}

// A row's label; -1 if it is ignored.
int64_t label_of(const SoftTargets& of, int64_t classes, int64_t row, int64_t* wrong) {
    return of.labels[row] == of.ignore_index ? -1 : checked_label(of, classes, row, wrong);
}

// t of classes [from, from + count) in a row: the probabilities themselves, if nothing changes them, or else in `t`.
const float* weights_of_classes(const SoftTargets& of, Place at, int64_t label, int64_t from, int64_t count, float* t) {
    const float* y = nullptr;
    if (of.probabilities) {
        y = read(of.probabilities, of.in_bfloat16, at.offset + from * of.by.classes, of.by.classes, count, t);
        if (!of.weight && of.keep == 1 && of.spread == 0) return y;
    }
    weigh_classes(of, y, label, from, count, t);
    return t;
}

// t of class `k` in rows side by side, likewise.
const float* weights_of_rows(const SoftTargets& of, Lines& lines, const int32_t* label, int64_t k, int64_t count,
                             float* t) {
    const float* y = nullptr;
    if (of.probabilities) {
        y = lines[k];
        if (!of.weight && of.keep == 1 && of.spread == 0) return y;
    }
    weigh_rows(of, y, label, k, count, t);
    return t;
}

void losses_one_by_one(const Logits& z, const SoftTargets& targets, const Loss& loss, const Powers& powers, int64_t row,
                       int64_t count, const SoftStatistics& out, int64_t* wrong) {
    Sums sums[BLOCK];
    float maximum[BLOCK], value[BLOCK], slope[BLOCK], x_copy[BLOCK], t_copy[BLOCK];
    double terms[Terms::MOST * BLOCK] = {};
    bool ignored[BLOCK];
    for (int64_t j = 0; j < count; j++) {
        const Place at(z.by, z.inners, row + j), at_target(targets.by, z.inners, row + j);
        const int64_t label = targets.probabilities ? 0 : label_of(targets, z.classes, row + j, wrong);
        ignored[j] = label < 0;
        maximum[j] = value[j] = slope[j] = 0;
        if (ignored[j]) continue;
        const auto each_block = [&](auto process) {
            for (int64_t from = 0; from < z.classes; from += BLOCK) {
                const int64_t many = z.classes - from < BLOCK ? z.classes - from : BLOCK;
                process(read(z.data, z.in_bfloat16, at.offset + from, 1, many, x_copy), from, many);
            }
        };
        float most = -INFINITY;
        each_block([&](const float* x, int64_t, int64_t many) {
            const float here = largest(x, many);
            most = most > here ? most : here;
        });
        maximum[j] = most;
        const bool weighted = loss.linear() && !targets.even();
        each_block([&](const float* x, int64_t from, int64_t many) {
            if (weighted)
                add_classes(x, weights_of_classes(targets, at_target, label, from, many, t_copy), many, most, sums[j]);
            else
                add_evenly(x, targets.spread, many, most, sums[j]);
        });
        if (loss.linear()) {
            if (!weighted) weigh_evenly(targets, z.classes, most - logit_of(z, at, label), sums[j]);
            continue;
        }
        const double total = sums[j].ties + sums[j].others;
        double values = 0, slopes = 0;
        each_block([&](const float* x, int64_t from, int64_t many) {
            const float* t = weights_of_classes(targets, at_target, label, from, many, t_copy);
            evaluate_classes(loss, powers, x, t, many, most, float(1 / total), float(std::log(total)), values, slopes,
                             terms + j, sums[j].top);
        });
        value[j] = float(values);
        slope[j] = float(slopes);
    }
    finish(loss, powers, row, count, sums, maximum, ignored, value, slope, terms, out);
}

// The most logits that are copied, to be read several times. In place, strided logits would evict each other from the
// caches.
constexpr int64_t HELD = 1 << 15;

void losses_together(const Logits& z, const SoftTargets& targets, const Loss& loss, const Powers& powers, int64_t row,
                     int64_t count, const SoftStatistics& out, int64_t* wrong) {
    Sums sums[BLOCK];
    Parts parts{};
    float maximum[BLOCK], value[BLOCK], slope[BLOCK], top[BLOCK], inverse[BLOCK], log_total[BLOCK],
        t_copy[BLOCK], term_parts[Terms::MOST * BLOCK] = {}, held[HELD];
    double terms[Terms::MOST * BLOCK] = {};
    int32_t label[BLOCK];
    bool ignored[BLOCK];
    Lines lines(z.data, z.in_bfloat16, z.by, z.classes, z.inners, row, count);
    Lines y(targets.probabilities, targets.in_bfloat16, targets.by, z.classes, z.inners, row, count);
    for (int64_t j = 0; j < count; j++) {
        const int64_t of_row = targets.probabilities ? 0 : label_of(targets, z.classes, row + j, wrong);
        ignored[j] = of_row < 0;
        label[j] = int32_t(of_row);
        maximum[j] = -INFINITY;
        value[j] = slope[j] = top[j] = 0;
    }
    const bool holds = z.classes * count <= HELD;
    for (int64_t k = 0; k < z.classes; k++) {
        const float* x = lines[k];
        if (holds) std::memcpy(held + k * count, x, size_t(count) * sizeof(float));
        larger(x, count, maximum);
    }
    const auto each_class = [&](auto process) {
        for (int64_t k = 0; k < z.classes; k++) process(holds ? held + k * count : lines[k], k);
    };
    each_class([&](const float* x, int64_t k) {
        if (loss.linear())
            add_rows(x, weights_of_rows(targets, y, label, k, count, t_copy), count, maximum, parts);
        else
            add_unweighted_rows(x, count, maximum, parts);
        if ((k + 1) % CLASS_BLOCK == 0) flush(parts, count, sums);
    });
    flush(parts, count, sums);
    if (!loss.linear()) {
        for (int64_t j = 0; j < count; j++) {
            const double total = sums[j].ties + sums[j].others;
            inverse[j] = float(1 / total);
            log_total[j] = float(std::log(total));
        }
        double values[BLOCK] = {}, slopes[BLOCK] = {};
        each_class([&](const float* x, int64_t k) {
            const float* t = weights_of_rows(targets, y, label, k, count, t_copy);
            evaluate_rows(loss, powers, x, t, count, maximum, inverse, log_total, value, slope, term_parts, top);
            if ((k + 1) % CLASS_BLOCK != 0 && k + 1 != z.classes) return;
            for (int64_t j = 0; j < count; j++) {
                values[j] += value[j];
                slopes[j] += slope[j];
                sums[j].top += top[j];
                value[j] = slope[j] = top[j] = 0;
            }
            for (int64_t i = 0; i < loss.learned.count * BLOCK; i++) {
                terms[i] += term_parts[i];
                term_parts[i] = 0;
            }
        });
        for (int64_t j = 0; j < count; j++) {
            value[j] = float(values[j]);
            slope[j] = float(slopes[j]);
        }
    }
    finish(loss, powers, row, count, sums, maximum, ignored, value, slope, terms, out);
}

void gradients_one_by_one(const Logits& z, const SoftTargets& targets, const Loss& loss, const Powers& powers,
                          const SoftStatistics& with, const float* grad_output, int64_t grad_output_stride,
                          const Logits& into, int64_t row, int64_t* wrong) {
    const Place at(z.by, z.inners, row), at_target(targets.by, z.inners, row), to(into.by, z.inners, row);
    float x_copy[BLOCK], t_copy[BLOCK], gradient[BLOCK];
    const float inverse = with.inverse[row], scale = with.scale[row], q = with.q[row];
    const int64_t label = inverse == 0 || targets.probabilities ? 0 : checked_label(targets, z.classes, row, wrong);
    const bool ignored = inverse == 0 || label < 0;
    for (int64_t from = 0; from < z.classes; from += BLOCK) {
        const int64_t many = z.classes - from < BLOCK ? z.classes - from : BLOCK;
        const bool direct = !into.in_bfloat16;
        float* here = direct ? static_cast<float*>(into.data) + to.offset + from : gradient;
        if (ignored)
            for (int64_t k = 0; k < many; k++) here[k] = 0;
        else
            gradient_of_classes(loss, powers, read(z.data, z.in_bfloat16, at.offset + from, 1, many, x_copy),
                                weights_of_classes(targets, at_target, label, from, many, t_copy), many,
                                with.maximum[row], inverse, -std::log(inverse), scale, with.rest[row] - q * scale,
                                q < 0.5f ? 1.f : 0.f, grad_output[row * grad_output_stride], here);
        if (!direct) write(gradient, into.data, true, to.offset + from, 1, many);
    }
}

void gradients_together(const Logits& z, const SoftTargets& targets, const Loss& loss, const Powers& powers,
                        const SoftStatistics& with, const float* grad_output, int64_t grad_output_stride,
                        const Logits& into, int64_t row, int64_t count, int64_t* wrong) {
    const Place to(into.by, z.inners, row);
    Lines lines(z.data, z.in_bfloat16, z.by, z.classes, z.inners, row, count);
    Lines y(targets.probabilities, targets.in_bfloat16, targets.by, z.classes, z.inners, row, count);
    float log_total[BLOCK], top[BLOCK], alone[BLOCK], factor[BLOCK], t_copy[BLOCK], gradient[TOGETHER * BLOCK];
    int32_t label[BLOCK];
    int64_t ignored[BLOCK], ignored_count = 0;
    for (int64_t j = 0; j < count; j++) {
        const float inverse = with.inverse[row + j], q = with.q[row + j];
        int64_t of_row = 0;
        if (inverse == 0)
            of_row = -1;
        else if (!targets.probabilities)
            of_row = checked_label(targets, z.classes, row + j, wrong);
        if (of_row < 0) ignored[ignored_count++] = j;
        label[j] = int32_t(of_row);
        log_total[j] = inverse == 0 ? 0.f : -std::log(inverse);
        top[j] = with.rest[row + j] - q * with.scale[row + j];
        alone[j] = q < 0.5f ? 1.f : 0.f;
        factor[j] = grad_output[(row + j) * grad_output_stride];
    }
    const bool direct = !into.in_bfloat16 && to.step == 1;
    const bool together = !into.in_bfloat16 && into.by.classes == 1 && to.step != 1;
    for (int64_t k = 0; k < z.classes; k++) {
        const int64_t offset = to.offset + k * into.by.classes, last = together ? k % TOGETHER : 0;
        float* here = direct ? static_cast<float*>(into.data) + offset : gradient + last * BLOCK;
        gradient_of_rows(loss, powers, lines[k], weights_of_rows(targets, y, label, k, count, t_copy), count,
                         with.maximum + row, with.inverse + row, log_total, with.scale + row, top, alone, factor, here);
        for (int64_t j = 0; j < ignored_count; j++) here[ignored[j]] = 0;
        if (direct || (together && last < TOGETHER - 1 && k + 1 < z.classes)) continue;
        if (together)
            write_together(gradient, last + 1, static_cast<float*>(into.data) + offset - last, to.step, count);
        else
            write(gradient, into.data, into.in_bfloat16, offset, to.step, count);
    }
}

}  // namespace

extern "C" {

// Both return the first row whose label is neither a class nor ignored, else -1. Logits, probabilities and gradient must
// have the same axis of stride 1: the classes, or else the rows side by side.

int64_t polylosses_soft_target_loss(const Logits* z, const SoftTargets* targets, const Loss* loss,
                                    const SoftStatistics* out, float* sum, int threads) {
    const int64_t rows = z->outers * z->inners;
    int64_t wrong = -1;
    in_parallel(rows, threads, [=, &wrong](int64_t row, int64_t end) {
        const Powers powers(loss->polynomial);
        while (row < end) {
            int64_t count = rows_together(*z, row, end);
            if (count > 0) {
                losses_together(*z, *targets, *loss, powers, row, count, *out, &wrong);
            } else {
                count = end - row < BLOCK ? end - row : BLOCK;
                losses_one_by_one(*z, *targets, *loss, powers, row, count, *out, &wrong);
            }
            row += count;
        }
    });
    double total = 0;
    for (int64_t row = 0; row < rows; row++) total += out->losses[row];
    if (sum) *sum = float(total);
    return wrong;
}

int64_t polylosses_soft_target_gradient(const Logits* z, const SoftTargets* targets, const Loss* loss,
                                        const SoftStatistics* with, const float* grad_output,
                                        int64_t grad_output_stride, const Logits* into, int threads) {
    const int64_t row_bytes = z->classes * (z->in_bfloat16 ? 2 : 4);
    const int64_t rows_at_once = z->inners > 1 && into->by.classes != 1 ? z->inners : (1 << 20) / (row_bytes + 1) + 1;
    int64_t wrong = -1;
    in_parallel_into(into->data, row_bytes, rows_at_once, z->outers * z->inners, threads,
                     [=, &wrong](int64_t row, int64_t end) {
                         const Powers powers(loss->polynomial);
                         while (row < end) {
                             int64_t count = rows_together(*z, row, end);
                             if (count > 0)
                                 gradients_together(*z, *targets, *loss, powers, *with, grad_output,
                                                    grad_output_stride, *into, row, count, &wrong);
                             else
                                 gradients_one_by_one(*z, *targets, *loss, powers, *with, grad_output,
                                                      grad_output_stride, *into, row, &wrong);
                             row += count > 0 ? count : 1;
                         }
                     });
    return wrong;
}

int64_t polylosses_soft_target_sizes[] = {sizeof(SoftTargets), sizeof(Loss), sizeof(SoftStatistics)};
}
