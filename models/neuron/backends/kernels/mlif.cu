// Multi-level LIF neuron: all T steps in one pass, forward and backward. The equations are those of
// ../../reference.py.
//
// x, o and their gradients are [STEPS][n] (x with its own step stride, 0 for a constant current),
// the potentials [n]. A thread owns TILE neighbouring neurons. The backward runs the forward again
// from x, so x is all that is saved; each warp writes one partial sum of the gradients of theta and
// leak.
//
// Compile-time flags of the tensors, set by ../source.py:
//   REAL           type of the membrane: float or double
//   STORAGE        type of x and o: 0 REAL, 1 bfloat16, 2 float16
//   STEPS, TILE    T, neurons of a thread
//   PACKED         1: one wide access per tile where it is aligned
//   HAS_V, STATE   1: the potential before step 0 is given, the one after the last step is wanted
// Of the neuron, set by ../launcher.py and explained in ../../config.py:
//   LEVELS, ONE_HOT, INCLUSIVE, RESET, DETACH, GAIN, INPUT_GAIN
//   SURROGATE, RELATIVE, GAMMA, ALPHA
//   INNER          weight of the surrogate at the first inner boundary; it is the same at the
//                  others, or, for absolute distances, doubles from one to the next
// Compiled by NVRTC or nvcc, and by a C++ compiler through shim.h.

// Values of RESET and SURROGATE: the places in RESETS and SURROGATES of ../../config.py.
#define SOFT 0
#define SOFT_THETA 1
#define HARD 2
#define TRIANGLE 0
#define SIGMOID 1
#define CLIPPED 2

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
DEVICE float half_to_float(unsigned short h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}
DEVICE unsigned short float_to_half(float f) {
  unsigned short h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}
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

// A potential comes into some step, so the leak has a gradient.
#define LEAKS (HAS_V || STEPS > 1)
// Theta is also subtracted by itself, without the gain.
#define THETA_ALONE (RESET == SOFT_THETA && (STATE || STEPS > 1))

struct Neuron {
  REAL theta, leak;
  REAL unit;    // theta * gain
  REAL lowest;  // potential that is a number
};

// A threshold that is not positive makes every output NaN: u >= lowest is false for all u then.
DEVICE Neuron neuron(const REAL *theta, const REAL *leak) {
  const REAL lowest = *theta > 0 ? (REAL)MINUS_INFINITY : (REAL)NOT_A_NUMBER;
  Neuron c = {*theta, *leak, *theta * (REAL)(GAIN), lowest};
  return c;
}

DEVICE REAL charge(int t, REAL v, REAL x, Neuron c) {
  return t || HAS_V ? c.leak * v + (REAL)(INPUT_GAIN) * x : (REAL)(INPUT_GAIN) * x;
}

// u / unit > 2^i, rounded, is u > unit * 2^i exactly: the product is exact, and no quotient rounds
// across 1.
DEVICE bool passed(REAL u, REAL boundary) { return INCLUSIVE ? u >= boundary : u > boundary; }

// Merged output before the gain.
DEVICE REAL fire(REAL u, Neuron c) {
  REAL o = 0;
  UNROLL for (int i = 0; i < LEVELS; ++i) {
    const REAL worth = ONE_HOT ? 1 << i : (2 << i) - 1;
    o = passed(u, c.unit * (1 << i)) ? worth : o;
  }
  return o + (u >= c.lowest ? (REAL)0 : (REAL)NOT_A_NUMBER);
}

DEVICE REAL reset(REAL u, REAL o, Neuron c) {
#if RESET == SOFT && ONE_HOT
  return u - c.unit * o;
#elif RESET == SOFT
  REAL amount = 0;  // lane by lane, in order
  UNROLL for (int s = 0; s < LEVELS; ++s) amount += o >= (2 << s) - 1 ? c.unit * (1 << s) : (REAL)0;
  return u - amount;
#elif RESET == SOFT_THETA
  return o > 0 ? u - c.theta : u;
#else
  return o > 0 ? (REAL)0 : u;
#endif
}

// weight * phi(d), the surrogate around one boundary.
DEVICE REAL bump(REAL d, REAL weight) {
  const REAL distance = d < 0 ? -d : d;
#if SURROGATE == TRIANGLE
  return distance >= 1 ? (REAL)0 : weight * (REAL)(GAMMA) * (1 - distance);
#elif SURROGATE == SIGMOID
  const REAL e = EXP(-(REAL)(ALPHA) * distance);
  return weight * (REAL)(ALPHA) * e / ((1 + e) * (1 + e));
#elif SURROGATE == CLIPPED  // it has no bumps, see surrogate()
  return 0;
#else
#error "bump() does not know this surrogate of SURROGATES in config.py"
#endif
}

// d output / d r before the gain, r = u / unit.
DEVICE REAL surrogate(REAL r) {
#if SURROGATE == CLIPPED
  return r > 0 && r < (REAL)((1 << (LEVELS - 1)) / (GAMMA)) ? (REAL)(GAMMA) : (REAL)0;
#else
  REAL sum = 0;
  UNROLL for (int i = 0; i < LEVELS; ++i) {
    const REAL d = RELATIVE ? r * ((REAL)1 / (1 << i)) - 1 : r - (1 << i);
    const REAL inner = (REAL)(INNER) * (RELATIVE || i == 0 ? 1 : 1 << (i - 1));
    sum += bump(d, i == 0 ? (REAL)1 : inner);
  }
  return sum;
#endif
}

KERNEL mlif_forward(const stored *__restrict__ x, index_t stride, const REAL *__restrict__ theta,
                    const REAL *__restrict__ leak, const REAL *__restrict__ v0,
                    stored *__restrict__ o, REAL *__restrict__ last, index_t n, index_t aligned) {
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
                     const REAL *__restrict__ theta, const REAL *__restrict__ leak,
                     const REAL *__restrict__ v0, const REAL *__restrict__ g_last,
                     stored *__restrict__ gx, REAL *__restrict__ gv0, REAL *__restrict__ partial,
                     index_t n, index_t aligned) {
  const index_t thread = (index_t)blockIdx.x * blockDim.x + threadIdx.x, at = thread * TILE;
  const int count = at >= n ? 0 : n - at < TILE ? (int)(n - at) : TILE;
  const bool packed = aligned && count == TILE;
  const Neuron c = neuron(theta, leak);
  const REAL inverse = 1 / c.unit;

  // The forward again: every u, and o and v of the last step.
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

  REAL d_unit[TILE], d_theta[TILE], d_leak[TILE];
  VECTOR for (int j = 0; j < TILE; ++j) d_unit[j] = 0;
  if (THETA_ALONE) VECTOR for (int j = 0; j < TILE; ++j) d_theta[j] = 0;
  if (LEAKS) VECTOR for (int j = 0; j < TILE; ++j) d_leak[j] = 0;

  // Back in time, with gv the gradient of v after step t. What step t started from is computed
  // again from the u before it, for the registers hold only u of all steps.
  UNROLL for (int t = STEPS - 1; t >= 0; --t) {
    const bool later = STATE || t + 1 < STEPS;  // a potential goes on
    const bool earlier = HAS_V || t > 0;        // a potential came in
    load(g + t * n + at, count, packed, in);
    if (t == 0) for (int j = 0; j < TILE; ++j) v[j] = HAS_V && j < count ? v0[at + j] : (REAL)0;
    VECTOR for (int j = 0; j < TILE; ++j) {
      const REAL r = u[t][j] * inverse;
      const REAL before = t ? fire(u[t ? t - 1 : 0][j], c) : (REAL)0;  // output of step t - 1
      if (t) v[j] = reset(u[t ? t - 1 : 0][j], before, c);
      REAL upstream = in[j] * (REAL)(GAIN);
      if (later && !DETACH) upstream -= gv[j] * (RESET == HARD ? u[t][j] : c.unit);
      REAL gu = surrogate(r) * upstream * inverse;
      d_unit[j] -= r * gu;
      if (later) {
        if (RESET == SOFT) d_unit[j] -= o[j] * gv[j];
        if (THETA_ALONE) d_theta[j] -= o[j] > 0 ? gv[j] : (REAL)0;
        gu += RESET == HARD && o[j] > 0 ? (REAL)0 : gv[j];
      }
      if (earlier) d_leak[j] += gu * v[j];
      o[j] = before;
      gv[j] = gu * c.leak;
      in[j] = gu * (REAL)(INPUT_GAIN);
    }
    store(gx + t * n + at, count, packed, in);
  }
  if (HAS_V) for (int j = 0; j < TILE; ++j) if (j < count) gv0[at + j] = gv[j];

  // One partial sum of a warp: the order of the additions never changes.
  REAL theta_sum = 0, leak_sum = 0;
  VECTOR_SUM for (int j = 0; j < TILE; ++j) {
    theta_sum += d_unit[j] * (REAL)(GAIN);
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
