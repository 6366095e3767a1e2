#!/usr/bin/env python3
"""Make tests/golden: tiny decoders with random weights, and the logits that the transformers library gives for them.

usage: make-golden.py [OUTPUT_FOLDER [NAME…]]      (default: all, to tests/golden beside this script's folder)
needs: pip install torch transformers==4.* safetensors gguf numpy

Every folder has config.json and model.safetensors, or model.gguf, and reference.safetensors: `ids` [tokens] and `logits`
[tokens, vocab], computed in f32 from the weights as stored. The versions used are in the metadata of
reference.safetensors. Weights are rounded to the stored format before the reference is computed, so that formats of
16 bits are compared as closely as f32. GGUF files follow the conventions of llama.cpp's conversion tools: q and k of llama
and smollm3 interleaved, 1 added to the norms of Gemma, experts stacked, names by the gguf package.
"""
import collections, copy, importlib.metadata, json, math, os, pathlib, re, shutil, sys

import gguf, numpy, safetensors.torch, torch, transformers

TOKENS = 40
GGUF_VERSION = importlib.metadata.version("gguf")
SIZES = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=96, max_position_embeddings=512, rms_norm_eps=1e-5, initializer_range=0.15)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
F16, F32, BF16 = torch.float16, torch.float32, torch.bfloat16
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=256)
LONGROPE = dict(type="longrope", short_factor=[1.0, 1.02, 1.1, 1.2, 1.3, 1.5, 1.6, 1.7],
                long_factor=[1.0, 1.1, 1.5, 2.5, 4.0, 7.0, 11.0, 14.0])
PARTIAL = dict(type="longrope", short_factor=LONGROPE["short_factor"][:6], long_factor=LONGROPE["long_factor"][:6])
PHI = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
CAPS = dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0)
SMALL = dict(hidden_size=32, intermediate_size=64, head_dim=16)
MOE = dict(intermediate_size=32, num_experts_per_tok=2)
MODELS = {  # folder: class, stored format, what differs from SIZES; without_types: config.json does not list layer_types
    "llama-gqa-tied": ("Llama", F32, dict(tie_word_embeddings=True)),
    "llama-rope-llama3": ("Llama", F16, dict(rope_scaling=LLAMA3)),
    "llama-rope-linear": ("Llama", BF16, dict(rope_scaling=dict(rope_type="linear", factor=4.0), head_dim=8)),
    "llama-bias": ("Llama", F16, dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    "qwen2": ("Qwen2", F16, dict(tie_word_embeddings=True, rope_theta=1e6)),
    "qwen2-window": ("Qwen2", F16, dict(use_sliding_window=True, sliding_window=7, max_window_layers=1,
                                        without_types=True)),
    "qwen2-yarn": ("Qwen2", F16, dict(rope_scaling=YARN)),
    "qwen3": ("Qwen3", F16, dict(head_dim=32, rope_theta=1e6)),
    "qwen3-moe": ("Qwen3Moe", F16, MOE | dict(head_dim=16, moe_intermediate_size=24, num_experts=6, norm_topk_prob=True)),
    "qwen3-moe-unnormed": ("Qwen3Moe", F16, MOE | dict(head_dim=16, moe_intermediate_size=24, num_experts=6,
                                                       norm_topk_prob=False)),
    "mistral-window": ("Mistral", F16, dict(sliding_window=9)),
    "mistral-nemo": ("Mistral", F16, dict(sliding_window=None, head_dim=24, rope_theta=1e6)),
    "mixtral": ("Mixtral", F16, MOE | dict(num_local_experts=5, sliding_window=None)),
    "gemma": ("Gemma", F16, dict(head_dim=32, num_key_value_heads=1, tie_word_embeddings=True)),
    "gemma2": ("Gemma2", F16, CAPS | dict(head_dim=16, sliding_window=6, query_pre_attn_scalar=16,
                                          num_hidden_layers=3, tie_word_embeddings=True, without_types=True)),
    "gemma2-scale": ("Gemma2", F16, SMALL | dict(query_pre_attn_scalar=10, sliding_window=11, attn_logit_softcapping=1.0,
                                                 final_logit_softcapping=2.0, tie_word_embeddings=True)),
    "gemma3": ("Gemma3", F16, SMALL | dict(num_hidden_layers=7, sliding_window=5, query_pre_attn_scalar=16, rope_theta=1e6,
                                           rope_local_base_freq=1e4, tie_word_embeddings=True)),
    "gemma3-linear": ("Gemma3", F16, SMALL | dict(
        num_hidden_layers=6, sliding_window=8, query_pre_attn_scalar=16, tie_word_embeddings=True, without_types=True,
        rope_scaling=dict(rope_type="linear", factor=8.0))),
    "phi3": ("Phi3", F16, PHI | dict(sliding_window=13, num_key_value_heads=4)),
    "phi3-longrope-long": ("Phi3", F16, PHI | dict(rope_scaling=LONGROPE, original_max_position_embeddings=32)),
    "phi3-longrope-short": ("Phi3", F16, PHI | dict(rope_scaling=LONGROPE, original_max_position_embeddings=512)),
    "phi4-mini": ("Phi3", F16, PHI | dict(rope_scaling=PARTIAL, original_max_position_embeddings=32,
                                          partial_rotary_factor=0.75, tie_word_embeddings=True)),
    "smollm3": ("SmolLM3", F16, SMALL | dict(num_hidden_layers=5, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                                             rope_theta=5e6, tie_word_embeddings=True, without_types=True)),
}
CONFIG_KEYS = set("""
    model_type hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size
    max_position_embeddings rms_norm_eps hidden_act hidden_activation rope_theta rope_scaling attention_bias mlp_bias
    tie_word_embeddings eos_token_id sliding_window use_sliding_window max_window_layers layer_types
    query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping rope_local_base_freq partial_rotary_factor
    original_max_position_embeddings no_rope_layers no_rope_layer_interval num_experts num_local_experts
    num_experts_per_tok moe_intermediate_size norm_topk_prob decoder_sparse_step mlp_only_layers""".split())
KINDS = gguf.GGMLQuantizationType
GGUFS = {"llama-gguf-f32": ("llama-rope-llama3", KINDS.F32), "llama-gguf-q8_0": ("llama-rope-llama3", KINDS.Q8_0)} | {
    f"{name}-gguf": (name, KINDS.F16)
    for name in ["llama-bias", "qwen2", "qwen2-yarn", "qwen3", "qwen3-moe", "mistral-nemo", "mixtral", "gemma", "gemma2",
                 "gemma3", "gemma3-linear", "phi3-longrope-long", "phi4-mini", "smollm3"]}
ARCHITECTURES = {"Llama": gguf.MODEL_ARCH.LLAMA, "Mistral": gguf.MODEL_ARCH.LLAMA, "Mixtral": gguf.MODEL_ARCH.LLAMA,
                 "Qwen2": gguf.MODEL_ARCH.QWEN2, "Qwen3": gguf.MODEL_ARCH.QWEN3, "Qwen3Moe": gguf.MODEL_ARCH.QWEN3MOE,
                 "Gemma": gguf.MODEL_ARCH.GEMMA, "Gemma2": gguf.MODEL_ARCH.GEMMA2, "Gemma3": gguf.MODEL_ARCH.GEMMA3,
                 "Phi3": gguf.MODEL_ARCH.PHI3, "SmolLM3": gguf.MODEL_ARCH.SMOLLM3}


def make(name):
    """A model with weights that its stored format holds exactly, kept in f32."""
    family, dtype, changes = MODELS[name]
    torch.manual_seed(sum(name.encode()))
    changes = {key: value for key, value in changes.items() if key != "without_types"}
    config_class = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")
    config = config_class(**(SIZES | dict(tie_word_embeddings=False) | copy.deepcopy(changes)))
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    around = 0.0 if family.startswith("Gemma") else 1.0
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key:
                weight.uniform_(around - 0.5, around + 0.5)
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


def write_hf(model, name, folder):
    family, dtype, changes = MODELS[name]
    tied = model.config.tie_word_embeddings
    weights = {key: weight.to(dtype).contiguous() for key, weight in model.state_dict().items()
               if not (tied and key == "lm_head.weight")}
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    keys = CONFIG_KEYS - ({"layer_types"} if "without_types" in changes else set())
    config = {key: value for key, value in model.config.to_dict().items() if key in keys}
    config |= dict(architectures=[f"{family}ForCausalLM"], torch_dtype=str(dtype).removeprefix("torch."))
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def interleave(weight, heads):
    """[heads * dim, …]: from halves of a head to neighbouring pairs."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def llama3_factors(config):
    """Divisors of the frequencies, as conversion tools write them into rope_freqs.weight."""
    dim = config.hidden_size // config.num_attention_heads
    plain = 1.0 / config.rope_theta ** (numpy.arange(0, dim, 2, dtype=numpy.float64) / dim)
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    return (plain / scaled.double().numpy()).astype(numpy.float32)


def write_rope(writer, family, config):
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if family in ("Llama", "Mistral", "Mixtral", "SmolLM3"):
        writer.add_rope_dimension_count(dim)
    if family not in ("Gemma", "Gemma2"):
        writer.add_rope_freq_base(config.rope_theta)
    scaling = config.rope_scaling if hasattr(config, "rope_scaling") and config.rope_scaling else {}
    match scaling.get("rope_type", scaling.get("type")):
        case "llama3":
            writer.add_tensor("rope_freqs.weight", llama3_factors(config))
        case "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(scaling["factor"])
        case "yarn":
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(scaling["factor"])
            writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    if family == "Phi3":
        original = config.original_max_position_embeddings
        stretch = config.max_position_embeddings / original
        writer.add_rope_dimension_count(int(config.partial_rotary_factor * config.hidden_size) // config.num_attention_heads)
        writer.add_rope_scaling_orig_ctx_len(original)
        if scaling:
            writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(stretch) / math.log(original)))
            for length in ["long", "short"]:
                factors = numpy.array(scaling[f"{length}_factor"], dtype=numpy.float32)
                writer.add_tensor(f"rope_factors_{length}.weight", factors)


def write_metadata(writer, family, config):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if family in ("Gemma2", "Gemma3", "Phi3"):
        writer.add_sliding_window(config.sliding_window or 0)
    if family == "Gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if hasattr(config, "num_experts_per_tok"):
        writer.add_expert_count(getattr(config, "num_local_experts", None) or config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if hasattr(config, "moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    write_rope(writer, family, config)


def stacked(state):
    """Weights with all experts of a layer in one tensor, under the names that conversion tools give it."""
    experts = collections.defaultdict(list)
    for key, weight in state.items():
        found = re.fullmatch(r"model.layers.(\d+).(mlp|block_sparse_moe).experts.\d+.(\w+).weight", key)
        if found is None:
            yield key, weight.numpy().copy()
            continue
        layer, part, matrix = found.groups()
        place = f"layers.{layer}.feed_forward" if part == "block_sparse_moe" else f"model.layers.{layer}.mlp"
        experts[f"{place}.experts.{matrix}.weight"].append(weight.numpy())
    yield from ((key, numpy.stack(matrices)) for key, matrices in experts.items())


def write_gguf(model, name, kind, folder):
    """Writes model.gguf and puts what the file holds back into the model."""
    family, config = MODELS[name][0], model.config
    architecture = ARCHITECTURES[family]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    writer = gguf.GGUFWriter(folder / "model.gguf", gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(folder.name)
    write_metadata(writer, family, config)
    if kind == KINDS.Q8_0:
        for weight in model.state_dict().values():
            if weight.ndim == 2:
                packed = gguf.quants.quantize(weight.numpy(), kind)
                weight.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind)))
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, stored in stacked(model.state_dict()):
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for part, count in heads.items():
            if part in key and gguf.MODEL_ARCH_NAMES[architecture] in ("llama", "smollm3"):
                stored = interleave(stored, count)
        if family.startswith("Gemma") and key.endswith("norm.weight"):
            stored = stored + 1
        if stored.ndim == 1:
            writer.add_tensor(names.get_name(key, (".weight", ".bias")), stored.astype(numpy.float32))
        else:
            packed = gguf.quants.quantize(stored, kind)
            writer.add_tensor(names.get_name(key, (".weight", ".bias")), packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    beside = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden"
    output = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else beside
    for name in sys.argv[2:] or [*MODELS, *GGUFS]:
        folder = output / name
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        if name in GGUFS:
            source, kind = GGUFS[name]
            model = make(source)
            write_gguf(model, source, kind, folder)
        else:
            model = make(name)
            write_hf(model, name, folder)
        write_reference(model, folder)


if __name__ == "__main__":
    main()
