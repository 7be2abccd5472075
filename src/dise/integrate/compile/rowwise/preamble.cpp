// Elements of W rows at once: T x[elements][W].
#define EACH for (int w = 0; w < W; w++)
template <class T> constexpr T largest();
template <> constexpr float largest<float>() { return __FLT_MAX__; }
template <> constexpr double largest<double>() { return __DBL_MAX__; }
static inline float root(float x) { return __builtin_sqrtf(x); }
static inline double root(double x) { return __builtin_sqrt(x); }
static inline float magnitude(float x) { return __builtin_fabsf(x); }
static inline double magnitude(double x) { return __builtin_fabs(x); }
static inline int magnitude(int x) { return x < 0 ? -x : x; }
static inline long magnitude(long x) { return x < 0 ? -x : x; }
static inline bool inverted(bool x) { return !x; }
static inline int inverted(int x) { return ~x; }
static inline long inverted(long x) { return ~x; }
// NaN stays NaN, as in torch
template <class T> static inline T larger(T x, T y) { return x > y || x != x ? x : y; }
template <class T> static inline T smaller(T x, T y) { return x < y || x != x ? x : y; }
template <class T> static inline T at_least(T x, T least) { return x < least ? least : x; }
template <class T> static inline T at_most(T x, T most) { return x > most ? most : x; }

template <class T> struct Vector;
template <> struct Vector<float> { typedef float type __attribute__((vector_size(BYTES), may_alias)); };
template <> struct Vector<double> { typedef double type __attribute__((vector_size(BYTES), may_alias)); };

// out += the elements of vectors
template <class T, int M> static void fold(const T (&total)[M][W], T (&out)[M]) {
  for (int i = 0; i < M; i++) EACH out[i] += total[i][w];
}

// out[j] = c[j * sc] + sum over i of a[i * sa] * b[i * si + j * sj], J of them at a time; c = nullptr: without c.
// S sums of every S-th term are kept apart, so that enough additions are under way at once.
template <class T, int K, int J>
static inline void columns(const T (*a)[W], long sa, const T* b, long si, long sj, const T* c, long sc, T (*out)[W]) {
  typedef typename Vector<T>::type V;
  constexpr int L = BYTES / sizeof(T), N = W / L, S = K >= 16 && J * N < 8 ? 8 / (J * N) : 1;
  V total[S][J][N];
  const auto add = [&](V (&sum)[J][N], int i) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int v = 0; v < N; v++) {
      const V x = *(const V*)&a[i * sa][v * L];
#pragma GCC unroll 8
      for (int j = 0; j < J; j++) sum[j][v] += x * b[i * si + j * sj];
    }
  };
#pragma GCC unroll 8
  for (int s = 0; s < S; s++)
#pragma GCC unroll 8
    for (int j = 0; j < J; j++)
#pragma GCC unroll 8
      for (int v = 0; v < N; v++) total[s][j][v] = V{} + (c && s == 0 ? c[j * sc] : T(0));
  int i = 0;
  for (; i + S <= K; i += S)
#pragma GCC unroll 8
    for (int s = 0; s < S; s++) add(total[s], i + s);
  for (; i < K; i++) add(total[0], i);
#pragma GCC unroll 8
  for (int j = 0; j < J; j++)
#pragma GCC unroll 8
    for (int v = 0; v < N; v++) {
      V sum = total[0][j][v];
#pragma GCC unroll 8
      for (int s = 1; s < S; s++) sum += total[s][j][v];
      *(V*)&out[j][v * L] = sum;
    }
}
template <class T, int K, int M>
static void __attribute__((noinline))
product(const T (*a)[W], long sa, const T* b, long si, long sj, const T* c, long sc, T (*out)[W]) {
  constexpr int J = 8 * BYTES / (W * (int)sizeof(T));  // vectors that are summed at once
  int j = 0;
#define SOME(J) columns<T, K, J>(a, sa, b + j * sj, si, sj, c ? c + j * sc : c, sc, out + j), j += J
  if constexpr (M >= J) while (j + J <= M) SOME(J);
  if constexpr (M % J >= 4) SOME(4);
  if constexpr (M % 4 >= 2) SOME(2);
  if constexpr (M % 2) SOME(1);
#undef SOME
}
// total[i * M + j] += a[i * sa] * b[j * sb], where rows are live
template <class T, int K, int M>
static void __attribute__((noinline))
product_over_rows(const T (*a)[W], long sa, const T (*b)[W], long sb, const bool* live, T (*total)[W]) {
  for (int i = 0; i < K; i++) {
    alignas(64) T x[W];
    EACH x[w] = a[i * sa][w];
    for (int j = 0; j < M; j++) {
      if (live[W - 1]) EACH total[i * M + j][w] += x[w] * b[j * sb][w];
      else EACH total[i * M + j][w] += live[w] ? x[w] * b[j * sb][w] : 0;
    }
  }
}

// out[i] = f(x[i * sx]), for `count` elements
template <class T, class F>
static inline void each_vector(F f, const T (*x)[W], long sx, T (*out)[W], int count) {
  typedef typename Vector<T>::type V;
  for (int i = 0; i < count; i++)
    for (int w = 0; w < W; w += BYTES / sizeof(T)) *(V*)&out[i][w] = f(*(const V*)&x[i * sx][w]);
}
// Sleef's functions
#define SLEEF(NAME, T, FUNCTION)                                                        \
  extern "C" Vector<T>::type FUNCTION(Vector<T>::type);                                 \
  static inline void map_##NAME(const T (*x)[W], long sx, T (*out)[W], int count) {     \
    each_vector([](Vector<T>::type v) { return FUNCTION(v); }, x, sx, out, count);      \
  }
#define SLEEF_POWER(NAME, T, FUNCTION)                                                                         \
  extern "C" Vector<T>::type FUNCTION(Vector<T>::type, Vector<T>::type);                                       \
  static inline void map_##NAME(const T (*x)[W], long, const T (*y)[W], long, T (*out)[W], int) {              \
    typedef Vector<T>::type V;                                                                                 \
    for (int w = 0; w < W; w += BYTES / sizeof(T)) *(V*)&out[0][w] = FUNCTION(*(const V*)&x[0][w], *(const V*)&y[0][w]); \
  }
