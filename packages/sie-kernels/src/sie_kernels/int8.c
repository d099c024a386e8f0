/* The product of the int8 format in one pass over memory, for CPUs with AVX512-VNNI.

   y = activation(x W^T + b), or x W^T + b + residual. Rows of x are rounded to 8 bits with a scale of their own, as
   sie_server.models.layers.rounding does it, and the integers are multiplied and summed in 32 bits. A thread takes a
   block of rows at a time and keeps the rounded inputs and the results of a tile in its cache, so that nothing but x, W,
   residual and y is read from or written to memory.

   W is packed as [outputs / 64][inputs / 4][64][4], zeros to the next multiple of 64 outputs. */
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")
#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define ROWS 6      /* of a tile: 24 registers hold its sums, 4 hold weights */
#define COLUMNS 64  /* of a tile */
#define BLOCK 48    /* rows that a thread takes at a time; a multiple of ROWS */
#define SMALLEST 1e-30f

enum { NONE, GELU, GELU_TANH, RELU, SILU, TANH };
enum { BF16, FP32 };

typedef struct {
    const void *x;         /* [rows, inputs] at `stride` elements, bf16 or fp32 */
    const int8_t *w;       /* packed */
    const float *scales;   /* of the outputs, padded */
    const int32_t *sums;   /* 128 times the sum of each output's weights, padded */
    const void *bias;      /* [outputs] of the same type as x, or NULL */
    const void *residual;  /* [rows, outputs] of the same type, or NULL */
    void *y;               /* [rows, outputs] of the same type */
    int64_t rows, inputs, outputs, stride;
    int32_t activation, type, threads;
} sie_linear_task;

static inline __m512 wide(__m256i bf16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16));
}

/* Round to the nearest even bf16, as torch does; not-a-number stays one. */
static inline __m256i narrow(__m512 x) {
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    sum = _mm512_mask_mov_epi32(sum, nan, _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
}

static inline __m512 load(const void *from, int64_t at, __mmask16 mask, int type) {
    if (type == BF16) return wide(_mm256_maskz_loadu_epi16(mask, (const uint16_t *)from + at));
    return _mm512_maskz_loadu_ps(mask, (const float *)from + at);
}

static inline void store(void *to, int64_t at, __mmask16 mask, int type, __m512 x) {
    if (type == BF16)
        _mm256_mask_storeu_epi16((uint16_t *)to + at, mask, narrow(x));
    else
        _mm512_mask_storeu_ps((float *)to + at, mask, x);
}

static inline __mmask16 tail(int64_t left) {
    return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
}

/* e^x within 2 units of the last place; 0 below and infinity above the range of fp32. */
static inline __m512 exponential(__m512 x) {
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

static inline __m512 sigmoid(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

static inline __m512 hyperbolic(__m512 x) {
    return _mm512_fmsub_ps(_mm512_set1_ps(2.0f), sigmoid(_mm512_add_ps(x, x)), _mm512_set1_ps(1.0f));
}

/* erf as a quotient of polynomials, within 3e-7; beyond 4 it is 1 in fp32. Not-a-number stays one. */
static inline __m512 error_function(__m512 x) {
    const __m512 limit = _mm512_set1_ps(4.0f);
    x = _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), limit), _mm512_min_ps(limit, x));
    __m512 s = _mm512_mul_ps(x, x);
    __m512 p = _mm512_set1_ps(-2.72614225801306e-10f);
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(2.77068142495902e-8f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-2.10102402082508e-6f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-5.69250639462346e-5f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-7.34990630326855e-4f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-2.95459980854025e-3f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(-1.60960333262415e-2f));
    __m512 q = _mm512_set1_ps(-1.45660718464996e-5f);
    q = _mm512_fmadd_ps(q, s, _mm512_set1_ps(-2.13374055278905e-4f));
    q = _mm512_fmadd_ps(q, s, _mm512_set1_ps(-1.68282697438203e-3f));
    q = _mm512_fmadd_ps(q, s, _mm512_set1_ps(-7.37332916720468e-3f));
    q = _mm512_fmadd_ps(q, s, _mm512_set1_ps(-1.42647390514189e-2f));
    return _mm512_div_ps(_mm512_mul_ps(x, p), q);
}

static inline __m512 activated(__m512 x, int activation) {
    switch (activation) {
    case GELU: {
        __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
        return _mm512_fmadd_ps(half, error_function(_mm512_mul_ps(x, _mm512_set1_ps(0.70710678f))), half);
    }
    case GELU_TANH: {
        __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_mul_ps(x, _mm512_set1_ps(0.044715f)));
        __m512 inner = _mm512_mul_ps(_mm512_add_ps(x, cube), _mm512_set1_ps(2 * 0.79788456f));
        return _mm512_mul_ps(x, sigmoid(inner)); /* (1 + tanh(z)) / 2 is sigmoid(2 z) */
    }
    case RELU: return _mm512_max_ps(_mm512_setzero_ps(), x); /* not-a-number stays one: the second operand is returned */
    case SILU: return _mm512_mul_ps(x, sigmoid(x));
    case TANH: return hyperbolic(x);
    default: return x;
    }
}

/* Round one row to uint8 around 128, and return its scale. */
static float round_row(const void *x, int64_t at, int64_t count, int64_t padded, int type, uint8_t *values) {
    const __m512 most = _mm512_set1_ps(INFINITY);
    __m512 top = _mm512_setzero_ps();
    __mmask16 strange = 0;
    for (int64_t k = 0; k < count; k += 16) {
        __m512 a = _mm512_abs_ps(load(x, at + k, tail(count - k), type));
        strange |= _mm512_cmp_ps_mask(a, most, _CMP_NLT_UQ); /* infinite, or not a number */
        top = _mm512_max_ps(top, a);
    }
    float scale = _mm512_reduce_max_ps(top) / 127.0f;
    scale = scale < SMALLEST ? SMALLEST : scale;
    const __m512 by = _mm512_set1_ps(1.0f / scale), zero = _mm512_set1_ps(128.5f);
    for (int64_t k = 0; k < padded; k += 16) {
        __mmask16 mask = k < count ? tail(count - k) : 0;
        __m512 shifted = _mm512_fmadd_ps(load(x, at + k, mask, type), by, zero);
        _mm_storeu_si128((__m128i *)(values + k), _mm512_cvtusepi32_epi8(_mm512_cvttps_epu32(shifted)));
    }
    return strange ? NAN : scale;
}

/* The sums of ROWS rows of `values` and the 64 outputs of a panel. */
static inline void multiply(const uint8_t *values, int64_t stride, const int8_t *panel, int64_t quads,
                            __m512i sums[ROWS][4]) {
    __m512i c[ROWS][4];
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < 4; j++) c[r][j] = _mm512_setzero_si512();
    for (int64_t k = 0; k < quads; k++, panel += 256) {
        __m512i b0 = _mm512_load_si512(panel), b1 = _mm512_load_si512(panel + 64);
        __m512i b2 = _mm512_load_si512(panel + 128), b3 = _mm512_load_si512(panel + 192);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            __m512i a = _mm512_set1_epi32(*(const int32_t *)(values + r * stride + 4 * k));
            c[r][0] = _mm512_dpbusd_epi32(c[r][0], a, b0);
            c[r][1] = _mm512_dpbusd_epi32(c[r][1], a, b1);
            c[r][2] = _mm512_dpbusd_epi32(c[r][2], a, b2);
            c[r][3] = _mm512_dpbusd_epi32(c[r][3], a, b3);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < 4; j++) sums[r][j] = c[r][j];
}

static inline void finish(const sie_linear_task *t, const __m512i sums[ROWS][4], const float *heights, int64_t row,
                          int64_t count, int64_t column, int type, int activation) {
    for (int j = 0; j < 4; j++) {
        int64_t n = column + 16 * j;
        if (n >= t->outputs) return;
        __mmask16 mask = tail(t->outputs - n);
        __m512 scale = _mm512_loadu_ps(t->scales + n);
        __m512i zero = _mm512_loadu_si512(t->sums + n);
        __m512 bias = t->bias ? load(t->bias, n, mask, type) : _mm512_setzero_ps();
        for (int64_t r = 0; r < count; r++) {
            __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sums[r][j], zero)), scale);
            y = _mm512_fmadd_ps(y, _mm512_set1_ps(heights[r]), bias);
            y = activated(y, activation);
            int64_t at = (row + r) * t->outputs + n;
            if (t->residual) y = _mm512_add_ps(y, load(t->residual, at, mask, type));
            store(t->y, at, mask, type, y);
        }
    }
}

/* One block of rows, for one type and activation, which the compiler takes for constants. */
static inline __attribute__((always_inline)) void block(const sie_linear_task *t, int64_t first, uint8_t *values,
                                                       int type, int activation) {
    int64_t padded = (t->inputs + 15) & ~15, quads = (t->inputs + 3) / 4;
    int64_t count = t->rows - first < BLOCK ? t->rows - first : BLOCK;
    float heights[BLOCK];
    for (int64_t r = 0; r < count; r++)
        heights[r] = round_row(t->x, (first + r) * t->stride, t->inputs, padded, type, values + r * padded);
    for (int64_t n = 0; n < t->outputs; n += COLUMNS) {
        const int8_t *panel = t->w + n * 4 * quads;
        for (int64_t r = 0; r < count; r += ROWS) {
            __m512i sums[ROWS][4];
            multiply(values + r * padded, padded, panel, quads, sums);
            finish(t, sums, heights + r, first + r, count - r < ROWS ? count - r : ROWS, n, type, activation);
        }
    }
}

#define CASE(NAME) \
    case NAME: \
        if (t->type == BF16) block(t, first, values, BF16, NAME); \
        else block(t, first, values, FP32, NAME); \
        return;

static void dispatch(const sie_linear_task *t, int64_t first, uint8_t *values) {
    switch (t->activation) {
        CASE(NONE) CASE(GELU) CASE(GELU_TANH) CASE(RELU) CASE(SILU) CASE(TANH)
    }
}

/* Return 0, or 1 if there was no memory. */
int sie_linear(const sie_linear_task *t) {
    int64_t padded = (t->inputs + 15) & ~15, blocks = (t->rows + BLOCK - 1) / BLOCK;
    int failed = 0;
#pragma omp parallel num_threads(t->threads) if (blocks > 1)
    {
        uint8_t *values = aligned_alloc(64, (size_t)(BLOCK * padded + 63) & ~(size_t)63);
        if (!values) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < blocks; i++)
            if (values) dispatch(t, i * BLOCK, values);
        free(values);
    }
    return failed;
}

/* The version of this interface. */
int sie_kernels_version(void) { return 1; }
