/* One source for every path: `panel_rows` is inlined into a function per instruction set, and the compiler
 * makes the 32 sums of a panel vector registers.  What must not be here: Python, files, threads. */
#include "spdnn.h"

#include <stdlib.h>
#include <string.h>

#define P SPDNN_PANEL
#define ALIGNMENT 64

typedef struct {
    int accumulate, finish;
    float bias, cap;
} epilogue;

/* Rows of one panel: x is cols x P, y is rows x P, both contiguous; live has P flags. */
static inline __attribute__((always_inline)) void panel_rows(const spdnn_matrix *w, const float *restrict x,
                                                             float *restrict y, epilogue e, uint8_t *restrict live)
{
    float any[P];
    for (int s = 0; s < P; s++)
        any[s] = 0;
    for (int64_t row = 0; row < w->rows; row++) {
        float sum[P];
        float *out = y + row * P;
        for (int s = 0; s < P; s++)
            sum[s] = e.accumulate ? out[s] : 0;
        for (int64_t entry = w->indptr[row]; entry < w->indptr[row + 1]; entry++) {
            const int64_t col = w->col16 ? w->col16[entry] : w->col32[entry];
            const float value = w->values ? w->values[entry] : w->constant;
            const float *in = x + col * P;
            for (int s = 0; s < P; s++)
                sum[s] += value * in[s];
        }
        if (e.finish) {
            for (int s = 0; s < P; s++) {
                float z = sum[s] != 0 ? sum[s] + e.bias : 0;
                z = z > 0 ? z : 0;
                z = z < e.cap ? z : e.cap;
                out[s] = z;
                any[s] = z > any[s] ? z : any[s];
            }
        } else {
            for (int s = 0; s < P; s++)
                out[s] = sum[s];
        }
    }
    for (int s = 0; s < P; s++)
        live[s] |= any[s] > 0;
}

typedef void (*path_function)(const spdnn_matrix *, const float *, float *, epilogue, uint8_t *);

static void path_plain(const spdnn_matrix *w, const float *x, float *y, epilogue e, uint8_t *live)
{
    panel_rows(w, x, y, e, live);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void path_avx2(const spdnn_matrix *w, const float *x, float *y, epilogue e,
                                                      uint8_t *live)
{
    panel_rows(w, x, y, e, live);
}

__attribute__((target("avx512f,avx512bw,avx512vl,prefer-vector-width=512"))) static void
path_avx512(const spdnn_matrix *w, const float *x, float *y, epilogue e, uint8_t *live)
{
    panel_rows(w, x, y, e, live);
}
#endif

typedef struct {
    const char *name;
    path_function function;
} path;

/* The best path this machine has, or the one that SMPI_KERNEL names. */
static path choose(void)
{
    const char *forced = getenv("SMPI_KERNEL");
    path paths[3];
    int count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        paths[count++] = (path){"avx512", path_avx512};
    if (__builtin_cpu_supports("avx2"))
        paths[count++] = (path){"avx2", path_avx2};
#elif defined(__aarch64__)
    paths[count++] = (path){"neon", path_plain}; /* every aarch64 has it, and the compiler uses it */
#endif
    paths[count++] = (path){"plain", path_plain};
    if (!forced || !*forced)
        return paths[0];
    for (int i = 0; i < count; i++)
        if (!strcmp(paths[i].name, forced))
            return paths[i];
    return (path){NULL, NULL};
}

const char *spdnn_path(void) { return choose().name; }

static float *panel_memory(int64_t rows)
{
    size_t bytes = (size_t)(rows > 0 ? rows : 1) * P * sizeof(float);
    void *memory = NULL;
    return posix_memalign(&memory, ALIGNMENT, bytes) ? NULL : memory;
}

/* Columns first .. first + count - 1 of x to a panel; what is missing to P columns is 0. */
static void load(const float *x, int64_t rows, int64_t samples, int64_t first, int count, float *panel)
{
    for (int64_t row = 0; row < rows; row++) {
        memcpy(panel + row * P, x + row * samples + first, (size_t)count * sizeof(float));
        for (int s = count; s < P; s++)
            panel[row * P + s] = 0;
    }
}

static void store(const float *panel, int64_t rows, int64_t samples, int64_t first, int count, float *y)
{
    for (int64_t row = 0; row < rows; row++)
        memcpy(y + row * samples + first, panel + row * P, (size_t)count * sizeof(float));
}

int spdnn_layer(const spdnn_matrix *w, const float *x, int64_t samples, float *y, int accumulate, int finish, float bias,
                float cap, uint8_t *alive)
{
    const path_function rows = choose().function;
    float *in = panel_memory(w->cols), *out = panel_memory(w->rows);
    if (!rows || !in || !out) {
        free(in);
        free(out);
        return -1;
    }
    for (int64_t first = 0; first < samples; first += P) {
        const int count = samples - first < P ? (int)(samples - first) : P;
        uint8_t live[P] = {0};
        load(x, w->cols, samples, first, count, in);
        if (accumulate)
            load(y, w->rows, samples, first, count, out);
        rows(w, in, out, (epilogue){accumulate, finish, bias, cap}, live);
        store(out, w->rows, samples, first, count, y);
        for (int s = 0; alive && s < count; s++)
            alive[first + s] |= live[s];
    }
    free(in);
    free(out);
    return 0;
}

int spdnn_forward(const spdnn_matrix *layers, int64_t count, const float *x, int64_t samples, float *y, float bias,
                  float cap)
{
    const path_function rows = choose().function;
    int64_t widest = count ? layers[0].cols : 0;
    for (int64_t layer = 0; layer < count; layer++)
        widest = layers[layer].rows > widest ? layers[layer].rows : widest;
    float *in = panel_memory(widest), *out = panel_memory(widest);
    if (!rows || !in || !out || !count) {
        free(in);
        free(out);
        return -1;
    }
    const int64_t last = layers[count - 1].rows;
    for (int64_t first = 0; first < samples; first += P) {
        const int here = samples - first < P ? (int)(samples - first) : P;
        load(x, layers[0].cols, samples, first, here, in);
        int living = 1;
        for (int64_t layer = 0; layer < count && living; layer++) {
            uint8_t live[P] = {0};
            rows(&layers[layer], in, out, (epilogue){0, 1, bias, cap}, live);
            float *swap = in;
            in = out;
            out = swap;
            living = 0;
            for (int s = 0; s < P; s++)
                living |= live[s];
        }
        if (!living) /* every sample of the panel has died: 0 stays 0 */
            memset(in, 0, (size_t)last * P * sizeof(float));
        store(in, last, samples, first, here, y);
    }
    free(in);
    free(out);
    return 0;
}
