// The chip's limit: fused multiply-adds whose operands are all in registers. Built by `ours.py`.

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
typedef float Vec __attribute__((vector_size(4 * kLanes)));

#if defined(__aarch64__)
#define IN_REGISTER(v)  // Two of NEON's registers: compilers keep them there by themselves.
#else
#define IN_REGISTER(v) asm volatile("" : "+v"(v))
#endif

// Each sum depends on itself only, and a multiply-add takes 4 cycles, of which two can start in each: 8 sums at least.
extern "C" double peak(long rounds) {
  Vec a{}, b{}, s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{}, s8{}, s9{};
  a += 0.999f, b += 0.5f;
  for (long i = 0; i < rounds; ++i) {
    s0 = s0 * a + b, s1 = s1 * a + b, s2 = s2 * a + b, s3 = s3 * a + b, s4 = s4 * a + b;
    s5 = s5 * a + b, s6 = s6 * a + b, s7 = s7 * a + b, s8 = s8 * a + b, s9 = s9 * a + b;
    IN_REGISTER(s0); IN_REGISTER(s1); IN_REGISTER(s2); IN_REGISTER(s3); IN_REGISTER(s4);
    IN_REGISTER(s5); IN_REGISTER(s6); IN_REGISTER(s7); IN_REGISTER(s8); IN_REGISTER(s9);
  }
  return (s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9)[0];
}

extern "C" double gflop(long rounds) { return 1e-9 * rounds * 10 * kLanes * 2; }
