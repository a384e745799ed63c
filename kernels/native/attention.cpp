// Paged attention over a work list on the CPU: the same node table, work list and result as the Triton kernel.
//
// A task is one item of the list for one KV head. Its query tokens times the query heads of the KV head are lanes. Keys
// come in tiles, gathered through the block lists: transposed into a scratch block, so that a register tile of scores
// (LANES lanes, COLUMNS vectors of keys) takes one multiply-add per vector and number of a head. Each tile of scores
// goes through the online softmax in fp32 (Milakov and Gimelshein 2018) while it is in registers, and its weights meet
// the values before the next lanes come. In bf16 both products multiply pairs of numbers where the CPU can.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "packed.h"

struct AttentionCall {
    void *out;                // [tokens, heads, value_dim]
    float *parts;             // [parts, heads, value_dim]
    float *lse;               // [parts, heads]
    const void *query;        // [tokens, heads, key_dim]
    const void *keys;         // [slots, kv_heads, key_dim] contiguous
    const void *values;       // [slots, kv_heads, value_dim] contiguous
    const int32_t *items;     // [items, 8]
    const int32_t *entry_token, *entry_position, *entry_part;
    const int32_t *merge_token, *merge_start;
    const int32_t *node_block_start, *blocks, *node_offset, *node_len, *node_position, *path_nodes;
    int64_t query_token_stride, query_head_stride;
    int64_t num_items, num_merged;
    int64_t heads, kv_heads, key_dim, value_dim, block_size, window;
    int64_t is_bf16, threads;
    float scale, softcap;  // softcap 0: none
};

namespace {

constexpr int ITEM_WIDTH = 8;

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

struct Scratch {
    std::vector<float> query, keys, values, sums, weights;
    std::vector<float> best, total;
    std::vector<int64_t> first, last;  // of the keys that a lane sees, as positions; last is one behind
    std::vector<float> merged;

    void reserve(int64_t lanes, int64_t key_words, int64_t value_size) {
        query.resize(std::max<size_t>(query.size(), lanes * key_words));
        keys.resize(std::max<size_t>(keys.size(), key_words * TILE));
        values.resize(std::max<size_t>(values.size(), value_size * TILE));
        sums.resize(std::max<size_t>(sums.size(), lanes * value_size));
        weights.resize(LANES * TILE);
        best.resize(std::max<size_t>(best.size(), lanes));
        total.resize(std::max<size_t>(total.size(), lanes));
        first.resize(std::max<size_t>(first.size(), lanes));
        last.resize(std::max<size_t>(last.size(), lanes));
    }
};

template <typename T> void prefetch(const T *row, int64_t dim) {
    for (int64_t byte = 0; byte < dim * int64_t(sizeof(T)); byte += 64)
        __builtin_prefetch(reinterpret_cast<const char *>(row) + byte);
}

// One item for one KV head, and the walk over its keys: those at the item's positions on its path, tile by tile.
template <typename T> struct Task {
    const AttentionCall &call;
    const int32_t *item;
    int64_t kv_head;
    const T *keys, *values;             // of the KV head
    int64_t step, position;             // on the path
    int64_t slots[2][TILE], starts[2];  // of this tile and the next; the position of its first key
    int count = 0;                      // of keys of the next tile; 0: there is none

    Task(const AttentionCall &call, int64_t number)
        : call(call), item(call.items + number / call.kv_heads * ITEM_WIDTH), kv_head(number % call.kv_heads),
          keys(static_cast<const T *>(call.keys) + kv_head * call.key_dim),
          values(static_cast<const T *>(call.values) + kv_head * call.value_dim), step(item[2]), position(item[4]) {
        fetch(0);
    }

    // Find the next tile, and have its keys and values on their way while something else is computed.
    void fetch(int turn) {
        int64_t *found = slots[turn];
        count = 0;
        for (; step < item[3] && count < TILE; ++step) {
            const int64_t node = call.path_nodes[step], begin = call.node_position[node];
            const int64_t end = std::min<int64_t>(begin + call.node_len[node], item[5]);
            const int32_t *blocks = call.blocks + call.node_block_start[node];
            position = std::max(position, begin);
            if (count == 0) starts[turn] = position;
            for (; position < end && count < TILE; ++position) {
                const int64_t place = call.node_offset[node] + position - begin;
                found[count++] = blocks[place / call.block_size] * call.block_size + place % call.block_size;
            }
            if (position < end) break;  // the tile is full, and the node goes on
        }
        for (int k = 0; k < count; ++k) {
            prefetch(keys + found[k] * call.kv_heads * call.key_dim, call.key_dim);
            prefetch(values + found[k] * call.kv_heads * call.value_dim, call.value_dim);
        }
    }
};

// Rows of `dim` numbers as words, transposed to [words, TILE]; words beyond are zero, rows beyond anything.
template <typename T> void pack_transposed(const T *pool, const int64_t *slots, int count, int64_t stride, int64_t dim,
                                           float *out) {
    constexpr int per_word = Packed<T>::PER_WORD;
    constexpr int numbers = WIDTH * per_word;
    for (int64_t d = 0; d < dim; d += numbers)
        for (int k = 0; k < count; k += WIDTH) {
            Integers square[WIDTH];
            for (int i = 0; i < WIDTH; ++i) {
                square[i] = Integers{};
                if (k + i >= count) continue;
                const T *row = pool + slots[k + i] * stride + d;
                if (per_word == 1 && sizeof(T) == 2) {
                    float wide[WIDTH] = {};
                    for (int64_t j = 0; j < std::min<int64_t>(numbers, dim - d); ++j) wide[j] = to_float(row[j]);
                    memcpy(&square[i], wide, sizeof wide);
                } else if (d + numbers <= dim) {
                    memcpy(&square[i], row, sizeof square[i]);
                } else {
                    memcpy(&square[i], row, (dim - d) * sizeof(T));
                }
            }
            transpose(square);
            for (int i = 0; i < WIDTH; ++i) memcpy(out + (d / per_word + i) * TILE + k, &square[i], sizeof square[i]);
        }
}

// Values as [words of keys, size]: with two numbers to a word those of two keys stand together, or of one and zero.
template <typename T> void pack_values(const T *pool, const int64_t *slots, int count, int64_t stride, int64_t dim,
                                       int64_t size, float *out) {
    constexpr int per_word = Packed<T>::PER_WORD;
    for (int k = 0; k < count; k += per_word) {
        float *to = out + k / per_word * size;
        const T *row = pool + slots[k] * stride;
        if constexpr (per_word == 1) {
            int64_t d = 0;
            for (; d + WIDTH <= dim; d += WIDTH) store(to + d, load(row + d));
            for (; d < dim; ++d) to[d] = to_float(row[d]);
            for (; d < size; ++d) to[d] = 0.0f;
        } else {
            const T *next = k + 1 < count ? pool + slots[k + 1] * stride : nullptr;
            int64_t d = 0;
            for (; d + WIDTH <= dim; d += WIDTH) {
                Halves low, high{};
                memcpy(&low, row + d, sizeof low);
                if (next) memcpy(&high, next + d, sizeof high);
                Words pair = __builtin_convertvector(low, Words) | (__builtin_convertvector(high, Words) << 16);
                memcpy(to + d, &pair, sizeof pair);
            }
            for (; d < size; ++d) {
                uint32_t pair = d >= dim ? 0 : uint32_t(row[d]) | (next ? uint32_t(next[d]) << 16 : 0);
                memcpy(to + d, &pair, 4);
            }
        }
    }
}

// R lanes against one tile of keys: scores, softmax, and the weighted sum of the values.
template <typename T, int R>
void attend_tile(const AttentionCall &call, Scratch &s, int64_t lane, int count, int64_t from, int64_t key_words,
                 int64_t value_size) {
    typedef Packed<T> P;
    const float *query = s.query.data() + lane * key_words;
    const float *keys = s.keys.data();
    Vector scores[R][COLUMNS] = {};
    for (int64_t d = 0; d < key_words; ++d) {
        Vector key[COLUMNS];
        for (int j = 0; j < COLUMNS; ++j) key[j] = load(keys + d * TILE + j * WIDTH);
        for (int r = 0; r < R; ++r)
            for (int j = 0; j < COLUMNS; ++j)
                scores[r][j] = P::multiply_add(scores[r][j], query[r * key_words + d], key[j]);
    }
    Vector faded{};
    float totals[R];
    Integers index;
    for (int i = 0; i < WIDTH; ++i) index[i] = i;
    const float factor = call.softcap > 0 ? call.scale / call.softcap * 2 * LOG2E : call.scale * LOG2E;
    for (int r = 0; r < R; ++r) {
        Vector *row = scores[r];
        for (int j = 0; j < COLUMNS; ++j) row[j] *= factor;
        if (call.softcap > 0)  // tanh with one exponential: goes to 1 and -1 where the symmetric form is inf / inf
            for (int j = 0; j < COLUMNS; ++j) {
                Vector power = exp2(row[j] < 126.0f ? row[j] : splat(126.0f));
                row[j] = (call.softcap * LOG2E) * (1.0f - 2.0f / (power + 1.0f));
            }
        int low = int(std::clamp<int64_t>(s.first[lane + r] - from, 0, count));
        int high = int(std::clamp<int64_t>(s.last[lane + r] - from, low, count));
        if (low > 0 || high < TILE)
            for (int j = 0; j < COLUMNS; ++j) {
                Integers key = index + j * WIDTH;
                row[j] = (key >= low) & (key < high) ? row[j] : splat(-INFINITY);
            }
        Vector most = row[0];
        for (int j = 1; j < COLUMNS; ++j) most = max(most, row[j]);
        const float best = s.best[lane + r], now = std::max(best, largest(most));
        const float shift = now == -INFINITY ? 0.0f : now;  // the lane may have seen no key yet
        faded[r] = best - shift;
        Vector all{};
        for (int j = 0; j < COLUMNS; ++j) {
            row[j] = exp2(row[j] - shift);
            all += row[j];
        }
        totals[r] = sum(all);
        s.best[lane + r] = now;
        P::pack_weights(row, s.weights.data() + r * TILE);
    }
    const Vector keep = exp2(faded);
    for (int r = 0; r < R; ++r) s.total[lane + r] = s.total[lane + r] * keep[r] + totals[r];
    const int words = (count + P::PER_WORD - 1) / P::PER_WORD;
    float *sums = s.sums.data() + lane * value_size;
    int64_t d = 0;
    for (; d + TILE <= value_size; d += TILE) {
        Vector total[R][COLUMNS];
        for (int r = 0; r < R; ++r)
            for (int j = 0; j < COLUMNS; ++j) total[r][j] = load(sums + r * value_size + d + j * WIDTH) * keep[r];
        for (int k = 0; k < words; ++k) {
            Vector value[COLUMNS];
            for (int j = 0; j < COLUMNS; ++j) value[j] = load(s.values.data() + k * value_size + d + j * WIDTH);
            for (int r = 0; r < R; ++r)
                for (int j = 0; j < COLUMNS; ++j)
                    total[r][j] = P::multiply_add(total[r][j], s.weights[r * TILE + k], value[j]);
        }
        for (int r = 0; r < R; ++r)
            for (int j = 0; j < COLUMNS; ++j) store(sums + r * value_size + d + j * WIDTH, total[r][j]);
    }
    for (; d < value_size; d += WIDTH) {
        Vector total[R];
        for (int r = 0; r < R; ++r) total[r] = load(sums + r * value_size + d) * keep[r];
        for (int k = 0; k < words; ++k) {
            Vector value = load(s.values.data() + k * value_size + d);
            for (int r = 0; r < R; ++r) total[r] = P::multiply_add(total[r], s.weights[r * TILE + k], value);
        }
        for (int r = 0; r < R; ++r) store(sums + r * value_size + d, total[r]);
    }
}

template <typename T, int R>
void attend_rest(const AttentionCall &call, Scratch &s, int64_t lane, int64_t left, int count, int64_t from,
                 int64_t key_words, int64_t value_size) {
    if (left == R)
        attend_tile<T, R>(call, s, lane, count, from, key_words, value_size);
    else if constexpr (R > 1)
        attend_rest<T, R - 1>(call, s, lane, left, count, from, key_words, value_size);
}

template <typename T> void write_row(const float *from, float factor, int64_t dim, T *to) {
    int64_t d = 0;
    for (; d + WIDTH <= dim; d += WIDTH) store(to + d, load(from + d) * factor);
    for (; d < dim; ++d) round_to(from[d] * factor, to + d);
}

template <typename T> void run_task(Task<T> &&task, Scratch &s) {
    const AttentionCall &call = task.call;
    const int32_t *item = task.item;
    const int64_t kv_head = task.kv_head;
    constexpr int per_word = Packed<T>::PER_WORD;
    const int64_t group = call.heads / call.kv_heads, lanes = item[1] * group;
    const int64_t key_words = round_up(call.key_dim, WIDTH * per_word) / per_word;
    const int64_t value_size = round_up(call.value_dim, WIDTH);
    s.reserve(lanes, key_words, value_size);
    std::fill_n(s.query.begin(), lanes * key_words, 0.0f);
    std::fill_n(s.sums.begin(), lanes * value_size, 0.0f);
    std::fill_n(s.best.begin(), lanes, -INFINITY);
    std::fill_n(s.total.begin(), lanes, 0.0f);
    const T *query = static_cast<const T *>(call.query);
    for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t entry = item[0] + lane / group, head = kv_head * group + lane % group;
        const T *row = query + call.entry_token[entry] * call.query_token_stride + head * call.query_head_stride;
        float *to = s.query.data() + lane * key_words;
        if (per_word * sizeof(T) == sizeof(float))
            memcpy(to, row, call.key_dim * sizeof(T));
        else
            for (int64_t d = 0; d < call.key_dim; ++d) to[d] = to_float(row[d]);
        const int64_t position = call.entry_position[entry];
        s.first[lane] = call.window > 0 ? position - call.window + 1 : 0;
        s.last[lane] = position + 1;
    }
    for (int turn = 0; task.count; turn ^= 1) {
        const int count = task.count;
        const int64_t *slots = task.slots[turn], from = task.starts[turn];
        task.fetch(turn ^ 1);
        pack_transposed(task.keys, slots, count, call.kv_heads * call.key_dim, call.key_dim, s.keys.data());
        pack_values(task.values, slots, count, call.kv_heads * call.value_dim, call.value_dim, value_size, s.values.data());
        for (int64_t lane = 0; lane < lanes; lane += LANES)
            attend_rest<T, LANES>(call, s, lane, std::min<int64_t>(LANES, lanes - lane), count, from, key_words,
                                  value_size);
    }
    for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t entry = item[0] + lane / group, head = kv_head * group + lane % group;
        const float total = s.total[lane], factor = total > 0 ? 1 / total : 0;
        const float *sums = s.sums.data() + lane * value_size;
        const int64_t part = call.entry_part[entry];
        if (part < 0) {
            const int64_t row = call.entry_token[entry] * call.heads + head;
            write_row(sums, factor, call.value_dim, static_cast<T *>(call.out) + row * call.value_dim);
        } else {
            const int64_t row = part * call.heads + head;
            write_row(sums, factor, call.value_dim, call.parts + row * call.value_dim);
            call.lse[row] = total > 0 ? s.best[lane] / LOG2E + logf(total) : -INFINITY;
        }
    }
}

// Parts of one token, joined by their log-sum-exps; where all saw no key the result is zero.
template <typename T> void merge(const AttentionCall &call, int64_t merged, std::vector<float> &sums) {
    const int64_t begin = call.merge_start[merged], end = call.merge_start[merged + 1], dim = call.value_dim;
    sums.resize(dim);
    for (int64_t head = 0; head < call.heads; ++head) {
        float best = -INFINITY, total = 0;
        for (int64_t part = begin; part < end; ++part) best = std::max(best, call.lse[part * call.heads + head]);
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (int64_t part = begin; part < end && best > -INFINITY; ++part) {
            const int64_t row = part * call.heads + head;
            const float weight = expf(call.lse[row] - best);
            const float *from = call.parts + row * dim;
            total += weight;
            for (int64_t d = 0; d < dim; ++d) sums[d] += weight * from[d];
        }
        const int64_t row = call.merge_token[merged] * call.heads + head;
        write_row(sums.data(), total > 0 ? 1 / total : 0, dim, static_cast<T *>(call.out) + row * dim);
    }
}

template <typename T> void run(const AttentionCall &call) {
    const int64_t num_tasks = call.num_items * call.kv_heads;
#pragma omp parallel num_threads(call.threads)
    {
        static thread_local Scratch scratch;
#pragma omp for schedule(monotonic : dynamic, 1)
        for (int64_t number = 0; number < num_tasks; ++number) run_task(Task<T>(call, number), scratch);
#pragma omp for schedule(static)
        for (int64_t merged = 0; merged < call.num_merged; ++merged) merge<T>(call, merged, scratch.merged);
    }
}

}  // namespace

extern "C" void llmsql_paged_attention(const AttentionCall *call) {
    if (call->is_bf16)
        run<bf16>(*call);
    else
        run<float>(*call);
}
