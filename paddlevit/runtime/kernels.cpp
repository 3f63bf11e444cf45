// What Paddle 3.3 is slow at on a CPU, in float32: depthwise 3 x 3 convolutions with a padding of 1, GELU, layer and
// batch normalisation, biases, softmax. kernels.py compiles this file and calls it. NAME takes tensors, the result, and
// numbers; NAME_grad the same tensors, the result's gradient, theirs, and the numbers. From `bias` on they work in place.
// Results do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

using Floats = std::vector<float>;
constexpr int TAPS = 9;

// A plane within its padding, cut into one plane per phase of the stride, which is 1 or 2. What a tap of the kernel
// reads for all outputs is then one contiguous run, as long as an output whose rows have the phases' width.
struct Padded {
  int64_t height, width, stride, out_height, out_width, row, phase;

  Padded(int64_t height, int64_t width, int64_t stride)
      : height(height), width(width), stride(stride), out_height((height - 1) / stride + 1),
        out_width((width - 1) / stride + 1), row(out_width + 3 - stride), phase((out_height + 3 - stride) * row) {}

  int64_t plane() const { return height * width; }
  int64_t out_plane() const { return out_height * out_width; }
  int64_t run() const { return out_height * row; }
  int64_t size() const { return stride * stride * phase + 2; }  // the last tap's run ends two places after its phase
  int64_t tap(int k) const { return start(k / 3) + k % 3 % stride * phase + k % 3 / stride; }
  int64_t start(int64_t y) const { return y % stride * stride * phase + y / stride * row; }  // of a padded row

  // Calls f(place in the padded planes, place in the plane) for every element.
  template <typename F> void each(F f) const { stride == 1 ? each<1>(f) : each<2>(f); }

  template <int S, typename F> void each(F f) const {
    for (int64_t y = 0; y < height; y++) {
      for (int first = 0; first < S; first++) {
        const int64_t to = start(y + 1) + (first + 1) % S * phase + (first + 1) / S, from = y * width + first;
#pragma omp simd
        for (int64_t x = 0; x < (width - first + S - 1) / S; x++) f(to + x, from + x * S);
      }
    }
  }
};

// Factors of 1 / (1 + 0.3 x) and its powers in the ratio of the normal distribution's tail to its density (Mills' ratio),
// fitted for x >= 0 to a relative 1.3e-7.
constexpr float TAIL[] = {0.299858898f, 0.302796572f, 0.249754131f, 0.324531287f,
                          -0.13885203f, 0.521896839f, -0.396739304f, 0.090067558f};

inline float exponential(float x) {  // of x in [-87, 0]: 2^whole * e^rest, its series for |rest| <= ln(2) / 2
  float whole = std::floor(x * 1.44269504f + 0.5f), rest = x - whole * 0.693145752f - whole * 1.42860677e-6f;
  float series = 1;
#pragma GCC unroll 6
  for (int i = 6; i >= 1; i--) series = 1 + series * rest * (1.0f / i);
  union { int32_t bits; float value; } power = {(static_cast<int32_t>(whole) + 127) << 23};
  return series * power.value;
}

// Density and distribution function of the normal distribution.
inline void normal(float x, float& density, float& distribution) {
  density = 0.398942280f * exponential(std::max(-0.5f * x * x, -87.0f));
  float t = 1 / (1 + 0.3f * std::fabs(x)), ratio = 0;
#pragma GCC unroll 8
  for (int i = 7; i >= 0; i--) ratio = (ratio + TAIL[i]) * t;
  distribution = x < 0 ? density * ratio : 1 - density * ratio;
}

inline float gelu_of(float x) {
  float density, distribution;
  normal(x, density, distribution);
  return x * distribution;
}

// A row, normalised; returns 1 / its standard deviation.
inline float normalise(const float* x, float* normed, int64_t c, float epsilon) {
  float mean = 0, variance = 0;
#pragma omp simd reduction(+ : mean)
  for (int64_t i = 0; i < c; i++) mean += x[i];
  mean /= c;
#pragma omp simd reduction(+ : variance)
  for (int64_t i = 0; i < c; i++) variance += (x[i] - mean) * (x[i] - mean);
  const float rstd = 1 / std::sqrt(variance / c + epsilon);
#pragma omp simd
  for (int64_t i = 0; i < c; i++) normed[i] = (x[i] - mean) * rstd;
  return rstd;
}

// The sum of what f(first row, last row, sums) adds for each part of the rows: the same for any number of threads.
template <typename F> void sum_parts(int64_t rows, int64_t size, float* total, F f) {
  constexpr int64_t PARTS = 16;
  Floats sums(PARTS * size);
#pragma omp parallel for
  for (int64_t part = 0; part < PARTS; part++) f(rows * part / PARTS, rows * (part + 1) / PARTS, &sums[part * size]);
  std::fill_n(total, size, 0.0f);
  for (int64_t i = 0; i < PARTS * size; i++) total[i % size] += sums[i];
}

}  // namespace

extern "C" {

// x [n, c, height, width], w [c, 3, 3] -> y [n, c, height', width'].
void depthwise(const float* x, const float* w, float* y, int64_t n, int64_t c, int64_t height, int64_t width,
               int64_t stride) {
  const Padded p(height, width, stride);
#pragma omp parallel
  {
    Floats padded(p.size()), out(p.run());
#pragma omp for
    for (int64_t i = 0; i < n * c; i++) {
      const float* plane = x + i * p.plane();
      p.each([&](int64_t to, int64_t from) { padded[to] = plane[from]; });
      const float *taps[TAPS], *k = w + i % c * TAPS;
      for (int t = 0; t < TAPS; t++) taps[t] = &padded[p.tap(t)];
#pragma omp simd
      for (int64_t j = 0; j < p.run(); j++) {
        float sum = 0;
#pragma GCC unroll 9
        for (int t = 0; t < TAPS; t++) sum += k[t] * taps[t][j];
        out[j] = sum;
      }
      for (int64_t r = 0; r < p.out_height; r++)
        std::copy_n(&out[r * p.row], p.out_width, y + i * p.out_plane() + r * p.out_width);
    }
  }
}

// Of the output's gradient dy: that of the input, dx, and of the weights, dw.
void depthwise_grad(const float* x, const float* w, const float* dy, float* dx, float* dw, int64_t n, int64_t c,
                    int64_t height, int64_t width, int64_t stride) {
  const Padded p(height, width, stride);
#pragma omp parallel
  {
    Floats padded(p.size()), padded_grad(p.size()), out_grad(p.run());
#pragma omp for
    for (int64_t channel = 0; channel < c; channel++) {
      const float* k = w + channel * TAPS;
      float sums[TAPS] = {};
      for (int64_t i = channel; i < n * c; i += c) {
        const float* plane = x + i * p.plane();
        float* plane_grad = dx + i * p.plane();
        p.each([&](int64_t to, int64_t from) { padded[to] = plane[from]; });
        for (int64_t r = 0; r < p.out_height; r++)
          std::copy_n(dy + i * p.out_plane() + r * p.out_width, p.out_width, &out_grad[r * p.row]);
        std::fill(padded_grad.begin(), padded_grad.end(), 0.0f);
        for (int t = 0; t < TAPS; t++) {
          const float* tap = &padded[p.tap(t)];
          float *tap_grad = &padded_grad[p.tap(t)], sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t j = 0; j < p.run(); j++) {
            sum += out_grad[j] * tap[j];
            tap_grad[j] += k[t] * out_grad[j];
          }
          sums[t] += sum;
        }
        p.each([&](int64_t to, int64_t from) { plane_grad[from] = padded_grad[to]; });
      }
      std::copy_n(sums, TAPS, dw + channel * TAPS);
    }
  }
}

void gelu(const float* x, float* y, int64_t size) {
#pragma omp parallel for simd
  for (int64_t i = 0; i < size; i++) y[i] = gelu_of(x[i]);
}

void gelu_grad(const float* x, const float* dy, float* dx, int64_t size) {
#pragma omp parallel for simd
  for (int64_t i = 0; i < size; i++) {
    float density, distribution;
    normal(x[i], density, distribution);
    dx[i] = dy[i] * (distribution + x[i] * density);
  }
}

// x, y [rows, c]; scale, bias [c].
void layer_norm(const float* x, const float* scale, const float* bias, float* y, int64_t rows, int64_t c,
                float epsilon) {
#pragma omp parallel
  {
    Floats normed(c);
#pragma omp for
    for (int64_t r = 0; r < rows; r++) {
      normalise(x + r * c, normed.data(), c, epsilon);
#pragma omp simd
      for (int64_t i = 0; i < c; i++) y[r * c + i] = normed[i] * scale[i] + bias[i];
    }
  }
}

void layer_norm_grad(const float* x, const float* scale, const float*, const float* dy, float* dx, float* dscale,
                     float* dbias, int64_t rows, int64_t c, float epsilon) {
  Floats sums(2 * c);
  sum_parts(rows, 2 * c, sums.data(), [&](int64_t first, int64_t last, float* scale_sum) {
    Floats normed(c);
    float* bias_sum = scale_sum + c;
    for (int64_t r = first; r < last; r++) {
      const float *g = dy + r * c, rstd = normalise(x + r * c, normed.data(), c, epsilon);
      float sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
      for (int64_t i = 0; i < c; i++) {
        scale_sum[i] += g[i] * normed[i];
        bias_sum[i] += g[i];
        sum += g[i] * scale[i];
        product += g[i] * scale[i] * normed[i];
      }
      sum /= c, product /= c;
#pragma omp simd
      for (int64_t i = 0; i < c; i++) dx[r * c + i] = (g[i] * scale[i] - sum - normed[i] * product) * rstd;
    }
  });
  std::copy_n(&sums[0], c, dscale);
  std::copy_n(&sums[c], c, dbias);
}

// x [outer, c, inner] + bias [c].
void bias(float* x, const float* bias, int64_t outer, int64_t c, int64_t inner) {
#pragma omp parallel for
  for (int64_t o = 0; o < outer; o++) {
    float* row = x + o * c * inner;
    if (inner == 1)
      for (int64_t i = 0; i < c; i++) row[i] += bias[i];
    else
      for (int64_t i = 0; i < c * inner; i += inner)
        for (int64_t j = 0; j < inner; j++) row[i + j] += bias[i / inner];
  }
}

void bias_grad(const float* dy, float* dbias, int64_t outer, int64_t c, int64_t inner) {
  sum_parts(outer, c, dbias, [&](int64_t first, int64_t last, float* sums) {
    for (int64_t o = first; o < last; o++) {
      const float* row = dy + o * c * inner;
      if (inner == 1) {
        for (int64_t i = 0; i < c; i++) sums[i] += row[i];
        continue;
      }
      for (int64_t i = 0; i < c; i++) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < inner; j++) sum += row[i * inner + j];
        sums[i] += sum;
      }
    }
  });
}

// x [rows, c]. Some rows at a time, step by step, as a short one by itself only waits for one step after the other.
void softmax(float* x, int64_t rows, int64_t c) {
  constexpr int64_t ROWS = 8;
#pragma omp parallel for
  for (int64_t first = 0; first < rows; first += ROWS) {
    float tops[ROWS], *begin = x + first * c, *end = x + std::min(first + ROWS, rows) * c;
    for (float *row = begin, *to = tops; row < end; row += c) {
      float top = row[0];
#pragma omp simd reduction(max : top)
      for (int64_t i = 0; i < c; i++) top = top < row[i] ? row[i] : top;
      *to++ = top;
    }
    for (float *row = begin, *from = tops; row < end; row += c) {
      const float top = *from++;
#pragma omp simd
      for (int64_t i = 0; i < c; i++) row[i] = exponential(std::max(row[i] - top, -87.0f));
    }
    for (float* row = begin; row < end; row += c) {
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < c; i++) sum += row[i];
      sum = 1 / sum;
      for (int64_t i = 0; i < c; i++) row[i] *= sum;
    }
  }
}

// From the result y.
void softmax_grad(const float* y, const float* dy, float* dx, int64_t rows, int64_t c) {
#pragma omp parallel for
  for (int64_t r = 0; r < rows; r++) {
    const float *row = y + r * c, *g = dy + r * c;
    float product = 0, *to = dx + r * c;
#pragma omp simd reduction(+ : product)
    for (int64_t i = 0; i < c; i++) product += row[i] * g[i];
#pragma omp simd
    for (int64_t i = 0; i < c; i++) to[i] = row[i] * (g[i] - product);
  }
}

// GELU of batch normalisation with its running statistics of x [n, c, plane] + bias [c].
void norm_gelu(float* x, const float* bias, const float* mean, const float* variance, const float* scale,
               const float* shift, int64_t n, int64_t c, int64_t plane, float epsilon) {
#pragma omp parallel for
  for (int64_t i = 0; i < n * c; i++) {
    const int64_t k = i % c;
    const float factor = scale[k] / std::sqrt(variance[k] + epsilon), term = (bias[k] - mean[k]) * factor + shift[k];
#pragma omp simd
    for (int64_t j = i * plane; j < (i + 1) * plane; j++) x[j] = gelu_of(x[j] * factor + term);
  }
}

}  // extern "C"
