/* Test of the kernel against sums in the stated order, for the path that SMPI_KERNEL names. Exits
 * with 77 if this machine does not support the path. Every array is exactly as long as required, so
 * that AddressSanitizer detects the first byte beyond it. */
#include "spdnn.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define P SPDNN_PANEL
#define BIAS (-0.3f)
#define CAP 1.5f

static uint64_t state = 88172645463325252u;

static uint64_t chance(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static float number(void)
{
    static const float special[] = {0, -0.0f, 1e-40f, -1e-40f, 1e30f};
    return chance() % 8 ? (float)((double)(chance() % 2001) / 1000.0 - 1.0) : special[chance() % 5];
}

static void expect(int condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "FAILED: %s\n", what);
        exit(1);
    }
}

static void *memory(int64_t count, size_t size)
{
    void *made = NULL;
    expect(!posix_memalign(&made, 64, (size_t)(count > 0 ? count : 1) * size), "no memory for the test");
    return made;
}

static float *numbers(int64_t count)
{
    float *made = memory(count, sizeof *made);
    for (int64_t i = 0; i < count; i++)
        made[i] = chance() % 3 ? number() : 0;
    return made;
}

/* -- matrices */

typedef struct {
    spdnn_matrix m;
    int64_t *indptr;
    uint16_t *col16;
    uint32_t *col32;
    float *values;
    uint8_t *shared;
} matrix;

static int64_t shared_groups, repeated_groups, pruning; /* numbers of cases that have them */

/* Make a random matrix; degree < 0 for rows of any length. */
static matrix random_matrix(int64_t rows, int64_t cols, int64_t degree, int wide, int constant)
{
    matrix w = {.indptr = memory(rows + 1, sizeof *w.indptr)};
    w.indptr[0] = 0;
    for (int64_t r = 0; r < rows; r++)
        w.indptr[r + 1] = w.indptr[r] + (degree < 0 ? (int64_t)(chance() % 7) : degree);
    const int64_t count = w.indptr[rows];
    w.col16 = memory(count, sizeof *w.col16);
    w.col32 = memory(count, sizeof *w.col32);
    w.values = memory(count, sizeof *w.values);
    for (int64_t r = 0; r < rows; r++) {
        const int again = degree >= 0 && r && chance() % 16; /* often the previous row's columns */
        for (int64_t e = w.indptr[r]; e < w.indptr[r + 1]; e++) {
            w.col16[e] = again ? w.col16[e - degree] : (uint16_t)(chance() % (uint64_t)cols);
            w.col32[e] = w.col16[e];
            w.values[e] = constant ? 0.4375f : number();
        }
    }
    w.m = (spdnn_matrix){.rows = rows, .cols = cols, .degree = degree < 0 ? 0 : degree,
                         .indptr = degree < 0 ? w.indptr : NULL, .col16 = wide ? NULL : w.col16,
                         .col32 = wide ? w.col32 : NULL, .values = constant ? NULL : w.values, .constant = 0.4375f};
    w.shared = memory(rows / SPDNN_GROUP, 1);
    const int64_t groups = spdnn_find_shared(&w.m, w.shared);
    for (int64_t g = 0; g < rows / SPDNN_GROUP; g++)
        shared_groups += w.shared[g] != 0, repeated_groups += w.shared[g] == 2;
    w.m.shared = groups ? w.shared : NULL;
    return w;
}

static void release(matrix w) { free(w.shared), free(w.indptr), free(w.col16), free(w.col32), free(w.values); }

static float finished(float sum)
{
    float z = sum != 0 ? sum + BIAS : 0;
    z = z > 0 ? z : 0;
    return z < CAP ? z : CAP;
}

/* Compute a layer in C order; `y` has the sums that are accumulated. */
static void expected_layer(const matrix *w, const float *x, int64_t samples, float *y, int accumulate, int finish)
{
    for (int64_t r = 0; r < w->m.rows; r++)
        for (int64_t s = 0; s < samples; s++) {
            float sum = accumulate ? y[r * samples + s] : 0;
            for (int64_t e = w->indptr[r]; e < w->indptr[r + 1]; e++)
                sum = fmaf(w->values[e], x[w->col16[e] * samples + s], sum);
            y[r * samples + s] = finish ? finished(sum) : sum;
        }
}

/* Compare numbers; 0 and -0 are equal. */
static void same(const float *got, const float *wanted, int64_t count, const char *what)
{
    for (int64_t i = 0; i < count; i++)
        expect(got[i] == wanted[i], what);
}

/* -- one layer, in both forms */

static int64_t padded(int64_t samples) { return (samples + P - 1) / P * P; }

static void layer_case(int64_t rows, int64_t cols, int64_t samples, int64_t degree, int wide, int constant, int accumulate,
                       int finish, int threads)
{
    const matrix w = random_matrix(rows, cols, degree, wide, constant);
    const spdnn_step step = {accumulate, finish, BIAS, CAP};
    float *x = numbers(cols * samples), *y = numbers(rows * samples), *wanted = memory(rows * samples, sizeof *wanted);
    float *px = memory(cols * padded(samples), sizeof *px), *py = memory(rows * padded(samples), sizeof *py);
    uint8_t *active = memory(samples, 1), *active2 = memory(samples, 1);
    uint32_t *counts = memory(rows, sizeof *counts), *counts2 = memory(rows, sizeof *counts2);
    memcpy(wanted, y, (size_t)(rows * samples) * sizeof *y);
    expected_layer(&w, x, samples, wanted, accumulate, finish);

    spdnn_to_panels(x, cols, samples, NULL, px, cols);
    spdnn_to_panels(y, rows, samples, NULL, py, rows);
    expect(spdnn_panels(&w.m, px, samples, py, &step, active, counts, threads) == 0, "memory for panels");
    expect(spdnn_layer(&w.m, x, samples, y, &step, active2, counts2, threads) == 0, "memory");
    same(y, wanted, rows * samples, "a sum differs");
    memset(y, 0xff, (size_t)(rows * samples) * sizeof *y);
    spdnn_from_panels(py, rows, samples, NULL, y, rows);
    same(y, wanted, rows * samples, "a sum in panel form differs");
    for (int64_t p = samples / P * rows * P; p < padded(samples) * rows; p++)
        expect(p % P < samples % P || py[p] == 0, "unused columns of the last panel are not 0");
    for (int64_t s = 0; finish && s < samples; s++) {
        int live = 0;
        for (int64_t r = 0; r < rows; r++)
            live |= wanted[r * samples + s] > 0;
        expect(active[s] == live && active2[s] == live, "an active sample");
    }
    for (int64_t r = 0; finish && r < rows; r++) {
        uint32_t count = 0;
        for (int64_t s = 0; s < samples; s++)
            count += wanted[r * samples + s] > 0;
        expect(counts[r] == count && counts2[r] == count, "a row's nonzeros");
    }
    release(w), free(x), free(y), free(wanted), free(px), free(py), free(active), free(active2), free(counts), free(counts2);
}

/* -- panels */

static void panels_case(int64_t rows, int64_t samples)
{
    float *x = numbers(rows * samples), *panels = memory(rows * padded(samples), sizeof *panels);
    float *row = memory(samples, sizeof *row);
    int64_t *keep = memory(samples, sizeof *keep), kept = 0, one = rows - 1;
    spdnn_to_panels(x, rows, samples, NULL, panels, rows);
    spdnn_from_panels(panels, rows, samples, &one, row, 1);
    same(row, x + one * samples, samples, "a row that was taken");
    spdnn_to_panels(x, 1, samples, &one, panels, rows); /* row 0 to the last */
    for (int64_t s = 0; s < samples; s++)
        if (chance() % 2)
            keep[kept++] = s;
    spdnn_keep(panels, rows, keep, kept);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t s = 0; s < padded(kept); s++) {
            const float got = panels[(s / P * rows + r) * P + s % P];
            expect(got == (s < kept ? x[(r == one ? 0 : r) * samples + keep[s]] : 0), "a sample that was kept");
        }
    free(x), free(panels), free(row), free(keep);
}

/* -- all layers */

static void forward_case(int64_t count, int64_t samples, int threads)
{
    matrix layers[40];
    spdnn_matrix views[40];
    int64_t width = 24;
    for (int64_t l = 0; l < count; l++) {
        const int64_t rows = 20 + (int64_t)(chance() % 10);
        layers[l] = random_matrix(rows, width, l % 3 ? 5 : -1, (int)(l & 1), (int)(l >> 1 & 1));
        for (int64_t e = 0; e < layers[l].indptr[rows]; e++) /* some samples stay active for long */
            layers[l].values[e] = l >> 1 & 1 ? 0.4375f : fminf(fabsf(number()), 1) + (l % 3 ? 0 : 0.5f);
        views[l] = layers[l].m;
        width = rows;
    }
    float *x = numbers(24 * samples), *now = memory(40 * samples, sizeof *now), *next = memory(40 * samples, sizeof *next);
    for (int64_t i = 0; i < 24 * samples; i++)
        x[i] = i % samples / 16 % 3 ? fabsf(fminf(x[i], 1)) * (float)(chance() % 2) : 0;
    memcpy(now, x, (size_t)(24 * samples) * sizeof *x);
    for (int64_t l = 0; l < count; l++) {
        expected_layer(&layers[l], now, samples, next, 0, 1);
        float *swap = now;
        now = next;
        next = swap;
    }
    float *y = memory(width * padded(samples), sizeof *y);
    int64_t *ids = memory(samples, sizeof *ids), active = 0;
    const int64_t arrived = spdnn_forward(views, count, x, samples, y, ids, BIAS, CAP, threads);
    for (int64_t s = 0; s < samples; s++) {
        int64_t place = 0;
        int live = 0;
        for (int64_t r = 0; r < width; r++)
            live |= now[r * samples + s] > 0;
        while (place < arrived && ids[place] != s)
            place++;
        expect(live == (place < arrived), "which samples are active at the end");
        active += live;
        for (int64_t r = 0; live && r < width; r++)
            expect(y[(place / P * width + r) * P + place % P] == now[r * samples + s], "all layers at once");
    }
    expect(arrived == active, "how many samples are active at the end");
    pruning += count > 9 && arrived > 0 && arrived < samples;
    for (int64_t l = 0; l < count; l++)
        release(layers[l]);
    free(x), free(now), free(next), free(y), free(ids);
}

/* Endings, hashes and a softmax whose rows are divided among two calls. */
static void finish_case(int64_t rows, int64_t samples, int activation)
{
    float *x = numbers(rows * samples), *panels = memory(rows * padded(samples), sizeof *panels);
    float *bias = numbers(rows), *highest = memory(samples, sizeof *highest);
    uint8_t *active = memory(samples, 1), *same = memory(samples, 1);
    uint64_t *hashes = memory(samples, sizeof *hashes);
    int64_t *other = memory(samples, sizeof *other), *sums = memory(samples, sizeof *sums);
    int64_t *more = memory(samples, sizeof *more);
    for (int64_t i = 0; i < rows * samples; i++)
        x[i] = fmaxf(fminf(x[i], 50), -50);
    for (int64_t r = 0; r < rows; r++)
        bias[r] = fmaxf(fminf(bias[r], 1), -1);
    spdnn_to_panels(x, rows, samples, NULL, panels, rows);
    const spdnn_ending ending = {activation, 0, 3.0f, 0.125f, bias, rows};
    spdnn_finish(&ending, panels, rows, samples, active, 2);
    spdnn_hash(panels, rows, samples, hashes);
    for (int64_t s = 0; s < samples; s++)
        other[s] = s / 2;
    spdnn_same(panels, rows, samples, other, same);
    spdnn_from_panels(panels, rows, samples, NULL, x, rows);
    for (int64_t s = 0; s < samples; s++) {
        int live = 0, equal = 1;
        highest[s] = -INFINITY;
        for (int64_t r = 0; r < rows; r++) {
            live |= x[r * samples + s] != 0;
            equal &= !memcmp(&x[r * samples + s], &x[r * samples + s / 2], sizeof *x);
            highest[s] = fmaxf(highest[s], x[r * samples + s]);
        }
        expect(active[s] == live, "which samples an ending leaves active");
        expect(same[s] == equal && (!equal || hashes[s] == hashes[s / 2]), "equal samples");
    }
    const int64_t half = rows / 2;
    spdnn_softmax_sums(x, half, samples, highest, sums);
    spdnn_softmax_sums(x + half * samples, rows - half, samples, highest, more);
    for (int64_t s = 0; s < samples; s++)
        sums[s] += more[s];
    spdnn_softmax(x, rows, samples, highest, sums);
    for (int64_t s = 0; s < samples; s++) {
        double total = 0;
        for (int64_t r = 0; r < rows; r++)
            total += (double)x[r * samples + s];
        expect(fabs(total - 1) < 1e-5, "a softmax adds up to 1");
    }
    free(x), free(panels), free(bias), free(highest), free(active), free(same), free(hashes), free(other), free(sums);
    free(more);
}

int main(void)
{
    static const int64_t sizes[] = {1, 2, 3, 31, 32, 33, 70, 129};
    if (!spdnn_path())
        return 77;
    for (int i = 0; i < 256; i++)
        layer_case(sizes[chance() % 8] - (i % 50 == 3), sizes[chance() % 8], sizes[chance() % 8] - (i % 50 == 4),
                   i % 3 ? (int64_t)(chance() % 40) : -1, i & 1, i >> 1 & 1, i >> 2 & 1, i >> 3 & 1, 1 + i % 3);
    for (int i = 0; i < 16; i++)
        panels_case(1 + (int64_t)(chance() % 9), (int64_t)(chance() % 200));
    for (int i = 0; i < 24; i++)
        forward_case(1 + (int64_t)(chance() % 40), sizes[chance() % 8] + i * 40, 1 + i % 3);
    for (int i = 0; i < 36; i++)
        finish_case(sizes[chance() % 8], sizes[chance() % 8], i % 6);
    expect(shared_groups > 100 && repeated_groups > 20 && pruning > 2, "the cases are too easy");
    printf("ok: path %s\n", spdnn_path());
    return 0;
}
