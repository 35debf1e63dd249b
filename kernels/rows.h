/* What a path is: a function that does rows of a layer for one panel.  rows.c is compiled once for each instruction set. */
#ifndef SPDNN_ROWS_H
#define SPDNN_ROWS_H

#include "spdnn.h"

#define P SPDNN_PANEL

/* Rows first .. stop - 1 of w, for one panel: x is w->cols x P, y is w->rows x P, both aligned to 64 bytes.
 * any[s] becomes the greatest number of sample s that a finish met, if that is greater; counts[row], unless NULL,
 * grows by the nonzeros of a row. */
typedef void spdnn_rows(const spdnn_matrix *w, int64_t first, int64_t stop, const float *x, float *y,
                        const spdnn_step *step, float *any, uint32_t *counts);

spdnn_rows spdnn_rows_plain, spdnn_rows_avx2, spdnn_rows_avx512, spdnn_rows_neon;

#endif
