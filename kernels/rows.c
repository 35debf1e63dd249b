/* The inner loops: rows of a sparse matrix times one panel of samples.
 *
 * CMake compiles this file once for each instruction set, with SPDNN_PATH as its name and with the
 * compiler's flags for it. Only the table of macros below differs between instruction sets.
 *
 * The sums of a row stay in registers over all its entries. Several rows are computed together, so
 * that ROWS x VECTORS independent sums hide the latency of an addition. Each entry is one fused
 * multiply-add, in the order of the entries: the order is part of the interface (spdnn.h).
 *
 * To add an instruction set, add a block of macros here, its flags in CMakeLists.txt, and a row in
 * `choose` (spdnn.c). */
#include "rows.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#include <immintrin.h>
typedef __m512 vec;
#define LANES 16
#define OPAQUE(v) __asm__ volatile("" : "+v"(v))
#define STRIP 2
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
#define OPAQUE(v) __asm__ volatile("" : "+x"(v))
#define STRIP 2
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
#define OPAQUE(v) __asm__ volatile("" : "+w"(v))
#define STRIP 4
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
#define OPAQUE(v) (void)(v)
#define STRIP 8
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
#define LIST 64 /* longest row whose zero inputs are skipped */
/* Distance of prefetches, in groups: hardware prefetchers do not predict gathered rows. */
#define AHEAD 4
#if LANES > 1
#define UNROLLED _Pragma("GCC unroll 8") /* otherwise the sums are not kept in registers */
#else
#define UNROLLED /* sums are calls of fmaf: unrolled they are not faster, and compile in 13 s, not 2 */
#endif

#define PREFETCH(p) __builtin_prefetch(p)
#define for_rows(many) UNROLLED for (int r = 0; r < (many); r++)
#define for_vectors(many) UNROLLED for (int v = 0; v < (many); v++)

/* Finish `many` vectors of a row as `step` requires, and store them to `out`. */
INLINE void end_row(const vec *sum, const int many, float *out, vec *any, const spdnn_step *step, uint32_t *counts)
{
    const vec bias = ALL(step->bias), cap = ALL(step->cap);
    int positives = 0;
    if (!step->finish) {
        for_vectors(many)
            STORE(out + v * LANES, sum[v]);
        return;
    }
    for_vectors(many)
    {
        const vec z = LESSER(GREATER(BIASED(sum[v], bias), ALL(0.0f)), cap);
        any[v] = GREATER(z, any[v]);
        STORE(out + v * LANES, z);
        if (counts)
            positives += POSITIVES(z);
    }
    if (counts)
        *counts += (uint32_t)positives;
}

/* Compute `many` rows from `row` on, ROWS or 1. `wide` and `constant` are constants when inlined. */
INLINE void block(const spdnn_matrix *w, int64_t row, const int many, const int wide, const int constant, const float *x,
                  float *y, const spdnn_step *step, vec *any, uint32_t *counts)
{
    vec sum[ROWS][VECTORS];
    int64_t at[ROWS], end[ROWS], together = INT64_MAX;
    for_rows(many) {
        at[r] = w->indptr ? w->indptr[row + r] : (row + r) * w->degree;
        end[r] = w->indptr ? w->indptr[row + r + 1] : at[r] + w->degree;
        together = end[r] - at[r] < together ? end[r] - at[r] : together;
        for_vectors(VECTORS)
            sum[r][v] = step->accumulate ? LOAD(y + (row + r) * P + v * LANES) : ALL(0.0f);
    }
    const vec all = ALL(w->constant);
#define ENTRY(r, e)                                                                    \
    do {                                                                               \
        const float *in = x + (size_t)(wide ? w->col32[e] : w->col16[e]) * P;          \
        const vec value = constant ? all : ALL(w->values[e]);                          \
        for_vectors(VECTORS)                                              \
            sum[r][v] = FMA(value, LOAD(in + v * LANES), sum[r][v]);                   \
    } while (0)
    for (int64_t k = 0; k < together; k++)
        for_rows(many)
            ENTRY(r, at[r] + k);
    for_rows(many) /* entries that a row has in addition to its neighbours */
        for (int64_t e = at[r] + together; e < end[r]; e++)
            ENTRY(r, e);
#undef ENTRY
    for_rows(many)
        end_row(sum[r], VECTORS, y + (row + r) * P, any, step, counts ? counts + row + r : NULL);
}

/* Entries of a group whose inputs are not all 0: their numbers in the row, and positions in x. */
typedef struct {
    int64_t count;
    uint32_t entry[LIST], place[LIST];
} list;

INLINE void note_used(list *found, const spdnn_matrix *w, int64_t at, int64_t degree, const int wide, const uint32_t *used)
{
    int64_t count = 0;
    for (int64_t k = 0; k < degree; k++) {
        const uint32_t col = wide ? w->col32[at + k] : w->col16[at + k];
        found->entry[count] = (uint32_t)k;
        found->place[count] = col * P;
        count += used[col] != 0;
    }
    found->count = count;
}

/* Compute SPDNN_GROUP rows from `row` on that have the same columns: an input is loaded once for all
 * of them. found: the entries to compute; NULL for all. */
INLINE void group(const spdnn_matrix *w, int64_t row, const int wide, const int constant, const list *found, const float *x,
                  float *y, const spdnn_step *step, vec *any, uint32_t *counts)
{
    const int64_t at = w->indptr ? w->indptr[row] : row * w->degree;
    const int64_t degree = w->indptr ? w->indptr[row + 1] - at : w->degree;
    const int64_t count = found ? found->count : degree;
    const int64_t ahead = !w->indptr && row + (2 * AHEAD + 1) * SPDNN_GROUP <= w->rows ? AHEAD * SPDNN_GROUP * degree : 0;
    const float *values = w->values + at;
    const vec all = ALL(w->constant);
    for_rows(SPDNN_GROUP)
    {
        if (ahead) {
            PREFETCH(y + (row + 2 * SPDNN_GROUP + r) * P);
            PREFETCH(y + (row + 2 * SPDNN_GROUP + r) * P + 16);
        }
        if (!constant) {
            PREFETCH(values + ahead + r * degree);
            PREFETCH(values + ahead + r * degree + 16);
        }
    }
    PREFETCH(wide ? (const void *)(w->col32 + at + 2 * ahead) : (const void *)(w->col16 + at + 2 * ahead));
    UNROLLED for (int strip = 0; strip < VECTORS; strip += STRIP)
    {
        float *out = y + row * P + strip * LANES;
        vec sum[SPDNN_GROUP][STRIP];
        for_rows(SPDNN_GROUP) for_vectors(STRIP)
        {
            sum[r][v] = step->accumulate ? LOAD(out + r * P + v * LANES) : ALL(0.0f);
            OPAQUE(sum[r][v]); /* keeps the compiler from merging the sums of equal rows */
        }
        _Pragma("GCC unroll 4") for (int64_t i = 0; i < count; i++)
        {
            const int64_t k = found ? found->entry[i] : i;
            const size_t place = found ? found->place[i] : (size_t)(wide ? w->col32[at + k] : w->col16[at + k]) * P;
            vec column[STRIP];
            if (!strip) {
                const float *later = x + (size_t)(wide ? w->col32[at + k + ahead] : w->col16[at + k + ahead]) * P;
                PREFETCH(later);
                PREFETCH(later + 16);
            }
            for_vectors(STRIP)
                column[v] = LOAD(x + place + strip * LANES + v * LANES);
            for_rows(SPDNN_GROUP)
            {
                const vec value = constant ? all : ALL(values[r * degree + k]);
                for_vectors(STRIP)
                    sum[r][v] = FMA(value, column[v], sum[r][v]);
            }
        }
        for_rows(SPDNN_GROUP)
            end_row(sum[r], STRIP, out + r * P, any + strip, step, counts ? counts + row + r : NULL);
    }
}

INLINE void all_rows(const spdnn_matrix *w, int64_t first, int64_t stop, const int wide, const int constant, const float *x,
                     const uint32_t *x_counts, float *y, const spdnn_step *step, float *any, uint32_t *counts)
{
    vec greatest[VECTORS];
    for_vectors(VECTORS)
        greatest[v] = LOAD(any + v * LANES);
    list found;
    found.count = -1;
    int64_t row = first;
    while (row < stop) {
        const int shared = w->shared && row + SPDNN_GROUP <= stop ? w->shared[row / SPDNN_GROUP] : 0;
        if (shared) {
            const int64_t at = w->indptr ? w->indptr[row] : row * w->degree;
            const int64_t degree = w->indptr ? w->indptr[row + 1] - at : w->degree;
            if (x_counts && degree <= LIST) {
                if (shared < 2 || found.count < 0)
                    note_used(&found, w, at, degree, wide, x_counts);
                group(w, row, wide, constant, &found, x, y, step, greatest, counts);
            } else {
                group(w, row, wide, constant, NULL, x, y, step, greatest, counts);
            }
            row += SPDNN_GROUP;
        } else if (row + ROWS <= stop) {
            block(w, row, ROWS, wide, constant, x, y, step, greatest, counts);
            row += ROWS;
        } else {
            block(w, row, 1, wide, constant, x, y, step, greatest, counts);
            row++;
        }
    }
    for_vectors(VECTORS)
        STORE(any + v * LANES, greatest[v]);
}

#define JOINED(a, b) a##b
#define NAMED(what, path) JOINED(what, path)

void NAMED(spdnn_rows_, SPDNN_PATH)(const spdnn_matrix *w, int64_t first, int64_t stop, const float *x, const uint32_t *x_counts, float *y,
                       const spdnn_step *step, float *any, uint32_t *counts)
{
    if (w->col32 && w->values)
        all_rows(w, first, stop, 1, 0, x, x_counts, y, step, any, counts);
    else if (w->col32)
        all_rows(w, first, stop, 1, 1, x, x_counts, y, step, any, counts);
    else if (w->values)
        all_rows(w, first, stop, 0, 0, x, x_counts, y, step, any, counts);
    else
        all_rows(w, first, stop, 0, 1, x, x_counts, y, step, any, counts);
}

void NAMED(spdnn_move_, SPDNN_PATH)(const float *from, const int *lane, int count, float *to, int64_t rows)
{
#if defined(__AVX512F__)
    int padded[P] = {0};
    for (int i = 0; i < count; i++)
        padded[i] = lane[i];
    const __m512i low = _mm512_loadu_si512(padded), high = _mm512_loadu_si512(padded + LANES);
    const __mmask16 first = (__mmask16)(count < LANES ? (1u << count) - 1 : 0xffff);
    const __mmask16 second = (__mmask16)(count > LANES ? (1u << (count - LANES)) - 1 : 0);
    for (int64_t row = 0; row < rows; row++, from += P, to += P) {
        const vec a = LOAD(from), b = LOAD(from + LANES);
        _mm512_mask_storeu_ps(to, first, _mm512_permutex2var_ps(a, low, b));
        if (second)
            _mm512_mask_storeu_ps(to + LANES, second, _mm512_permutex2var_ps(a, high, b));
    }
#else
    for (int64_t row = 0; row < rows; row++, from += P, to += P)
        for (int i = 0; i < count; i++)
            to[i] = from[lane[i]];
#endif
}

/* Two streams of 32 bits per sample, which the compiler computes with vectors. */
void NAMED(spdnn_hashes_, SPDNN_PATH)(const float *panel, int64_t rows, uint64_t *hashes)
{
    uint32_t low[P] = {0}, high[P] = {0};
    for (int64_t row = 0; row < rows; row++, panel += P) {
        uint32_t bits[P];
        memcpy(bits, panel, sizeof bits);
        for (int s = 0; s < P; s++) {
            low[s] = (low[s] ^ bits[s]) * 0x9e3779b1u;
            high[s] = (high[s] + bits[s]) * 0x85ebca6bu;
            high[s] ^= high[s] >> 15;
        }
    }
    for (int s = 0; s < P; s++)
        hashes[s] = (uint64_t)high[s] << 32 | low[s];
}
