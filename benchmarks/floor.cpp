// Dopri5 with step sizes per sample, by hand: the fields of peers.py, W samples at once, nothing kept but the state.
#include <cmath>
#include <cstring>
constexpr int W = 16, STAGES = 7, HIDDEN = 64;
typedef float Lanes[W];
#define EACH for (int w = 0; w < W; w++)

constexpr double A[STAGES][STAGES] = {
    {},
    {1. / 5},
    {3. / 40, 9. / 40},
    {44. / 45, -56. / 15, 32. / 9},
    {19372. / 6561, -25360. / 2187, 64448. / 6561, -212. / 729},
    {9017. / 3168, -355. / 33, 46732. / 5247, 49. / 176, -5103. / 18656},
    {35. / 384, 0, 500. / 1113, 125. / 192, -2187. / 6784, 11. / 84}};
constexpr double ERROR[STAGES] = {35. / 384 - 1951. / 21600,      0, 500. / 1113 - 22642. / 50085, 125. / 192 - 451. / 720,
                                  -2187. / 6784 + 12231. / 42400, 11. / 84 - 649. / 6300, -1. / 60};

struct VanDerPol {
  void operator()(const Lanes* y, Lanes* dy) const {
    EACH {
      dy[0][w] = y[1][w];
      dy[1][w] = 2 * (1 - y[0][w] * y[0][w]) * y[1][w] - y[0][w];
    }
  }
};

struct TanhNetwork {
  const float *w1, *b1, *w2, *b2;  // [64, 2], [64], [2, 64], [2]
  void operator()(const Lanes* y, Lanes* dy) const {
    EACH dy[0][w] = b2[0], dy[1][w] = b2[1];
    for (int i = 0; i < HIDDEN; i++) {
      Lanes h;
      EACH h[w] = tanhf(b1[i] + w1[2 * i] * y[0][w] + w1[2 * i + 1] * y[1][w]);
      EACH dy[0][w] += w2[i] * h[w], dy[1][w] += w2[HIDDEN + i] * h[w];
    }
  }
};

static inline float norm(float x, float y) { return sqrtf((x * x + y * y) / 2); }

// The first step of Hairer, Nørsett and Wanner, II.4.
template <class F> static void first_step(const F& f, const Lanes* y, const Lanes* k, double t1, float tol, double* dt) {
  Lanes scale[2], probe[2], slope[2], h0, d1;
  for (int i = 0; i < 2; i++) EACH scale[i][w] = tol + tol * fabsf(y[i][w]);
  EACH {
    const float d0 = norm(y[0][w] / scale[0][w], y[1][w] / scale[1][w]);
    d1[w] = norm(k[0][w] / scale[0][w], k[1][w] / scale[1][w]);
    h0[w] = d0 < 1e-5f || d1[w] < 1e-5f ? 1e-6f : 0.01f * d0 / d1[w];
    for (int i = 0; i < 2; i++) probe[i][w] = y[i][w] + h0[w] * k[i][w];
  }
  f(probe, slope);
  EACH {
    const float d2 = norm((slope[0][w] - k[0][w]) / scale[0][w], (slope[1][w] - k[1][w]) / scale[1][w]) / h0[w];
    const float largest = fmaxf(d1[w], d2);
    const float h1 = largest <= 1e-15f ? fmaxf(1e-6f, h0[w] * 1e-3f) : powf(0.01f / largest, 0.2f);
    dt[w] = fmin(fmin(100 * h0[w], h1), t1);
  }
}

template <class F> static long solve(const F& f, float* states, long n, double t1, float tol) {
  long rounds = 0;
  for (long first = 0; first < n; first += W) {
    const int lanes = n - first < W ? n - first : W;
    Lanes y[2], k[STAGES][2], x[2];
    double t[W] = {}, dt[W];
    for (int i = 0; i < 2; i++) EACH y[i][w] = states[2 * (first + (w < lanes ? w : 0)) + i];
    f(y, k[0]);
    first_step(f, y, k[0], t1, tol, dt);
    long round = 0;
    for (int left = W; left; round++) {
      Lanes h, factor;
      double end[W];
      EACH end[w] = t[w] + dt[w] >= t1 ? t1 : t[w] + dt[w];
      EACH h[w] = float(end[w] - t[w]);
#pragma GCC unroll 7
      for (int s = 1; s < STAGES; s++) {
        for (int i = 0; i < 2; i++) EACH {
          float sum = 0;
#pragma GCC unroll 7
          for (int j = 0; j < s; j++) sum += float(A[s][j]) * k[j][i][w];
          x[i][w] = y[i][w] + h[w] * sum;
        }
        f(x, k[s]);
      }
      EACH {
        float scaled[2];
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
          float error = 0;
#pragma GCC unroll 7
          for (int j = 0; j < STAGES; j++) error += float(ERROR[j]) * k[j][i][w];
          scaled[i] = h[w] * error / (tol + tol * fmaxf(fabsf(y[i][w]), fabsf(x[i][w])));
        }
        factor[w] = norm(scaled[0], scaled[1]);
      }
      left = 0;
      EACH {
        const bool accept = factor[w] <= 1;
        for (int i = 0; i < 2; i++) y[i][w] = accept ? x[i][w] : y[i][w], k[0][i][w] = accept ? k[6][i][w] : k[0][i][w];
        t[w] = accept ? end[w] : t[w];
        const float next = 0.9f * powf(fmaxf(factor[w], 1e-10f), -0.2f);
        dt[w] = h[w] * fminf(10, fmaxf(next, accept ? 1.0f : 0.2f));
        left += t[w] < t1;
      }
    }
    for (int i = 0; i < 2; i++) for (int w = 0; w < lanes; w++) states[2 * (first + w) + i] = y[i][w];
    rounds = rounds > round ? rounds : round;
  }
  return rounds;
}

extern "C" long van_der_pol(float* states, long n, double t1, float tol, const float**) {
  return solve(VanDerPol(), states, n, t1, tol);
}
extern "C" long tanh_network(float* states, long n, double t1, float tol, const float** p) {
  return solve(TanhNetwork{p[0], p[1], p[2], p[3]}, states, n, t1, tol);
}
