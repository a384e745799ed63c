// Paged attention over a work list on the CPU: the same node table, work list and result as the Triton kernel.
//
// A task is one item of the list for one KV head. Its query tokens times the query heads of the KV head are lanes. Keys
// come in tiles of COLUMNS vectors, each of up to WIDTH keys that stand in one chunk of the pool, where they lie
// transposed: a register tile of scores (LANES lanes, COLUMNS vectors of keys) takes one multiply-add per vector and
// word of a head, and nothing is copied. Each tile of scores goes through the online softmax in fp32 (Milakov and
// Gimelshein 2018) while it is in registers, and its weights meet the values before the next lanes come. In bf16 both
// products multiply pairs of numbers where the CPU can.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "calls.h"
#include "pool.h"

namespace {

constexpr int ITEM_WIDTH = 8;

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

struct Scratch {
    std::vector<float> query, sums, weights;
    std::vector<float> best, total;
    std::vector<int64_t> first, last;  // of the keys that a lane sees, as positions; last is one behind
    std::vector<float> merged;

    void reserve(int64_t lanes, int64_t key_words, int64_t value_size) {
        query.resize(std::max<size_t>(query.size(), lanes * key_words));
        sums.resize(std::max<size_t>(sums.size(), lanes * value_size));
        weights.resize(LANES * TILE);
        best.resize(std::max<size_t>(best.size(), lanes));
        total.resize(std::max<size_t>(total.size(), lanes));
        first.resize(std::max<size_t>(first.size(), lanes));
        last.resize(std::max<size_t>(last.size(), lanes));
    }
};

// Vectors of keys: those from `low` to `high` of each are meant, and stand at positions from `position + low` on.
template <typename T> struct Tile {
    const T *keys[COLUMNS], *values[COLUMNS];  // of the vector's first slot
    int64_t position[COLUMNS];                 // of its first slot, if that were on the path
    int low[COLUMNS], high[COLUMNS];
    int count = 0;
};

// An item of the work list for one KV head, and the walk over its keys: those at its positions on its path, tile by
// tile.
template <typename T> struct Task {
    const int32_t *item = nullptr;  // null behind the last task
    int64_t kv_head = 0;
    int64_t step = 0, position = 0;  // on the path
    Tile<T> tile;                    // the next one; its count is 0 behind the last

    void begin(const AttentionCall &call, int64_t number) {
        item = number < call.num_items * call.kv_heads ? call.items + number / call.kv_heads * ITEM_WIDTH : nullptr;
        tile.count = 0;
        if (!item) return;
        kv_head = number % call.kv_heads;
        step = item[2], position = item[4];
        next(call);
    }

    void next(const AttentionCall &call) {
        const Pool<T> pool{static_cast<T *>(call.keys), static_cast<T *>(call.values), call.kv_heads, call.key_dim,
                           call.value_dim};
        int64_t vector = -1;
        tile.count = 0;
        for (; step < item[3]; ++step) {
            const int64_t node = call.path_nodes[step], begin = call.node_position[node];
            const int64_t end = std::min<int64_t>(begin + call.node_len[node], item[5]);
            const int32_t *blocks = call.blocks + call.node_block_start[node];
            position = std::max(position, begin);
            while (position < end) {
                const int64_t place = call.node_offset[node] + position - begin, in_block = place % call.block_size;
                const int64_t slot = blocks[place / call.block_size] * call.block_size + in_block, low = slot % WIDTH;
                const int64_t found = std::min({end - position, call.block_size - in_block, WIDTH - low});
                const int last = tile.count - 1;
                if (last >= 0 && slot / WIDTH == vector && tile.high[last] == low &&
                    tile.position[last] + low == position) {  // goes on where another block or node ended
                    tile.high[last] += int(found);
                } else {
                    if (tile.count == COLUMNS) return;
                    vector = slot / WIDTH;
                    tile.keys[tile.count] = pool.key(slot - low, kv_head);
                    tile.values[tile.count] = pool.value(slot - low, kv_head);
                    tile.position[tile.count] = position - low;
                    tile.low[tile.count] = int(low);
                    tile.high[tile.count++] = int(low + found);
                }
                position += found;
            }
        }
        for (int j = tile.count; tile.count && j < COLUMNS; ++j) {  // read, and then left out
            tile.keys[j] = tile.keys[0], tile.values[j] = tile.values[0];
            tile.low[j] = tile.high[j] = 0;
            tile.position[j] = 0;
        }
    }
};

// Scores of R lanes, as they stand in registers, turned into the weights of the online softmax; what the lanes' sums so
// far are to be multiplied with.
template <typename T, int R>
Vector soften(const AttentionCall &call, Scratch &s, int64_t lane, const Tile<T> &tile, Vector (*scores)[COLUMNS]) {
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
        for (int j = 0; j < COLUMNS; ++j) {
            const int64_t first = s.first[lane + r] - tile.position[j], last = s.last[lane + r] - tile.position[j];
            const int low = int(std::clamp<int64_t>(first, tile.low[j], tile.high[j]));
            const int high = int(std::clamp<int64_t>(last, low, tile.high[j]));
            if (low > 0 || high < WIDTH) row[j] = (index >= low) & (index < high) ? row[j] : splat(-INFINITY);
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
    }
    const Vector keep = exp2(faded);
    for (int r = 0; r < R; ++r) s.total[lane + r] = s.total[lane + r] * keep[r] + totals[r];
    return keep;
}

// The weighted sum of the tile's values, C vectors of them, added to that of R lanes; meanwhile those of `ahead` come.
template <typename T, int R, int C>
void add_values(const Tile<T> &tile, const Tile<T> *ahead, Vector keep, const float *weights, float *sums,
                int64_t value_size, int64_t d, int64_t value_dim) {
    typedef Packed<T> P;
    constexpr int per_word = P::PER_WORD;
    Vector total[R][C];
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < C; ++j) total[r][j] = load(sums + r * value_size + d + j * WIDTH) * keep[r];
    for (int v = 0; v < tile.count; ++v) {
        const T *values = tile.values[v] + d * per_word;
        const float *weight = weights + v * WIDTH / per_word;
        auto add = [&](int word, auto only) {
            Vector value[C];
            for (int j = 0; j < C; ++j)
                value[j] = only(P::words(values + (word * value_dim + j * WIDTH) * per_word));
            for (int r = 0; r < R; ++r)
                for (int j = 0; j < C; ++j)
                    total[r][j] = P::multiply_add(total[r][j], weight[r * TILE + word], value[j]);
        };
        auto whole = [](Vector value) { return value; };
        int low = tile.low[v], high = tile.high[v];
        if constexpr (per_word == 2) {  // a word may hold a number of a slot that is not meant, which may be NaN
            auto first = [](Vector value) { return (Vector)((Words)value & 0xffffu); };
            auto second = [](Vector value) { return (Vector)((Words)value & 0xffff0000u); };
            if (low % 2 && low < high) add(low++ / 2, second);
            if (high % 2 && low < high) add(--high / 2, first);
        }
        const T *coming = ahead ? ahead->values[v] + d * per_word : nullptr;
        for (int word = low / per_word; word < high / per_word; ++word) {
            add(word, whole);
            for (int j = 0; ahead && j < C; ++j)
                __builtin_prefetch(coming + (word * value_dim + j * WIDTH) * per_word);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < C; ++j) store(sums + r * value_size + d + j * WIDTH, total[r][j]);
}

// R lanes against one tile of keys: scores, softmax, and the weighted sum of the values. Meanwhile the keys and values
// of `ahead` come from memory, line by line, so that it has no pause.
template <typename T, int R>
void attend_tile(const AttentionCall &call, Scratch &s, int64_t lane, const Tile<T> &tile, const Tile<T> *ahead,
                 int64_t key_words, int64_t value_size) {
    typedef Packed<T> P;
    constexpr int per_word = P::PER_WORD;
    const float *query = s.query.data() + lane * key_words;
    Vector scores[R][COLUMNS] = {};
    for (int64_t d = 0; d < key_words; ++d) {
        Vector key[COLUMNS];
        for (int j = 0; j < COLUMNS; ++j) key[j] = P::words(tile.keys[j] + d * CHUNK * per_word);
        if (ahead)
            for (int j = 0; j < COLUMNS; ++j) __builtin_prefetch(ahead->keys[j] + d * CHUNK * per_word);
        for (int r = 0; r < R; ++r)
            for (int j = 0; j < COLUMNS; ++j)
                scores[r][j] = P::multiply_add(scores[r][j], query[r * key_words + d], key[j]);
    }
    const Vector keep = soften<T, R>(call, s, lane, tile, scores);
    for (int r = 0; r < R; ++r) P::pack_weights(scores[r], s.weights.data() + r * TILE);
    float *sums = s.sums.data() + lane * value_size;
    int64_t d = 0;
    for (; d + TILE <= value_size; d += TILE)
        add_values<T, R, COLUMNS>(tile, ahead, keep, s.weights.data(), sums, value_size, d, call.value_dim);
    for (; d < value_size; d += WIDTH)
        add_values<T, R, 1>(tile, ahead, keep, s.weights.data(), sums, value_size, d, call.value_dim);
}

template <typename T, int R>
void attend_rest(const AttentionCall &call, Scratch &s, int64_t lane, int64_t left, const Tile<T> &tile,
                 const Tile<T> *ahead, int64_t key_words, int64_t value_size) {
    if (left == R)
        attend_tile<T, R>(call, s, lane, tile, ahead, key_words, value_size);
    else if constexpr (R > 1)
        attend_rest<T, R - 1>(call, s, lane, left, tile, ahead, key_words, value_size);
}

template <typename T> void write_row(const float *from, float factor, int64_t dim, T *to) {
    int64_t d = 0;
    for (; d + WIDTH <= dim; d += WIDTH) store(to + d, load(from + d) * factor);
    for (; d < dim; ++d) round_to(from[d] * factor, to + d);
}

// `after` is the thread's next task.
template <typename T> void run_task(const AttentionCall &call, Task<T> &task, const Task<T> &after, Scratch &s) {
    const int32_t *item = task.item;
    const int64_t kv_head = task.kv_head;
    constexpr int per_word = Packed<T>::PER_WORD;
    const int64_t group = call.heads / call.kv_heads, lanes = item[1] * group;
    const int64_t key_words = words_of(call.key_dim, per_word);
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
    while (task.tile.count) {
        const Tile<T> tile = task.tile;
        task.next(call);
        const Tile<T> &ahead = task.tile.count ? task.tile : after.tile;
        for (int64_t lane = 0; lane < lanes; lane += LANES)
            attend_rest<T, LANES>(call, s, lane, std::min<int64_t>(LANES, lanes - lane), tile,
                                  lane == 0 && ahead.count ? &ahead : nullptr, key_words, value_size);
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
    int64_t taken = 0;
#pragma omp parallel num_threads(call.threads)
    {
        static thread_local Scratch scratch;
        auto take = [&](Task<T> &task) {
            int64_t number;
#pragma omp atomic capture
            number = taken++;
            task.begin(call, number);
        };
        Task<T> tasks[2];
        take(tasks[0]);
        for (int turn = 0; tasks[turn].item; turn ^= 1) {
            take(tasks[turn ^ 1]);  // known before, so that its first keys can be fetched
            run_task<T>(call, tasks[turn], tasks[turn ^ 1], scratch);
        }
#pragma omp barrier
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
