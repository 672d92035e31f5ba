/* What a decode step alone needs between its matrix products, for bf16 rows: rotation into the cache, and attention over it.
 *
 * At a few rows an operation of the tensor library costs its start, some five microseconds, and a layer has thirty-five of
 * them. With norm and gate (train.c) it has five here. They round where the operations in generate/decode.py do; attention rounds scores
 * and weights as they do and the sum once where they do so for every block. No result depends on the number of threads.
 * Tables are those of generate.decode.Plan.
 */
#include "common.h"

/* The cache as a step sees it. b rows of at most t blocks of `block` tokens; table [b * t]: a block of the row's own below n, n + a
 * place among the shared (g places a shared block, the first of which is `right`), or n + m * g for none */
typedef struct {
    i64 b, n, m, g, t, block, right;
    const i64 *table;
} plan_t;

typedef struct {
    i64 heads, kv, d, threads;
    float eps, scale;
} shape_t;

/* Norms of heads and rotation of queries and keys, in qkv [b, heads + 2 kv, d] itself; keys and values to the cache's rows
 * flat [., d] numbered by write [b, 2 kv]. cos, sin [b, d], sin's first half negative, or none; norms [d] or none. */
void ss_place(bf16 *qkv, const bf16 *cos, const bf16 *sin, const bf16 *q_norm, const bf16 *k_norm, bf16 *flat, const i64 *write,
              i64 rows, const shape_t *s) {
    i64 d = s->d, half = d / 2, all = s->heads + 2 * s->kv;
    float turned[MOST];
    for (i64 i = 0; i < rows; i++) {
        bf16 *row = qkv + i * all * d;
        for (i64 h = 0; h < s->heads + s->kv; h++) {
            bf16 *x = row + h * d;
            const bf16 *w = h < s->heads ? q_norm : k_norm;
            if (w) norm_row(x, w, x, d, s->eps);
            if (!cos) continue;
            const bf16 *c = cos + i * d, *z = sin + i * d;
#pragma omp simd
            for (i64 j = 0; j < half; j++) turned[j] = rounded(wide(x[j]) * wide(c[j])) + wide(x[j + half]) * wide(z[j]);
#pragma omp simd
            for (i64 j = half; j < d; j++) turned[j] = rounded(wide(x[j]) * wide(c[j])) + wide(x[j - half]) * wide(z[j]);
#pragma omp simd
            for (i64 j = 0; j < d; j++) x[j] = narrow(turned[j]);
        }
        for (i64 h = 0; h < 2 * s->kv; h++)
            memcpy(flat + write[i * 2 * s->kv + h] * d, row + (s->heads + h) * d, (size_t)d * sizeof(bf16));
    }
}

static inline i64 block_of(i64 at, const plan_t *p) { return at < p->n ? at : p->right + (at - p->n) / p->g; }

/* One query head of one row. q, out [d]; mask [t, block]; scores [t * block] */
static inline __attribute__((always_inline)) void one_head(const bf16 *q, const bf16 *keys, const bf16 *values, const float *mask,
        bf16 *out, float *scores, const i64 *table, i64 head, i64 d, const plan_t *p, const shape_t *s) {
    float asked[MOST], sum[MOST];
    float most = -1e30f, total = 0.0f;
    i64 size = p->block, nothing = p->n + p->m * p->g;
    for (i64 j = 0; j < d; j++) asked[j] = wide(q[j]);
    for (i64 k = 0; k < p->t; k++) {
        if (table[k] == nothing) continue;
        const bf16 *x = keys + (block_of(table[k], p) * s->kv + head) * size * d;
        const float *seen = mask + k * size;
        float *v = scores + k * size;
        for (i64 j = 0; j < size; j += 4) { /* four keys at a time: their sums do not wait for one another */
            if (seen[j] < 0.0f && seen[j + 1] < 0.0f && seen[j + 2] < 0.0f && seen[j + 3] < 0.0f) {
                v[j] = v[j + 1] = v[j + 2] = v[j + 3] = -2e30f;
                continue;
            }
            const bf16 *y = x + j * d;
            float a = 0.0f, b = 0.0f, c = 0.0f, e = 0.0f;
#pragma omp simd reduction(+ : a, b, c, e)
            for (i64 i = 0; i < d; i++) {
                a += asked[i] * wide(y[i]);
                b += asked[i] * wide(y[d + i]);
                c += asked[i] * wide(y[2 * d + i]);
                e += asked[i] * wide(y[3 * d + i]);
            }
            v[j] = a, v[j + 1] = b, v[j + 2] = c, v[j + 3] = e;
            for (i64 i = j; i < j + 4; i++) {
                v[i] = seen[i] < 0.0f ? -2e30f : s->scale * rounded(v[i]);
                most = v[i] > most ? v[i] : most;
            }
        }
    }
    for (i64 k = 0; k < p->t; k++) {
        if (table[k] == nothing) continue;
        float *v = scores + k * size;
#pragma omp simd reduction(+ : total)
        for (i64 j = 0; j < size; j++) {
            v[j] = v[j] < -1e30f ? 0.0f : exponential(v[j] - most);
            total += v[j];
        }
    }
    float part = 1.0f / total;
    for (i64 i = 0; i < d; i++) sum[i] = 0.0f;
    for (i64 k = 0; k < p->t; k++) {
        if (table[k] == nothing) continue;
        const bf16 *x = values + (block_of(table[k], p) * s->kv + head) * size * d;
        const float *v = scores + k * size;
        for (i64 j = 0; j < size; j += 4) {
            float a = rounded(v[j] * part), b = rounded(v[j + 1] * part), c = rounded(v[j + 2] * part), e = rounded(v[j + 3] * part);
            if (a + b + c + e == 0.0f) continue;
            const bf16 *y = x + j * d;
#pragma omp simd
            for (i64 i = 0; i < d; i++)
                sum[i] += (a * wide(y[i]) + b * wide(y[d + i])) + (c * wide(y[2 * d + i]) + e * wide(y[3 * d + i]));
        }
    }
    for (i64 i = 0; i < d; i++) out[i] = narrow(sum[i]);
}

/* qkv [b, heads + 2 kv, d] after ss_place; keys, values [blocks, kv, block, d]; mask [b, t, block]: 0 or -inf; out [b, heads, d];
 * scratch [threads * t * block] floats */
void ss_attend(const bf16 *qkv, const bf16 *keys, const bf16 *values, const float *mask, bf16 *out, float *scratch, const plan_t *p,
               const shape_t *s) {
    i64 d = s->d, group = s->heads / s->kv, all = s->heads + 2 * s->kv, span = p->t * p->block;
#pragma omp parallel for schedule(static) num_threads((int)s->threads) if (p->b * s->kv * p->t > 96)
    for (i64 n = 0; n < p->b * s->kv; n++) {
        i64 i = n / s->kv, h = n % s->kv;
        float *mine = scratch + THREAD * span;
        for (i64 r = h * group; r < (h + 1) * group; r++) {
            const bf16 *q = qkv + (i * all + r) * d;
            bf16 *o = out + (i * s->heads + r) * d;
            if (d == 64) one_head(q, keys, values, mask + i * span, o, mine, p->table + i * p->t, h, 64, p, s);
            else if (d == 128) one_head(q, keys, values, mask + i * span, o, mine, p->table + i * p->t, h, 128, p, s);
            else one_head(q, keys, values, mask + i * span, o, mine, p->table + i * p->t, h, d, p, s);
        }
    }
}
