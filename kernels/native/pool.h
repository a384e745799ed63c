// The KV pool of a layer, laid out as attention reads it: in chunks of CHUNK slots. For each chunk and KV head the keys
// are transposed, [words of a key, CHUNK], so that a vector holds the same numbers of WIDTH keys; values are
// [words of CHUNK slots, value_dim], so that with two numbers to a word a word holds those of two slots. One more chunk
// of values than there are slots lets a vector be read that begins within the last.
#pragma once

#include "packed.h"

constexpr int CHUNK = 16;  // slots: any WIDTH divides it

template <typename T> struct Pool {
    static constexpr int PER_WORD = Packed<T>::PER_WORD;
    T *keys, *values;
    int64_t kv_heads, key_dim, value_dim;

    int64_t key_words() const { return words_of(key_dim, PER_WORD); }
    // The first word of a slot's key: the next ones follow CHUNK words apart.
    T *key(int64_t slot, int64_t kv_head) const {
        return keys + ((slot / CHUNK * kv_heads + kv_head) * key_words() * CHUNK + slot % CHUNK) * PER_WORD;
    }
    // The words of values that hold a slot's, value_dim of them.
    T *value(int64_t slot, int64_t kv_head) const {
        return values + ((slot / CHUNK * kv_heads + kv_head) * CHUNK / PER_WORD + slot % CHUNK / PER_WORD) * value_dim *
                            PER_WORD;
    }
    void write_key(int64_t slot, int64_t kv_head, const T *from) const {
        T *to = key(slot, kv_head);
        for (int64_t d = 0; d < key_dim; ++d) to[d / PER_WORD * CHUNK * PER_WORD + d % PER_WORD] = from[d];
    }
    void write_value(int64_t slot, int64_t kv_head, const T *from) const {
        T *to = value(slot, kv_head) + slot % PER_WORD;
        for (int64_t d = 0; d < value_dim; ++d) to[d * PER_WORD] = from[d];
    }
};
