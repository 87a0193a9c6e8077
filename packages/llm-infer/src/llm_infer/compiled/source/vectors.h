/* Vectors of the CPU's own width, and functions of them. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <stddef.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__) && defined(__FMA__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE vec load(const float *p) { return *(const vec *)p; }
INLINE void store(float *p, vec v) { *(vec *)p = v; }
INLINE vec splat(float x) { return x - (vec){0}; }

/* `yes` where the mask is -1, `no` where it is 0. */
INLINE vec chosen(ints mask, vec yes, vec no)
{
    return (vec)(((ints)yes & mask) | ((ints)no & ~mask));
}

/* The sum of all lanes, in one order. */
INLINE float total(vec v)
{
    typedef float v4 __attribute__((vector_size(16)));
#if LANES == 4
    v4 d = v;
#else
    typedef float v8 __attribute__((vector_size(32)));
#if LANES == 16
    union { vec whole; v8 half[2]; } a = {v};
    v8 b = a.half[0] + a.half[1];
#else
    v8 b = v;
#endif
    union { v8 whole; v4 half[2]; } c = {b};
    v4 d = c.half[0] + c.half[1];
#endif
    return (d[0] + d[2]) + (d[1] + d[3]);
}

/* The largest lane; NaN is passed over. */
INLINE float largest(vec v)
{
    float top = v[0];
    for (int i = 1; i < LANES; i++)
        top = v[i] > top ? v[i] : top;
    return top;
}

/* e^x to 2 units in the last place; 0 below -87, e^88 above 88, NaN of NaN.
   x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by the polynomial of Cephes' expf. */
INLINE vec exp_of(vec x)
{
    const vec turn = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    ints is_small = x < splat(-87.0f);
    x = chosen(x > splat(88.0f), splat(88.0f), x);
    vec shifted = chosen(is_small, splat(-87.0f), x) * splat(1.44269504f) + turn;
    vec n = shifted - turn;
    ints power = (ints)shifted - (ints)turn;
    vec r = x - n * splat(0.693359375f) + n * splat(2.12194440e-4f);
    vec p = splat(1.9875691500e-4f);
    p = p * r + splat(1.3981999507e-3f);
    p = p * r + splat(8.3334519073e-3f);
    p = p * r + splat(4.1665795894e-2f);
    p = p * r + splat(1.6666665459e-1f);
    p = p * r + splat(5.0000001201e-1f);
    vec y = (p * r * r + r + splat(1.0f)) * (vec)((power + 127) << 23);
    return chosen(is_small, splat(0.0f), y);
}

/* tanh: its Taylor series near 0, where the quotient loses digits. */
INLINE vec tanh_of(vec x)
{
    vec square = x * x;
    vec p = splat(62.0f / 2835) * square - splat(17.0f / 315);
    p = p * square + splat(2.0f / 15);
    p = p * square - splat(1.0f / 3);
    vec near = x + x * square * p;
    vec e = exp_of(splat(2.0f) * chosen(x > splat(20.0f), splat(20.0f), x));
    vec far = (e - splat(1.0f)) / (e + splat(1.0f));
    return chosen(square < splat(0.0625f), near, far);
}

/* x / (1 + e^-x) */
INLINE vec silu_of(vec x) { return x / (splat(1.0f) + exp_of(-x)); }
