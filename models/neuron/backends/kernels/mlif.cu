// Multi-level LIF neuron: all T steps in one pass, forward and backward. Equations: ../reference.py.
//
// x, o and their gradients are [STEPS][n] (x with its own step stride, 0 for a constant current), the potentials [n].
// A thread owns TILE neighbouring neurons. The backward runs the forward again from x, so x is all that is saved; each
// warp writes one partial sum of the gradients of theta and leak. Compile-time flags, all set by ../source.py:
//   REAL           type of the membrane: float or double      STORAGE  type of x and o: 0 REAL, 1 bfloat16, 2 float16
//   STEPS, TILE    T, neurons per thread                      PACKED   1: one wide access per tile where it is aligned
//   LEVELS, ONE_HOT, INCLUSIVE, RESET (0 soft, 1 soft_theta, 2 hard), DETACH, GAIN, INPUT_GAIN     as in ../config.py
//   SIGMOID, RELATIVE, GAMMA, ALPHA, INNER (weight of an inner edge)                               the surrogate
//   HAS_V          the potential before step 0 is given       STATE    the potential after the last step is wanted
// Compiled by NVRTC or nvcc, and by a C++ compiler through shim.h.

#ifdef __CUDACC__
#define KERNEL extern "C" __global__ void
#define DEVICE static __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define VECTOR _Pragma("unroll")
#define VECTOR_SUM _Pragma("unroll")
#define WARP 32
#define NOT_A_NUMBER __int_as_float(0x7fffffff)
#define MINUS_INFINITY __int_as_float(0xff800000)
#define EXP(a) (sizeof(REAL) == 4 ? (REAL)expf((float)(a)) : (REAL)exp((double)(a)))
#define FLOAT_BITS(f) __float_as_uint(f)
#define BITS_FLOAT(b) __uint_as_float(b)
DEVICE float half_to_float(unsigned short h) { float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h)); return f; }
DEVICE unsigned short float_to_half(float f) { unsigned short h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f)); return h; }
#endif

#if STORAGE == 0
typedef REAL stored;
DEVICE REAL widen(stored s) { return s; }
DEVICE stored narrow(REAL f) { return f; }
#elif STORAGE == 1
typedef unsigned short stored;
DEVICE REAL widen(stored s) { return BITS_FLOAT((unsigned)s << 16); }
DEVICE stored narrow(REAL f) {  // to nearest, ties to even; NaN stays NaN
  const unsigned b = FLOAT_BITS(f), rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  return (stored)(f == f ? rounded : 0x7fc0u);
}
#else
typedef unsigned short stored;
DEVICE REAL widen(stored s) { return half_to_float(s); }
DEVICE stored narrow(REAL f) { return float_to_half(f); }
#endif

typedef long long index_t;
#if PACKED
struct __align__(TILE * sizeof(stored)) Pack { stored e[TILE]; };
#endif

// One tile at p, whose first `count` neurons exist; the others read 0.
DEVICE void load(const stored *p, int count, bool packed, REAL *to) {
#if PACKED
  if (packed) {
    const Pack pack = *(const Pack *)p;
    UNROLL for (int j = 0; j < TILE; ++j) to[j] = widen(pack.e[j]);
    return;
  }
#endif
  if (count >= TILE) VECTOR for (int j = 0; j < TILE; ++j) to[j] = widen(p[j]);
  else for (int j = 0; j < TILE; ++j) to[j] = j < count ? widen(p[j]) : (REAL)0;
}

DEVICE void store(stored *p, int count, bool packed, const REAL *from) {
#if PACKED
  if (packed) {
    Pack pack;
    UNROLL for (int j = 0; j < TILE; ++j) pack.e[j] = narrow(from[j]);
    *(Pack *)p = pack;
    return;
  }
#endif
  if (count >= TILE) VECTOR for (int j = 0; j < TILE; ++j) p[j] = narrow(from[j]);
  else for (int j = 0; j < TILE; ++j) if (j < count) p[j] = narrow(from[j]);
}

#define LEAKS (HAS_V || STEPS > 1)                          // a potential comes into some step, so the leak has a gradient
#define THETA_ALONE (RESET == 1 && (STATE || STEPS > 1))    // theta is also subtracted by itself, without the gain

struct Neuron {
  REAL theta, leak, edge, bound;
};

// A threshold that is not positive makes every output NaN: u >= bound is false for all u then.
DEVICE Neuron neuron(const REAL *theta, const REAL *leak) {
  Neuron c = {*theta, *leak, *theta * (REAL)(GAIN), *theta > 0 ? (REAL)MINUS_INFINITY : (REAL)NOT_A_NUMBER};
  return c;
}

DEVICE REAL charge(int t, REAL v, REAL x, Neuron c) {
  return t || HAS_V ? c.leak * v + (REAL)(INPUT_GAIN) * x : (REAL)(INPUT_GAIN) * x;
}

// u / edge > 2^i, rounded, is u > edge * 2^i exactly: the product is exact, and no quotient rounds across 1.
DEVICE bool passed(REAL u, REAL edge) { return INCLUSIVE ? u >= edge : u > edge; }

// Merged output before the gain.
DEVICE REAL fire(REAL u, Neuron c) {
  REAL o = 0;
  UNROLL for (int i = 0; i < LEVELS; ++i) o = passed(u, c.edge * (1 << i)) ? (REAL)(ONE_HOT ? 1 << i : (2 << i) - 1) : o;
  return o + (u >= c.bound ? (REAL)0 : (REAL)NOT_A_NUMBER);
}

DEVICE REAL reset(REAL u, REAL o, Neuron c) {
#if RESET == 0 && ONE_HOT
  return u - c.edge * o;
#elif RESET == 0
  REAL amount = 0;  // lane by lane, in order
  UNROLL for (int s = 0; s < LEVELS; ++s) amount += o >= (2 << s) - 1 ? c.edge * (1 << s) : (REAL)0;
  return u - amount;
#elif RESET == 1
  return o > 0 ? u - c.theta : u;
#else
  return o > 0 ? (REAL)0 : u;
#endif
}

// d output / d r before the gain, r = u / edge.
DEVICE REAL surrogate(REAL r) {
  REAL sum = 0;
  UNROLL for (int i = 0; i < LEVELS; ++i) {
    const REAL d = RELATIVE ? r * ((REAL)1 / (1 << i)) - 1 : r - (1 << i);
    const REAL weight = i == 0 ? (REAL)1 : RELATIVE ? (REAL)(INNER) : (REAL)(ONE_HOT ? 1 << (i - 1) : 1 << i);
    const REAL distance = d < 0 ? -d : d;
#if SIGMOID
    const REAL e = EXP(-(REAL)(ALPHA) * distance);
    sum += weight * (REAL)(ALPHA) * e / ((1 + e) * (1 + e));
#else
    sum += distance >= 1 ? (REAL)0 : weight * (REAL)(GAMMA) * (1 - distance);
#endif
  }
  return sum;
}

KERNEL mlif_forward(const stored *__restrict__ x, index_t stride, const REAL *__restrict__ theta,
                    const REAL *__restrict__ leak, const REAL *__restrict__ v0, stored *__restrict__ o,
                    REAL *__restrict__ last, index_t n, index_t aligned) {
  const index_t at = ((index_t)blockIdx.x * blockDim.x + threadIdx.x) * TILE;
  if (at >= n) return;
  const int count = n - at < TILE ? (int)(n - at) : TILE;
  const bool packed = aligned && count == TILE;
  const Neuron c = neuron(theta, leak);
  REAL v[TILE], in[TILE], out[TILE];
  for (int j = 0; j < TILE; ++j) v[j] = HAS_V && j < count ? v0[at + j] : (REAL)0;
  UNROLL for (int t = 0; t < STEPS; ++t) {
    load(x + t * stride + at, count, packed, in);
    VECTOR for (int j = 0; j < TILE; ++j) {
      const REAL u = charge(t, v[j], in[j], c), fired = fire(u, c);
      v[j] = reset(u, fired, c);
      out[j] = fired * (REAL)(GAIN);
    }
    store(o + t * n + at, count, packed, out);
  }
  if (STATE) for (int j = 0; j < TILE; ++j) if (j < count) last[at + j] = v[j];
}

KERNEL mlif_backward(const stored *__restrict__ x, index_t stride, const stored *__restrict__ g,
                     const REAL *__restrict__ theta, const REAL *__restrict__ leak, const REAL *__restrict__ v0,
                     const REAL *__restrict__ g_last, stored *__restrict__ gx, REAL *__restrict__ gv0,
                     REAL *__restrict__ partial, index_t n, index_t aligned) {
  const index_t thread = (index_t)blockIdx.x * blockDim.x + threadIdx.x, at = thread * TILE;
  const int count = at >= n ? 0 : n - at < TILE ? (int)(n - at) : TILE;
  const bool packed = aligned && count == TILE;
  const Neuron c = neuron(theta, leak);
  const REAL inverse = 1 / c.edge;
  REAL u[STEPS][TILE], v[TILE], o[TILE], in[TILE], gv[TILE];
  for (int j = 0; j < TILE; ++j) v[j] = HAS_V && j < count ? v0[at + j] : (REAL)0;
  for (int j = 0; j < TILE; ++j) gv[j] = STATE && j < count ? g_last[at + j] : (REAL)0;
  UNROLL for (int t = 0; t < STEPS; ++t) {
    load(x + t * stride + at, count, packed, in);
    VECTOR for (int j = 0; j < TILE; ++j) {
      u[t][j] = charge(t, v[j], in[j], c);
      o[j] = fire(u[t][j], c);
      v[j] = reset(u[t][j], o[j], c);
    }
  }
  REAL d_edge[TILE], d_theta[TILE], d_leak[TILE];
  VECTOR for (int j = 0; j < TILE; ++j) d_edge[j] = 0;
  if (THETA_ALONE) VECTOR for (int j = 0; j < TILE; ++j) d_theta[j] = 0;
  if (LEAKS) VECTOR for (int j = 0; j < TILE; ++j) d_leak[j] = 0;
  UNROLL for (int t = STEPS - 1; t >= 0; --t) {
    const bool later = STATE || t + 1 < STEPS, earlier = HAS_V || t > 0;  // a potential goes on, one came in
    load(g + t * n + at, count, packed, in);
    if (t == 0) for (int j = 0; j < TILE; ++j) v[j] = HAS_V && j < count ? v0[at + j] : (REAL)0;
    VECTOR for (int j = 0; j < TILE; ++j) {
      const REAL r = u[t][j] * inverse, before = t ? fire(u[t ? t - 1 : 0][j], c) : (REAL)0;  // output of step t - 1
      if (t) v[j] = reset(u[t ? t - 1 : 0][j], before, c);
      REAL upstream = in[j] * (REAL)(GAIN);
      if (later && !DETACH) upstream -= gv[j] * (RESET == 2 ? u[t][j] : c.edge);
      REAL gu = surrogate(r) * upstream * inverse;
      d_edge[j] -= r * gu;
      if (later) {
        if (RESET == 0) d_edge[j] -= o[j] * gv[j];
        if (THETA_ALONE) d_theta[j] -= o[j] > 0 ? gv[j] : (REAL)0;
        gu += RESET == 2 && o[j] > 0 ? (REAL)0 : gv[j];
      }
      if (earlier) d_leak[j] += gu * v[j];
      o[j] = before;
      gv[j] = gu * c.leak;
      in[j] = gu * (REAL)(INPUT_GAIN);
    }
    store(gx + t * n + at, count, packed, in);
  }
  if (HAS_V) for (int j = 0; j < TILE; ++j) if (j < count) gv0[at + j] = gv[j];
  REAL theta_sum = 0, leak_sum = 0;
  VECTOR_SUM for (int j = 0; j < TILE; ++j) {
    theta_sum += d_edge[j] * (REAL)(GAIN);
    if (THETA_ALONE) theta_sum += d_theta[j];
    if (LEAKS) leak_sum += d_leak[j];
  }
#if WARP > 1
  for (int other = WARP / 2; other; other /= 2) {
    theta_sum += __shfl_down_sync(0xffffffffu, theta_sum, other);
    leak_sum += __shfl_down_sync(0xffffffffu, leak_sum, other);
  }
#endif
  if (thread % WARP == 0 && at < n) {
    partial[2 * (thread / WARP)] = theta_sum;
    partial[2 * (thread / WARP) + 1] = leak_sum;
  }
}
