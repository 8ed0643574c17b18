// One step of a `momentum_network` for all tensors of a network, for XLA's foreign-function interface on a CPU.
//
// A first pass over a tensor takes the mean squares that the features are divided by. A second one goes through it
// in tiles of kTile parameters, whose momenta, hidden layers and step stay in registers and in the first-level cache.
// A multiplication and its addition may be rounded once; sums have a fixed order, so that equal inputs give equal bits.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

// The registers of the processor: floats in each, and how many of them a tile takes in each row.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kVectors = 4;
#elif defined(__AVX__)
constexpr int kLanes = 8, kVectors = 2;
#else
constexpr int kLanes = 4, kVectors = 4;
#endif
constexpr int kTile = kLanes * kVectors;
constexpr int kUnits = 4;  // of a layer, computed together: their kUnits * kVectors sums fit in the registers
constexpr float kLargest = 1e15f;  // as in features.py
constexpr int64_t kChunk = 4096;  // entries of a partial sum in float

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));

static Vector load(const float* from) {
  Vector x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

static void store(float* to, Vector x) { std::memcpy(to, &x, sizeof x); }

static Vector all(float x) { return x - Vector{}; }

static Integers is_finite(Vector x) { return (x < 0 ? -x : x) < all(INFINITY); }

static Vector finite(Vector x) {
  Vector clipped = x > all(kLargest) ? all(kLargest) : x < all(-kLargest) ? all(-kLargest) : x;
  return is_finite(x) ? clipped : Vector{};
}

static Vector exponential(Vector x) {
  const Vector below = x < -87.f ? all(-87.f) : x, bounded = below > 88.f ? all(88.f) : below;
  const Vector magic = all(12582912.f);  // adding 1.5 * 2^23 rounds to a whole number
  const Vector whole = bounded * 1.44269504f + magic - magic;
  const Vector rest = bounded - whole * .693359375f + whole * 2.12194440e-4f;  // ln 2 in two parts
  Vector sum = all(1.f / 5040);
  for (float c : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1.f, 1.f}) sum = sum * rest + c;
  const Integers exponent = (__builtin_convertvector(whole, Integers) + 127) << 23;
  const Vector result = sum * reinterpret_cast<const Vector&>(exponent);
  return x > 88.72283f ? all(INFINITY) : x < -87.f ? Vector{} : result;
}

// A dense layer.
struct Layer {
  int inputs, outputs;
  std::vector<float> weights;  // [outputs / kUnits, inputs, kUnits]; the last group has fewer units
  std::vector<float> bias;

  Layer(int inputs, int outputs, const float* bias)
      : inputs(inputs), outputs(outputs), weights(size_t(outputs) * inputs), bias(bias, bias + outputs) {}

  float& weight(int output, int input) {
    const int first = output / kUnits * kUnits, units = std::min(kUnits, outputs - first);
    return weights[size_t(first) * inputs + input * units + output - first];
  }

  // Rows x [inputs][kTile] to rows y [outputs][kTile].
  template <bool relu>
  void apply(const float* x, float* y) const {
    int first = 0;
    for (; first + kUnits <= outputs; first += kUnits) group<relu, kUnits>(first, x, y);
    switch (outputs - first) {
      case 3: return group<relu, 3>(first, x, y);
      case 2: return group<relu, 2>(first, x, y);
      case 1: return group<relu, 1>(first, x, y);
    }
  }

  template <bool relu, int units>
  void group(int first, const float* x, float* y) const {
    const float* w = &weights[size_t(first) * inputs];
    Vector sums[units][kVectors];
    for (int u = 0; u < units; u++)
      for (int v = 0; v < kVectors; v++) sums[u][v] = all(bias[first + u]);
    for (int i = 0; i < inputs; i++, w += units)
      for (int v = 0; v < kVectors; v++) {
        const Vector input = load(x + i * kTile + v * kLanes);
        for (int u = 0; u < units; u++) sums[u][v] += w[u] * input;
      }
    for (int u = 0; u < units; u++)
      for (int v = 0; v < kVectors; v++) {
        const Vector sum = sums[u][v];
        store(y + (first + u) * kTile + v * kLanes, relu ? (sum < 0 ? Vector{} : sum) : sum);
      }
  }
};

// A tensor, or a part of it, whose size is a multiple of kTile.
struct Tensor {
  const float *gradient, *param, *momenta;
  float *step, *next;  // next momenta; may be at the place of the momenta
  int64_t size, stride;  // from one momentum of an entry to its next
};

using Numbers = ffi::Span<const float>;

// Gradient, parameter and new momenta of kLanes entries.
static void read(const Tensor& tensor, Numbers decays, int64_t i, Vector* rows) {
  rows[0] = finite(load(tensor.gradient + i));
  rows[1] = finite(load(tensor.param + i));
  for (size_t k = 0; k < decays.size(); k++)
    rows[2 + k] = decays[k] * load(tensor.momenta + k * tensor.stride + i) + (1 - decays[k]) * rows[0];
}

// Add the sums of the squares of all rows.
static void add_squares(const Tensor& tensor, Numbers decays, std::vector<Vector>& rows, std::vector<double>& totals) {
  std::vector<Vector> sums(totals.size());
  for (int64_t start = 0; start < tensor.size; start += kChunk) {
    std::fill(sums.begin(), sums.end(), Vector{});
    for (int64_t i = start; i < std::min(start + kChunk, tensor.size); i += kLanes) {
      read(tensor, decays, i, rows.data());
      for (size_t r = 0; r < rows.size(); r++) sums[r] += rows[r] * rows[r];
    }
    for (size_t r = 0; r < rows.size(); r++)
      for (int lane = 0; lane < kLanes; lane++) totals[r] += sums[r][lane];
  }
}

// The steps and next momenta of kTile entries. `rows`, x and y are room for the rows of a few
// entries, and of every layer.
static void step_tile(const Tensor& tensor, Numbers decays, const std::vector<Layer>& layers, int64_t i,
                      std::vector<Vector>& rows, float* x, float* y) {
  for (int v = 0; v < kTile; v += kLanes) {
    read(tensor, decays, i + v, rows.data());
    for (size_t r = 0; r < rows.size(); r++) store(x + r * kTile + v, rows[r]);
    for (size_t k = 0; k < decays.size(); k++) store(tensor.next + k * tensor.stride + i + v, rows[2 + k]);
  }
  for (size_t n = 0; n < layers.size(); n++, std::swap(x, y))
    n + 1 < layers.size() ? layers[n].apply<true>(x, y) : layers[n].apply<false>(x, y);
  for (int v = 0; v < kTile; v += kLanes) {
    const Vector step = -1e-3f * load(x + v) * exponential(1e-3f * load(x + kTile + v));
    const Vector slowest = load(tensor.next + (decays.size() - 1) * tensor.stride + i + v);
    const Vector moved = slowest != 0 ? step : Vector{};
    store(tensor.step + i + v, is_finite(load(tensor.gradient + i + v)) ? moved : all(NAN));
  }
}

// The first layer for the rows of a tensor: every feature is a row times its factor, divided by its root mean square.
static Layer first_layer(const float* weights, const float* bias, int features, int outputs, Numbers factors,
                         ffi::Span<const int32_t> sources, const std::vector<double>& mean_squares, float epsilon) {
  Layer layer(mean_squares.size(), outputs, bias);
  for (int f = 0; f < features; f++) {
    const double squares = double(factors[f]) * factors[f] * mean_squares[sources[f]];
    const float scale = factors[f] / std::sqrt(epsilon + squares);
    for (int o = 0; o < outputs; o++) layer.weight(o, sources[f]) += scale * weights[o * features + f];
  }
  return layer;
}

// Arguments: weights [outputs, inputs] and bias [outputs] of each layer; then gradient, parameter and momenta of each
// tensor. Results: step and next momenta of each tensor.
static ffi::Error run(ffi::RemainingArgs arguments, ffi::RemainingRets results, int32_t number_of_layers,
                      ffi::Span<const int32_t> sources, Numbers factors, Numbers decays, float epsilon) {
  const auto data = [&](size_t i) { return arguments.get<ffi::AnyBuffer>(i)->typed_data<float>(); };
  const auto rows = [&](size_t i) { return int(arguments.get<ffi::AnyBuffer>(i)->dimensions()[0]); };
  const int k = decays.size();

  std::vector<Layer> layers;
  int widest = 2 + k;
  for (int n = 0; n < number_of_layers; n++) {
    const int inputs = n ? layers.back().outputs : 2 + k;
    Layer& layer = layers.emplace_back(inputs, rows(2 * n), data(2 * n + 1));
    for (int o = 0; n && o < layer.outputs; o++)
      for (int i = 0; i < inputs; i++) layer.weight(o, i) = data(2 * n)[o * inputs + i];
    widest = std::max(widest, layer.outputs);
  }
  std::vector<float> x(widest * kTile), y(widest * kTile), end((4 + 2 * k) * kTile);
  std::vector<Vector> row(2 + k);

  const size_t tensors = results.size() / 2;
  for (size_t t = 0; t < tensors; t++) {
    const size_t place = 2 * number_of_layers + 3 * t;
    const int64_t size = arguments.get<ffi::AnyBuffer>(place)->element_count();
    if (size == 0) continue;
    const auto result = [&](size_t i) { return (*results.get<ffi::AnyBuffer>(2 * t + i))->typed_data<float>(); };
    const int64_t whole = size / kTile * kTile, rest = size - whole;
    const Tensor body{data(place), data(place + 1), data(place + 2), result(0), result(1), whole, size};
    // The last entries are padded to a tile.
    float* pad = end.data();
    const Tensor tail{pad, pad + kTile, pad + 2 * kTile, pad + (2 + k) * kTile, pad + (3 + k) * kTile,
                      rest ? kTile : 0, kTile};
    std::fill(end.begin(), end.end(), 0);
    std::copy(body.gradient + whole, body.gradient + size, pad);
    std::copy(body.param + whole, body.param + size, pad + kTile);
    for (int j = 0; j < k; j++)
      std::copy(body.momenta + j * size + whole, body.momenta + (j + 1) * size, pad + (2 + j) * kTile);

    std::vector<double> mean_squares(2 + k);
    add_squares(body, decays, row, mean_squares);
    add_squares(tail, decays, row, mean_squares);
    for (double& square : mean_squares) square /= size;
    layers[0] = first_layer(data(0), data(1), sources.size(), layers[0].outputs, factors, sources, mean_squares,
                            epsilon);
    for (const Tensor& part : {body, tail})
      for (int64_t i = 0; i < part.size; i += kTile) step_tile(part, decays, layers, i, row, x.data(), y.data());

    std::copy(tail.step, tail.step + rest, body.step + whole);
    for (int j = 0; j < k; j++)
      std::copy(tail.next + j * kTile, tail.next + j * kTile + rest, body.next + j * size + whole);
  }
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(learned_opt_momentum_network, run,
                              ffi::Ffi::Bind()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int32_t>("layers")
                                  .Attr<ffi::Span<const int32_t>>("sources")
                                  .Attr<ffi::Span<const float>>("factors")
                                  .Attr<ffi::Span<const float>>("decays")
                                  .Attr<float>("epsilon"));
