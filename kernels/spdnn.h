/* Sparse DNN layers: Y = clip(W X + bias on nonzeros, 0, cap) in float32.
 *
 * W is a block of rows; X and Y are dense, a row a neuron, a column a sample.  A row's sum is taken in the order of its
 * entries, one fused multiply-add an entry, beginning with 0 or with what Y holds: so every path of every machine, every
 * number of threads, and a sum that is interrupted and continued give the same bits.
 *
 * Panel form: samples in panels of SPDNN_PANEL.  Sample s of row r of n rows is number
 *     (s / SPDNN_PANEL * n + r) * SPDNN_PANEL + s % SPDNN_PANEL;
 * what fills the last panel is 0.  Memory in panel form begins at a multiple of 64 bytes.
 *
 * Functions return 0, or -1 if memory ran out.  threads: at most so many do the work, at least 1.
 */
#ifndef SPDNN_H
#define SPDNN_H

#include <stdint.h>

#define SPDNN_PANEL 32
#define SPDNN_GROUP 4

/* A block of rows.  Exactly one of col16, col32 is not NULL; values is NULL if all are `constant`; indptr (rows + 1)
 * is NULL if every row has `degree` entries. */
typedef struct {
    int64_t rows, cols, degree;
    const int64_t *indptr;
    const uint16_t *col16;
    const uint32_t *col32;
    const float *values;
    float constant;
    const uint8_t *shared; /* NULL, or a number for each whole SPDNN_GROUP rows: 1 if all have the same columns in the same
                            * order, 2 if these are the columns of the group before as well, else 0 */
} spdnn_matrix;

/* What `shared` of w is, rows / SPDNN_GROUP numbers; how many are not 0. */
int64_t spdnn_find_shared(const spdnn_matrix *w, uint8_t *shared);

/* y = w x, or y += w x if accumulate; then if finish: y = min(max(y + bias where y != 0, 0), cap). */
typedef struct {
    int accumulate, finish;
    float bias, cap;
} spdnn_step;

/* One step in panel form.  x: w->cols rows, y: w->rows rows.  After a finish alive[s] is 1 for each sample that has a
 * nonzero, else 0, and counts[r] the nonzeros of row r; both may be NULL. */
int spdnn_panels(const spdnn_matrix *w, const float *x, int64_t samples, float *y, const spdnn_step *step, uint8_t *alive,
                 uint32_t *counts, int threads);

/* The same in C order: x is w->cols x samples, y is w->rows x samples. */
int spdnn_layer(const spdnn_matrix *w, const float *x, int64_t samples, float *y, const spdnn_step *step, uint8_t *alive,
                uint32_t *counts, int threads);

/* All layers of a network.  A panel stays in cache over the layers, and the samples that live on are moved together as
 * others die.  x in C order, layers[0].cols x samples.  How many samples lived to the end, or -1; they are in y, panel form,
 * in no order: its sample i is number ids[i] of x.  y and ids have room for all; y's last panel is filled with anything. */
int64_t spdnn_forward(const spdnn_matrix *layers, int64_t count, const float *x, int64_t samples, float *y, int64_t *ids,
                      float bias, float cap, int threads);

/* C order to panel form and back; rows[i], unless rows is NULL, is the row of the panels that row i of x is. */
void spdnn_to_panels(const float *x, int64_t count, int64_t samples, const int64_t *rows, float *panels, int64_t n);
void spdnn_from_panels(const float *panels, int64_t n, int64_t samples, const int64_t *rows, float *x, int64_t count);

/* Samples which[0] .. which[samples - 1] of n rows in panel form, to C order. */
void spdnn_gather(const float *panels, int64_t n, const int64_t *which, int64_t samples, float *x);

/* Samples keep[0] < keep[1] < ... of n rows in panel form, in place. */
void spdnn_keep(float *panels, int64_t n, const int64_t *keep, int64_t kept);

/* The path in use: "avx512", "avx2", "neon" or "plain"; NULL if the one that SMPI_KERNEL names is not there. */
const char *spdnn_path(void);

#endif
