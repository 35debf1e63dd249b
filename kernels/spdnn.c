/* Which path runs, and how a layer and a network are cut into panels, rows and threads.  The arithmetic is in rows.c. */
#include "rows.h"
#include "threads.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE (2 << 20)

/* -- the path */

typedef struct {
    const char *name;
    spdnn_rows *rows;
    int here;
} path;

/* The best path this machine has, or the one that SMPI_KERNEL names. */
static path choose(void)
{
    const path paths[] = {
#if defined(__x86_64__)
        {"avx512", spdnn_rows_avx512, __builtin_cpu_supports("avx512f") != 0},
        {"avx2", spdnn_rows_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#elif defined(__aarch64__)
        {"neon", spdnn_rows_neon, 1}, /* every aarch64 has it */
#endif
        {"plain", spdnn_rows_plain, 1},
    };
    const char *forced = getenv("SMPI_KERNEL");
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        if (paths[i].here && (!forced || !*forced || !strcmp(paths[i].name, forced)))
            return paths[i];
    return (path){NULL, NULL, 0};
}

const char *spdnn_path(void) { return choose().name; }

/* -- panels */

static int64_t panels_of(int64_t samples) { return (samples + P - 1) / P; }

static int width(int64_t samples, int64_t panel) { return samples - panel * P < P ? (int)(samples - panel * P) : P; }

/* Memory for one panel, with large pages where the system has them: its rows are read in no order. */
static float *panel_memory(int64_t rows)
{
    const size_t bytes = (size_t)(rows > 0 ? rows : 1) * P * sizeof(float);
    const int large = bytes >= HUGE_PAGE;
    void *memory = NULL;
    if (posix_memalign(&memory, large ? HUGE_PAGE : 64, bytes))
        return NULL;
#ifdef MADV_HUGEPAGE
    if (large)
        madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return memory;
}

/* `count` numbers from `from`, then 0 up to P. */
static inline void fill(float *to, const float *from, int count)
{
    if (count == P) {
        memcpy(to, from, P * sizeof(float));
    } else {
        memcpy(to, from, (size_t)count * sizeof(float));
        memset(to + count, 0, (size_t)(P - count) * sizeof(float));
    }
}

/* Rows first .. stop - 1 of a panel, from C order and back. */
static void load(const float *x, int64_t first, int64_t stop, int64_t samples, int64_t panel, float *to)
{
    const int count = width(samples, panel);
    for (int64_t row = first; row < stop; row++)
        fill(to + row * P, x + row * samples + panel * P, count);
}

static void store(const float *from, int64_t first, int64_t stop, int64_t samples, int64_t panel, float *y)
{
    const size_t bytes = (size_t)width(samples, panel) * sizeof(float);
    for (int64_t row = first; row < stop; row++)
        memcpy(y + row * samples + panel * P, from + row * P, bytes);
}

void spdnn_to_panels(const float *x, int64_t count, int64_t samples, const int64_t *rows, float *panels, int64_t n)
{
    for (int64_t panel = 0; panel < panels_of(samples); panel++)
        for (int64_t i = 0; i < count; i++)
            fill(panels + (panel * n + (rows ? rows[i] : i)) * P, x + i * samples + panel * P, width(samples, panel));
}

void spdnn_from_panels(const float *panels, int64_t n, int64_t samples, const int64_t *rows, float *x, int64_t count)
{
    for (int64_t panel = 0; panel < panels_of(samples); panel++)
        for (int64_t i = 0; i < count; i++)
            memcpy(x + i * samples + panel * P, panels + (panel * n + (rows ? rows[i] : i)) * P,
                   (size_t)width(samples, panel) * sizeof(float));
}

void spdnn_keep(float *panels, int64_t n, const int64_t *keep, int64_t kept)
{
    for (int64_t panel = 0; panel < panels_of(kept); panel++) { /* ascending, so what is written has been read */
        const int count = width(kept, panel);
        const float *from[P];
        for (int s = 0; s < count; s++)
            from[s] = panels + keep[panel * P + s] / P * n * P + keep[panel * P + s] % P;
        for (int64_t row = 0; row < n; row++) {
            float moved[P] = {0};
            for (int s = 0; s < count; s++)
                moved[s] = from[s][row * P];
            memcpy(panels + (panel * n + row) * P, moved, sizeof moved);
        }
    }
}

/* -- one layer */

typedef struct {
    const spdnn_matrix *w;
    const float *x;
    float *y;
    int64_t samples;
    const spdnn_step *step;
    uint8_t *alive;
    uint32_t *counts;
    spdnn_rows *rows;
    int c_order;
    int64_t chunks; /* of rows; a task is a chunk of a panel */
    int64_t next;   /* task; taken by whoever is free */
    int failed;
} layer_job;

static void layer_worker(void *context)
{
    layer_job *job = context;
    const spdnn_matrix *w = job->w;
    const int64_t tasks = panels_of(job->samples) * job->chunks;
    float *in = NULL, *out = NULL;
    uint32_t *counts = job->counts ? calloc((size_t)w->rows + 1, sizeof *counts) : NULL;
    if (job->c_order) {
        in = panel_memory(w->cols);
        out = panel_memory(w->rows);
    }
    if ((job->counts && !counts) || (job->c_order && (!in || !out)))
        __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
    int64_t loaded = -1;
    while (!__atomic_load_n(&job->failed, __ATOMIC_RELAXED)) {
        const int64_t task = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (task >= tasks)
            break;
        const int64_t panel = task / job->chunks, chunk = task % job->chunks;
        const int64_t first = w->rows * chunk / job->chunks, stop = w->rows * (chunk + 1) / job->chunks;
        _Alignas(64) float any[P] = {0};
        if (job->c_order) {
            if (panel != loaded)
                load(job->x, 0, w->cols, job->samples, panel, in);
            loaded = panel;
            if (job->step->accumulate)
                load(job->y, first, stop, job->samples, panel, out);
            job->rows(w, first, stop, in, out, job->step, any, counts);
            store(out, first, stop, job->samples, panel, job->y);
        } else {
            job->rows(w, first, stop, job->x + panel * w->cols * P, job->y + panel * w->rows * P, job->step, any, counts);
        }
        for (int s = 0; job->alive && s < width(job->samples, panel); s++)
            if (any[s] > 0)
                __atomic_store_n(&job->alive[panel * P + s], 1, __ATOMIC_RELAXED);
    }
    for (int64_t row = 0; counts && row < w->rows; row++)
        __atomic_fetch_add(&job->counts[row], counts[row], __ATOMIC_RELAXED);
    free(in);
    free(out);
    free(counts);
}

static int one_layer(layer_job job, int threads)
{
    const int64_t panels = panels_of(job.samples);
    job.rows = choose().rows;
    if (!job.rows)
        return -1;
    threads = threads > 1 ? threads : 1;
    if (job.alive)
        memset(job.alive, 0, (size_t)job.samples);
    if (job.counts)
        memset(job.counts, 0, (size_t)job.w->rows * sizeof *job.counts);
    job.chunks = panels % threads ? threads : 1; /* so that all threads end together */
    spdnn_in_parallel(threads, layer_worker, &job);
    return job.failed ? -1 : 0;
}

int spdnn_panels(const spdnn_matrix *w, const float *x, int64_t samples, float *y, const spdnn_step *step, uint8_t *alive,
                 uint32_t *counts, int threads)
{
    return one_layer((layer_job){.w = w, .x = x, .y = y, .samples = samples, .step = step, .alive = alive, .counts = counts},
                     threads);
}

int spdnn_layer(const spdnn_matrix *w, const float *x, int64_t samples, float *y, const spdnn_step *step, uint8_t *alive,
                uint32_t *counts, int threads)
{
    return one_layer((layer_job){.w = w, .x = x, .y = y, .samples = samples, .step = step, .alive = alive,
                                 .counts = counts, .c_order = 1},
                     threads);
}

/* -- all layers */

/* Moving the living samples of a panel to another one costs about as much as so many dead samples in one layer. */
#define MOVE_COST 8

/* Samples on their way, before `layer`. */
typedef struct {
    float *x;
    int64_t id[P], layer;
    int count;
} batch;

typedef struct {
    const spdnn_matrix *layers;
    int64_t count, samples, widest;
    const float *x;
    float *y;
    int64_t *ids, arrived; /* samples that lived to the end, and how many they are */
    spdnn_step step;
    spdnn_rows *rows;
    int64_t next; /* panel of the input */
    int failed;
} forward_job;

/* What a thread has: the batch under way, a panel to write to, and batches that wait for more samples before they go on,
 * at most one a layer, by ascending layer. */
enum { WAITING = 12 };
typedef struct {
    forward_job *job;
    batch now;
    float *spare;
    batch waiting[WAITING];
    int waiters;
} forward_worker;

/* Samples lane[0] .. lane[many - 1] of `from` to the end of `to`. */
static void append(const batch *from, const int *lane, int many, batch *to, int64_t rows)
{
    for (int64_t row = 0; row < rows; row++)
        for (int i = 0; i < many; i++)
            to->x[row * P + to->count + i] = from->x[row * P + lane[i]];
    for (int i = 0; i < many; i++)
        to->id[to->count + i] = from->id[lane[i]];
    to->count += many;
}

/* Put the living samples of `now` with those that wait for the same layer.  If they make a full panel, that is `now`, and the
 * rest waits; else `now` is empty.  Nothing changes, and the answer is 0, if nobody waits there and `now` may not be the
 * first, or there is no place or no memory to wait in. */
static int wait_for_more(forward_worker *my, int may_be_first, const int *lane, int living)
{
    int place = 0;
    while (place < my->waiters && my->waiting[place].layer < my->now.layer)
        place++;
    batch *there = &my->waiting[place];
    const int64_t rows = my->job->layers[my->now.layer].cols;
    if (place == my->waiters || there->layer != my->now.layer) {
        float *memory = may_be_first && my->waiters < WAITING ? panel_memory(my->job->widest) : NULL;
        if (!memory)
            return 0;
        memmove(there + 1, there, (size_t)(my->waiters++ - place) * sizeof *there);
        *there = (batch){.x = memory, .layer = my->now.layer};
    }
    const int taken = living < P - there->count ? living : P - there->count;
    append(&my->now, lane, taken, there, rows);
    if (there->count < P) {
        my->now.count = 0;
        return 1;
    }
    batch rest = {.x = my->spare, .layer = my->now.layer};
    append(&my->now, lane + taken, living - taken, &rest, rows);
    my->spare = my->now.x;
    my->now = *there;
    *there = rest;
    return 1;
}

/* Samples that lived to the end go to the next free places of y. */
static void arrive(forward_job *job, const batch *now, const int *lane, int living, int64_t rows)
{
    const int64_t place = __atomic_fetch_add(&job->arrived, living, __ATOMIC_RELAXED);
    for (int i = 0; i < living; i++) {
        const int64_t s = place + i;
        float *to = job->y + s / P * rows * P + s % P;
        job->ids[s] = now->id[lane[i]];
        for (int64_t row = 0; row < rows; row++)
            to[row * P] = now->x[row * P + lane[i]];
    }
}

/* `now` through the layers, until its samples are at the end, dead, or waiting. */
static void advance(forward_worker *my, int may_be_first)
{
    forward_job *job = my->job;
    int wasted = 0;
    while (my->now.count) {
        const int64_t rows = job->layers[my->now.layer].rows;
        _Alignas(64) float any[P] = {0};
        int lane[P], living = 0;
        job->rows(&job->layers[my->now.layer], 0, rows, my->now.x, my->spare, &job->step, any, NULL);
        float *swap = my->now.x;
        my->now.x = my->spare;
        my->spare = swap;
        my->now.layer++;
        for (int s = 0; s < my->now.count; s++)
            if (any[s] > 0)
                lane[living++] = s;
        if (!living)
            my->now.count = 0;
        if (my->now.layer == job->count) {
            arrive(job, &my->now, lane, living, rows);
            my->now.count = 0;
        }
        wasted += P - living;
        if (my->now.count && wasted >= MOVE_COST && wait_for_more(my, may_be_first, lane, living))
            wasted = 0;
    }
}

static void forward_worker_run(void *context)
{
    forward_job *job = context;
    forward_worker my = {.job = job, .now.x = panel_memory(job->widest), .spare = panel_memory(job->widest)};
    if (!my.now.x || !my.spare)
        __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
    while (!__atomic_load_n(&job->failed, __ATOMIC_RELAXED)) {
        const int64_t panel = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        if (panel >= panels_of(job->samples))
            break;
        load(job->x, 0, job->layers[0].cols, job->samples, panel, my.now.x);
        my.now.layer = 0;
        my.now.count = width(job->samples, panel);
        for (int s = 0; s < my.now.count; s++)
            my.now.id[s] = panel * P + s;
        advance(&my, 1);
    }
    while (my.waiters) { /* nobody comes any more: those in the lowest layer go on, and meet the others */
        float *free_panel = my.now.x;
        my.now = my.waiting[0];
        memmove(my.waiting, my.waiting + 1, (size_t)--my.waiters * sizeof *my.waiting);
        free(free_panel);
        advance(&my, 0);
    }
    free(my.now.x);
    free(my.spare);
}

int64_t spdnn_forward(const spdnn_matrix *layers, int64_t count, const float *x, int64_t samples, float *y, int64_t *ids,
                      float bias, float cap, int threads)
{
    forward_job job = {.layers = layers, .count = count, .samples = samples, .x = x, .y = y, .ids = ids,
                       .step = {0, 1, bias, cap}, .rows = choose().rows};
    if (!job.rows || !count)
        return -1;
    job.widest = layers[0].cols;
    for (int64_t layer = 0; layer < count; layer++)
        job.widest = layers[layer].rows > job.widest ? layers[layer].rows : job.widest;
    const int64_t panels = panels_of(samples);
    spdnn_in_parallel(threads < panels ? threads : (int)panels, forward_worker_run, &job);
    return job.failed ? -1 : job.arrived;
}
