// Vectors of the widest registers there are, by the compiler's own vector types: one source for AVX-512, AVX2 and NEON.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int WIDTH = 16;  // floats of a vector
constexpr int LANES = 6;   // rows of a register tile: LANES * COLUMNS sums stay in registers
#elif defined(__AVX__)
constexpr int WIDTH = 8;
constexpr int LANES = 3;
#else
constexpr int WIDTH = 4;
constexpr int LANES = 4;
#endif
constexpr int COLUMNS = 4;  // vectors of a register tile's row
constexpr int TILE = COLUMNS * WIDTH;

typedef float Vector __attribute__((vector_size(WIDTH * 4)));
typedef int32_t Integers __attribute__((vector_size(WIDTH * 4)));
typedef uint16_t Halves __attribute__((vector_size(WIDTH * 2)));
typedef uint32_t Words __attribute__((vector_size(WIDTH * 4)));

typedef uint16_t bf16;

constexpr float LOG2E = 1.44269504088896340736f;

static inline Vector splat(float x) { return Vector{} + x; }
static inline Vector load(const float *p) {
    Vector v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline void store(float *p, Vector v) { memcpy(p, &v, sizeof v); }

static inline float to_float(float x) { return x; }
static inline float to_float(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
static inline void round_to(float x, float *p) { *p = x; }
static inline void round_to(float x, bf16 *p) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    memcpy(&bits, &x, 4);
    *p = x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

static inline Vector load(const bf16 *p) {
    Halves halves;
    memcpy(&halves, p, sizeof halves);
    return (Vector)(__builtin_convertvector(halves, Words) << 16);
}
static inline void store(bf16 *p, Vector v) {
    Words bits = (Words)v;
    Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    rounded = v == v ? rounded : Words{} + 0x7fc0;
    Halves halves = __builtin_convertvector(rounded, Halves);
    memcpy(p, &halves, sizeof halves);
}

static inline float sum(Vector v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float total = 0;
    for (int i = 0; i < WIDTH; ++i) total += v[i];
    return total;
#endif
}
static inline float largest(Vector v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float best = v[0];
    for (int i = 1; i < WIDTH; ++i) best = v[i] > best ? v[i] : best;
    return best;
#endif
}

static inline Vector max(Vector a, Vector b) { return a > b ? a : b; }

// 2^x to 9e-8, exact where x is whole, for x <= 127; 0 below -126. A least maximum fit about the nearest whole number.
static inline Vector exp2(Vector x) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    Vector bounded = max(x, splat(-126.0f));
    Vector shifted = bounded + magic;
    Vector f = bounded - (shifted - magic);
    Vector p = splat(1.326472542e-3f);
    p = p * f + 9.671512768e-3f;
    p = p * f + 5.550733749e-2f;
    p = p * f + 2.402224208e-1f;
    p = p * f + 6.931469776e-1f;
    p = p * f + 1.0f;
    Integers power = (Integers)shifted << 23;  // the whole number is in the low bits; those of `magic` fall out
    Vector result = (Vector)((Integers)p + power);
    return x > -126.0f ? result : Vector{};
}
