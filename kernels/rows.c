/* The inner loops: rows of a sparse matrix times one panel of samples.  CMake compiles this file once for each instruction
 * set, with SPDNN_PATH its name and the compiler's flags for it; what differs between them is the table of macros below.
 *
 * A row's sums stay in registers over all its entries, and several rows are done at once, or the processor would wait for
 * each addition: ROWS x VECTORS independent sums.  Each entry is one fused multiply-add, in the order of the entries. */
#include "rows.h"

#include <math.h>
#include <stddef.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#include <immintrin.h>
typedef __m512 vec;
#define LANES 16
#define ROWS 4
#define LOAD(p) _mm512_load_ps(p)
#define STORE(p, v) _mm512_store_ps(p, v)
#define ALL(f) _mm512_set1_ps(f)
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define GREATER(a, b) _mm512_max_ps(a, b) /* b if either is NaN */
#define LESSER(a, b) _mm512_min_ps(a, b)
#define BIASED(z, bias) _mm512_mask_add_ps(z, _mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_NEQ_UQ), z, bias)
#define POSITIVES(z) __builtin_popcount(_mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_GT_OQ))
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
typedef __m256 vec;
#define LANES 8
#define ROWS 2
#define LOAD(p) _mm256_load_ps(p)
#define STORE(p, v) _mm256_store_ps(p, v)
#define ALL(f) _mm256_set1_ps(f)
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define GREATER(a, b) _mm256_max_ps(a, b)
#define LESSER(a, b) _mm256_min_ps(a, b)
#define BIASED(z, bias) \
    _mm256_add_ps(z, _mm256_and_ps(bias, _mm256_cmp_ps(z, _mm256_setzero_ps(), _CMP_NEQ_UQ)))
#define POSITIVES(z) __builtin_popcount(_mm256_movemask_ps(_mm256_cmp_ps(z, _mm256_setzero_ps(), _CMP_GT_OQ)))
#elif defined(__aarch64__) && !defined(SPDNN_PLAIN)
#include <arm_neon.h>
typedef float32x4_t vec;
#define LANES 4
#define ROWS 2
#define LOAD(p) vld1q_f32(p)
#define STORE(p, v) vst1q_f32(p, v)
#define ALL(f) vdupq_n_f32(f)
#define FMA(a, b, c) vfmaq_f32(c, a, b)
#define GREATER(a, b) vbslq_f32(vcgtq_f32(a, b), a, b)
#define LESSER(a, b) vbslq_f32(vcltq_f32(a, b), a, b)
#define BIASED(z, bias) vbslq_f32(vceqzq_f32(z), z, vaddq_f32(z, bias))
#define POSITIVES(z) (int)vaddvq_u32(vshrq_n_u32(vcgtzq_f32(z), 31))
#else
typedef float vec;
#define LANES 1
#define ROWS 1
#define LOAD(p) (*(p))
#define STORE(p, v) (*(p) = (v))
#define ALL(f) (f)
#define FMA(a, b, c) fmaf(a, b, c)
#define GREATER(a, b) ((a) > (b) ? (a) : (b))
#define LESSER(a, b) ((a) < (b) ? (a) : (b))
#define BIASED(z, bias) ((z) != 0 ? (z) + (bias) : (z))
#define POSITIVES(z) ((z) > 0)
#endif
#define VECTORS (P / LANES)
#define UNROLLED _Pragma("GCC unroll 8") /* or the sums would not be in registers */

/* `many` rows from `row` on, many being ROWS or 1; wide and constant are known to the compiler. */
INLINE void block(const spdnn_matrix *w, int64_t row, const int many, const int wide, const int constant, const float *x,
                  float *y, const spdnn_step *step, vec *any, uint32_t *counts)
{
    vec sum[ROWS][VECTORS];
    int64_t at[ROWS], end[ROWS], together = INT64_MAX;
    UNROLLED for (int r = 0; r < many; r++) {
        at[r] = w->indptr ? w->indptr[row + r] : (row + r) * w->degree;
        end[r] = w->indptr ? w->indptr[row + r + 1] : at[r] + w->degree;
        together = end[r] - at[r] < together ? end[r] - at[r] : together;
        UNROLLED for (int v = 0; v < VECTORS; v++)
            sum[r][v] = step->accumulate ? LOAD(y + (row + r) * P + v * LANES) : ALL(0.0f);
    }
    const vec all = ALL(w->constant);
#define ENTRY(r, e)                                                                    \
    do {                                                                               \
        const float *in = x + (size_t)(wide ? w->col32[e] : w->col16[e]) * P;          \
        const vec value = constant ? all : ALL(w->values[e]);                          \
        UNROLLED for (int v = 0; v < VECTORS; v++)                                              \
            sum[r][v] = FMA(value, LOAD(in + v * LANES), sum[r][v]);                   \
    } while (0)
    for (int64_t k = 0; k < together; k++)
        UNROLLED for (int r = 0; r < many; r++)
            ENTRY(r, at[r] + k);
    UNROLLED for (int r = 0; r < many; r++) /* what a row has more than its neighbours */
        for (int64_t e = at[r] + together; e < end[r]; e++)
            ENTRY(r, e);
#undef ENTRY
    const vec bias = ALL(step->bias), cap = ALL(step->cap);
    UNROLLED for (int r = 0; r < many; r++) {
        float *out = y + (row + r) * P;
        if (step->finish) {
            int positives = 0;
            UNROLLED for (int v = 0; v < VECTORS; v++) {
                vec z = BIASED(sum[r][v], bias);
                z = LESSER(GREATER(z, ALL(0.0f)), cap);
                any[v] = GREATER(z, any[v]);
                STORE(out + v * LANES, z);
                if (counts)
                    positives += POSITIVES(z);
            }
            if (counts)
                counts[row + r] += (uint32_t)positives;
        } else {
            UNROLLED for (int v = 0; v < VECTORS; v++)
                STORE(out + v * LANES, sum[r][v]);
        }
    }
}

INLINE void all_rows(const spdnn_matrix *w, int64_t first, int64_t stop, const int wide, const int constant, const float *x,
                     float *y, const spdnn_step *step, float *any, uint32_t *counts)
{
    vec greatest[VECTORS];
    UNROLLED for (int v = 0; v < VECTORS; v++)
        greatest[v] = LOAD(any + v * LANES);
    int64_t row = first;
    for (; row + ROWS <= stop; row += ROWS)
        block(w, row, ROWS, wide, constant, x, y, step, greatest, counts);
    for (; row < stop; row++)
        block(w, row, 1, wide, constant, x, y, step, greatest, counts);
    UNROLLED for (int v = 0; v < VECTORS; v++)
        STORE(any + v * LANES, greatest[v]);
}

#define JOINED(a, b) a##b
#define NAMED(path) JOINED(spdnn_rows_, path)

void NAMED(SPDNN_PATH)(const spdnn_matrix *w, int64_t first, int64_t stop, const float *x, float *y, const spdnn_step *step,
                       float *any, uint32_t *counts)
{
    if (w->col32 && w->values)
        all_rows(w, first, stop, 1, 0, x, y, step, any, counts);
    else if (w->col32)
        all_rows(w, first, stop, 1, 1, x, y, step, any, counts);
    else if (w->values)
        all_rows(w, first, stop, 0, 0, x, y, step, any, counts);
    else
        all_rows(w, first, stop, 0, 1, x, y, step, any, counts);
}
