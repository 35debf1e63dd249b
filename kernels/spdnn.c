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
    spdnn_move *move;
    int here;
} path;

/* The best path this machine has, or the one that SMPI_KERNEL names. */
static path choose(void)
{
    const path paths[] = {
#if defined(__x86_64__)
        {"avx512", spdnn_rows_avx512, spdnn_move_avx512, __builtin_cpu_supports("avx512f") != 0},
        {"avx2", spdnn_rows_avx2, spdnn_move_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#elif defined(__aarch64__)
        {"neon", spdnn_rows_neon, spdnn_move_neon, 1}, /* every aarch64 has it */
#endif
        {"plain", spdnn_rows_plain, spdnn_move_plain, 1},
    };
    const char *forced = getenv("SMPI_KERNEL");
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        if (paths[i].here && (!forced || !*forced || !strcmp(paths[i].name, forced)))
            return paths[i];
    return (path){0};
}

const char *spdnn_path(void) { return choose().name; }

/* -- panels */

static int64_t panels_of(int64_t samples) { return (samples + P - 1) / P; }

static int width(int64_t samples, int64_t panel) { return samples - panel * P < P ? (int)(samples - panel * P) : P; }

/* Panels to work in, with large pages where the system has them, since rows are gathered from all over.  What is not too
 * large is kept for the next call: new memory costs more than a layer.  The first 64 bytes are the size. */
#define KEPT_BYTES (32 << 20)
#define KEPT 8
static void *kept[KEPT];

static float *panel_memory(int64_t rows)
{
    const size_t bytes = (size_t)rows * P * sizeof(float) + 64;
    for (int i = 0; i < KEPT; i++) {
        char *memory = __atomic_exchange_n(&kept[i], NULL, __ATOMIC_ACQ_REL);
        if (memory && *(size_t *)(void *)memory >= bytes)
            return (float *)(void *)(memory + 64);
        free(memory); /* too small, and will be so again */
    }
    void *memory = NULL;
    if (posix_memalign(&memory, bytes >= HUGE_PAGE ? HUGE_PAGE : 64, bytes))
        return NULL;
#ifdef MADV_HUGEPAGE
    if (bytes >= HUGE_PAGE)
        madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    *(size_t *)memory = bytes;
    return (float *)memory + 64 / sizeof(float);
}

static void let_go(float *panels)
{
    void *memory = panels ? (void *)(panels - 64 / sizeof(float)) : NULL;
    for (int i = 0; memory && *(size_t *)memory <= KEPT_BYTES && i < KEPT; i++) {
        void *none = NULL;
        if (__atomic_compare_exchange_n(&kept[i], &none, memory, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            return;
    }
    free(memory);
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

void spdnn_gather(const float *panels, int64_t n, const int64_t *which, int64_t samples, float *x)
{
    for (int64_t row = 0; row < n; row++)
        for (int64_t s = 0; s < samples; s++)
            x[row * samples + s] = panels[(which[s] / P * n + row) * P + which[s] % P];
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

int64_t spdnn_find_shared(const spdnn_matrix *w, uint8_t *shared)
{
    const size_t size = w->col16 ? sizeof *w->col16 : sizeof *w->col32;
    const char *cols = w->col16 ? (const char *)w->col16 : (const char *)w->col32;
    int64_t count = 0, before = 0;
    for (int64_t group = 0; group < w->rows / SPDNN_GROUP; group++) {
        int64_t at[SPDNN_GROUP + 1];
        for (int r = 0; r <= SPDNN_GROUP; r++) {
            const int64_t row = group * SPDNN_GROUP + r;
            at[r] = w->indptr ? w->indptr[row] : row * w->degree;
        }
        const int64_t degree = at[1] - at[0];
        int equal = 1;
        for (int r = 1; equal && r < SPDNN_GROUP; r++)
            equal = at[r + 1] - at[r] == degree &&
                    !memcmp(cols + (size_t)at[0] * size, cols + (size_t)at[r] * size, (size_t)degree * size);
        const int again = equal && group && shared[group - 1] && before == degree &&
                          !memcmp(cols + (size_t)at[0] * size, cols + (size_t)(at[0] - degree) * size, (size_t)degree * size);
        before = degree;
        shared[group] = (uint8_t)(equal + again);
        count += equal;
    }
    return count;
}

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

/* First row of a chunk; groups of rows are not cut. */
static int64_t start_of(const spdnn_matrix *w, int64_t chunk, int64_t chunks)
{
    return chunk == chunks ? w->rows : w->rows * chunk / chunks / SPDNN_GROUP * SPDNN_GROUP;
}

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
        const int64_t first = start_of(w, chunk, job->chunks), stop = start_of(w, chunk + 1, job->chunks);
        _Alignas(64) float any[P] = {0};
        if (job->c_order) {
            if (panel != loaded)
                load(job->x, 0, w->cols, job->samples, panel, in);
            loaded = panel;
            if (job->step->accumulate)
                load(job->y, first, stop, job->samples, panel, out);
            job->rows(w, first, stop, in, NULL, out, job->step, any, counts);
            store(out, first, stop, job->samples, panel, job->y);
        } else {
            job->rows(w, first, stop, job->x + panel * w->cols * P, NULL, job->y + panel * w->rows * P, job->step, any,
                      counts);
        }
        for (int s = 0; job->alive && s < width(job->samples, panel); s++)
            if (any[s] > 0)
                __atomic_store_n(&job->alive[panel * P + s], 1, __ATOMIC_RELAXED);
    }
    for (int64_t row = 0; counts && row < w->rows; row++)
        __atomic_fetch_add(&job->counts[row], counts[row], __ATOMIC_RELAXED);
    let_go(in);
    let_go(out);
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

/* A batch of at most so many panels goes through the layers together, and shares what is read of the weights: they come from
 * memory, since all layers of a network are more than a cache holds. */
enum { MOST = 4 };

/* Rows that are done for one panel after the other, so that their weights are still in cache. */
enum { CHUNK = 128 };

/* A panel's zero rows are passed over if they are one in so many of its rows. */
enum { IDLE = 8 };

/* Layers between two looks at which rows of a full panel are 0. */
enum { LOOK_EVERY = 8 };

/* Moving a living sample to another batch costs about as much as so many dead samples in one layer. */
enum { MOVE_COST = 8 };

/* Samples on their way, before `layer`: panel p of them is at x + p * stride, and used + p * stride / P tells the rows of it
 * that hold anything but 0. */
typedef struct {
    float *x;
    uint32_t *used;
    int64_t *id, layer, count;
} batch;

typedef struct {
    const spdnn_matrix *layers;
    int64_t count, samples, stride;
    int panels; /* of a batch, 1 to MOST */
    const float *x;
    float *y;
    int64_t *ids, arrived; /* samples that lived to the end, and how many they are */
    spdnn_step step;
    path how;
    int64_t next; /* panel of the input */
    int failed;
} forward_job;

/* What a thread has: the batch under way, a batch to write to, and batches that wait for more samples before they go on,
 * at most one a layer, by ascending layer; behind them, those not in use. */
enum { WAITING = 12 };
typedef struct {
    forward_job *job;
    batch now, spare;
    batch waiting[WAITING];
    int waiters;
} forward_worker;

/* Cut one piece of memory into batches; it is touched only as they come into use.  NULL if there is none. */
static float *make_batches(const forward_job *job, forward_worker *my)
{
    const int64_t x_size = job->stride * job->panels, ids = job->panels * P;
    const int64_t used_size = (x_size / P + 1) / 2 * 2; /* even: ids are aligned */
    const int64_t floats = x_size + used_size + ids * 2;
    float *memory = panel_memory((floats * (WAITING + 2) + P - 1) / P), *at = memory;
    for (int i = -2; memory && i < WAITING; i++, at += x_size) /* all the x first: they are aligned */
        *(i == -2 ? &my->now : i == -1 ? &my->spare : &my->waiting[i]) = (batch){.x = at};
    for (int i = -2; memory && i < WAITING; i++, at += used_size + ids * 2) {
        batch *made = i == -2 ? &my->now : i == -1 ? &my->spare : &my->waiting[i];
        made->id = (int64_t *)at;
        made->used = (uint32_t *)(at + ids * 2);
    }
    return memory;
}

/* Samples lane[0] .. lane[many - 1] of `from` to the end of `to`. */
static void append(const forward_job *job, const batch *from, const int *lane, int64_t many, batch *to)
{
    const int64_t rows = job->layers[from->layer].cols;
    for (int64_t done = 0; done < many;) {
        const int64_t place = to->count, start = lane[done] / P;
        int64_t here = 1; /* that come from one panel and go to one */
        while (done + here < many && place % P + here < P && lane[done + here] / P == start)
            here++;
        const float *in = from->x + start * job->stride;
        float *out = to->x + place / P * job->stride + place % P;
        const uint32_t *from_used = from->used + start * job->stride / P;
        uint32_t *used = to->used + place / P * job->stride / P;
        int within[P];
        for (int64_t i = 0; i < here; i++) {
            within[i] = lane[done + i] % P;
            to->id[place + i] = from->id[lane[done + i]];
        }
        job->how.move(in, within, (int)here, out, rows);
        for (int64_t row = 0; row < rows; row++)
            used[row] = (place % P ? used[row] : 0) | from_used[row];
        to->count += here;
        done += here;
    }
}

/* Put the living samples of `now` with those that wait for the same layer.  If they make a full batch, that is `now`, and the
 * rest waits; else `now` is empty.  Nothing changes, and the answer is 0, if nobody waits there and `now` may not be the
 * first, or there is no place to wait in. */
static int wait_for_more(forward_worker *my, int may_be_first, const int *lane, int64_t living)
{
    const int64_t full = my->job->panels * P;
    int place = 0;
    while (place < my->waiters && my->waiting[place].layer < my->now.layer)
        place++;
    batch *there = &my->waiting[place];
    if (place == my->waiters || there->layer != my->now.layer) {
        if (!may_be_first || my->waiters == WAITING)
            return 0;
        batch made = my->waiting[my->waiters];
        made.layer = my->now.layer;
        made.count = 0;
        memmove(there + 1, there, (size_t)(my->waiters++ - place) * sizeof *there);
        *there = made;
    }
    const int64_t taken = living < full - there->count ? living : full - there->count;
    append(my->job, &my->now, lane, taken, there);
    if (there->count < full) {
        my->now.count = 0;
        return 1;
    }
    my->spare.count = 0;
    my->spare.layer = my->now.layer;
    append(my->job, &my->now, lane + taken, living - taken, &my->spare);
    const batch rest = my->spare;
    my->spare = my->now;
    my->now = *there;
    *there = rest;
    return 1;
}

/* Samples that lived to the end go to the next free places of y. */
static void arrive(forward_job *job, const batch *now, const int *lane, int64_t living)
{
    const int64_t rows = job->layers[job->count - 1].rows;
    const int64_t place = __atomic_fetch_add(&job->arrived, living, __ATOMIC_RELAXED);
    for (int64_t i = 0; i < living; i++) {
        const float *from = now->x + lane[i] / P * job->stride + lane[i] % P;
        float *to = job->y + (place + i) / P * rows * P + (place + i) % P;
        job->ids[place + i] = now->id[lane[i]];
        for (int64_t row = 0; row < rows; row++)
            to[row * P] = from[row * P];
    }
}

/* `used`, or NULL if w's inputs are in use for the most part, or the rows of w have too little in common to look. */
static const uint32_t *worth_skipping(const spdnn_matrix *w, const uint32_t *used)
{
    int64_t idle = 0;
    for (int64_t col = 0; w->shared && col < w->cols; col++)
        idle += !used[col];
    return w->cols < 1 << 27 && idle * IDLE > w->cols ? used : NULL;
}

/* `now` through the layers, until its samples are at the end, dead, or waiting. */
static void advance(forward_worker *my, int may_be_first)
{
    forward_job *job = my->job;
    int64_t wasted = 0;
    while (my->now.count) {
        const spdnn_matrix *w = &job->layers[my->now.layer];
        const int64_t panels = panels_of(my->now.count);
        _Alignas(64) float any[MOST * P] = {0};
        int lane[MOST * P];
        int64_t living = 0;
        const uint32_t *skip[MOST];
        uint32_t *used[MOST]; /* of what is made; where nothing was worth skipping we look again after a while */
        for (int64_t p = 0; p < panels; p++) {
            const int64_t at = p * job->stride / P;
            skip[p] = worth_skipping(w, my->now.used + at);
            used[p] = skip[p] || my->now.layer % LOOK_EVERY == 0 ? my->spare.used + at : NULL;
            memset(my->spare.used + at, used[p] ? 0 : 1, (size_t)w->rows * sizeof *my->spare.used);
        }
        for (int64_t first = 0; first < w->rows; first += CHUNK)
            for (int64_t p = 0; p < panels; p++)
                job->how.rows(w, first, first + CHUNK < w->rows ? first + CHUNK : w->rows, my->now.x + p * job->stride,
                              skip[p], my->spare.x + p * job->stride, &job->step, any + p * P,
                              used[p]);
        const batch swap = my->now;
        my->now.x = my->spare.x;
        my->now.used = my->spare.used;
        my->spare.x = swap.x;
        my->spare.used = swap.used;
        my->now.layer++;
        for (int s = 0; s < my->now.count; s++)
            if (any[s] > 0)
                lane[living++] = s;
        if (my->now.layer == job->count)
            arrive(job, &my->now, lane, living);
        if (!living || my->now.layer == job->count)
            my->now.count = 0;
        wasted += panels * P - living;
        if (my->now.count && wasted >= MOVE_COST * panels && wait_for_more(my, may_be_first, lane, living))
            wasted = 0;
    }
}

static void forward_work(void *context)
{
    forward_job *job = context;
    forward_worker my = {.job = job};
    float *memory = make_batches(job, &my);
    const int64_t all = panels_of(job->samples), inputs = job->layers[0].cols;
    if (!memory)
        __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
    while (!__atomic_load_n(&job->failed, __ATOMIC_RELAXED)) {
        const int64_t first = __atomic_fetch_add(&job->next, job->panels, __ATOMIC_RELAXED);
        if (first >= all)
            break;
        my.now.layer = 0;
        const int64_t panels = all - first < job->panels ? all - first : job->panels;
        for (int64_t row = 0; row < inputs; row++)
            for (int64_t p = 0; p < panels; p++) {
                float *x = my.now.x + p * job->stride + row * P;
                int any = 0;
                fill(x, job->x + row * job->samples + (first + p) * P, width(job->samples, first + p));
                for (int s = 0; s < P; s++)
                    any |= x[s] != 0;
                my.now.used[p * job->stride / P + row] = (uint32_t)any;
            }
        for (int64_t s = first * P; s < job->samples && s < (first + panels) * P; s++)
            my.now.id[my.now.count++] = s;
        advance(&my, 1);
    }
    while (my.waiters) { /* nobody comes any more: those in the lowest layer go on, and meet the others */
        const batch lowest = my.waiting[0];
        memmove(my.waiting, my.waiting + 1, (size_t)--my.waiters * sizeof *my.waiting);
        my.waiting[my.waiters] = my.now;
        my.now = lowest;
        advance(&my, 0);
    }
    let_go(memory);
}

int64_t spdnn_forward(const spdnn_matrix *layers, int64_t count, const float *x, int64_t samples, float *y, int64_t *ids,
                      float bias, float cap, int threads)
{
    forward_job job = {.layers = layers, .count = count, .samples = samples, .x = x, .y = y, .ids = ids,
                       .step = {0, 1, bias, cap}, .how = choose()};
    if (!job.how.rows || !count)
        return -1;
    job.stride = layers[0].cols * P;
    for (int64_t layer = 0; layer < count; layer++)
        job.stride = layers[layer].rows * P > job.stride ? layers[layer].rows * P : job.stride;
    threads = threads > 1 ? threads : 1;
    const int64_t share = (panels_of(samples) + threads - 1) / threads;
    job.panels = share < 1 ? 1 : share < MOST ? (int)share : MOST;
    const int64_t batches = (panels_of(samples) + job.panels - 1) / job.panels;
    spdnn_in_parallel(threads < batches ? threads : (int)batches, forward_work, &job);
    return job.failed ? -1 : job.arrived;
}
