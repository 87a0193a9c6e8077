/* Softmax attention over a cache of blocks, of any mixture of prompts and answers.

   A row is one query of one token. Its result depends on its position alone: its keys are taken
   block by block from the first it may see, with a running maximum (Milakov and Gimelshein,
   arXiv 1805.02867), whatever rows are computed beside it. */
#include <math.h>
#include <stdint.h>
#include "parallel.h"
#include "vectors.h"

enum { TILE_ROWS = 4, ITEM_ROWS = 32, MOST_BLOCK_TOKENS = 128, COLUMNS = 4 };

/* As `_Attention` in library.py. Strides count numbers. */
struct attention {
    float *out;                         /* [tokens, groups, queries, value_dim] */
    const float *q, *keys, *values;
    const float *sinks, *slopes;        /* [groups, queries], or null */
    const int32_t *segments;            /* [num_segments, 4]: see `struct segment` */
    const int32_t *blocks;
    int64_t q_token, q_group, q_query;
    int64_t key_group, key_slot, value_group, value_slot;
    int32_t num_segments, groups, queries, key_dim, value_dim, block_tokens;
    int32_t window;                     /* 0: none */
    int32_t threads;
    float scale, softcap;               /* softcap 0: none */
};

struct segment {
    int32_t first_token, tokens, first_position, first_block; /* the last one within `blocks` */
};

/* Products of rows with the first n keys of a block; meanwhile the block's values are fetched. */
#define SCORES(ROWS) \
    static void scores_##ROWS(float s[][MOST_BLOCK_TOKENS], const float *const *q, \
                              const float *keys, int64_t slot, int dim, int n, float scale, \
                              const float *values, int64_t value_slot, int value_dim) \
    { \
        for (int j = 0; j < n; j++) { \
            const float *key = keys + j * slot; \
            vec sum[ROWS]; \
            for (int c = 0; c < value_dim; c += 16) \
                __builtin_prefetch(values + j * value_slot + c, 0, 2); \
            for (int r = 0; r < ROWS; r++) \
                sum[r] = splat(0.0f); \
            for (int d = 0; d < dim; d += LANES) { \
                vec k = load(key + d); \
                for (int r = 0; r < ROWS; r++) \
                    sum[r] += load(q[r] + d) * k; \
            } \
            for (int r = 0; r < ROWS; r++) \
                s[r][j] = total(sum[r]) * scale; \
        } \
    }
SCORES(1) SCORES(2) SCORES(3) SCORES(4)

/* Adds values times weights to COLS vectors of each row; meanwhile the next keys are fetched. */
#define MIX(ROWS, COLS) \
    static void mix_##ROWS##_##COLS(float *const *out, float p[][MOST_BLOCK_TOKENS], \
                                    const float *values, int64_t slot, int column, int n, \
                                    const float *next, int64_t next_slot) \
    { \
        vec sum[ROWS][COLS]; \
        for (int r = 0; r < ROWS; r++) \
            for (int c = 0; c < COLS; c++) \
                sum[r][c] = load(out[r] + column + c * LANES); \
        for (int j = 0; j < n; j++) { \
            vec v[COLS]; \
            for (int c = 0; c < COLS * LANES; c += 16) \
                __builtin_prefetch(next + j * next_slot + column + c, 0, 2); \
            for (int c = 0; c < COLS; c++) \
                v[c] = load(values + j * slot + column + c * LANES); \
            for (int r = 0; r < ROWS; r++) { \
                vec weight = splat(p[r][j]); \
                for (int c = 0; c < COLS; c++) \
                    sum[r][c] += weight * v[c]; \
            } \
        } \
        for (int r = 0; r < ROWS; r++) \
            for (int c = 0; c < COLS; c++) \
                store(out[r] + column + c * LANES, sum[r][c]); \
    }
MIX(1, 1) MIX(2, 1) MIX(3, 1) MIX(4, 1)
MIX(1, 4) MIX(2, 4) MIX(3, 4) MIX(4, 4)

typedef void (*scores_fn)(float s[][MOST_BLOCK_TOKENS], const float *const *q, const float *keys,
                          int64_t slot, int dim, int n, float scale, const float *values,
                          int64_t value_slot, int value_dim);
typedef void (*mix_fn)(float *const *out, float p[][MOST_BLOCK_TOKENS], const float *values,
                       int64_t slot, int column, int n, const float *next, int64_t next_slot);

static const scores_fn scores_of[] = {0, scores_1, scores_2, scores_3, scores_4};
static const mix_fn mix_one[] = {0, mix_1_1, mix_2_1, mix_3_1, mix_4_1};
static const mix_fn mix_four[] = {0, mix_1_4, mix_2_4, mix_3_4, mix_4_4};

struct row {
    int position, query; /* query of all groups, as in sinks and slopes */
    float top, sum;      /* the largest score so far, and the sum of e^(score - top) */
};

/* Scores of a block become weights of a row, and what was summed before is brought to the new
   maximum. `first` is the position of the block's first key, of which n are read. */
static void weigh(const struct attention *a, struct row *row, float *s, float *out, int first,
                  int n)
{
    int width = a->block_tokens;
    int stop = row->position + 1 - first < n ? row->position + 1 - first : n;
    int start = a->window ? row->position + 1 - a->window - first : 0;
    if (a->softcap != 0.0f)
        for (int j = 0; j < width; j += LANES)
            store(s + j, tanh_of(load(s + j) / splat(a->softcap)) * splat(a->softcap));
    if (a->slopes)
        for (int j = 0; j < n; j++)
            s[j] += a->slopes[row->query] * (float)(first + j);
    for (int j = 0; j < start && j < width; j++)
        s[j] = -INFINITY;
    for (int j = stop < 0 ? 0 : stop; j < width; j++)
        s[j] = -INFINITY;
    vec most = load(s);
    for (int j = LANES; j < width; j += LANES) {
        vec x = load(s + j);
        most = chosen(x > most, x, most);
    }
    float top = largest(most);
    top = top > row->top ? top : row->top;
    /* Where nothing is to be seen yet: e^(-inf - 0) is 0, e^(-inf - -inf) is NaN. */
    float shift = top == -INFINITY ? 0.0f : top;
    vec sum = splat(0.0f);
    for (int j = 0; j < width; j += LANES) {
        vec weight = exp_of(load(s + j) - splat(shift));
        store(s + j, weight);
        sum += weight;
    }
    float change = exp_of(splat(row->top - shift))[0];
    row->sum = row->sum * change + total(sum);
    row->top = top;
    if (change != 1.0f)
        for (int d = 0; d < a->value_dim; d += LANES)
            store(out + d, load(out + d) * splat(change));
}

/* Up to ITEM_ROWS rows of one segment and group, over all blocks they see. */
static void attend_rows(const struct attention *a, const struct segment *segment, int group,
                        int first_row, int count)
{
    struct row rows[ITEM_ROWS];
    const float *q[ITEM_ROWS];
    float *out[ITEM_ROWS];
    float s[TILE_ROWS][MOST_BLOCK_TOKENS];
    int size = a->block_tokens;
    for (int i = 0; i < count; i++) {
        int token = (first_row + i) / a->queries, query = (first_row + i) % a->queries;
        struct row *row = rows + i;
        row->position = segment->first_position + token;
        row->query = group * a->queries + query;
        row->top = a->sinks ? a->sinks[row->query] : -INFINITY;
        row->sum = row->top > -INFINITY ? 1.0f : 0.0f;
        int64_t place = segment->first_token + token;
        q[i] = a->q + place * a->q_token + group * a->q_group + query * a->q_query;
        out[i] = a->out
                 + ((place * a->groups + group) * a->queries + query) * (int64_t)a->value_dim;
        for (int d = 0; d < a->value_dim; d += LANES)
            store(out[i] + d, splat(0.0f));
    }
    int last = rows[count - 1].position;
    int seen_from = a->window ? rows[0].position + 1 - a->window : 0;
    const int32_t *blocks = a->blocks + segment->first_block;
    for (int b = seen_from > 0 ? seen_from / size : 0; b * size <= last; b++) {
        const float *keys = a->keys + group * a->key_group + blocks[b] * size * a->key_slot;
        const float *values =
            a->values + group * a->value_group + blocks[b] * size * a->value_slot;
        const float *next = keys;
        if ((b + 1) * size <= last)
            next = a->keys + group * a->key_group + blocks[b + 1] * size * a->key_slot;
        for (int i = 0; i < count; i += TILE_ROWS) {
            int tile = count - i < TILE_ROWS ? count - i : TILE_ROWS;
            int n = rows[i + tile - 1].position + 1 - b * size;
            n = n < size ? n : size;
            if (n <= 0)
                continue;
            scores_of[tile](s, q + i, keys, a->key_slot, a->key_dim, n, a->scale, values,
                            a->value_slot, i == 0 ? a->value_dim : 0);
            for (int r = 0; r < tile; r++)
                weigh(a, rows + i + r, s[r], out[i + r], b * size, n);
            int column = 0;
            for (; column + COLUMNS * LANES <= a->value_dim; column += COLUMNS * LANES)
                mix_four[tile](out + i, s, values, a->value_slot, column, n, next, a->key_slot);
            for (; column < a->value_dim; column += LANES)
                mix_one[tile](out + i, s, values, a->value_slot, column, n, next, a->key_slot);
        }
    }
    for (int i = 0; i < count; i++)
        for (int d = 0; d < a->value_dim; d += LANES)
            store(out[i] + d, load(out[i] + d) / splat(rows[i].sum));
}

static void attend_item(const void *task, size_t item)
{
    const struct attention *a = task;
    int parts = (a->block_tokens * a->queries + ITEM_ROWS - 1) / ITEM_ROWS;
    const struct segment *segment =
        (const struct segment *)a->segments + item / parts / a->groups;
    int first_row = (int)(item % parts) * ITEM_ROWS;
    int count = segment->tokens * a->queries - first_row;
    if (count > 0)
        attend_rows(a, segment, (int)(item / parts % a->groups), first_row,
                    count < ITEM_ROWS ? count : ITEM_ROWS);
}

/* Requires channels in multiples of LANES, and blocks in such of up to MOST_BLOCK_TOKENS. */
void llm_attention(const struct attention *a)
{
    size_t parts = (a->block_tokens * a->queries + ITEM_ROWS - 1) / ITEM_ROWS;
    share(attend_item, a, parts * a->groups * a->num_segments, a->threads);
}

int llm_lanes(void) { return LANES; }
