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

// out[j] += sum over i of a[i * sa] * b[i * si + j * sj], J of them at a time
template <class T, int K, int J>
static inline void add_columns(const T (*a)[W], long sa, const T* b, long si, long sj, T (*out)[W]) {
  typedef typename Vector<T>::type V;
  constexpr int L = BYTES / sizeof(T), N = W / L;
  V total[J][N];
  for (int j = 0; j < J; j++)
    for (int v = 0; v < N; v++) total[j][v] = *(const V*)&out[j][v * L];
  for (int i = 0; i < K; i++)
    for (int v = 0; v < N; v++) {
      const V x = *(const V*)&a[i * sa][v * L];
      for (int j = 0; j < J; j++) total[j][v] += x * b[i * si + j * sj];
    }
  for (int j = 0; j < J; j++)
    for (int v = 0; v < N; v++) *(V*)&out[j][v * L] = total[j][v];
}
template <class T, int K, int M>
static void __attribute__((noinline)) add_product(const T (*a)[W], long sa, const T* b, long si, long sj, T (*out)[W]) {
  int j = 0;
  for (; j + 4 <= M; j += 4) add_columns<T, K, 4>(a, sa, b + j * sj, si, sj, out + j);
  if (j + 2 <= M) { add_columns<T, K, 2>(a, sa, b + j * sj, si, sj, out + j); j += 2; }
  if (j < M) add_columns<T, K, 1>(a, sa, b + j * sj, si, sj, out + j);
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

// tanh(x) / x as a ratio of polynomials in x², those of dise.integrate.compile.kernels
static inline void map_fast_tanh(const float* in, float* out) {
  EACH {
    const float x = at_most(at_least(in[w], -TANH_SATURATION), TANH_SATURATION), s = x * x;
    float over = TANH_NUMERATOR[4], under = TANH_DENOMINATOR[4];
    for (int i = 3; i >= 0; i--) over = over * s + TANH_NUMERATOR[i], under = under * s + TANH_DENOMINATOR[i];
    out[w] = at_most(at_least(x * over / under, -1.0f), 1.0f);
  }
}
