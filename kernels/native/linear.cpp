// Products of rows with a weight matrix on the CPU: packed once, and as fast for the few rows of a decode step as for a
// prompt. A row's result does not depend on how many other rows there are.
//
// Weights are packed in panels of TILE outputs: a panel is [words, TILE], where a word is one float32 or two bfloat16
// that stand behind each other in a row of the weight. A task is one panel and a block of rows. The panel is cut along
// the inputs into slices that stay in the processor's second-level cache while all rows of the block go by; sums are
// kept in fp32 until the last slice. What stands behind a product (bias, and the gate of an MLP) is done while its
// results are at hand.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "calls.h"
#include "packed.h"

namespace {

constexpr int64_t ROWS = 32 * LANES;       // of a block: its sums and inputs stay in the cache
constexpr int64_t SLICE_WORDS = 49152 / TILE;  // at most, of a panel's slice
constexpr int64_t SMALL = 1 << 18;         // multiply-adds; with fewer, waking another thread takes longer

// The weights that are needed next, fetched line by line while products are made: so memory has no pause. With few
// groups of LANES rows memory is what takes the time, and nothing is gained.
struct Ahead {
    const char *line, *end;

    Ahead(const float *begin, int64_t words, int64_t row_groups)
        : line(reinterpret_cast<const char *>(begin)),
          end(begin && row_groups >= COLUMNS ? line + words * TILE * sizeof(float) : line) {}
    void fetch() {
        if (line < end) __builtin_prefetch(line);
        line += 64;
    }
};

// R rows times a slice of a panel, added to what stands in `from` (rows `from_stride` apart): sums[R][TILE].
template <typename T, int R>
void multiply(const float *x, int64_t x_stride, const float *panel, int64_t words, const float *from,
              int64_t from_stride, float *sums, Ahead &ahead) {
    typedef Packed<T> P;
    Vector total[R][COLUMNS];
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < COLUMNS; ++j) total[r][j] = load(from + r * from_stride + j * WIDTH);
    for (int64_t k = 0; k < words; ++k) {
        ahead.fetch();
        Vector weight[COLUMNS];
        for (int j = 0; j < COLUMNS; ++j) weight[j] = load(panel + k * TILE + j * WIDTH);
        for (int r = 0; r < R; ++r)
            for (int j = 0; j < COLUMNS; ++j)
                total[r][j] = P::multiply_add(total[r][j], x[r * x_stride + k], weight[j]);
    }
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < COLUMNS; ++j) store(sums + r * TILE + j * WIDTH, total[r][j]);
}

template <typename T, int R>
void multiply_rest(int64_t rows, const float *x, int64_t x_stride, const float *panel, int64_t words, const float *from,
                   int64_t from_stride, float *sums, Ahead &ahead) {
    if (rows == R)
        multiply<T, R>(x, x_stride, panel, words, from, from_stride, sums, ahead);
    else if constexpr (R > 1)
        multiply_rest<T, R - 1>(rows, x, x_stride, panel, words, from, from_stride, sums, ahead);
}

// The product of a block of rows with a panel, and its bias, as [rows, TILE] in fp32.
template <typename T>
void product(const float *x, int64_t x_stride, int64_t rows, const float *panel, int64_t words, const float *next,
             const T *bias, int64_t columns, float *sums) {
    float start[TILE] = {};
    for (int64_t c = 0; bias && c < columns; ++c) start[c] = to_float(bias[c]);
    const int64_t slices = std::max<int64_t>(1, (words + SLICE_WORDS - 1) / SLICE_WORDS);
    const int64_t slice = (words + slices - 1) / slices;
    for (int64_t begin = 0; begin < words; begin += slice) {
        const bool last = begin + slice >= words;
        Ahead ahead(last ? next : panel + (begin + slice) * TILE, std::min(slice, last ? words : words - begin - slice),
                    (rows + LANES - 1) / LANES);
        for (int64_t row = 0; row < rows; row += LANES)
            multiply_rest<T, LANES>(std::min<int64_t>(LANES, rows - row), x + row * x_stride + begin, x_stride,
                                    panel + begin * TILE, std::min(slice, words - begin),
                                    begin ? sums + row * TILE : start, begin ? TILE : 0, sums + row * TILE, ahead);
    }
}

Vector activated(Vector x, int64_t activation) {
    Vector u = activation == 1 ? x : 1.5957691216f * (x + 0.044715f * x * x * x);
    Vector power = exp2(-max(u * LOG2E, splat(-126.0f)));
    return x / (1.0f + power);
}

template <typename T> void write(const float *sums, int64_t columns, T *out) {
    int64_t c = 0;
    for (; c + WIDTH <= columns; c += WIDTH) store(out + c, load(sums + c));
    for (; c < columns; ++c) round_to(sums[c], out + c);
}

struct Buffers {
    std::vector<float> x, sums, gate;
};

template <typename T> void run(const LinearCall &call) {
    constexpr int64_t per_word = Packed<T>::PER_WORD;
    constexpr bool in_place = per_word * sizeof(T) == sizeof(float);  // rows are words as they stand
    const int64_t words = words_of(call.inputs, per_word), panels = (call.outputs + TILE - 1) / TILE;
    const int64_t blocks = (call.rows + ROWS - 1) / ROWS;
    const bool copied = !in_place || call.inputs % per_word || call.x_stride % per_word ||
                        reinterpret_cast<uintptr_t>(call.x) % sizeof(float);
    const int64_t threads = call.rows * call.inputs * call.outputs < SMALL ? 1 : call.threads;
    const int64_t tasks = panels * blocks;
    int64_t taken = 0;
    auto take = [&taken] {
        int64_t task;
#pragma omp atomic capture
        task = taken++;
        return task;
    };
#pragma omp parallel num_threads(threads)
    {
        static thread_local Buffers buffers;
        buffers.sums.resize(ROWS * TILE);
        if (call.up) buffers.gate.resize(ROWS * TILE);
        int64_t held = -1;  // the block of rows that was copied
        for (int64_t task = take(), after; task < tasks; task = after) {
            after = take();  // known before it is begun, so that its weights can be fetched
            const float *then = after < tasks ? call.weight + after % panels * words * TILE : nullptr;
            const int64_t block = task / panels, panel = task % panels;
            const int64_t first = block * ROWS, rows = std::min(ROWS, call.rows - first);
            const int64_t column = panel * TILE, columns = std::min<int64_t>(TILE, call.outputs - column);
            const T *from = static_cast<const T *>(call.x) + first * call.x_stride;
            const float *x = reinterpret_cast<const float *>(from);
            int64_t x_stride = call.x_stride / per_word;
            if (copied) {
                x_stride = words;
                if (held != block) {
                    buffers.x.assign(ROWS * words, 0.0f);
                    for (int64_t row = 0; row < rows; ++row)
                        if (in_place)
                            memcpy(buffers.x.data() + row * words, from + row * call.x_stride, call.inputs * sizeof(T));
                        else
                            for (int64_t k = 0; k < call.inputs; ++k)
                                buffers.x[row * words + k] = to_float(from[row * call.x_stride + k]);
                    held = block;
                }
                x = buffers.x.data();
            }
            auto multiplied = [&](const float *weight, const float *next, const void *bias, float *sums) {
                const T *values = static_cast<const T *>(bias);
                product<T>(x, x_stride, rows, weight + panel * words * TILE, words, next,
                           values ? values + column : nullptr, columns, sums);
            };
            float *sums = buffers.sums.data();
            multiplied(call.weight, call.up ? call.up + panel * words * TILE : then, call.bias, sums);
            if (call.up) {
                float *up = buffers.gate.data();
                multiplied(call.up, then, call.up_bias, up);
                for (int64_t i = 0; i < rows * TILE; i += WIDTH)
                    store(sums + i, activated(load(sums + i), call.activation) * load(up + i));
            }
            T *out = static_cast<T *>(call.out) + first * call.out_stride + column;
            for (int64_t row = 0; row < rows; ++row) write(sums + row * TILE, columns, out + row * call.out_stride);
        }
    }
}

// A word of a packed weight, and where its numbers stand in the matrix.
template <typename T, typename Move> void each_word(int64_t inputs, int64_t outputs, int64_t threads, Move move) {
    constexpr int64_t per_word = Packed<T>::PER_WORD;
    const int64_t words = words_of(inputs, per_word), panels = (outputs + TILE - 1) / TILE;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t panel = 0; panel < panels; ++panel)
        for (int64_t c = 0; c < TILE; ++c) {
            const int64_t output = panel * TILE + c;
            for (int64_t k = 0; k < words; ++k) move((panel * words + k) * TILE + c, output, k * per_word);
        }
}

template <typename T> void pack(const T *weight, int64_t inputs, int64_t outputs, int64_t threads, float *packed) {
    constexpr int64_t per_word = Packed<T>::PER_WORD;
    each_word<T>(inputs, outputs, threads, [=](int64_t word, int64_t output, int64_t input) {
        T numbers[per_word] = {};
        for (int64_t i = 0; i < per_word && output < outputs && input + i < inputs; ++i)
            numbers[i] = weight[output * inputs + input + i];
        if constexpr (per_word * sizeof(T) == sizeof(float))
            memcpy(packed + word, numbers, sizeof(float));
        else
            packed[word] = to_float(numbers[0]);
    });
}

template <typename T> void unpack(const float *packed, int64_t inputs, int64_t outputs, int64_t threads, T *weight) {
    constexpr int64_t per_word = Packed<T>::PER_WORD;
    each_word<T>(inputs, outputs, threads, [=](int64_t word, int64_t output, int64_t input) {
        T numbers[per_word];
        if constexpr (per_word * sizeof(T) == sizeof(float))
            memcpy(numbers, packed + word, sizeof(float));
        else
            round_to(packed[word], numbers);
        for (int64_t i = 0; i < per_word && output < outputs && input + i < inputs; ++i)
            weight[output * inputs + input + i] = numbers[i];
    });
}

template <typename T>
void read_rows(const float *packed, int64_t inputs, const int64_t *rows, int64_t count, int64_t threads, T *out) {
    constexpr int64_t per_word = Packed<T>::PER_WORD;
    const int64_t words = words_of(inputs, per_word);
#pragma omp parallel for schedule(static) num_threads(count * inputs < SMALL ? 1 : threads)
    for (int64_t i = 0; i < count; ++i) {
        const float *from = packed + rows[i] / TILE * words * TILE + rows[i] % TILE;
        T *to = out + i * inputs;
        for (int64_t k = 0; k < words; ++k) {
            T numbers[per_word];
            if constexpr (per_word * sizeof(T) == sizeof(float))
                memcpy(numbers, from + k * TILE, sizeof(float));
            else
                round_to(from[k * TILE], numbers);
            memcpy(to + k * per_word, numbers, std::min(per_word, inputs - k * per_word) * sizeof(T));
        }
    }
}

}  // namespace

extern "C" void llmsql_linear(const LinearCall *call) {
    if (call->is_bf16)
        run<bf16>(*call);
    else
        run<float>(*call);
}

// How many float32 a packed weight takes.
extern "C" int64_t llmsql_packed_size(int64_t inputs, int64_t outputs, int64_t is_bf16) {
    const int64_t words = words_of(inputs, is_bf16 ? Packed<bf16>::PER_WORD : Packed<float>::PER_WORD);
    return (outputs + TILE - 1) / TILE * TILE * words;
}

extern "C" void llmsql_pack(const void *weight, int64_t inputs, int64_t outputs, int64_t is_bf16, int64_t threads,
                            float *packed) {
    if (is_bf16)
        pack(static_cast<const bf16 *>(weight), inputs, outputs, threads, packed);
    else
        pack(static_cast<const float *>(weight), inputs, outputs, threads, packed);
}

extern "C" void llmsql_unpack(const float *packed, int64_t inputs, int64_t outputs, int64_t is_bf16, int64_t threads,
                              void *weight) {
    if (is_bf16)
        unpack(packed, inputs, outputs, threads, static_cast<bf16 *>(weight));
    else
        unpack(packed, inputs, outputs, threads, static_cast<float *>(weight));
}

// Rows of a packed weight, as they were.
extern "C" void llmsql_packed_rows(const float *packed, int64_t inputs, const int64_t *rows, int64_t count,
                                   int64_t is_bf16, int64_t threads, void *out) {
    if (is_bf16)
        read_rows(packed, inputs, rows, count, threads, static_cast<bf16 *>(out));
    else
        read_rows(packed, inputs, rows, count, threads, static_cast<float *>(out));
}
