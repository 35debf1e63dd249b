/* What a path is: a function that does rows of a layer for one panel.  rows.c is compiled once for each instruction set. */
#ifndef SPDNN_ROWS_H
#define SPDNN_ROWS_H

#include "spdnn.h"

#define P SPDNN_PANEL

/* Rows first .. stop - 1 of w, for one panel: x is w->cols x P, y is w->rows x P, both aligned to 64 bytes.
 * x_counts, unless NULL, is 0 where a row of x is 0 throughout.  first is a multiple of SPDNN_GROUP.
 * any[s] becomes the greatest number of sample s that a finish met, if that is greater; counts[row], unless NULL,
 * grows by the nonzeros of a row. */
typedef void spdnn_rows(const spdnn_matrix *w, int64_t first, int64_t stop, const float *x, const uint32_t *x_counts,
                        float *y, const spdnn_step *step, float *any, uint32_t *counts);

/* Samples lane[0] .. lane[count - 1] of `rows` rows of a panel become the first of the rows at `to`, which has room for them:
 * it points to a row of another panel, or into it. */
typedef void spdnn_move(const float *from, const int *lane, int count, float *to, int64_t rows);

spdnn_rows spdnn_rows_plain, spdnn_rows_avx2, spdnn_rows_avx512, spdnn_rows_neon;
spdnn_move spdnn_move_plain, spdnn_move_avx2, spdnn_move_avx512, spdnn_move_neon;

#endif
