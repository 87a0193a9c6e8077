/* Linear layers over weights laid out in panels: y = x W^T.

   Each output is summed over its inputs in their order, in one accumulator, so that it is the same
   however many rows there are and whichever thread computes it. */
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include "parallel.h"
#include "vectors.h"

/* A tile of rows times a panel of PANEL outputs: its accumulators fill the CPU's registers. */
enum { VECTORS = 2, PANEL = VECTORS * LANES };
#if LANES == 16
enum { TILE_ROWS = 12 };
#else
enum { TILE_ROWS = 6 };
#endif
/* Inputs that are summed before they are added to the others': their part of a panel and of so many
   rows stays in the second-level cache, and fewer digits are lost. */
enum { DEPTH = 512, CHUNK_ROWS = 96, AHEAD_BYTES = 4096 };

/* How weights are kept. */
enum { FLOAT32, INT8, BFLOAT16, FLOAT16 };

/* As `_Linear` in library.py. */
struct linear {
    float *y;              /* [rows, outputs] */
    const float *x;        /* [rows, inputs], rows `x_row` numbers apart */
    const void *panels;    /* [ceil(outputs / PANEL), inputs, PANEL]; gated: half gates, half ups */
    const float *scales;   /* [ceil(outputs / PANEL), PANEL], what sums are multiplied by, or null */
    const float *bias;     /* likewise added, or null */
    int64_t x_row;
    int32_t rows, inputs, outputs;
    int32_t kind;
    int32_t is_gated;      /* a panel makes PANEL / 2 outputs, silu(gate) * up */
    int32_t threads;
};

INLINE vec load_float32(const float *p) { return load(p); }

/* The two bytes of each number become the upper two of a float. */
INLINE vec load_bfloat16(const uint16_t *p)
{
#if LANES == 16
    __m256i halves = _mm256_loadu_si256((const __m256i *)p);
    return (vec)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
#elif LANES == 8
    __m128i halves = _mm_loadu_si128((const __m128i *)p);
    return (vec)_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
#else
    ints bits;
    for (int i = 0; i < LANES; i++)
        bits[i] = (int32_t)((uint32_t)p[i] << 16);
    return (vec)bits;
#endif
}

INLINE vec load_float16(const uint16_t *p)
{
#if LANES == 16
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif LANES == 8 && defined(__F16C__)
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    /* Exponent and mantissa in their places, then 2^112 for the other bias: exact, and right for
       numbers below the smallest normal one. */
    ints bits;
    for (int i = 0; i < LANES; i++)
        bits[i] = p[i];
    ints rest = (bits & 0x7fff) << 13;
    ints is_special = rest >= 0x7c00 << 13; /* infinities and NaN */
    vec magnitude = chosen(is_special, (vec)(rest | 0x7f800000),
                           (vec)rest * splat(0x1p112f));
    return (vec)((ints)magnitude | (bits & 0x8000) << 16);
#endif
}

/* By hand for x86, where GCC converts bytes one by one. */
INLINE vec load_int8(const int8_t *p)
{
#if LANES == 16
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif LANES == 8
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    float numbers[LANES];
    for (int i = 0; i < LANES; i++)
        numbers[i] = p[i];
    return load(numbers);
#endif
}

#define TILE(KIND, TYPE, ROWS) \
    static void KIND##_##ROWS(float (*sums)[PANEL], const float *x, int64_t x_row, \
                              const void *weights, int depth) \
    { \
        const TYPE *w = weights; \
        vec sum[ROWS][VECTORS]; \
        for (int r = 0; r < ROWS; r++) \
            for (int c = 0; c < VECTORS; c++) \
                sum[r][c] = splat(0.0f); \
        for (int k = 0; k < depth; k++) { \
            vec weight[VECTORS]; \
            const char *ahead = (const char *)(w + k * PANEL) + AHEAD_BYTES; \
            for (size_t c = 0; c < PANEL * sizeof(TYPE); c += 64) \
                __builtin_prefetch(ahead + c, 0, 2); \
            for (int c = 0; c < VECTORS; c++) \
                weight[c] = load_##KIND(w + k * PANEL + c * LANES); \
            for (int r = 0; r < ROWS; r++) { \
                vec input = splat(x[r * x_row + k]); \
                for (int c = 0; c < VECTORS; c++) \
                    sum[r][c] += input * weight[c]; \
            } \
        } \
        for (int r = 0; r < ROWS; r++) \
            for (int c = 0; c < VECTORS; c++) \
                store(sums[r] + c * LANES, load(sums[r] + c * LANES) + sum[r][c]); \
    }
#define SMALL_TILES(F, ...) \
    F(__VA_ARGS__, 1) F(__VA_ARGS__, 2) F(__VA_ARGS__, 3) F(__VA_ARGS__, 4) F(__VA_ARGS__, 5) \
    F(__VA_ARGS__, 6)
#if LANES == 16
#define TILES(F, ...) \
    SMALL_TILES(F, __VA_ARGS__) F(__VA_ARGS__, 7) F(__VA_ARGS__, 8) F(__VA_ARGS__, 9) \
    F(__VA_ARGS__, 10) F(__VA_ARGS__, 11) F(__VA_ARGS__, 12)
#else
#define TILES(F, ...) SMALL_TILES(F, __VA_ARGS__)
#endif
TILES(TILE, float32, float)
TILES(TILE, int8, int8_t)
TILES(TILE, bfloat16, uint16_t)
TILES(TILE, float16, uint16_t)

typedef void (*tile_fn)(float (*sums)[PANEL], const float *x, int64_t x_row, const void *weights,
                        int depth);
#define ENTRY(KIND, ROWS) KIND##_##ROWS,
static const tile_fn tile_of[][TILE_ROWS + 1] = {
    [FLOAT32] = {0, TILES(ENTRY, float32)},
    [INT8] = {0, TILES(ENTRY, int8)},
    [BFLOAT16] = {0, TILES(ENTRY, bfloat16)},
    [FLOAT16] = {0, TILES(ENTRY, float16)},
};
static const int bytes_of[] = {[FLOAT32] = 4, [INT8] = 1, [BFLOAT16] = 2, [FLOAT16] = 2};

/* One panel's outputs of up to CHUNK_ROWS rows. */
static void multiply(const struct linear *a, int first_row, int rows, int panel)
{
    float sums[CHUNK_ROWS][PANEL];
    int bytes = bytes_of[a->kind];
    const char *weights = (const char *)a->panels + (int64_t)panel * a->inputs * PANEL * bytes;
    const float *x = a->x + first_row * a->x_row;
    memset(sums, 0, sizeof(float) * PANEL * rows);
    for (int k = 0; k < a->inputs; k += DEPTH) {
        int depth = a->inputs - k < DEPTH ? a->inputs - k : DEPTH;
        for (int r = 0; r < rows; r += TILE_ROWS)
            tile_of[a->kind][rows - r < TILE_ROWS ? rows - r : TILE_ROWS](
                sums + r, x + r * a->x_row + k, a->x_row, weights + (int64_t)k * PANEL * bytes,
                depth);
    }
    int width = a->is_gated ? PANEL / 2 : PANEL;
    int column = panel * width;
    int outputs = a->outputs - column < width ? a->outputs - column : width;
    for (int r = 0; r < rows; r++) {
        float *sum = sums[r];
        for (int c = 0; c < PANEL; c += LANES) {
            vec y = load(sum + c);
            if (a->scales)
                y *= load(a->scales + panel * PANEL + c);
            if (a->bias)
                y += load(a->bias + panel * PANEL + c);
            store(sum + c, y);
        }
        if (a->is_gated)
            for (int c = 0; c < width; c += LANES)
                store(sum + c, silu_of(load(sum + c)) * load(sum + width + c));
        memcpy(a->y + (int64_t)(first_row + r) * a->outputs + column, sum,
               sizeof(float) * outputs);
    }
}

static int num_panels(const struct linear *a)
{
    int width = a->is_gated ? PANEL / 2 : PANEL;
    return (a->outputs + width - 1) / width;
}

static void multiply_item(const void *task, size_t item)
{
    const struct linear *a = task;
    int panels = num_panels(a), first_row = (int)(item / panels) * CHUNK_ROWS;
    int rows = a->rows - first_row < CHUNK_ROWS ? a->rows - first_row : CHUNK_ROWS;
    multiply(a, first_row, rows, (int)(item % panels));
}

void llm_linear(const struct linear *a)
{
    size_t chunks = (a->rows + CHUNK_ROWS - 1) / CHUNK_ROWS;
    share(multiply_item, a, chunks * num_panels(a), a->threads);
}

/* As `_Packing` in library.py. */
struct packing {
    void *panels;       /* [ceil(outputs / width), inputs, PANEL] */
    const void *weight; /* [outputs, inputs], or gates [outputs, inputs], then ups */
    int32_t inputs, outputs, kind, is_gated, threads;
};

/* Rows of the weight become columns of a panel; there is nothing but zeros behind the last one. */
#define PACK(BYTES, TYPE) \
    static void pack_##BYTES(const struct packing *a, size_t item) \
    { \
        int width = a->is_gated ? PANEL / 2 : PANEL; \
        TYPE *panel = (TYPE *)a->panels + item * a->inputs * PANEL; \
        for (int k = 0; k < a->inputs; k += 16) { \
            int depth = a->inputs - k < 16 ? a->inputs - k : 16; \
            for (int c = 0; c < PANEL; c++) { \
                int64_t output = (int64_t)item * width + c % width; \
                int64_t row = output + c / width * a->outputs; \
                const TYPE *from = (const TYPE *)a->weight; \
                for (int d = 0; d < depth; d++) \
                    panel[(k + d) * PANEL + c] = \
                        output < a->outputs ? from[row * a->inputs + k + d] : 0; \
            } \
        } \
    }
PACK(4, uint32_t)
PACK(2, uint16_t)
PACK(1, uint8_t)

static void pack_item(const void *task, size_t item)
{
    const struct packing *a = task;
    int bytes = bytes_of[a->kind];
    (bytes == 4 ? pack_4 : bytes == 2 ? pack_2 : pack_1)(a, item);
}

void llm_pack(const struct packing *a)
{
    int width = a->is_gated ? PANEL / 2 : PANEL;
    share(pack_item, a, (a->outputs + width - 1) / width, a->threads);
}

int llm_panel(void) { return PANEL; }
