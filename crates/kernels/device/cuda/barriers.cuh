// What kernels for NVIDIA GPUs share: addresses in shared memory, barriers there that count threads
// and bytes, copies by the copy engine, which report to them, and clusters of groups (all but the
// first from sm_90 on). A text may hold this file twice.
#ifndef KV_BARRIERS
#define KV_BARRIERS

KV_FN uint kv_address(const void *p) { return (uint)__cvta_generic_to_shared(p); }

KV_FN void kv_bar_init(uint bar, uint count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
// Behind this copies may report to barriers of this thread's kv_bar_init.
KV_FN void kv_bar_begin() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
KV_FN void kv_bar_arrive(uint bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
// Arrives, and lets the barrier wait for so many bytes.
KV_FN void kv_bar_expect(uint bar, uint bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
               : "memory");
}
// The GPU may write to a barrier after a wait for it is over, so nothing else takes its place.
KV_FN void kv_bar_wait(uint bar, uint parity) {
  asm volatile("{\n.reg .pred p;\nAGAIN: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
               "@p bra DONE;\nbra AGAIN;\nDONE:\n}" ::"r"(bar),
               "r"(parity)
               : "memory");
}
// By one thread; bar counts the bytes.
KV_FN void kv_bulk(uint into, const void *from, uint bytes, uint bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
               "[%0], [%1], %2, [%3];" ::"r"(into),
               "l"(from), "r"(bytes), "r"(bar)
               : "memory");
}
// The same of the only copy that a barrier waits for.
KV_FN void kv_bulk(void *into, const void *from, uint bytes, kv_size *bar) {
  kv_bar_expect(kv_address(bar), bytes);
  kv_bulk(kv_address(into), from, bytes, kv_address(bar));
}
// What threads wrote to shared memory is seen by copies and products behind this and a barrier.
KV_FN void kv_publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A matrix as the copy engine knows it.
struct __align__(64) KvTensorMap {
  uint words[32];
};

// Numbers from `x` on of rows from `y` on; bar counts the bytes of the whole box.
KV_FN void kv_tensor_copy(uint into, const KvTensorMap &map, uint x, uint y, uint bar) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%2, %3}], [%4];" ::"r"(into),
               "l"(&map), "r"(x), "r"(y), "r"(bar)
               : "memory");
}
// The same to the same places of both groups of a cluster, each of whose barriers counts.
KV_FN void kv_tensor_copy_both(uint into, const KvTensorMap &map, uint x, uint y, uint bar) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
               ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(into),
               "l"(&map), "r"(x), "r"(y), "r"(bar), "h"((ushort)3)
               : "memory");
}

KV_FN uint kv_cluster_rank() {
  uint rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
KV_FN void kv_cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
KV_FN void kv_cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
KV_FN uint kv_cluster_address(uint at, uint rank) {
  uint y;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(y) : "r"(at), "r"(rank));
  return y;
}
// Arrives at a barrier of any group of the cluster, behind reads by products: it orders no writes
// of threads. One that does (.release.cluster) waits for all memory of the GPU, which takes
// products in a loop a quarter of their time.
KV_FN void kv_cluster_tell(uint bar) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
}
#endif
