// What Python hands to the kernels: the structures of the launchers, field by field.
#pragma once

#include <cstdint>

// attention.cpp
struct AttentionCall {
    void *out;                // [tokens, heads, value_dim]
    float *parts;             // [parts, heads, value_dim]
    float *lse;               // [parts, heads]
    const void *query;        // [tokens, heads, key_dim]
    void *keys, *values;      // see pool.h
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

// linear.cpp
struct LinearCall {
    void *out;            // [rows, outputs]
    const void *x;        // [rows, inputs]
    const float *weight;  // packed; with `up` that of the gate
    const float *up;      // packed, or null
    const void *bias, *up_bias;  // [outputs], or null
    int64_t rows, inputs, outputs, x_stride, out_stride;
    int64_t activation;  // of the gate: 1 is SiLU, 2 GELU by tanh
    int64_t is_bf16, threads;
};

// operators.cpp
struct NormCall {
    const void *x, *weight;
    void *residual, *normed;  // residual may be null
    int64_t outer, inner, size, outer_stride, inner_stride;
    int64_t offset, is_bf16, threads;
    float eps;
};

struct WriteCall {
    void *key_pool, *value_pool;      // see pool.h
    const void *key, *value;          // [tokens, kv_heads, key_dim or value_dim]
    const int64_t *slots;             // [tokens]
    int64_t key_strides[2], value_strides[2];
    int64_t tokens, kv_heads, key_dim, value_dim;
    int64_t is_bf16, threads;
};

struct RotaryCall {
    WriteCall write;
    void *out;                    // [tokens, heads, head_dim] contiguous
    const void *query;            // [tokens, heads, head_dim]
    const float *cos, *sin;       // [positions, head_dim / 2]
    const int64_t *positions;     // [tokens]
    int64_t query_strides[2];
    int64_t heads;
};

extern "C" {
void llmsql_paged_attention(const AttentionCall *call);
void llmsql_linear(const LinearCall *call);
void llmsql_rms_norm(const NormCall *call);
void llmsql_write_kv(const WriteCall *call);
void llmsql_rotary_and_write(const RotaryCall *call);
}
