#!/usr/bin/env python3
"""Make tests/golden: tiny decoders with random weights, and the logits that the transformers library gives for them.

usage: make-golden.py [OUTPUT_FOLDER]      (default: tests/golden beside this script's folder)
needs: pip install torch transformers==4.* safetensors gguf numpy

Every folder has config.json and model.safetensors, or model.gguf, and reference.safetensors: `ids` [tokens] and `logits`
[tokens, vocab], computed in f32 from the weights as stored. The versions used are in the metadata of
reference.safetensors. Weights are rounded to the stored format before the reference is computed, so that formats of
16 bits are compared as closely as f32. GGUF files keep q and k interleaved, as conversion tools write them. For Q8_0 the
input of every product is rounded to Q8_0 as well, as integer kernels do.
"""
import importlib.metadata, json, os, pathlib, shutil, sys

import gguf, numpy, safetensors.torch, torch, transformers

TOKENS = 40
GGUF_VERSION = importlib.metadata.version("gguf")
SIZES = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=96, max_position_embeddings=512, rms_norm_eps=1e-5, initializer_range=0.15)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
MODELS = {  # folder: stored format, what differs from SIZES
    "llama-gqa-tied": (torch.float32, dict(tie_word_embeddings=True)),
    "llama-rope-llama3": (torch.float16, dict(rope_scaling=LLAMA3)),
    "llama-rope-linear": (torch.bfloat16, dict(rope_scaling=dict(rope_type="linear", factor=4.0), head_dim=8)),
    "llama-bias": (torch.float16, dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
}
CONFIG_KEYS = {"model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
               "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "hidden_act",
               "rope_theta", "rope_scaling", "attention_bias", "mlp_bias", "tie_word_embeddings", "eos_token_id"}
GGUF_OF = "llama-rope-llama3"
GGUF_TYPES = {"llama-gguf-f32": gguf.GGMLQuantizationType.F32, "llama-gguf-q8_0": gguf.GGMLQuantizationType.Q8_0}


def make(name, dtype, changes):
    """A model with weights that `dtype` holds exactly, kept in f32."""
    torch.manual_seed(sum(name.encode()))
    config = transformers.LlamaConfig(**(SIZES | dict(tie_word_embeddings=False) | changes))
    config._attn_implementation = "eager"
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key:
                weight.uniform_(0.5, 1.5)
            elif key.endswith("bias"):
                weight.normal_(0.0, 0.3)
            weight.copy_(weight.to(dtype).float())
    return model


def write_reference(model, folder):
    ids = torch.randint(0, SIZES["vocab_size"], (TOKENS,), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        logits = model(ids[None]).logits[0].float().contiguous()
    # One key: the order of several is not the same from run to run.
    versions = {"made_by": f"scripts/make-golden.py, torch {torch.__version__}, transformers "
                           f"{transformers.__version__}, gguf {GGUF_VERSION}, numpy {numpy.__version__}"}
    safetensors.torch.save_file({"ids": ids, "logits": logits}, folder / "reference.safetensors", versions)
    print(f"{folder.name}: logits {logits.min():.2f}..{logits.max():.2f}, deviation {logits.std():.2f}")


def write_hf(model, dtype, folder):
    tied = model.config.tie_word_embeddings
    weights = {key: weight.to(dtype).contiguous() for key, weight in model.state_dict().items()
               if not (tied and key == "lm_head.weight")}
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = {key: value for key, value in model.config.to_dict().items() if key in CONFIG_KEYS}
    config |= dict(architectures=["LlamaForCausalLM"], torch_dtype=str(dtype).removeprefix("torch."))
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def gguf_name(key):
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    parts = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    if key in names:
        return names[key]
    layer, part = key.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{parts[part]}.weight"


def interleave(weight, heads):
    """[heads * dim, in]: from halves of a head to neighbouring pairs."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def rope_factors(config):
    """Divisors of the frequencies, as conversion tools write them into rope_freqs.weight."""
    dim = config.hidden_size // config.num_attention_heads
    plain = 1.0 / config.rope_theta ** (numpy.arange(0, dim, 2, dtype=numpy.float64) / dim)
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    return (plain / scaled.double().numpy()).astype(numpy.float32)


def write_gguf(model, kind, folder):
    """Writes model.gguf and puts what the file holds back into the model."""
    config = model.config
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_name(folder.name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tensor("rope_freqs.weight", rope_factors(config))
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, weight in model.state_dict().items():
        stored = weight.numpy().copy()
        if stored.ndim == 2 and kind != gguf.GGMLQuantizationType.F32:
            packed = gguf.quants.quantize(stored, kind)
            weight.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind)))
        for part, count in heads.items():
            if part in key:
                stored = interleave(stored, count)
        if stored.ndim == 2 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(gguf_name(key), gguf.quants.quantize(stored, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(key), stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def round_activations(model, kind):
    def rounded(_, inputs):
        x = inputs[0].numpy()
        return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind)).reshape(x.shape)
    for part in model.modules():
        if isinstance(part, torch.nn.Linear):
            part.register_forward_pre_hook(rounded)


def main():
    beside = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden"
    output = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else beside
    for name in [*MODELS, *GGUF_TYPES]:
        folder = output / name
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        if name in GGUF_TYPES:
            model = make(GGUF_OF, *MODELS[GGUF_OF])
            write_gguf(model, GGUF_TYPES[name], folder)
            if GGUF_TYPES[name] != gguf.GGMLQuantizationType.F32:
                round_activations(model, GGUF_TYPES[name])
        else:
            model = make(name, *MODELS[name])
            write_hf(model, MODELS[name][0], folder)
        write_reference(model, folder)


if __name__ == "__main__":
    main()
