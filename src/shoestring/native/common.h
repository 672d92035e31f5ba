/* What both files use. bf16 is the upper half of a float; sizes are counts of elements. */
#pragma once
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;
typedef int64_t i64;

#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#else
#define THREAD 0
#endif
#define MOST 512 /* dimensions of a head */
#define FEW 24576 /* elements: fewer are done by one thread before a second has woken up */

static inline float wide(bf16 x) {
    union { uint32_t i; float f; } u;
    u.i = (uint32_t)x << 16;
    return u.f;
}

static inline bf16 narrow(float x) { /* to nearest, ties to even; the NaN that arithmetic makes stays one */
    union { float f; uint32_t i; } u;
    u.f = x;
    return (bf16)((u.i + 0x7fffu + ((u.i >> 16) & 1u)) >> 16);
}

static inline float rounded(float x) { return wide(narrow(x)); }

/* e^x, relative error below 1e-5 and so far below a bf16's: 2^n by the exponent's bits, the rest by a polynomial (Cephes' expf) */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = __builtin_rintf(x * 1.44269504f);
    float r = x - n * 0.693147181f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    union { float f; uint32_t i; } u;
    u.f = p * r * r + r + 1.0f;
    u.i += (uint32_t)((int32_t)n) << 23;
    return u.f;
}

static inline void scale_row(const bf16 *x, const bf16 *weight, bf16 *out, i64 size, float scale) {
#pragma omp simd
    for (i64 j = 0; j < size; j++) out[j] = narrow(rounded(wide(x[j]) * scale) * wide(weight[j]));
}

static inline float norm_row(const bf16 *x, const bf16 *weight, bf16 *out, i64 size, float eps) { /* the scale */
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (i64 j = 0; j < size; j++) sum += wide(x[j]) * wide(x[j]);
    float scale = 1.0f / __builtin_sqrtf(sum / (float)size + eps);
    scale_row(x, weight, out, size, scale);
    return scale;
}
