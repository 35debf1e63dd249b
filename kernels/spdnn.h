/* Sparse DNN layers: Y = clip(W X + bias on nonzeros, 0, cap) in float32.
 *
 * W is a block of rows in CSR; X and Y are dense, a row a neuron, a column a sample.  Samples are done in
 * panels of SPDNN_PANEL.  A row's sum is taken in the order of its entries, one product after the other,
 * without fused multiply-add, so every path of every machine gives the same bits.
 */
#ifndef SPDNN_H
#define SPDNN_H

#include <stdint.h>

#define SPDNN_PANEL 32

/* A block of rows.  Exactly one of col16, col32 is not NULL; values is NULL if all are `constant`. */
typedef struct {
    int64_t rows, cols;
    const int64_t *indptr; /* rows + 1 */
    const uint16_t *col16;
    const uint32_t *col32;
    const float *values;
    float constant;
} spdnn_matrix;

/* y = w x, or y += w x if accumulate; then if finish: y = min(max(y + bias where y != 0, 0), cap), and alive[s] = 1
 * for each sample s that has a nonzero (alive is not cleared, and may be NULL).
 * x: cols x samples, y: rows x samples, both C order.  0, or -1 if memory ran out. */
int spdnn_layer(const spdnn_matrix *w, const float *x, int64_t samples, float *y, int accumulate, int finish, float bias,
                float cap, uint8_t *alive);

/* All layers of a network, a panel of samples at a time, which stays in cache.
 * x: layers[0].cols x samples; y: layers[count - 1].rows x samples.  0, or -1 if memory ran out. */
int spdnn_forward(const spdnn_matrix *layers, int64_t count, const float *x, int64_t samples, float *y, float bias,
                  float cap);

/* The path in use: "avx512", "avx2", "neon" or "plain"; NULL if the one that SMPI_KERNEL names is not there. */
const char *spdnn_path(void);

#endif
