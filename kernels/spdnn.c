/* The choice of a path, and the division of a layer or a network into panels, rows and threads. The
 * arithmetic is in rows.c.
 *
 * A layer: threads take tasks, each a chunk of rows of one panel, from a counter. A network
 * (spdnn_forward): each thread takes a batch of up to MOST panels through all layers, since the
 * weights of a network exceed the cache and a panel does not. Samples whose activations are all 0
 * are pruned on the way. When a batch has lost many of its samples, it waits for another batch at
 * the same layer, and both are merged into full panels.
 *
 * Invariant: a sample's sums do not depend on the batch or panel that it is in, so merging batches
 * does not change any bit. */
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
    spdnn_hashes *hashes;
    int here;
} path;

/* The best path that this machine supports, or the one that SMPI_KERNEL names. */
static path choose(void)
{
    const path paths[] = {
#if defined(__x86_64__)
        {"avx512", spdnn_rows_avx512, spdnn_move_avx512, spdnn_hashes_avx512, __builtin_cpu_supports("avx512f") != 0},
        {"avx2", spdnn_rows_avx2, spdnn_move_avx2, spdnn_hashes_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#elif defined(__aarch64__)
        {"neon", spdnn_rows_neon, spdnn_move_neon, spdnn_hashes_neon, 1}, /* every aarch64 has it */
#endif
        {"plain", spdnn_rows_plain, spdnn_move_plain, spdnn_hashes_plain, 1},
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

/* Memory for panels, in huge pages if the system has them, since rows are gathered from everywhere.
 * Up to KEPT blocks of at most KEPT_BYTES are kept for the next call: page faults of new memory cost
 * more than a layer. The first 64 bytes of a block hold its size. */
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
        free(memory); /* too small for this size, which will be requested again */
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

static void release(float *panels)
{
    void *memory = panels ? (void *)(panels - 64 / sizeof(float)) : NULL;
    for (int i = 0; memory && *(size_t *)memory <= KEPT_BYTES && i < KEPT; i++) {
        void *none = NULL;
        if (__atomic_compare_exchange_n(&kept[i], &none, memory, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            return;
    }
    free(memory);
}

/* Copy `count` numbers, and fill up to P with 0. */
static inline void fill(float *to, const float *from, int count)
{
    if (count == P) {
        memcpy(to, from, P * sizeof(float));
    } else {
        memcpy(to, from, (size_t)count * sizeof(float));
        memset(to + count, 0, (size_t)(P - count) * sizeof(float));
    }
}

/* Copy rows first to stop - 1 of a panel from C order, and back. */
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
    for (int64_t panel = 0; panel < panels_of(kept); panel++) { /* ascending: reads precede writes */
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

/* -- equal samples */

void spdnn_hash(const float *panels, int64_t rows, int64_t samples, uint64_t *hashes)
{
    const path how = choose();
    for (int64_t panel = 0; how.hashes && panel < panels_of(samples); panel++) {
        uint64_t each[P];
        how.hashes(panels + panel * rows * P, rows, each);
        memcpy(hashes + panel * P, each, (size_t)width(samples, panel) * sizeof *each);
    }
}

void spdnn_same(const float *panels, int64_t rows, int64_t samples, const int64_t *other, uint8_t *same)
{
    for (int64_t s = 0; s < samples; s++) {
        const float *one = panels + s / P * rows * P + s % P;
        const float *two = panels + other[s] / P * rows * P + other[s] % P;
        int equal = 1;
        for (int64_t row = 0; equal && one != two && row < rows; row++)
            equal = !memcmp(one + row * P, two + row * P, sizeof *one);
        same[s] = (uint8_t)equal;
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
    uint8_t *active;
    uint32_t *counts;
    spdnn_rows *rows;
    int c_order;
    int64_t chunks; /* of rows; a task is a chunk of a panel */
    int64_t next;   /* the next task for a thread that is free */
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
        for (int s = 0; job->active && s < width(job->samples, panel); s++)
            if (any[s] > 0)
                __atomic_store_n(&job->active[panel * P + s], 1, __ATOMIC_RELAXED);
    }
    for (int64_t row = 0; counts && row < w->rows; row++)
        __atomic_fetch_add(&job->counts[row], counts[row], __ATOMIC_RELAXED);
    release(in);
    release(out);
    free(counts);
}

static int one_layer(layer_job job, int threads)
{
    const int64_t panels = panels_of(job.samples);
    job.rows = choose().rows;
    if (!job.rows)
        return -1;
    threads = threads > 1 ? threads : 1;
    if (job.active)
        memset(job.active, 0, (size_t)job.samples);
    if (job.counts)
        memset(job.counts, 0, (size_t)job.w->rows * sizeof *job.counts);
    job.chunks = panels % threads ? threads : 1; /* so that all threads end together */
    spdnn_in_parallel(threads, layer_worker, &job);
    return job.failed ? -1 : 0;
}

int spdnn_panels(const spdnn_matrix *w, const float *x, int64_t samples, float *y, const spdnn_step *step, uint8_t *active,
                 uint32_t *counts, int threads)
{
    return one_layer((layer_job){.w = w, .x = x, .y = y, .samples = samples, .step = step, .active = active, .counts = counts},
                     threads);
}

int spdnn_layer(const spdnn_matrix *w, const float *x, int64_t samples, float *y, const spdnn_step *step, uint8_t *active,
                uint32_t *counts, int threads)
{
    return one_layer((layer_job){.w = w, .x = x, .y = y, .samples = samples, .step = step, .active = active,
                                 .counts = counts, .c_order = 1},
                     threads);
}

/* -- all layers */

/* Most panels of a batch. The panels share each read of the weights, which come from memory. */
enum { MOST = 4 };

/* Rows that are computed for all panels of a batch before the next ones, while their weights are in
 * the cache. */
enum { CHUNK = 128 };

/* Zero rows of a panel are skipped if at least one in IDLE of its rows is 0. */
enum { IDLE = 8 };

/* Period, in layers, of the check which rows of a panel are 0, if few of them were. */
enum { CHECK_EVERY = 8 };

/* Moving an active sample to another batch takes about as long as MOVE_COST pruned samples in a
 * layer. */
enum { MOVE_COST = 8 };

/* Samples before layer `layer`: their panel p is at x + p * stride, and used + p * stride / P has
 * a number for each row of it, 0 if the row is all 0. */
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
    int64_t *ids, arrived; /* samples that are active at the end, and their number */
    spdnn_step step;
    path how;
    int64_t next; /* panel of the input */
    int failed;
} forward_job;

/* State of a thread: the current batch, a batch for output, and batches that wait for more samples,
 * at most one per layer, in ascending order of layers; after these, unused batches. */
enum { WAITING = 12 };
typedef struct {
    forward_job *job;
    batch now, spare;
    batch waiting[WAITING];
    int waiters;
} forward_worker;

/* Divide one block of memory into batches; pages of unused batches are not touched. NULL without
 * memory. */
static float *make_batches(const forward_job *job, forward_worker *my)
{
    const int64_t x_size = job->stride * job->panels, ids = job->panels * P;
    const int64_t used_size = (x_size / P + 1) / 2 * 2; /* even: ids are aligned */
    const int64_t floats = x_size + used_size + ids * 2;
    float *memory = panel_memory((floats * (WAITING + 2) + P - 1) / P), *at = memory;
    for (int i = -2; memory && i < WAITING; i++, at += x_size) /* first all x, which are aligned */
        *(i == -2 ? &my->now : i == -1 ? &my->spare : &my->waiting[i]) = (batch){.x = at};
    for (int i = -2; memory && i < WAITING; i++, at += used_size + ids * 2) {
        batch *each = i == -2 ? &my->now : i == -1 ? &my->spare : &my->waiting[i];
        each->id = (int64_t *)at;
        each->used = (uint32_t *)(at + ids * 2);
    }
    return memory;
}

/* Append samples lane[0] to lane[many - 1] of `from` to `to`. */
static void append(const forward_job *job, const batch *from, const int *lane, int64_t many, batch *to)
{
    const int64_t rows = job->layers[from->layer].cols;
    for (int64_t done = 0; done < many;) {
        const int64_t place = to->count, start = lane[done] / P;
        int64_t here = 1; /* samples that come from one panel and go to one panel */
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

/* Merge the active samples of `now` with those that wait for the same layer. If they make a full
 * batch, it becomes `now` and the rest waits; otherwise `now` is empty afterwards. Return 0, and
 * change nothing, if no batch waits there and `now` may not be the first, or no batch is unused. */
static int merge_waiting(forward_worker *my, int may_be_first, const int *lane, int64_t active)
{
    const int64_t full = my->job->panels * P;
    int place = 0;
    while (place < my->waiters && my->waiting[place].layer < my->now.layer)
        place++;
    batch *there = &my->waiting[place];
    if (place == my->waiters || there->layer != my->now.layer) {
        if (!may_be_first || my->waiters == WAITING)
            return 0;
        batch unused = my->waiting[my->waiters];
        unused.layer = my->now.layer;
        unused.count = 0;
        memmove(there + 1, there, (size_t)(my->waiters++ - place) * sizeof *there);
        *there = unused;
    }
    const int64_t taken = active < full - there->count ? active : full - there->count;
    append(my->job, &my->now, lane, taken, there);
    if (there->count < full) {
        my->now.count = 0;
        return 1;
    }
    my->spare.count = 0;
    my->spare.layer = my->now.layer;
    append(my->job, &my->now, lane + taken, active - taken, &my->spare);
    const batch rest = my->spare;
    my->spare = my->now;
    my->now = *there;
    *there = rest;
    return 1;
}

/* Copy the samples that are active at the end to the next free positions of y. */
static void deliver(forward_job *job, const batch *now, const int *lane, int64_t active)
{
    const int64_t rows = job->layers[job->count - 1].rows;
    const int64_t place = __atomic_fetch_add(&job->arrived, active, __ATOMIC_RELAXED);
    for (int64_t i = 0; i < active; i++) {
        const float *from = now->x + lane[i] / P * job->stride + lane[i] % P;
        float *to = job->y + (place + i) / P * rows * P + (place + i) % P;
        job->ids[place + i] = now->id[lane[i]];
        for (int64_t row = 0; row < rows; row++)
            to[row * P] = from[row * P];
    }
}

/* Return `used`, or NULL if skipping zero inputs does not pay: too few are 0, or few rows of w share
 * their columns. */
static const uint32_t *worth_skipping(const spdnn_matrix *w, const uint32_t *used)
{
    int64_t idle = 0;
    for (int64_t col = 0; w->shared && col < w->cols; col++)
        idle += !used[col];
    return w->cols < 1 << 27 && idle * IDLE > w->cols ? used : NULL;
}

/* Run `now` through the layers until its samples have reached the end, are pruned, or wait. */
static void advance(forward_worker *my, int may_be_first)
{
    forward_job *job = my->job;
    int64_t wasted = 0;
    while (my->now.count) {
        const spdnn_matrix *w = &job->layers[my->now.layer];
        const int64_t panels = panels_of(my->now.count);
        _Alignas(64) float any[MOST * P] = {0};
        int lane[MOST * P];
        int64_t active = 0;
        const uint32_t *skip[MOST];
        uint32_t *used[MOST]; /* of the output; NULL for a panel that is not checked at this layer */
        for (int64_t p = 0; p < panels; p++) {
            const int64_t at = p * job->stride / P;
            skip[p] = worth_skipping(w, my->now.used + at);
            used[p] = skip[p] || my->now.layer % CHECK_EVERY == 0 ? my->spare.used + at : NULL;
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
                lane[active++] = s;
        if (my->now.layer == job->count)
            deliver(job, &my->now, lane, active);
        if (!active || my->now.layer == job->count)
            my->now.count = 0;
        wasted += panels * P - active;
        if (my->now.count && wasted >= MOVE_COST * panels &&
            merge_waiting(my, may_be_first, lane, active))
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
    while (my.waiters) { /* no more input: the batch at the lowest layer continues and is merged */
        const batch lowest = my.waiting[0];
        memmove(my.waiting, my.waiting + 1, (size_t)--my.waiters * sizeof *my.waiting);
        my.waiting[my.waiters] = my.now;
        my.now = lowest;
        advance(&my, 0);
    }
    release(memory);
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
