// What kernels for NVIDIA GPUs share: addresses in shared memory, barriers there that count threads
// and bytes, and copies by the copy engine, which report to them (both from sm_90 on). A text may
// hold this file twice.
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
KV_FN bool kv_bar_passed(uint bar, uint parity) {
  uint passed;
  asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
               "selp.u32 %0, 1, 0, p;\n}"
               : "=r"(passed)
               : "r"(bar), "r"(parity)
               : "memory");
  return passed != 0u;
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
#endif
