/* Norms, and what lies between a projection and attention: norms of heads, rotation, the cache. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include "parallel.h"
#include "vectors.h"

/* Numbers that are worth a thread. */
enum { WORTH = 16384 };

/* y = x / sqrt(mean(x^2) + eps) * gain; y may be x, and gain null. */
static void rms_norm(float *y, const float *x, const float *gain, int size, float eps)
{
    vec squares = splat(0.0f);
    float square = 0.0f;
    int whole = size - size % LANES;
    for (int i = 0; i < whole; i += LANES)
        squares += load(x + i) * load(x + i);
    for (int i = whole; i < size; i++)
        square += x[i] * x[i];
    float inverse = 1.0f / sqrtf((total(squares) + square) / (float)size + eps);
    for (int i = 0; i < whole; i += LANES)
        store(y + i, load(x + i) * splat(inverse) * load(gain + i));
    for (int i = whole; i < size; i++)
        y[i] = x[i] * inverse * gain[i];
}

/* As `_Norm` in library.py. */
struct norm {
    float *y;          /* [rows, size] */
    const float *x;    /* [rows, size], rows `x_row` numbers apart */
    const float *gain; /* [gains, size]: row i has gain i mod gains */
    int64_t x_row, rows;
    int32_t size, gains, threads;
    float eps;
};

static void norm_item(const void *task, size_t item)
{
    const struct norm *a = task;
    int64_t rows = WORTH / a->size + 1, first = item * rows;
    for (int64_t i = first; i < first + rows && i < a->rows; i++)
        rms_norm(a->y + i * a->size, a->x + i * a->x_row, a->gain + i % a->gains * a->size,
                 a->size, a->eps);
}

void llm_rms_norm(const struct norm *a)
{
    int64_t rows = WORTH / a->size + 1;
    share(norm_item, a, (a->rows + rows - 1) / rows, a->threads);
}

/* As `_Heads` in library.py. */
struct heads {
    float *rows;             /* [tokens, groups, heads of a group, dim]: changed in place */
    const float *cos, *sin;  /* [tokens, width], or null */
    const float *gain;       /* [queries + 1, dim]: of queries, then of the key; or null */
    const int64_t *slots;    /* [tokens] */
    float *keys, *values;    /* the cache: [groups, slots, dim] */
    int64_t key_group, key_slot, value_group, value_slot;
    int32_t tokens, groups, queries, heads, dim; /* of `heads` the last two are key and value */
    int32_t width, is_interleaved, norm_is_last, threads;
    float eps;
};

static void rotate(float *x, const float *cos, const float *sin, int width, int is_interleaved)
{
    int half = width / 2;
    for (int i = 0; i < half; i++) {
        int first = is_interleaved ? 2 * i : i, second = is_interleaved ? 2 * i + 1 : i + half;
        float a = x[first], b = x[second];
        x[first] = a * cos[first] - b * sin[first];
        x[second] = b * cos[second] + a * sin[second];
    }
}

static void place_token(const struct heads *a, int token)
{
    for (int group = 0; group < a->groups; group++) {
        float *row = a->rows + (int64_t)(token * a->groups + group) * a->heads * a->dim;
        float *key = row + (a->heads - 2) * a->dim;
        for (int i = 0; i <= a->queries; i++) {
            float *x = i < a->queries ? row + i * a->dim : key;
            const float *gain = a->gain ? a->gain + i * a->dim : 0;
            if (gain && !a->norm_is_last)
                rms_norm(x, x, gain, a->dim, a->eps);
            if (a->cos)
                rotate(x, a->cos + (int64_t)token * a->width, a->sin + (int64_t)token * a->width,
                       a->width, a->is_interleaved);
            if (gain && a->norm_is_last)
                rms_norm(x, x, gain, a->dim, a->eps);
        }
        int64_t slot = a->slots[token];
        memcpy(a->keys + group * a->key_group + slot * a->key_slot, key, sizeof(float) * a->dim);
        memcpy(a->values + group * a->value_group + slot * a->value_slot, key + a->dim,
               sizeof(float) * a->dim);
    }
}

static void place_item(const void *task, size_t item)
{
    const struct heads *a = task;
    int tokens = WORTH / (a->groups * a->heads * a->dim) + 1, first = (int)item * tokens;
    for (int token = first; token < first + tokens && token < a->tokens; token++)
        place_token(a, token);
}

void llm_place_heads(const struct heads *a)
{
    int tokens = WORTH / (a->groups * a->heads * a->dim) + 1;
    share(place_item, a, (a->tokens + tokens - 1) / tokens, a->threads);
}
