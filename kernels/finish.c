/* What follows the sums of a layer: bias and activation; and the pieces of a softmax.
 *
 * Invariant: bits do not depend on the machine. Exponentials are computed here in double precision from additions,
 * multiplications and divisions, which IEEE 754 rounds in one way (the compiler may not contract them), and the result
 * is rounded to float once. libm's functions differ between instruction sets.
 *
 * A softmax adds fixed-point numbers, so its sum does not depend on the order, nor on the number of ranks. */
#include "rows.h"
#include "threads.h"

#include <math.h>
#include <string.h>

#define FIXED 1099511627776.0 /* 2^40: what an exponential of 1 counts; 2^23 rows fit 63 bits */

/* e^x for x <= 0, to 1e-14 relative; 0 below -700. */
static inline double exponential(double x)
{
    if (!(x > -700.0))
        return x == x ? 0.0 : x;
    const int64_t k = (int64_t)(x * 1.4426950408889634 - 0.5); /* the nearest multiple of ln 2; x is not above 0 */
    const double r = (x - (double)k * 0.6931471803691238) - (double)k * 1.9082149292705877e-10;
    double p = 1.0 / 479001600; /* the series of e^r, |r| <= 0.35 */
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    const uint64_t bits = (uint64_t)(k + 1023) << 52;
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

/* The complementary error function for a >= 0, to 2e-11 relative: t e^(-a^2) times a polynomial in t = 2 / (2 + a) that
 * was fitted to e^(a^2) erfc(a) / t on 0.14 <= t <= 1. */
static inline double complement(double a)
{
    static const double fit[] = {
        0.5616771318041851,     0.32994251010607717,    0.1080145130651313,     0.007411710982194625,  -0.006858086779659623,
        -0.0008562351806790103, 0.0007181379051235839,  1.9727816100978404e-05, -8.948846156044969e-05, 1.5522715148463822e-05,
        8.580763130794369e-06,  -4.382484500808915e-06, -6.992004273342889e-08, 5.295507378377809e-07, -1.0187923180637885e-07};
    if (a > 12.0)
        return 0.0;
    const double t = 2.0 / (2.0 + a), s = (t - 0.14) / 0.86 * 2.0 - 1.0;
    double p = fit[14];
    for (int i = 13; i >= 0; i--)
        p = p * s + fit[i];
    return t * exponential(-a * a) * p;
}

static inline float sigmoid(double z)
{
    const double e = exponential(z < 0 ? z : -z);
    return (float)(z < 0 ? e / (1.0 + e) : 1.0 / (1.0 + e));
}

static inline float hyperbolic(double z)
{
    const double size = z < 0 ? -z : z;
    if (size < 1e-3)
        return (float)(z - z * z * z / 3.0);
    const double e = exponential(-2.0 * size), t = (1.0 - e) / (1.0 + e);
    return (float)(z < 0 ? -t : t);
}

static inline float gaussian(double z)
{
    if (isinf(z))
        return z > 0 ? (float)z : 0.0f;
    const double half = 0.5 * complement((z < 0 ? -z : z) * 0.7071067811865476);
    return (float)(z < 0 ? z * half : z - z * half);
}

static inline float activated(const spdnn_ending *e, float z)
{
    switch (e->activation) {
    case SPDNN_RELU:
        z = z > 0 ? z : z == z ? 0.0f : z;
        return z < e->limit ? z : z == z ? e->limit : z;
    case SPDNN_LEAKY:
        return z < 0 ? z * e->slope : z;
    case SPDNN_SIGMOID:
        return sigmoid(z);
    case SPDNN_TANH:
        return hyperbolic(z);
    case SPDNN_GELU:
        return gaussian(z);
    default:
        return z;
    }
}

typedef struct {
    const spdnn_ending *ending;
    float *y;
    int64_t rows, samples, next;
    uint8_t *active;
} finish_job;

static void finish_panels(void *context)
{
    finish_job *job = context;
    const spdnn_ending *e = job->ending;
    const int64_t panels = (job->samples + P - 1) / P;
    for (int64_t p; (p = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < panels;) {
        const int64_t left = job->samples - p * P;
        const int width = left < P ? (int)left : P;
        float *y = job->y + p * job->rows * P;
        uint8_t any[P] = {0};
        for (int64_t row = 0; row < job->rows; row++, y += P) {
            const float bias = e->biases == 1 ? e->bias[0] : e->biases ? e->bias[row] : 0.0f;
            for (int s = 0; s < width; s++) {
                const float sum = y[s];
                const float z = activated(e, e->on_nonzeros && sum == 0 ? sum : sum + bias) + 0.0f; /* no -0 */
                y[s] = z;
                any[s] |= z != 0;
            }
        }
        memcpy(job->active + p * P, any, (size_t)width);
    }
}

void spdnn_finish(const spdnn_ending *ending, float *y, int64_t rows, int64_t samples, uint8_t *active, int threads)
{
    finish_job job = {.ending = ending, .y = y, .rows = rows, .samples = samples, .active = active};
    spdnn_in_parallel(threads > 1 ? threads : 1, finish_panels, &job);
}

void spdnn_softmax_sums(const float *z, int64_t rows, int64_t samples, const float *highest, int64_t *sums)
{
    memset(sums, 0, (size_t)samples * sizeof *sums);
    for (int64_t row = 0; row < rows; row++, z += samples)
        for (int64_t s = 0; s < samples; s++) {
            const double e = exponential((double)z[s] - (double)highest[s]);
            sums[s] += e == e ? (int64_t)(e * FIXED + 0.5) : 0; /* NaN has no integer */
        }
}

void spdnn_softmax(float *z, int64_t rows, int64_t samples, const float *highest, const int64_t *sums)
{
    for (int64_t row = 0; row < rows; row++, z += samples)
        for (int64_t s = 0; s < samples; s++)
            z[s] = (float)(exponential((double)z[s] - (double)highest[s]) * FIXED / (double)sums[s]);
}
