/* Batch normalisation, activation and mean on maps that are channels_last.
 *
 * A task is a slab of positions of one image, with all channels, small enough for the second cache.
 * What it sums up, in float32, lies beside the sums of other slabs, and these are put together in
 * their order in float64. It is worked on in pieces for the first cache, each of them by some
 * vectors of channels at a time, while the next piece is fetched.
 */
#ifndef VISGRAFT_CHANNELS_LAST_H
#define VISGRAFT_CHANNELS_LAST_H

#include "activation.h"
#include "channels.h"

#define OF_SLAB (1 << 16)  /* values */
#define OF_PIECE (1 << 12) /* values */
#define MOST_POSITIONS 128 /* of a slab, whose sums are in float32 */
#define VECTORS 4 /* of channels at a time, where there are as many */

typedef struct pass pass_t;

typedef struct {
    job_t j;
    const pass_t *pass;
    int64_t positions; /* of a slab */
    int64_t together;  /* positions of a piece */
    int64_t slabs;     /* of an image */
    int64_t row;       /* channels, a multiple of LANES */
    double *sums;      /* two rows for each slab */
    float *factors;    /* five rows: mean, scale, shift, and what is subtracted backward */
} slabs_t;

/* A pass over slabs, and what is put together from their sums behind it. */
struct pass {
    void (*over_slab)(const slabs_t *s, int64_t slab, float *rows);
    void (*behind)(const slabs_t *s);
};

/* Positions that follow each other: where their values and those of their image's shares lie. */
typedef struct {
    int64_t at, positions, shares;
} piece_t;

static piece_t slab_of(const slabs_t *s, int64_t slab) {
    int64_t image = slab / s->slabs, first = slab % s->slabs * s->positions;
    int64_t at = (image * s->j.n.area + first) * s->j.n.channels;
    return (piece_t){at, least(s->positions, s->j.n.area - first), image * s->j.n.channels};
}

static double count_of(const slabs_t *s, int64_t slab) { return (double)slab_of(s, slab).positions; }

INLINE int64_t count_slabs(const slabs_t *s) { return s->j.n.batch * s->slabs; }
INLINE double *sums_of(const slabs_t *s, int64_t slab) { return s->sums + slab * 2 * s->row; }

/* Asks for what comes a piece later. */
INLINE void fetch(const void *from, int64_t at, int v, int is_bf16) {
    if (v % 2) return; /* two vectors are in one line of the cache */
    if (is_bf16) __builtin_prefetch((const uint16_t *)from + at + OF_PIECE, 0, 2);
    else __builtin_prefetch((const float *)from + at + OF_PIECE, 0, 2);
}

/* Adds the values of a piece to a row of sums or, about given means, to two rows. */
INLINE void measure(int MANY, int about, int is_bf16, const slabs_t *s, piece_t piece,
                    int64_t channel, const float *means, float *sums, float *squares) {
    int64_t channels = s->j.n.channels, n = MANY > 1 ? LANES : channels - channel;
    vec sum[VECTORS], square[VECTORS], mean[VECTORS];
    for (int v = 0; v < MANY; v++) {
        sum[v] = load(sums + channel + v * LANES);
        square[v] = about ? load(squares + channel + v * LANES) : all(0);
        mean[v] = about ? load(means + channel + v * LANES) : all(0);
    }
    for (int64_t p = 0; p < piece.positions; p++)
        for (int v = 0; v < MANY; v++) {
            int64_t at = piece.at + p * channels + channel + v * LANES;
            fetch(s->j.x, at, v, is_bf16);
            vec x = load_channels(s->j.x, at, n, is_bf16);
            if (about) x -= mean[v];
            sum[v] += x;
            if (about) square[v] += x * x;
        }
    for (int v = 0; v < MANY; v++) {
        store(sums + channel + v * LANES, sum[v]);
        if (about) store(squares + channel + v * LANES, square[v]);
    }
}

/* Writes the activated values of a piece, and adds them to a row of sums. */
INLINE void apply_to_piece(int MANY, int activation, int is_bf16, const slabs_t *s, piece_t piece,
                           int64_t channel, float *sums) {
    int64_t channels = s->j.n.channels, n = MANY > 1 ? LANES : channels - channel;
    vec sum[VECTORS], mean[VECTORS], scale[VECTORS], shift[VECTORS];
    for (int v = 0; v < MANY; v++) {
        const float *factors = s->factors + channel + v * LANES;
        sum[v] = load(sums + channel + v * LANES);
        mean[v] = load(factors);
        scale[v] = load(factors + s->row);
        shift[v] = load(factors + 2 * s->row);
    }
    for (int64_t p = 0; p < piece.positions; p++)
        for (int v = 0; v < MANY; v++) {
            int64_t at = piece.at + p * channels + channel + v * LANES;
            fetch(s->j.x, at, v, is_bf16);
            vec x = load_channels(s->j.x, at, n, is_bf16);
            vec y = activate(activation, (x - mean[v]) * scale[v] + shift[v]);
            store_channels(s->j.y, at, n, is_bf16, y);
            sum[v] += y;
        }
    for (int v = 0; v < MANY; v++) store(sums + channel + v * LANES, sum[v]);
}

/* Adds the gradients of a piece before the activation, and their products with centred values, to
 * two rows of sums; or, once what the statistics take is `found`, writes the gradients. */
INLINE void differentiate(int MANY, int found, int activation, int is_bf16, const slabs_t *s,
                          piece_t piece, int64_t channel, float *plain, float *by_x) {
    int64_t channels = s->j.n.channels, n = MANY > 1 ? LANES : channels - channel;
    vec mean[VECTORS], scale[VECTORS], shift[VECTORS], more[VECTORS];
    vec first[VECTORS], second[VECTORS]; /* sums, or what is subtracted */
    for (int v = 0; v < MANY; v++) {
        int64_t place = channel + v * LANES;
        mean[v] = load(s->factors + place);
        scale[v] = load(s->factors + s->row + place);
        shift[v] = load(s->factors + 2 * s->row + place);
        first[v] = load(found ? s->factors + 3 * s->row + place : plain + place);
        second[v] = load(found ? s->factors + 4 * s->row + place : by_x + place);
        more[v] = load_channels(s->j.grad_pooled, piece.shares + place, n, 0)
            / (float)s->j.n.area;
    }
    for (int64_t p = 0; p < piece.positions; p++)
        for (int v = 0; v < MANY; v++) {
            int64_t at = piece.at + p * channels + channel + v * LANES;
            fetch(s->j.x, at, v, is_bf16);
            fetch(s->j.grad, at, v, is_bf16);
            vec centred = load_channels(s->j.x, at, n, is_bf16) - mean[v];
            vec grad = load_channels(s->j.grad, at, n, is_bf16) + more[v];
            vec value = derive(activation, centred * scale[v] + shift[v], grad);
            if (found) {
                value = (value - first[v] - centred * second[v]) * scale[v];
                store_channels(s->j.grad_x, at, n, is_bf16, value);
            } else {
                first[v] += value;
                second[v] += value * centred;
            }
        }
    for (int v = 0; v < MANY && !found; v++) {
        store(plain + channel + v * LANES, first[v]);
        store(by_x + channel + v * LANES, second[v]);
    }
}

enum { SUM, SQUARES, APPLY, SUM_GRADIENTS, WRITE_GRADIENTS };

INLINE void over_channels(int MANY, int kind, int activation, int is_bf16, const slabs_t *s,
                          piece_t piece, int64_t channel, float *rows) {
    float *first = rows + s->row, *second = first + s->row;
    int last = kind == WRITE_GRADIENTS;
    if (kind == SUM) measure(MANY, 0, is_bf16, s, piece, channel, rows, first, second);
    else if (kind == SQUARES) measure(MANY, 1, is_bf16, s, piece, channel, rows, first, second);
    else if (kind == APPLY) apply_to_piece(MANY, activation, is_bf16, s, piece, channel, first);
    else differentiate(MANY, last, activation, is_bf16, s, piece, channel, first, second);
}

/* Works on a slab piece by piece; `rows` are the means about which it sums, and two rows of sums. */
INLINE void over_pieces(int kind, int activation, int is_bf16, const slabs_t *s, int64_t slab,
                        float *rows) {
    piece_t whole = slab_of(s, slab), piece = whole;
    int64_t channels = s->j.n.channels, end = whole.positions;
    memset(rows + s->row, 0, (size_t)(2 * s->row) * sizeof *rows);
    for (int64_t start = 0; start < end; start += s->together) {
        int64_t c = 0;
        piece.at = whole.at + start * channels;
        piece.positions = least(s->together, end - start);
        for (; c + VECTORS * LANES <= channels; c += VECTORS * LANES)
            over_channels(VECTORS, kind, activation, is_bf16, s, piece, c, rows);
        for (; c < channels; c += LANES)
            over_channels(1, kind, activation, is_bf16, s, piece, c, rows);
    }
}

INLINE void by_dtype(int kind, int activation, const slabs_t *s, int64_t slab, float *rows) {
    if (s->j.n.is_bf16) over_pieces(kind, activation, 1, s, slab, rows);
    else over_pieces(kind, activation, 0, s, slab, rows);
}

INLINE void by_activation(int kind, const slabs_t *s, int64_t slab, float *rows) {
    if (s->j.n.activation == RELU) by_dtype(kind, RELU, s, slab, rows);
    else if (s->j.n.activation == SILU) by_dtype(kind, SILU, s, slab, rows);
    else by_dtype(kind, NOTHING, s, slab, rows);
}

/* Mean of each channel of a slab, and the sum of squares about it. */
static void measure_slab(const slabs_t *s, int64_t slab, float *rows) {
    double *means = sums_of(s, slab), *squares = means + s->row, count = count_of(s, slab);
    by_dtype(SUM, NOTHING, s, slab, rows);
    for (int64_t c = 0; c < s->row; c++) rows[c] = (float)(rows[s->row + c] / count);
    by_dtype(SQUARES, NOTHING, s, slab, rows);
    for (int64_t c = 0; c < s->row; c++) {
        double missed = rows[s->row + c] / count; /* by the mean in float32 */
        means[c] = rows[c] + missed;
        squares[c] = rows[2 * s->row + c] - missed * missed * count;
    }
}

static void keep_sums(const slabs_t *s, int64_t slab, const float *rows) {
    for (int64_t c = 0; c < 2 * s->row; c++) sums_of(s, slab)[c] = rows[s->row + c];
}

static void apply_slab(const slabs_t *s, int64_t slab, float *rows) {
    by_activation(APPLY, s, slab, rows);
    keep_sums(s, slab, rows);
}

static void sum_gradients(const slabs_t *s, int64_t slab, float *rows) {
    by_activation(SUM_GRADIENTS, s, slab, rows);
    keep_sums(s, slab, rows);
}

static void write_gradients(const slabs_t *s, int64_t slab, float *rows) {
    by_activation(WRITE_GRADIENTS, s, slab, rows);
}

/* What values are normalised by, from the statistics. */
static void fill_factors(const slabs_t *s) {
    const job_t *j = &s->j;
    for (int64_t c = 0; c < j->n.channels; c++) {
        s->factors[c] = j->mean[c];
        s->factors[s->row + c] = (float)(j->weight[c] / sqrt(j->variance[c] + j->n.epsilon));
        s->factors[2 * s->row + c] = j->bias[c];
    }
}

static void settle_statistics(const slabs_t *s) {
    const job_t *j = &s->j;
    double count = (double)j->n.batch * (double)j->n.area;
    for (int64_t c = 0; c < j->n.channels; c++) {
        double mean = 0, squares = 0;
        for (int64_t t = 0; t < count_slabs(s); t++)
            mean += sums_of(s, t)[c] * (count_of(s, t) / count);
        for (int64_t t = 0; t < count_slabs(s); t++) {
            double apart = sums_of(s, t)[c] - mean;
            squares += sums_of(s, t)[s->row + c] + apart * apart * count_of(s, t);
        }
        j->mean[c] = (float)mean;
        j->variance[c] = (float)(squares / count);
    }
    fill_factors(s);
}

static void settle_pooled(const slabs_t *s) {
    const job_t *j = &s->j;
    for (int64_t b = 0; b < j->n.batch; b++)
        for (int64_t c = 0; c < j->n.channels; c++) {
            double sum = 0;
            for (int64_t t = b * s->slabs; t < (b + 1) * s->slabs; t++) sum += sums_of(s, t)[c];
            j->pooled[b * j->n.channels + c] = (float)(sum / (double)j->n.area);
        }
}

/* The gradients of weight and bias, and what the statistics take from that of the map. */
static void settle_gradients(const slabs_t *s) {
    const job_t *j = &s->j;
    double count = (double)j->n.batch * (double)j->n.area;
    for (int64_t c = 0; c < j->n.channels; c++) {
        double plain = 0, by_x = 0, variance = j->variance[c] + j->n.epsilon;
        for (int64_t t = 0; t < count_slabs(s); t++) {
            plain += sums_of(s, t)[c];
            by_x += sums_of(s, t)[s->row + c];
        }
        s->factors[3 * s->row + c] = (float)(plain / count);
        s->factors[4 * s->row + c] = (float)(by_x / variance / count);
        j->grad_weight[c] = (float)(by_x / sqrt(variance));
        j->grad_bias[c] = (float)plain;
    }
}

static const pass_t FORWARD[] = {{measure_slab, settle_statistics}, {apply_slab, settle_pooled}};
static const pass_t BACKWARD[] = {{sum_gradients, settle_gradients}, {write_gradients, NULL}};

static void slab_task(const void *job, int64_t slab, float *scratch) {
    const slabs_t *s = job;
    s->pass->over_slab(s, slab, scratch);
}

static int run_channels_last(job_t j, int is_backward) {
    slabs_t s = {.j = j};
    int failed = 0;
    s.positions = most(1, least(MOST_POSITIONS, OF_SLAB / most(1, j.n.channels)));
    s.together = most(1, OF_PIECE / most(1, j.n.channels));
    s.slabs = (j.n.area + s.positions - 1) / s.positions;
    s.row = (j.n.channels + LANES - 1) / LANES * LANES;
    s.sums = malloc((size_t)(count_slabs(&s) * 2 * s.row + 1) * sizeof *s.sums);
    s.factors = calloc((size_t)(5 * s.row + 1), sizeof *s.factors);
    if (!s.sums || !s.factors) failed = 1;
    else if (is_backward) fill_factors(&s);
    for (int i = 0; i < 2 && !failed; i++) {
        s.pass = (is_backward ? BACKWARD : FORWARD) + i;
        failed = run_tasks(slab_task, &s, count_slabs(&s), j.n.threads, 3 * s.row);
        if (s.pass->behind && !failed) s.pass->behind(&s);
    }
    free(s.sums);
    free(s.factors);
    return failed;
}

#endif
