"""Times of torch's 16-bit decode attention, the yardstick of the device kernels' bench: for each batch x context the best
of the back ends of scaled_dot_product_attention, query heads of a key head packed as query tokens, in bf16. As many sets
of keys and values as make 400 MB, one CUDA graph over all sets, median of eleven replays. Needs torch and a GPU.

    python3 scripts/sdpa-baseline.py            # decode steps
    python3 scripts/sdpa-baseline.py chunks     # causal attention of whole prompts, one launch, median of eleven, in f16
"""

import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

KV_HEADS, DIM = 8, 128
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}


def replay(work):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times = []
    for _ in range(12):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return sorted(times[1:])[5]


def chunks():
    for dim, q_heads, kv_heads in ((128, 32, 8), (128, 8, 8), (64, 32, 8), (256, 16, 4)):
        for tokens in (1024, 4096, 8192):
            q = torch.randn(1, q_heads, tokens, dim, device="cuda", dtype=torch.float16)
            k, v = torch.randn(2, 1, kv_heads, tokens, dim, device="cuda", dtype=torch.float16)
            found = []
            for name in ("flash", "cudnn"):

                def work():
                    with sdpa_kernel(BACKENDS[name]):
                        scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

                try:
                    found.append(f"{name} {replay(work):.0f} us")
                except RuntimeError:
                    found.append(f"{name} refuses")
            print(f"sdpa f16, heads of {dim}, {q_heads} and {kv_heads}: {tokens} tokens {', '.join(found)}", flush=True)


print(torch.cuda.get_device_name())
if "chunks" in sys.argv[1:]:
    chunks()
    sys.exit()
for group in (4, 8):
    for batch in (1, 8, 32, 64):
        for context in (1024, 4096, 16384, 32768, 131072):
            size = 2 * 2 * batch * KV_HEADS * context * DIM
            sets = min(200, -(-400_000_000 // size))
            best = (float("inf"), "none")
            try:
                kv = torch.randn(sets, 2, batch, KV_HEADS, context, DIM, device="cuda", dtype=torch.bfloat16)
                q = torch.randn(batch, KV_HEADS, group, DIM, device="cuda", dtype=torch.bfloat16)
                for name, backend in BACKENDS.items():

                    def work():
                        with sdpa_kernel(backend):
                            for k, v in kv:
                                scaled_dot_product_attention(q, k, v)

                    try:
                        best = min(best, (replay(work) / sets, name))
                    except RuntimeError:
                        pass
            except torch.OutOfMemoryError:
                best = (float("inf"), "no memory")
            kv = None
            torch.cuda.empty_cache()
            print(f"sdpa bf16, group {group}: {batch:>2} x {context:>6} {best[0]:>9.1f} us {best[1]}", flush=True)
