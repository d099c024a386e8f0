/* Bidirectional attention over packed sequences in bf16, for CPUs with AVX512-BF16.

   A sequence occupies consecutive rows. The sequences of a reranker's batch are short, so one thread takes one head of a sequence: it
   lays out keys and values for the products once, and computes scores, softmax and sums for a few queries at a time in
   its cache. Sums are in fp32; the probabilities are rounded to bf16 for the second product, as torch does it. */
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")
#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define ROWS 6

typedef struct {
    const uint16_t *q, *k, *v; /* [rows, heads, dim] at `stride` elements a row, heads next to each other */
    uint16_t *y;               /* [rows, heads * dim] */
    const int64_t *starts;     /* the first row of each sequence */
    const int64_t *slots;      /* rows of each */
    const int64_t *seen;       /* the number of rows that are attended to, at least 1: the first ones */
    int64_t count, heads, dim, longest; /* sequences; `longest` is the largest of `slots` */
    int64_t q_stride, k_stride, v_stride;
    float scale;               /* of the scores */
    int32_t threads;
} sie_attention_task;

typedef struct {
    uint32_t *keys;   /* [dim / 2][padded]: pairs of a key's values */
    uint32_t *values; /* [padded / 2][dim]: pairs of two keys' values */
    float *scores;    /* [ROWS][padded] */
    uint16_t *chances; /* [ROWS][padded] bf16 */
} room;

static inline __mmask16 tail(int64_t left) {
    return left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
}

static inline __m512 two_to(__m512 x) {
    __m512 n = _mm512_roundscale_ps(x, 8), f = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.33335581e-3f); /* Taylor coefficients of 2^f; |f| is at most 1/2 */
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.61812911e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.55041087e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.40226507e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.93147181e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* Transpose 16 keys' pairs into [dim / 2][padded]. */
static void lay_keys(const uint16_t *k, int64_t stride, int64_t count, int64_t padded, int64_t dim, uint32_t *keys) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i places = _mm512_mullo_epi32(lanes, _mm512_set1_epi32((int)(stride / 2)));
    for (int64_t j = 0; j < padded; j += 16) {
        __mmask16 mask = tail(count - j);
        for (int64_t p = 0; p < dim / 2; p++) {
            const void *from = (const uint32_t *)(k + j * stride) + p;
            __m512i pairs = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), mask, places, from, 4);
            _mm512_store_si512(keys + p * padded + j, pairs);
        }
    }
}

static void lay_values(const uint16_t *v, int64_t stride, int64_t count, int64_t padded, int64_t dim, uint32_t *values) {
    for (int64_t j = 0; j < padded; j += 2)
        for (int64_t d = 0; d < dim; d += 16) {
            __m512i a = _mm512_setzero_si512(), b = a;
            if (j < count) a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(v + j * stride + d)));
            if (j + 1 < count) b = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(v + (j + 1) * stride + d)));
            _mm512_store_si512(values + j / 2 * dim + d, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
        }
}

/* ROWS rows of `a`, given as pairs, times `width` vectors of columns of b: [steps][stride]. */
static inline __attribute__((always_inline)) void multiply(const uint32_t *const a[ROWS], int64_t steps, const uint32_t *b,
                                                          int64_t stride, int width, __m512 c[ROWS][4]) {
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < width; j++) c[r][j] = _mm512_setzero_ps();
    for (int64_t k = 0; k < steps; k++, b += stride) {
        __m512bh columns[4];
        for (int j = 0; j < width; j++) columns[j] = (__m512bh)_mm512_load_si512(b + 16 * j);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            __m512bh row = (__m512bh)_mm512_set1_epi32((int)a[r][k]);
            for (int j = 0; j < width; j++) c[r][j] = _mm512_dpbf16_ps(c[r][j], row, columns[j]);
        }
    }
}

static inline __attribute__((always_inline)) void score(const uint32_t *const q[ROWS], const room *own, int64_t at,
                                                       int64_t padded, int64_t dim, int width) {
    __m512 c[ROWS][4];
    multiply(q, dim / 2, own->keys + at, padded, width, c);
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < width; j++) _mm512_store_ps(own->scores + r * padded + at + 16 * j, c[r][j]);
}

static inline __attribute__((always_inline)) void collect(const room *own, int64_t at, int64_t padded, int64_t dim,
                                                         int width, const float *sums, uint16_t *const y[ROWS]) {
    __m512 c[ROWS][4];
    const uint32_t *p[ROWS];
    for (int r = 0; r < ROWS; r++) p[r] = (const uint32_t *)(own->chances + r * padded);
    multiply(p, padded / 2, own->values + at, dim, width, c);
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < width; j++) {
            __m512 mean = _mm512_mul_ps(c[r][j], _mm512_set1_ps(1.0f / sums[r]));
            _mm256_storeu_si256((void *)(y[r] + at + 16 * j), (__m256i)_mm512_cvtneps_pbh(mean));
        }
}

#define BY_WIDTH(CALL, LEFT) \
    switch ((LEFT) >= 64 ? 4 : (int)((LEFT) / 16)) { \
    case 4: CALL(4); break; \
    case 3: CALL(3); break; \
    case 2: CALL(2); break; \
    default: CALL(1); \
    }

/* Scores → chances of one query, not yet divided by their sum, which is returned. */
static float soften(const float *scores, uint16_t *chances, int64_t seen, int64_t padded, float scale) {
    const __m512 lowest = _mm512_set1_ps(-INFINITY), by = _mm512_set1_ps(scale);
    __m512 top = lowest, sum = _mm512_setzero_ps();
    for (int64_t j = 0; j < padded; j += 16)
        top = _mm512_mask_max_ps(top, tail(seen - j), top, _mm512_load_ps(scores + j));
    const __m512 most = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(top)), by);
    for (int64_t j = 0; j < padded; j += 16) {
        __m512 e = two_to(_mm512_fmsub_ps(_mm512_load_ps(scores + j), by, most));
        e = _mm512_maskz_mov_ps(tail(seen - j), e);
        sum = _mm512_add_ps(sum, e);
        _mm256_store_si256((void *)(chances + j), (__m256i)_mm512_cvtneps_pbh(e));
    }
    return _mm512_reduce_add_ps(sum);
}

static void head(const sie_attention_task *t, int64_t sequence, int64_t place, const room *own) {
    int64_t first = t->starts[sequence], slot = t->slots[sequence], seen = t->seen[sequence], dim = t->dim;
    int64_t padded = (seen + 15) & ~15;
    lay_keys(t->k + first * t->k_stride + place * dim, t->k_stride, seen, padded, dim, own->keys);
    lay_values(t->v + first * t->v_stride + place * dim, t->v_stride, seen, padded, dim, own->values);
    for (int64_t i = 0; i < slot; i += ROWS) {
        const uint32_t *q[ROWS];
        uint16_t *y[ROWS];
        float sums[ROWS];
        for (int64_t r = 0; r < ROWS; r++) {
            int64_t row = first + (i + r < slot ? i + r : slot - 1); /* the last one again, with the same result */
            q[r] = (const uint32_t *)(t->q + row * t->q_stride + place * dim);
            y[r] = t->y + (row * t->heads + place) * dim;
        }
#define SCORE(WIDTH) score(q, own, j, padded, dim, WIDTH)
        for (int64_t j = 0; j < padded; j += 64) BY_WIDTH(SCORE, padded - j)
        for (int64_t r = 0; r < ROWS; r++)
            sums[r] = soften(own->scores + r * padded, own->chances + r * padded, seen, padded, t->scale * 1.44269504f);
#define COLLECT(WIDTH) collect(own, d, padded, dim, WIDTH, sums, y)
        for (int64_t d = 0; d < dim; d += 64) BY_WIDTH(COLLECT, dim - d)
    }
}

static void *aligned(int64_t bytes) {
    return aligned_alloc(64, (size_t)(bytes + 63) & ~(size_t)63);
}

/* Return 0, or 1 if there was no memory. `dim` is a multiple of 16. */
int sie_attention(const sie_attention_task *t) {
    int64_t padded = (t->longest + 15) & ~15;
    int failed = 0;
#pragma omp parallel num_threads(t->threads)
    {
        room own = {aligned(padded * t->dim * 2), aligned(padded * t->dim * 2), aligned(padded * ROWS * 4),
                    aligned(padded * ROWS * 2)};
        int ready = own.keys && own.values && own.scores && own.chances;
        if (!ready) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < t->count * t->heads; i++)
            if (ready) head(t, i / t->heads, i % t->heads, &own);
        free(own.keys);
        free(own.values);
        free(own.scores);
        free(own.chances);
    }
    return failed;
}
