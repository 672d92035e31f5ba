/* The small operations between matrix products, forward and backward, for bf16 rows: one pass over memory each.
 *
 * They round where the operations in models/kernels.py do, except that a backward pass computes in fp32 and rounds once. No
 * result depends on the number of threads: sums over rows are taken in stretches of a fixed length.
 */
#include "common.h"
#include <math.h>

#define ROOM 2048 /* scores of a row that are held in fp32 */

/* RMS norm; scale: each row's [rows] for the backward pass, or none. x, out [rows, size]; weight [size] */
void ss_norm(const bf16 *x, const bf16 *weight, bf16 *out, float *scale, i64 rows, i64 size, float eps, i64 threads) {
    (void)threads;
#pragma omp parallel for schedule(static) num_threads((int)threads) if (rows * size > FEW)
    for (i64 i = 0; i < rows; i++) {
        float of_row = norm_row(x + i * size, weight, out + i * size, size, eps);
        if (scale) scale[i] = of_row;
    }
}

/* act(gate) * up: x [rows, 2 * size], gate first → out [rows, size]. act: silu, v / (1 + e^-v), or gelu by its tanh formula, which
 * is v / (1 + e^-2u) with u = sqrt(2 / pi) (v + 0.044715 v^3) */
void ss_gate(const bf16 *x, bf16 *out, i64 rows, i64 size, i64 gelu, i64 threads) {
    (void)threads;
#pragma omp parallel for schedule(static) num_threads((int)threads) if (rows * size > FEW)
    for (i64 i = 0; i < rows; i++) {
        const bf16 *g = x + 2 * i * size, *u = g + size;
        bf16 *o = out + i * size;
        if (gelu) {
#pragma omp simd
            for (i64 j = 0; j < size; j++) {
                float v = wide(g[j]);
                o[j] = narrow(rounded(v / (1.0f + exponential(-1.59576912f * (v + 0.044715f * v * v * v)))) * wide(u[j]));
            }
        } else {
#pragma omp simd
            for (i64 j = 0; j < size; j++) {
                float v = wide(g[j]);
                o[j] = narrow(rounded(v / (1.0f + exponential(-v))) * wide(u[j]));
            }
        }
    }
}

/* The norm's output again, from the scale */
void ss_norm_again(const bf16 *x, const bf16 *weight, const float *scale, bf16 *out, i64 rows, i64 size, i64 threads) {
    (void)threads;
#pragma omp parallel for schedule(static) num_threads((int)threads) if (rows * size > FEW)
    for (i64 i = 0; i < rows; i++) scale_row(x + i * size, weight, out + i * size, size, scale[i]);
}

/* grad, of_x [rows, size]; of_weight [ceil(rows / stretch), size] floats, one sum a stretch of rows */
void ss_norm_backward(const bf16 *x, const bf16 *weight, const float *scale, const bf16 *grad, bf16 *of_x, float *of_weight, i64 rows,
                      i64 size, i64 stretch, i64 threads) {
    (void)threads;
    i64 parts = (rows + stretch - 1) / stretch;
#pragma omp parallel for schedule(static) num_threads((int)threads) if (rows * size > FEW)
    for (i64 n = 0; n < parts; n++) {
        float *sum = of_weight + n * size;
        memset(sum, 0, (size_t)size * sizeof(float));
        for (i64 i = n * stretch; i < rows && i < (n + 1) * stretch; i++) {
            const bf16 *a = x + i * size, *g = grad + i * size;
            bf16 *o = of_x + i * size;
            float s = scale[i], dot = 0.0f;
#pragma omp simd reduction(+ : dot)
            for (i64 j = 0; j < size; j++) {
                float normed = wide(a[j]) * s;
                sum[j] += wide(g[j]) * normed;
                dot += wide(g[j]) * wide(weight[j]) * normed;
            }
            dot /= (float)size;
#pragma omp simd
            for (i64 j = 0; j < size; j++) o[j] = narrow(s * (wide(g[j]) * wide(weight[j]) - wide(a[j]) * s * dot));
        }
    }
}

/* x [rows, 2 * size], gate first; grad [rows, size]; out [rows, 2 * size]. Of silu(gate) * up */
void ss_gate_backward(const bf16 *x, const bf16 *grad, bf16 *out, i64 rows, i64 size, i64 threads) {
    (void)threads;
#pragma omp parallel for schedule(static) num_threads((int)threads) if (rows * size > FEW)
    for (i64 i = 0; i < rows; i++) {
        const bf16 *g = x + 2 * i * size, *u = g + size, *d = grad + i * size;
        bf16 *of_g = out + 2 * i * size, *of_u = of_g + size;
#pragma omp simd
        for (i64 j = 0; j < size; j++) {
            float v = wide(g[j]), by = wide(d[j]), s = 1.0f / (1.0f + exponential(-v));
            of_g[j] = narrow(by * wide(u[j]) * s * (1.0f + v * (1.0f - s)));
            of_u[j] = narrow(by * v * s);
        }
    }
}

/* Rotation of the first `turned` of `turned + straight` heads of 2 * half each: x, out [rows, heads, 2 * half], cos, sin [rows, half].
 * sign -1 turns back: the backward pass. */
void ss_rotate(const bf16 *x, const bf16 *cos, const bf16 *sin, bf16 *out, i64 rows, i64 turned, i64 straight, i64 half, float sign,
               i64 threads) {
    i64 width = (turned + straight) * 2 * half;
    (void)threads;
#pragma omp parallel for schedule(static) num_threads((int)threads) if (rows * width > FEW)
    for (i64 i = 0; i < rows; i++) {
        const bf16 *c = cos + i * half, *s = sin + i * half;
        for (i64 h = 0; h < turned; h++) {
            const bf16 *a = x + i * width + h * 2 * half, *b = a + half;
            bf16 *o = out + i * width + h * 2 * half, *q = o + half;
#pragma omp simd
            for (i64 j = 0; j < half; j++) {
                float by = sign * wide(s[j]);
                o[j] = narrow(rounded(wide(a[j]) * wide(c[j])) - rounded(wide(b[j]) * by));
                q[j] = narrow(rounded(wide(b[j]) * wide(c[j])) + rounded(wide(a[j]) * by));
            }
        }
        memcpy(out + i * width + turned * 2 * half, x + i * width + turned * 2 * half, (size_t)(straight * 2 * half) * sizeof(bf16));
    }
}

/* Logits [rows, vocab] become the gradient of sum_i coefficient[i] * -log softmax(logits[i])[target[i]]; loss [rows]: its terms */
void ss_cross_entropy(bf16 *logits, const i64 *target, const float *coefficient, float *loss, i64 rows, i64 vocab, i64 threads) {
    (void)threads;
#pragma omp parallel for schedule(static) num_threads((int)threads) if (rows * vocab > FEW)
    for (i64 i = 0; i < rows; i++) {
        bf16 *x = logits + i * vocab;
        float most = -1e30f, total = 0.0f, by = coefficient[i];
#pragma omp simd reduction(max : most)
        for (i64 j = 0; j < vocab; j++) most = wide(x[j]) > most ? wide(x[j]) : most;
#pragma omp simd reduction(+ : total)
        for (i64 j = 0; j < vocab; j++) total += exponential(wide(x[j]) - most);
        float lse = most + logf(total), own = wide(x[target[i]]);
        loss[i] = (lse - own) * by;
#pragma omp simd
        for (i64 j = 0; j < vocab; j++) x[j] = narrow(exponential(wide(x[j]) - lse) * by);
        x[target[i]] = narrow((exponential(own - lse) - 1.0f) * by);
    }
}

/* Of logits [rows, vocab] times `cool` (one over the temperature): log softmax at the target, log of the sum, entropy; each [rows] */
void ss_logprobs(const bf16 *logits, const i64 *target, float cool, float *logprob, float *norm, float *entropy, i64 rows, i64 vocab,
                 i64 threads) {
    (void)threads;
#pragma omp parallel for schedule(static) num_threads((int)threads) if (rows * vocab > FEW)
    for (i64 i = 0; i < rows; i++) {
        const bf16 *x = logits + i * vocab;
        float most = -1e30f, total = 0.0f, mean = 0.0f;
#pragma omp simd reduction(max : most)
        for (i64 j = 0; j < vocab; j++) most = wide(x[j]) > most ? wide(x[j]) : most;
        most *= cool;
#pragma omp simd reduction(+ : total, mean)
        for (i64 j = 0; j < vocab; j++) {
            float v = wide(x[j]) * cool, p = exponential(v - most);
            total += p;
            mean += p * (v - most);
        }
        norm[i] = most + logf(total);
        logprob[i] = wide(x[target[i]]) * cool - norm[i];
        entropy[i] = logf(total) - mean / total;
    }
}

/* Logits [rows, vocab] become the gradient of sum_i scale[i] * logprob[i] / cool, by the logits; norm as `ss_logprobs` left it */
void ss_logprobs_backward(bf16 *logits, const i64 *target, float cool, const float *norm, const float *scale, i64 rows, i64 vocab,
                          i64 threads) {
    (void)threads;
#pragma omp parallel for schedule(static) num_threads((int)threads) if (rows * vocab > FEW)
    for (i64 i = 0; i < rows; i++) {
        bf16 *x = logits + i * vocab;
        float by = scale[i], own = wide(x[target[i]]) * cool;
#pragma omp simd
        for (i64 j = 0; j < vocab; j++) x[j] = narrow(-exponential(wide(x[j]) * cool - norm[i]) * by);
        x[target[i]] = narrow((1.0f - exponential(own - norm[i])) * by);
    }
}

/* sum [size] += x, or sum = first + x where there is a first */
void ss_add(float *sum, const bf16 *first, const bf16 *x, i64 size, i64 threads) {
    (void)threads;
    if (first) {
#pragma omp parallel for simd schedule(static) num_threads((int)threads) if (parallel : size > FEW)
        for (i64 j = 0; j < size; j++) sum[j] = wide(first[j]) + wide(x[j]);
    } else {
#pragma omp parallel for simd schedule(static) num_threads((int)threads) if (parallel : size > FEW)
        for (i64 j = 0; j < size; j++) sum[j] += wide(x[j]);
    }
}

/* Scores [b, heads, lq, lk] become the weights softmax(scale * score + bias) in place; bias [b, lq, lk] is 0 or -inf */
void ss_weights(bf16 *scores, const float *bias, i64 b, i64 heads, i64 lq, i64 lk, float scale, i64 threads) {
    (void)threads;
#pragma omp parallel for schedule(static) num_threads((int)threads) if (b * heads * lq * lk > FEW)
    for (i64 n = 0; n < b * heads * lq; n++) {
        bf16 *x = scores + n * lk;
        const float *hidden = bias + (n / (heads * lq) * lq + n % lq) * lk;
        float most = -1e30f, total = 0.0f, room[ROOM];
        i64 held = lk < ROOM ? lk : ROOM; /* exponentials that need not be computed again */
#pragma omp simd reduction(max : most)
        for (i64 j = 0; j < lk; j++) {
            float v = wide(x[j]) * scale + hidden[j];
            most = v > most ? v : most;
        }
#pragma omp simd reduction(+ : total)
        for (i64 j = 0; j < held; j++) {
            float v = wide(x[j]) * scale + hidden[j];
            total += room[j] = v < -1e30f ? 0.0f : exponential(v - most);
        }
#pragma omp simd reduction(+ : total)
        for (i64 j = held; j < lk; j++) {
            float v = wide(x[j]) * scale + hidden[j];
            total += v < -1e30f ? 0.0f : exponential(v - most);
        }
        float part = 1.0f / total;
#pragma omp simd
        for (i64 j = 0; j < held; j++) x[j] = narrow(room[j] * part);
#pragma omp simd
        for (i64 j = held; j < lk; j++) {
            float v = wide(x[j]) * scale + hidden[j];
            x[j] = narrow(v < -1e30f ? 0.0f : exponential(v - most) * part);
        }
    }
}

/* The weights' gradient [rows, lk] becomes, in place, that of the unscaled scores: (it - grad . out) * weight * scale. grad, out [rows, d] */
void ss_weights_backward(bf16 *of_weights, const bf16 *weights, const bf16 *grad, const bf16 *out, i64 rows, i64 lk, i64 d,
                         float scale, i64 threads) {
    (void)threads;
#pragma omp parallel for schedule(static) num_threads((int)threads) if (rows * lk > FEW)
    for (i64 i = 0; i < rows; i++) {
        bf16 *x = of_weights + i * lk;
        const bf16 *p = weights + i * lk;
        float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
        for (i64 j = 0; j < d; j++) dot += wide(grad[i * d + j]) * wide(out[i * d + j]);
#pragma omp simd
        for (i64 j = 0; j < lk; j++) x[j] = narrow((wide(x[j]) - dot) * wide(p[j]) * scale);
    }
}
