// Decoder layers one after the other by the kernels of this folder: one call for all of them, since Python takes a
// tenth of a millisecond for the calls of one.

#include "calls.h"

struct Norm {
    const void *weight;  // [size]; null: there is no such norm
    int64_t offset;
    float eps;
};

struct Weight {
    const float *packed;
    const void *bias;
    int64_t inputs, outputs;
};

// What does not change from step to step.
struct Layer {
    Norm input_norm, query_norm, key_norm, attention_norm, mlp_input_norm, mlp_norm;
    Weight project, output, gate, up, down;  // `project` gives queries, keys and values
    void *keys, *values;
    int64_t heads, kv_heads, head_dim, activation, kind;
    float scale, softcap;
};

// What layers with the same window and rotary embedding have in common in a step.
struct Kind {
    AttentionCall attention;  // of any of its layers
    const float *cos, *sin;   // [positions, head_dim / 2]
};

struct Step {
    void *residual;                 // [tokens, hidden], at first the embeddings
    void *hidden;                   // [tokens, hidden]: what the last layer adds to the residual
    void *normed;                   // [tokens, hidden]
    void *projected;                // [tokens, (heads + 2 kv_heads) head_dim]
    void *query, *key, *attended;   // [tokens, heads or kv_heads, head_dim]
    void *gated;                    // [tokens, inputs of `down`]
    const int64_t *positions, *slots;
    int64_t tokens, is_bf16, threads;
};

namespace {

void normalize(const Step &step, const Norm &norm, const void *x, void *residual, void *normed, int64_t size) {
    const NormCall call{x, norm.weight, residual, normed, step.tokens, 1, size, size, 0, norm.offset, step.is_bf16,
                        step.threads, norm.eps};
    llmsql_rms_norm(&call);
}

// Heads that stand in a row of `stride` numbers, each by itself.
void normalize_heads(const Step &step, const Norm &norm, const void *x, void *normed, int64_t heads, int64_t head_dim,
                     int64_t stride) {
    const NormCall call{x, norm.weight, nullptr, normed, step.tokens, heads, head_dim, stride, head_dim, norm.offset,
                        step.is_bf16, step.threads, norm.eps};
    llmsql_rms_norm(&call);
}

void multiply(const Step &step, const Weight &weight, const Weight *up, int64_t activation, const void *x, void *out) {
    const LinearCall call{out, x, weight.packed, up ? up->packed : nullptr, weight.bias, up ? up->bias : nullptr,
                          step.tokens, weight.inputs, weight.outputs, weight.inputs, weight.outputs, activation,
                          step.is_bf16, step.threads};
    llmsql_linear(&call);
}

void attend(const Layer &layer, const Kind &kind, const Step &step) {
    const int64_t number = step.is_bf16 ? 2 : 4, dim = layer.head_dim, all = layer.project.outputs;
    const char *row = static_cast<const char *>(step.projected);
    const void *query = row, *key = row + layer.heads * dim * number;
    const void *value = row + (layer.heads + layer.kv_heads) * dim * number;
    int64_t query_stride = all, key_stride = all;
    if (layer.query_norm.weight) {
        normalize_heads(step, layer.query_norm, query, step.query, layer.heads, dim, all);
        query = step.query, query_stride = layer.heads * dim;
    }
    if (layer.key_norm.weight) {
        normalize_heads(step, layer.key_norm, key, step.key, layer.kv_heads, dim, all);
        key = step.key, key_stride = layer.kv_heads * dim;
    }
    const WriteCall write{layer.keys, layer.values, key, value, step.slots, {key_stride, dim}, {all, dim}, step.tokens,
                          layer.kv_heads, dim, dim, step.is_bf16, step.threads};
    const RotaryCall rotary{write, step.query, query, kind.cos, kind.sin, step.positions, {query_stride, dim},
                            layer.heads};
    llmsql_rotary_and_write(&rotary);
    AttentionCall call = kind.attention;
    call.keys = layer.keys, call.values = layer.values;
    call.scale = layer.scale, call.softcap = layer.softcap;
    llmsql_paged_attention(&call);
}

}  // namespace

extern "C" void llmsql_layers(const Layer *layers, int64_t num_layers, const Kind *kinds, const Step *step) {
    const int64_t hidden = layers[0].project.inputs;
    for (int64_t i = 0; i < num_layers; ++i) {
        const Layer &layer = layers[i];
        if (i == 0)
            normalize(*step, layer.input_norm, step->residual, nullptr, step->normed, hidden);
        else
            normalize(*step, layer.input_norm, step->hidden, step->residual, step->normed, hidden);
        multiply(*step, layer.project, nullptr, 0, step->normed, step->projected);
        attend(layer, kinds[layer.kind], *step);
        multiply(*step, layer.output, nullptr, 0, step->attended, step->hidden);
        if (layer.attention_norm.weight)
            normalize(*step, layer.attention_norm, step->hidden, nullptr, step->hidden, hidden);
        normalize(*step, layer.mlp_input_norm, step->hidden, step->residual, step->normed, hidden);
        multiply(*step, layer.gate, &layer.up, layer.activation, step->normed, step->gated);
        multiply(*step, layer.down, nullptr, 0, step->gated, step->hidden);
        if (layer.mlp_norm.weight) normalize(*step, layer.mlp_norm, step->hidden, nullptr, step->hidden, hidden);
    }
}
