// What stands between a decoder's matrix products, on the CPU: RMS norm with the residual sum, and rotary positions on
// queries and keys together with the KV write. Computed in fp32, rounded where transformers rounds.

#include <cmath>
#include <cstddef>
#include <vector>

#include "calls.h"
#include "pool.h"

namespace {

constexpr int64_t NUMBERS_PER_THREAD = 16384;  // with fewer to do, waking another thread takes longer

int enough_threads(int64_t numbers, int64_t threads) {
    int64_t useful = numbers / NUMBERS_PER_THREAD;
    return int(useful < 1 ? 1 : useful < threads ? useful : threads);
}

float rounded(float x, float) { return x; }
float rounded(float x, bf16) {
    bf16 half;
    round_to(x, &half);
    return to_float(half);
}
Vector rounded(Vector v, float) { return v; }
Vector rounded(Vector v, bf16) {
    bf16 halves[WIDTH];
    store(halves, v);
    return load(halves);
}

template <typename T>
void norm_row(const T *x, const T *weight, T *residual, T *normed, int64_t size, float eps, bool offset) {
    const T *total = residual ? residual : x;
    Vector squares{};
    float rest = 0;
    int64_t d = 0;
    for (; d + WIDTH <= size; d += WIDTH) {
        Vector v = load(x + d);
        if (residual) {
            v += load(residual + d);
            store(residual + d, v);
            v = rounded(v, T{});
        }
        squares += v * v;
    }
    for (; d < size; ++d) {
        float v = to_float(x[d]);
        if (residual) {
            round_to(v + to_float(residual[d]), residual + d);
            v = to_float(residual[d]);
        }
        rest += v * v;
    }
    const float factor = 1 / sqrtf((sum(squares) + rest) / float(size) + eps);
    for (d = 0; d + WIDTH <= size; d += WIDTH) {
        Vector v = load(total + d) * factor, w = load(weight + d);
        store(normed + d, offset ? v * (w + 1.0f) : rounded(v, T{}) * w);
    }
    for (; d < size; ++d) {
        float v = to_float(total[d]) * factor, w = to_float(weight[d]);
        round_to(offset ? v * (w + 1.0f) : rounded(v, T{}) * w, normed + d);
    }
}

// Rows of a tensor [outer, inner, size]; those of `residual` and `normed` are contiguous.
template <typename T>
void norm(const T *x, const T *weight, T *residual, T *normed, int64_t outer, int64_t inner, int64_t size,
          int64_t outer_stride, int64_t inner_stride, float eps, bool offset, int64_t threads) {
    const int64_t rows = outer * inner;
#pragma omp parallel for schedule(static) num_threads(enough_threads(rows * size, threads))
    for (int64_t row = 0; row < rows; ++row)
        norm_row(x + row / inner * outer_stride + row % inner * inner_stride, weight,
                 residual ? residual + row * size : nullptr, normed + row * size, size, eps, offset);
}

template <typename T> void turn(const T *x, const float *cos, const float *sin, int64_t half, T *out) {
    int64_t d = 0;
    for (; d + WIDTH <= half; d += WIDTH) {
        Vector c = rounded(load(cos + d), T{}), s = rounded(load(sin + d), T{});
        Vector first = load(x + d), second = load(x + half + d);
        store(out + d, first * c - second * s);
        store(out + half + d, second * c + first * s);
    }
    for (; d < half; ++d) {
        float c = rounded(cos[d], T{}), s = rounded(sin[d], T{});
        float first = to_float(x[d]), second = to_float(x[half + d]);
        round_to(first * c - second * s, out + d);
        round_to(second * c + first * s, out + half + d);
    }
}

}  // namespace

extern "C" void llmsql_rms_norm(const NormCall *call) {
    auto run = [call](auto zero) {
        typedef decltype(zero) T;
        norm(static_cast<const T *>(call->x), static_cast<const T *>(call->weight), static_cast<T *>(call->residual),
             static_cast<T *>(call->normed), call->outer, call->inner, call->size, call->outer_stride,
             call->inner_stride, call->eps, call->offset != 0, call->threads);
    };
    if (call->is_bf16)
        run(bf16{});
    else
        run(0.0f);
}

// Stores the keys and values of one token, the keys as `turned` gives them.
template <typename T, typename Turned> static void write_token(const WriteCall &call, int64_t token, Turned turned) {
    if (call.slots[token] < 0) return;
    const Pool<T> pool{static_cast<T *>(call.key_pool), static_cast<T *>(call.value_pool), call.kv_heads, call.key_dim,
                       call.value_dim};
    const T *key = static_cast<const T *>(call.key) + token * call.key_strides[0];
    const T *value = static_cast<const T *>(call.value) + token * call.value_strides[0];
    for (int64_t head = 0; head < call.kv_heads; ++head) {
        pool.write_key(call.slots[token], head, turned(key + head * call.key_strides[1]));
        pool.write_value(call.slots[token], head, value + head * call.value_strides[1]);
    }
}

template <typename T> static void write_all(const WriteCall &call) {
    const int64_t numbers = call.tokens * call.kv_heads * (call.key_dim + call.value_dim);
#pragma omp parallel for schedule(static) num_threads(enough_threads(numbers, call.threads))
    for (int64_t token = 0; token < call.tokens; ++token) write_token<T>(call, token, [](const T *key) { return key; });
}

template <typename T> static void rotate(const RotaryCall &call) {
    const WriteCall &write = call.write;
    const int64_t half = write.key_dim / 2, size = write.key_dim;
    const int64_t numbers = write.tokens * (call.heads + 2 * write.kv_heads) * size;
#pragma omp parallel num_threads(enough_threads(numbers, write.threads))
    {
        std::vector<T> turned(size);
#pragma omp for schedule(static)
        for (int64_t token = 0; token < write.tokens; ++token) {
            const float *cos = call.cos + call.positions[token] * half, *sin = call.sin + call.positions[token] * half;
            const T *query = static_cast<const T *>(call.query) + token * call.query_strides[0];
            T *out = static_cast<T *>(call.out) + token * call.heads * size;
            for (int64_t head = 0; head < call.heads; ++head)
                turn(query + head * call.query_strides[1], cos, sin, half, out + head * size);
            write_token<T>(write, token, [&](const T *key) {
                turn(key, cos, sin, half, turned.data());
                return turned.data();
            });
        }
    }
}

extern "C" void llmsql_write_kv(const WriteCall *call) {
    if (call->is_bf16)
        write_all<bf16>(*call);
    else
        write_all<float>(*call);
}

extern "C" void llmsql_rotary_and_write(const RotaryCall *call) {
    if (call->write.is_bf16)
        rotate<bf16>(*call);
    else
        rotate<float>(*call);
}

// Numbers of a type that stand together in a word of a pool.
extern "C" int64_t llmsql_numbers_per_word(int64_t is_bf16) {
    return is_bf16 ? Packed<bf16>::PER_WORD : Packed<float>::PER_WORD;
}
