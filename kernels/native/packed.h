// How numbers take part in products: as words of 32 bits, each one float32, or two bfloat16 where the processor
// multiplies pairs. Elsewhere bfloat16 is widened to float32, and a word is one number.
#pragma once

#include "vectors.h"

// Words that hold so many numbers.
static inline int64_t words_of(int64_t numbers, int64_t per_word) { return (numbers + per_word - 1) / per_word; }

template <typename T> struct Packed {
    static constexpr int PER_WORD = 1;  // numbers of type T
    // WIDTH words as they lie in memory.
    static Vector words(const T *p) { return load(p); }
    // The sum and the product of a word with each word of a vector.
    static Vector multiply_add(Vector sum, float a, Vector b) { return sum + a * b; }
    // The weights of a tile of keys, as words.
    static void pack_weights(const Vector *weights, float *out) {
        for (int j = 0; j < COLUMNS; ++j) store(out + j * WIDTH, weights[j]);
    }
};

#if defined(__AVX512BF16__)
template <> struct Packed<bf16> {
    static constexpr int PER_WORD = 2;
    static Vector words(const bf16 *p) {
        Vector v;
        memcpy(&v, p, sizeof v);
        return v;
    }
    static Vector multiply_add(Vector sum, float a, Vector b) {
        return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(__m512)splat_bits(a), (__m512bh)(__m512)b);
    }
    static Vector splat_bits(float a) {
        int32_t bits;
        memcpy(&bits, &a, 4);
        return (Vector)_mm512_set1_epi32(bits);
    }
    static void pack_weights(const Vector *weights, float *out) {
        for (int j = 0; j < COLUMNS; j += 2) {
            __m512bh pairs = _mm512_cvtne2ps_pbh((__m512)weights[j + 1], (__m512)weights[j]);
            memcpy(out + j * WIDTH / 2, &pairs, sizeof pairs);
        }
    }
};
#endif
