/* Sparse DNN layers: Y = clip(W X + bias on nonzeros, 0, cap) in float32.
 *
 * W is a block of rows in CSR. X and Y are dense: a row per neuron, a column per sample.
 *
 * Order of sums: the entries of a row in their order, one fused multiply-add per entry, from 0 or from
 * the contents of Y. So the bits do not depend on the instruction set, the number of threads or the
 * panel, nor on whether a sum is computed in one call or continued in a second one.
 *
 * Panel form: samples in panels of SPDNN_PANEL. Sample s of row r of n rows is number
 *     (s / SPDNN_PANEL * n + r) * SPDNN_PANEL + s % SPDNN_PANEL;
 * unused columns of the last panel are 0. Memory in panel form begins at a multiple of 64 bytes.
 *
 * Nothing is checked here: the caller (serverless_mpi/sparse) has checked every index and length.
 * Functions return 0, or -1 without memory. threads: the largest number to use, at least 1.
 */
#ifndef SPDNN_H
#define SPDNN_H

#include <stdint.h>

#define SPDNN_PANEL 32
#define SPDNN_GROUP 4

/* A block of rows. Exactly one of col16 and col32 is not NULL. values is NULL if all are `constant`;
 * indptr (rows + 1) is NULL if every row has `degree` entries. */
typedef struct {
    int64_t rows, cols, degree;
    const int64_t *indptr;
    const uint16_t *col16;
    const uint32_t *col32;
    const float *values;
    float constant;
    /* NULL, or a number for each complete group of SPDNN_GROUP rows: 1 if all have the same columns in
     * the same order, 2 if these are also the columns of the group before, else 0. */
    const uint8_t *shared;
} spdnn_matrix;

/* Computes `shared` of w, rows / SPDNN_GROUP numbers; returns how many are not 0. */
int64_t spdnn_find_shared(const spdnn_matrix *w, uint8_t *shared);

/* y = w x, or y += w x if accumulate; then if finish: y = min(max(y + bias where y != 0, 0), cap). */
typedef struct {
    int accumulate, finish;
    float bias, cap;
} spdnn_step;

/* One step in panel form. x: w->cols rows; y: w->rows rows. After a finish, active[s] is 1 for each
 * sample with a nonzero, else 0; counts[r] is the number of nonzeros of row r. Both may be NULL. */
int spdnn_panels(const spdnn_matrix *w, const float *x, int64_t samples, float *y,
                 const spdnn_step *step, uint8_t *active, uint32_t *counts, int threads);

/* One step in C order: x is w->cols x samples, y is w->rows x samples; the rest as in spdnn_panels. */
int spdnn_layer(const spdnn_matrix *w, const float *x, int64_t samples, float *y,
                const spdnn_step *step, uint8_t *active, uint32_t *counts, int threads);

/* All layers of a network. A panel stays in cache over the layers; inactive samples are pruned and the
 * active ones compacted on the way. x is in C order, layers[0].cols x samples. Returns the number of
 * samples that are active at the end, or -1. They are in y, in panel form and in no order: its sample i
 * is number ids[i] of x. y and ids have space for all samples; unused columns of y are not set. */
int64_t spdnn_forward(const spdnn_matrix *layers, int64_t count, const float *x, int64_t samples, float *y, int64_t *ids,
                      float bias, float cap, int threads);

/* C order to panel form and back. Row i of x is row rows[i] of the panels, or row i if rows is NULL. */
void spdnn_to_panels(const float *x, int64_t count, int64_t samples, const int64_t *rows, float *panels, int64_t n);
void spdnn_from_panels(const float *panels, int64_t n, int64_t samples, const int64_t *rows, float *x, int64_t count);

/* Copies samples which[0] .. which[samples - 1] of n rows in panel form to C order. */
void spdnn_gather(const float *panels, int64_t n, const int64_t *which, int64_t samples, float *x);

/* Keeps samples keep[0] < keep[1] < ... of n rows in panel form, in place. */
void spdnn_keep(float *panels, int64_t n, const int64_t *keep, int64_t kept);

/* What follows the sums of a layer: y = activation(z + bias), with the bias on all sums or on nonzero ones. */
enum { SPDNN_LINEAR, SPDNN_RELU, SPDNN_LEAKY, SPDNN_SIGMOID, SPDNN_TANH, SPDNN_GELU };
typedef struct {
    int activation, on_nonzeros;
    float limit, slope; /* of SPDNN_RELU: the largest value; of SPDNN_LEAKY: the factor of negative sums */
    const float *bias;
    int64_t biases; /* 0; 1, for all rows; or one for each row */
} spdnn_ending;

/* Finishes sums in panel form, in place. active[s]: whether sample s has a number that is not 0. -0 becomes 0. */
void spdnn_finish(const spdnn_ending *ending, float *y, int64_t rows, int64_t samples, uint8_t *active, int threads);

/* A softmax of each sample over rows in C order, which may be some of the rows: sums of e^(z - highest) in units of
 * 2^-40, to be added to those of the other rows; then z in place, with the highest number and the sums of all rows. */
void spdnn_softmax_sums(const float *z, int64_t rows, int64_t samples, const float *highest, int64_t *sums);
void spdnn_softmax(float *z, int64_t rows, int64_t samples, const float *highest, const int64_t *sums);

/* A hash of each sample over rows in panel form: equal samples have equal hashes. */
void spdnn_hash(const float *panels, int64_t rows, int64_t samples, uint64_t *hashes);

/* For each sample s whether it equals sample other[s], bit for bit. */
void spdnn_same(const float *panels, int64_t rows, int64_t samples, const int64_t *other, uint8_t *same);

/* The instruction set in use: "avx512", "avx2", "neon" or "plain"; NULL if the one that SMPI_KERNEL
 * names is not supported by this machine. */
const char *spdnn_path(void);

#endif
