/* Interface of a path: functions that compute rows of a layer for one panel, for one instruction
 * set. rows.c is compiled once for each instruction set. */
#ifndef SPDNN_ROWS_H
#define SPDNN_ROWS_H

#include "spdnn.h"

#define P SPDNN_PANEL

/* Compute rows first to stop - 1 of w for one panel. x is w->cols x P and y is w->rows x P, both
 * aligned to 64 bytes; first is a multiple of SPDNN_GROUP. x_counts, unless NULL, is 0 for rows of x
 * that are all 0. any[s] is raised to the greatest activation of sample s that a finish computes.
 * counts[row], unless NULL, is increased by the nonzeros of the row. */
typedef void spdnn_rows(const spdnn_matrix *w, int64_t first, int64_t stop, const float *x, const uint32_t *x_counts,
                        float *y, const spdnn_step *step, float *any, uint32_t *counts);

/* Copy samples lane[0] to lane[count - 1] of `rows` rows of a panel to consecutive samples at `to`,
 * a position in a row of another panel that has at least `count` samples after it. */
typedef void spdnn_move(const float *from, const int *lane, int count, float *to, int64_t rows);

/* Write a hash of each sample of `rows` rows of a panel to hashes[0] to hashes[P - 1]. */
typedef void spdnn_hashes(const float *panel, int64_t rows, uint64_t *hashes);

spdnn_rows spdnn_rows_plain, spdnn_rows_avx2, spdnn_rows_avx512, spdnn_rows_neon;
spdnn_move spdnn_move_plain, spdnn_move_avx2, spdnn_move_avx512, spdnn_move_neon;
spdnn_hashes spdnn_hashes_plain, spdnn_hashes_avx2, spdnn_hashes_avx512, spdnn_hashes_neon;

#endif
