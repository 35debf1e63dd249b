/* The kernel against sums in the stated order, for the path that SMPI_KERNEL names; 77 if this machine lacks it. */
#include "spdnn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state = 88172645463325252u;

static uint64_t chance(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static float number(void) { return (float)((double)(chance() % 2001) / 1000.0 - 1.0); }

static void expect(int condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "FAILED: %s\n", what);
        exit(1);
    }
}

static float finished(float sum, float bias, float cap)
{
    float z = sum != 0 ? sum + bias : 0;
    z = z > 0 ? z : 0;
    return z < cap ? z : cap;
}

static void one_case(int64_t rows, int64_t cols, int64_t samples, int wide, int constant, int accumulate, int finish)
{
    int64_t *indptr = calloc((size_t)rows + 1, sizeof *indptr);
    for (int64_t r = 0; r < rows; r++)
        indptr[r + 1] = indptr[r] + (int64_t)(chance() % 7);
    const size_t count = (size_t)indptr[rows];
    uint16_t *col16 = malloc((count + 1) * sizeof *col16);
    uint32_t *col32 = malloc((count + 1) * sizeof *col32);
    float *values = malloc((count + 1) * sizeof *values);
    for (size_t e = 0; e < count; e++) {
        col16[e] = (uint16_t)(chance() % (uint64_t)cols);
        col32[e] = col16[e];
        values[e] = constant ? 0.0625f : number();
    }
    float *x = malloc((size_t)(cols * samples + 1) * sizeof *x), *y = malloc((size_t)(rows * samples + 1) * sizeof *y);
    float *old = malloc((size_t)(rows * samples + 1) * sizeof *old);
    for (int64_t i = 0; i < cols * samples; i++)
        x[i] = chance() % 3 ? number() : 0;
    for (int64_t i = 0; i < rows * samples; i++)
        old[i] = y[i] = number();
    uint8_t *alive = calloc((size_t)samples + 1, 1);
    const spdnn_matrix w = {rows, cols, indptr, wide ? NULL : col16, wide ? col32 : NULL, constant ? NULL : values, 0.0625f};
    expect(spdnn_layer(&w, x, samples, y, accumulate, finish, -0.3f, 1.5f, alive) == 0, "memory");
    for (int64_t s = 0; s < samples; s++) {
        int live = 0;
        for (int64_t r = 0; r < rows; r++) {
            float sum = accumulate ? old[r * samples + s] : 0;
            for (int64_t e = indptr[r]; e < indptr[r + 1]; e++) {
                volatile float product = values[e] * x[col16[e] * samples + s];
                sum += product;
            }
            const float expected = finish ? finished(sum, -0.3f, 1.5f) : sum;
            expect(y[r * samples + s] == expected, "a sum differs");
            live |= finish && expected > 0;
        }
        expect(alive[s] == live, "a living sample");
    }
    free(indptr), free(col16), free(col32), free(values), free(x), free(y), free(old), free(alive);
}

static void forward_case(void)
{
    enum { N = 3, S = 70 };
    const int64_t indptr[N + 1] = {0, 2, 3, 5};
    const uint16_t cols[5] = {0, 1, 2, 1, 2};
    const float values[5] = {1, -0.5f, 0.75f, 1.25f, 0.5f};
    const spdnn_matrix layers[2] = {{N, N, indptr, cols, NULL, values, 0}, {N, N, indptr, cols, NULL, values, 0}};
    float x[N * S], step[N * S], expected[N * S], y[N * S];
    for (int i = 0; i < N * S; i++)
        x[i] = i % S < 32 ? 0 : number(); /* a whole panel is dead from the start */
    expect(spdnn_layer(&layers[0], x, S, step, 0, 1, -0.1f, 2, NULL) == 0, "memory");
    expect(spdnn_layer(&layers[1], step, S, expected, 0, 1, -0.1f, 2, NULL) == 0, "memory");
    expect(spdnn_forward(layers, 2, x, S, y, -0.1f, 2) == 0, "memory");
    expect(memcmp(y, expected, sizeof y) == 0, "all layers at once differ from one by one");
}

int main(void)
{
    if (!spdnn_path())
        return 77;
    for (int i = 0; i < 64; i++) {
        static const int64_t sizes[] = {1, 2, 31, 32, 33, 70};
        one_case(sizes[chance() % 6] - (i == 3), sizes[chance() % 6], sizes[chance() % 6], i & 1, i >> 1 & 1, i >> 2 & 1,
                 i >> 3 & 1);
    }
    forward_case();
    printf("ok: path %s\n", spdnn_path());
    return 0;
}
