// What mlif.cu needs of CUDA, on a CPU: a grid is a parallel loop over blocks, a warp one thread.
// The vectorised loops are those over a tile, so a CPU wants a large TILE and blocks of one thread.
#include <cmath>
#include <cstring>
#include <utility>

#define DEVICE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define VECTOR _Pragma("omp simd")
#define VECTOR_SUM _Pragma("omp simd reduction(+ : theta_sum, leak_sum)")
#define WARP 1
#define MINUS_INFINITY (-__builtin_inff())
#define EXP(a) exponential((REAL)(a))
#define NOT_A_NUMBER bits<float>(0x7fffffffu)  // of all NaN the one that CUDA makes
#define FLOAT_BITS(f) bits<unsigned>((float)(f))
#define BITS_FLOAT(b) bits<float>((unsigned)(b))
#define KERNEL static void
#define __align__(bytes) alignas(bytes)

struct Dim { unsigned x; };
static thread_local Dim blockIdx, blockDim, threadIdx;

template <class To, class From> DEVICE To bits(From from) {
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}
#ifdef HALF  // g++ knows the type from version 12 on
DEVICE float half_to_float(unsigned short h) { return (float)bits<_Float16>(h); }
DEVICE unsigned short float_to_half(float f) { return bits<unsigned short>((_Float16)f); }
#endif

DEVICE double exponential(double a) { return std::exp(a); }

// exp(a) for a <= 0 within 2 units in the last place, in operations that vectorise: 2^k * e^f with
// |f| <= ln(2) / 2.
DEVICE float exponential(float a) {
  a = a < -87.0f ? -87.0f : a;  // smallest normal number; a surrogate is 0 there either way
  const float k = (a * 1.44269504f + 12582912.0f) - 12582912.0f;
  const float f = (a - k * 0.693359375f) + k * 2.12194440e-4f;
  float p = 1.9841270e-4f;  // 1 / 7!
  p = p * f + 1.3888889e-3f;
  p = p * f + 8.3333333e-3f;
  p = p * f + 4.1666668e-2f;
  p = p * f + 1.6666667e-1f;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  return p * bits<float>((unsigned)((int)k + 127) << 23);
}

template <class... A, std::size_t... I>
static void call(void (*kernel)(A...), const long long *a, std::index_sequence<I...>) {
  kernel((A)a[I]...);
}

// kernel<<<grid, block>>>(args[0], args[1], ...) on `threads` threads; every argument is an address
// or a 64-bit integer
template <class... A>
static void launch(void (*kernel)(A...), long long grid, long long block, int threads,
                   const long long *args) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (long long b = 0; b < grid; ++b) {
    blockDim.x = (unsigned)block, blockIdx.x = (unsigned)b;
    for (long long t = 0; t < block; ++t) {
      threadIdx.x = (unsigned)t;
      call(kernel, args, std::index_sequence_for<A...>());
    }
  }
}
