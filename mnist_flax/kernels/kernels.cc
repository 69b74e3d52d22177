// Convolutions of small images with few channels, with the BatchNorm, ReLU and max-pool before them: the CPU's fast path.
//
// XLA's CPU convolutions reach a quarter of the chip's multiply-add rate at 8 to 20 channels, because they pack patches
// into matrices. Here nothing is packed. An image is (height, width, channels), the channels of a pixel side by side,
// so the pixels under one row of a kernel, `kernel_width * c_in` numbers, are contiguous. We call each of these numbers
// a tap. A tile is a few neighbouring output pixels, with all their channels in registers:
//
//                     one row of the kernel                       tile of 3 pixels x 2 vectors of channels
//      input  . . [a a b b c c] d d . .                                     channels 0-7   channels 8-15
//      row          ^ tap of pixel 0                               pixel 0   sums[0][0]     sums[0][1]
//                 . . . . [b b c c d d]                            pixel 1   sums[1][0]     sums[1][1]
//                          ^ the same tap of pixel 1               pixel 2   sums[2][0]     sums[2][1]
//
// For each tap, its weights are loaded once (a vector for 8 output channels) and multiplied with that tap of each pixel.
// So a tile of P pixels and V vectors takes P + V loads for P * V multiply-adds. A core with AVX2 starts two of either
// in a cycle, and has 16 registers for the sums, V vectors of weights and an input. See `max_rows`.
//
// - The gradient of the inputs is the same function with the kernel turned round and the other padding.
// - The gradient of the kernel has tiles of taps x channels, and runs over pixels.
// - BatchNorm and ReLU need no passes of their own over memory. An image is normalised as it is copied into the cache,
//   just before it is convolved; the sums that the next BatchNorm needs are taken while the result is in the cache. The
//   backward pass does the same: what lies between two convolutions never leaves the cache.
// - Work is divided into tasks of `kImagesPerTask` images for XLA's threads. What tasks sum up, each writes to a place of
//   its own, and it is added in the order of the tasks: no bit depends on the number of threads.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

constexpr int kLanes = 8;               // numbers in a vector
constexpr int kMaxVectors = 3;          // of channels in a tile
constexpr int64_t kImagesPerTask = 4;   // few enough that cores share a batch evenly, enough to hide a task's start
constexpr int64_t kBlockBytes = 12288;  // of the cotangent, that the kernel's gradient runs over before the next tile

// The pixels or taps of a tile with V vectors. At least 8 sums keep two units with a latency of 4 cycles busy; 12 sums
// and 3 vectors of weights would fill all registers, and compilers then keep some in memory.
constexpr int max_rows(int vectors) { return vectors == 1 ? 12 : vectors == 2 ? 6 : 3; }

// A vector of floats, as GCC and Clang have it; they make AVX, NEON or SSE of it.
typedef float Vec __attribute__((vector_size(4 * kLanes)));

// Compilers would rather read an operand from memory at each use than keep it in a register: 12 reads for 9
// multiply-adds instead of 6.
inline void keep_in_register(Vec& vector) {
#if defined(__AVX__)
  asm("" : "+x"(vector));
#endif
}

// Read and write a float or a Vec.
template <typename T>
T get(const float* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}
template <typename T>
void put(float* to, T value) { std::memcpy(to, &value, sizeof(T)); }
template <typename T>
void add(float* to, T value) { put<T>(to, get<T>(to) + value); }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t padded(int64_t channels) { return ceil_div(channels, kLanes) * kLanes; }

// Runs task(0) ... task(count - 1) on XLA's threads and on this one; returns when all are done.
//
// A thread of the pool that starts late finds nothing left to do, so we never wait for one that has not started.
template <typename Task>
void parallel_for(ffi::ThreadPool& pool, int64_t count, const Task& task) {
  struct Shared {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto shared = std::make_shared<Shared>();
  const Task* body = &task;
  auto work = [shared, body, count] {
    int64_t mine = 0;
    for (int64_t i; (i = shared->next++) < count; ++mine) (*body)(i);
    if (mine == 0) return;
    std::lock_guard<std::mutex> lock(shared->mutex);
    if ((shared->done += mine) == count) shared->all_done.notify_all();
  };
  const int64_t helpers = std::min(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(work));
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == count; });
}

struct Image {
  int64_t height, width, channels;
  int64_t row() const { return width * channels; }
  int64_t size() const { return height * row(); }
};

struct Padding {
  int64_t top, bottom, left, right;
  Image around(Image image) const {
    return {image.height + top + bottom, image.width + left + right, image.channels};
  }
};

// An image in the cache, in the middle of one that is larger by the padding and filled with zeros.
struct Room {
  Image image, whole;
  std::vector<float> values;
  float* first;
  // A vector more than needed, since vectors may be read beyond the last pixel.
  Room(Image image, Padding padding)
      : image(image), whole(padding.around(image)), values(whole.size() + kLanes),
        first(values.data() + padding.top * whole.row() + padding.left * image.channels) {}
  float* row(int64_t y) { return first + y * whole.row(); }
};

// ---------------------------------------------------------------------------------------------------- convolution

// A kernel as tiles read it: for each group of up to kMaxVectors vectors of output channels, (height, taps, channels),
// the channels filled up with zeros to whole vectors.
struct Kernel {
  int64_t height, width, c_in, c_out;
  std::vector<float> weights;
  int64_t taps() const { return width * c_in; }

  static Kernel from(const float* k, int64_t height, int64_t width, int64_t c_in, int64_t c_out) {
    Kernel kernel{height, width, c_in, c_out, {}};
    kernel.fill([&](int64_t y, int64_t x, int64_t i, int64_t o) { return k[((y * width + x) * c_in + i) * c_out + o]; });
    return kernel;
  }

  // Turned by 180 degrees, from output to input channels.
  static Kernel turned(const float* k, int64_t height, int64_t width, int64_t c_in, int64_t c_out) {
    Kernel kernel{height, width, c_out, c_in, {}};
    kernel.fill([&](int64_t y, int64_t x, int64_t i, int64_t o) {
      return k[(((height - 1 - y) * width + width - 1 - x) * c_in + o) * c_out + i];
    });
    return kernel;
  }

 private:
  template <typename Get>
  void fill(const Get& get) {
    weights.assign(height * taps() * padded(c_out), 0.0f);
    float* to = weights.data();
    for (int64_t first = 0; first < c_out; first += kMaxVectors * kLanes) {
      const int64_t channels = std::min<int64_t>(padded(c_out - first), kMaxVectors * kLanes);
      for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; ++x)
          for (int64_t i = 0; i < c_in; ++i, to += channels)
            for (int64_t o = first; o < std::min(first + channels, c_out); ++o) to[o - first] = get(y, x, i, o);
    }
  }
};

// `Tile<R, V>::run` for a number of rows and of vectors that are known only now.
template <template <int, int> class Tile, int V, int... R>
auto tile_of(int64_t rows, std::integer_sequence<int, R...>) {
  static constexpr decltype(&Tile<1, V>::run) tiles[] = {Tile<R + 1, V>::run...};
  return tiles[rows - 1];
}

template <template <int, int> class Tile>
auto tile_of(int64_t rows, int64_t vectors) {
  return vectors == 1   ? tile_of<Tile, 1>(rows, std::make_integer_sequence<int, max_rows(1)>())
         : vectors == 2 ? tile_of<Tile, 2>(rows, std::make_integer_sequence<int, max_rows(2)>())
                        : tile_of<Tile, 3>(rows, std::make_integer_sequence<int, max_rows(3)>());
}

// Calls body(first row, number of rows) for as few tiles as `rows` rows take, all of about the same size.
template <typename Body>
void for_tiles(int64_t rows, int64_t vectors, const Body& body) {
  const int64_t tiles = ceil_div(rows, max_rows(vectors));
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t from = rows * tile / tiles;
    body(from, rows * (tile + 1) / tiles - from);
  }
}

// P neighbouring output pixels, V vectors of their channels.
template <int P, int V>
struct OutputTile {
  static void run(const float* x, int64_t row, const Kernel& kernel, const float* w, float* y, int64_t channels,
                   int64_t pixel) {
    Vec sums[P][V] = {};
    for (int64_t r = 0; r < kernel.height; ++r, x += row)
      for (int64_t tap = 0; tap < kernel.taps(); ++tap, w += V * kLanes) {
        Vec weights[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) keep_in_register(weights[v] = get<Vec>(w + v * kLanes));
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
          const float input = x[p * kernel.c_in + tap];
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) sums[p][v] += weights[v] * input;
        }
      }
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p, y += pixel) {
      // What a whole vector writes beyond its pixel is the next pixel's, which is written next.
      const bool whole = V * kLanes <= channels || (p + 1 < P && channels == pixel && V * kLanes <= 2 * channels);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v)
        if (whole || (v + 1) * kLanes <= channels)
          put<Vec>(y + v * kLanes, sums[p][v]);
        else if (v * kLanes < channels)
          std::memcpy(y + v * kLanes, &sums[p][v], sizeof(float) * (channels - v * kLanes));
    }
  }
};

// One image, already padded.
void convolve(const float* x, Image image, const Kernel& kernel, float* y) {
  int64_t height = image.height - kernel.height + 1, width = image.width - kernel.width + 1;
  if (kernel.height == 1 && kernel.width == 1) width *= std::exchange(height, 1);  // rows need not be told apart
  const float* w = kernel.weights.data();
  for (int64_t first = 0; first < kernel.c_out; first += kMaxVectors * kLanes) {
    const int64_t channels = std::min<int64_t>(kernel.c_out - first, kMaxVectors * kLanes);
    const int64_t vectors = ceil_div(channels, kLanes);
    for (int64_t row = 0; row < height; ++row)
      for_tiles(width, vectors, [&](int64_t from, int64_t pixels) {
        tile_of<OutputTile>(pixels, vectors)(x + row * image.row() + from * kernel.c_in, image.row(), kernel, w,
                                             y + (row * width + from) * kernel.c_out + first, channels, kernel.c_out);
      });
    w += kernel.height * kernel.taps() * vectors * kLanes;
  }
}

// ------------------------------------------------------------------------------------------- the kernel's gradient

// Adds to the gradient of T taps and V vectors of channels what `rows` rows of output pixels give.
template <int T, int V>
struct GradientTile {
  static void run(const float* x, int64_t x_row, int64_t c_in, const float* dy, int64_t dy_row, int64_t rows,
                     int64_t width, int64_t pixel, float* dw, int64_t dw_row) {
    Vec sums[T][V];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[t][v] = get<Vec>(dw + t * dw_row + v * kLanes);
    for (int64_t row = 0; row < rows; ++row, x += x_row, dy += dy_row)
      for (int64_t column = 0; column < width; ++column) {
        Vec cotangent[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) keep_in_register(cotangent[v] = get<Vec>(dy + column * pixel + v * kLanes));
        const float* taps = x + column * c_in;
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) sums[t][v] += cotangent[v] * taps[t];
      }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) put<Vec>(dw + t * dw_row + v * kLanes, sums[t][v]);
  }
};

// Adds one image's part to `dw`, (height, taps, channels filled up to whole vectors).
void add_kernel_gradient(const Room& x, Room& dy, int64_t kernel_height, int64_t taps, float* dw) {
  const Image out = dy.image;
  const int64_t dw_row = padded(out.channels), vectors_of_all = dw_row / kLanes;
  const int64_t block = std::max<int64_t>(1, kBlockBytes / (4 * out.row()));
  for (int64_t row = 0; row < out.height; row += block) {
    const int64_t rows = std::min(block, out.height - row);
    for (int64_t r = 0; r < kernel_height; ++r)
      for (int64_t v = 0; v < vectors_of_all; v += kMaxVectors) {
        const int64_t vectors = std::min<int64_t>(kMaxVectors, vectors_of_all - v);
        for_tiles(taps, vectors, [&](int64_t from, int64_t count) {
          tile_of<GradientTile>(count, vectors)(
              x.values.data() + (row + r) * x.whole.row() + from, x.whole.row(), x.image.channels,
              dy.row(row) + v * kLanes, dy.whole.row(), rows, out.width, out.channels,
              dw + (r * taps + from) * dw_row + v * kLanes, dw_row);
        });
      }
  }
}

// ------------------------------------------------------------------------------- what comes before a convolution

// Numbers for each channel, repeated for kLanes pixels: so a whole number of vectors, whatever the number of channels.
// The vectors that belong to a row of pixels begin anew after `channels` of them.
struct PerChannel {
  int64_t channels;
  std::vector<float> values;
  explicit PerChannel(int64_t channels) : channels(channels), values(channels * kLanes) {}
  PerChannel(const float* from, int64_t channels) : PerChannel(channels) {
    for (int64_t i = 0; i < kLanes; ++i) std::copy(from, from + channels, values.begin() + i * channels);
  }
  float* at(int64_t place) { return values.data() + place; }
  const float* at(int64_t place) const { return values.data() + place; }
  // Adds up the repetitions.
  void add_to(float* sums) const {
    for (size_t i = 0; i < values.size(); ++i) sums[i % channels] += values[i];
  }
};

// Calls body(i, place in PerChannel, Vec) for whole vectors of `count` numbers, and with a float for the numbers left over.
template <typename Body>
void for_numbers(int64_t count, int64_t channels, const Body& body) {
  int64_t i = 0, c = 0;
  for (; i + kLanes <= count; i += kLanes, c = c + kLanes == channels * kLanes ? 0 : c + kLanes) body(i, c, Vec{});
  for (; i < count; ++i, ++c) body(i, c, float{});
}

// Like JAX's: not a number stays what it is.
template <typename T>
T relu(T x) { return x < 0.0f ? T{} : x; }

// y = relu(factor x + offset) for each channel, then a 2x2 max-pool if asked for; or y = x if there is no factor.
struct Before {
  Image in;  // x
  bool normalised, pooled;
  PerChannel factor, offset;

  Image out() const { return pooled ? Image{in.height / 2, in.width / 2, in.channels} : in; }

  void apply(const float* x, Room& y) const {
    if (pooled) return pool(x, y);
    for (int64_t r = 0; r < in.height; ++r, x += in.row()) {
      float* to = y.row(r);
      if (!normalised) {
        std::memcpy(to, x, sizeof(float) * in.row());
        continue;
      }
      for_numbers(in.row(), in.channels, [&](int64_t i, int64_t c, auto kind) {
        using T = decltype(kind);
        put<T>(to + i, relu(get<T>(x + i) * get<T>(factor.at(c)) + get<T>(offset.at(c))));
      });
    }
  }

  void pool(const float* x, Room& y) const {
    for (int64_t r = 0; r < y.image.height; ++r)
      for (int64_t q = 0; q < y.image.width; ++q) {
        const float *above = x + 2 * r * in.row() + 2 * q * in.channels, *below = above + in.row();
        float* to = y.row(r) + q * in.channels;
        for_numbers(in.channels, in.channels, [&](int64_t, int64_t c, auto kind) {
          using T = decltype(kind);
          const T a = get<T>(factor.at(c)), b = get<T>(offset.at(c));
          const auto at = [&](const float* from) { return relu(get<T>(from + c) * a + b); };
          const T left = larger(at(above), at(below)), right = larger(at(above + in.channels), at(below + in.channels));
          put<T>(to + c, larger(left, right));
        });
      }
  }

  template <typename T>
  static T larger(T a, T b) { return a > b ? a : b; }

  // Of two numbers that were compared, the first one's share of the cotangent of the larger: one half if they are equal.
  template <typename T>
  static T share(T a, T b) {
    const T one = T{} + 1.0f, half = T{} + 0.5f;
    return a > b ? one : a < b ? T{} : half;
  }

  // From the cotangent of y that of x, and to the sums those of factor and offset.
  void differentiate(const float* x, const float* dy, float* dx, PerChannel& d_factor, PerChannel& d_offset) const {
    if (!normalised) {
      std::memcpy(dx, dy, sizeof(float) * in.size());
      return;
    }
    // The cotangent of factor x + offset is that of its relu where it is positive.
    const auto finish = [&](int64_t i, int64_t c, auto inside, auto d_relu) {
      using T = decltype(inside);
      const T g = inside > 0.0f ? d_relu : T{};
      add<T>(d_factor.at(c), g * get<T>(x + i));
      add<T>(d_offset.at(c), g);
      put<T>(dx + i, g * get<T>(factor.at(c)));
    };
    if (!pooled) {
      for (int64_t r = 0; r < in.height; ++r)
        for_numbers(in.row(), in.channels, [&](int64_t column, int64_t c, auto kind) {
          using T = decltype(kind);
          const int64_t i = r * in.row() + column;
          finish(i, c, get<T>(x + i) * get<T>(factor.at(c)) + get<T>(offset.at(c)), get<T>(dy + i));
        });
      return;
    }
    for (int64_t r = 0; r < out().height; ++r)
      for (int64_t q = 0; q < out().width; ++q, dy += in.channels)
        for_numbers(in.channels, in.channels, [&](int64_t, int64_t c, auto kind) {
          using T = decltype(kind);
          const T a = get<T>(factor.at(c)), b = get<T>(offset.at(c)), d = get<T>(dy + c);
          const int64_t i = 2 * r * in.row() + 2 * q * in.channels + c;
          const int64_t places[] = {i, i + in.row(), i + in.channels, i + in.row() + in.channels};
          T inside[4], value[4];
          for (int k = 0; k < 4; ++k) value[k] = relu(inside[k] = get<T>(x + places[k]) * a + b);
          const T left = share(larger(value[0], value[1]), larger(value[2], value[3]));
          for (int k = 0; k < 4; ++k)
            finish(places[k], c, inside[k], d * (k < 2 ? left : 1.0f - left) * share(value[k], value[k ^ 1]));
        });
  }
};

// ---------------------------------------------------------------------------------------------------- whole batches

// A convolution of `count` images, and what comes before it.
struct Layer {
  int64_t count, kernel_height, kernel_width;
  Before before;
  Padding padding;
  Image out;

  int64_t taps() const { return kernel_width * before.in.channels; }
  int64_t tasks() const { return ceil_div(count, kImagesPerTask); }
  // Calls body(image) for the images of a task.
  template <typename Body>
  void for_images(int64_t task, const Body& body) const {
    for (int64_t i = task * kImagesPerTask; i < std::min((task + 1) * kImagesPerTask, count); ++i) body(i);
  }
};

// Adds what each task has summed up to the first task's, in the order of the tasks.
void add_up(std::vector<float>& parts, int64_t size) {
  for (size_t first = size; first < parts.size(); first += size)
    for (int64_t i = 0; i < size; ++i) parts[i] += parts[first + i];
}

// Also the sums over batch and space of y and of its squares, for each channel.
void forward(ffi::ThreadPool& pool, const Layer& layer, const float* x, const Kernel& kernel, float* y, float* sums) {
  const Image in = layer.before.in, out = layer.out;
  const int64_t size = 2 * out.channels;
  std::vector<float> parts(std::max<int64_t>(layer.tasks(), 1) * size);
  parallel_for(pool, layer.tasks(), [&](int64_t task) {
    Room room(layer.before.out(), layer.padding);
    PerChannel sum(out.channels), squares(out.channels);
    layer.for_images(task, [&](int64_t i) {
      layer.before.apply(x + i * in.size(), room);
      float* to = y + i * out.size();
      convolve(room.values.data(), room.whole, kernel, to);
      for (int64_t r = 0; r < out.height; ++r, to += out.row())
        for_numbers(out.row(), out.channels, [&](int64_t j, int64_t c, auto kind) {
          using T = decltype(kind);
          const T value = get<T>(to + j);
          add<T>(sum.at(c), value);
          add<T>(squares.at(c), value * value);
        });
    });
    sum.add_to(parts.data() + task * size);
    squares.add_to(parts.data() + task * size + out.channels);
  });
  add_up(parts, size);
  std::copy(parts.begin(), parts.begin() + size, sums);
}

// The cotangents of x (unless `dx` is null), of factor and offset, and of the kernel, from those of y and of its sums.
void backward(ffi::ThreadPool& pool, const Layer& layer, const float* x, const Kernel& turned, const float* y,
              const float* dy, const float* d_sums, float* dx, float* d_scaling, float* dk) {
  const Image in = layer.before.in, out = layer.out;
  const Padding p = layer.padding, spread{layer.kernel_height - 1 - p.top, layer.kernel_height - 1 - p.bottom,
                                          layer.kernel_width - 1 - p.left, layer.kernel_width - 1 - p.right};
  const PerChannel d_sum(d_sums, out.channels), d_squares(d_sums + out.channels, out.channels);
  const int64_t dk_row = padded(out.channels), dk_size = layer.kernel_height * layer.taps() * dk_row;
  const int64_t size = dk_size + 2 * in.channels;
  std::vector<float> parts(std::max<int64_t>(layer.tasks(), 1) * size);
  parallel_for(pool, layer.tasks(), [&](int64_t task) {
    Room inputs(layer.before.out(), p), cotangent(out, spread);
    std::vector<float> d_inputs(dx ? layer.before.out().size() : 0);
    PerChannel d_factor(in.channels), d_offset(in.channels);
    float* part = parts.data() + task * size;
    layer.for_images(task, [&](int64_t i) {
      layer.before.apply(x + i * in.size(), inputs);
      for (int64_t r = 0; r < out.height; ++r) {
        const int64_t from = i * out.size() + r * out.row();
        for_numbers(out.row(), out.channels, [&](int64_t j, int64_t c, auto kind) {
          using T = decltype(kind);
          put<T>(cotangent.row(r) + j, get<T>(dy + from + j) + get<T>(d_sum.at(c)) +
                                           2.0f * get<T>(y + from + j) * get<T>(d_squares.at(c)));
        });
      }
      add_kernel_gradient(inputs, cotangent, layer.kernel_height, layer.taps(), part);
      if (!dx) return;
      convolve(cotangent.values.data(), cotangent.whole, turned, d_inputs.data());
      layer.before.differentiate(x + i * in.size(), d_inputs.data(), dx + i * in.size(), d_factor, d_offset);
    });
    d_factor.add_to(part + dk_size);
    d_offset.add_to(part + dk_size + in.channels);
  });
  add_up(parts, size);
  for (int64_t tap = 0; tap < layer.kernel_height * layer.taps(); ++tap)
    std::memcpy(dk + tap * out.channels, parts.data() + tap * dk_row, sizeof(float) * out.channels);
  std::copy(parts.begin() + dk_size, parts.begin() + size, d_scaling);
}

// -------------------------------------------------------------------------------------------- what XLA calls

using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Array>;
using Pads = ffi::Span<const int64_t>;
using Shape = ffi::AnyBuffer::Dimensions;

bool same(Shape a, Shape b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }
bool is_shape(Shape shape, std::initializer_list<int64_t> expected) {
  return same(shape, Shape(expected.begin(), expected.size()));
}

// What the shapes say, if they fit. `scaling` is (2, channels): factor and offset, or (0,).
std::optional<Layer> layer_of(Array x, Array scaling, Array k, Pads pads, bool pooled, Shape y, Shape sums) {
  const Shape xs = x.dimensions(), ks = k.dimensions();
  if (xs.size() != 4 || ks.size() != 4 || pads.size() != 4) return {};
  const Image in{xs[1], xs[2], xs[3]};
  const bool normalised = !is_shape(scaling.dimensions(), {0});
  if (std::min({in.height, in.width, in.channels}) < 1) return {};
  if (normalised && !is_shape(scaling.dimensions(), {2, in.channels})) return {};
  if (pooled && (!normalised || in.height % 2 || in.width % 2)) return {};
  if (ks[2] != in.channels || std::min({ks[0], ks[1], ks[3]}) < 1) return {};
  if (*std::min_element(pads.begin(), pads.end()) < 0) return {};
  if (std::max(pads[0], pads[1]) >= ks[0] || std::max(pads[2], pads[3]) >= ks[1]) return {};
  const auto numbers = [&](int64_t i) {
    return normalised ? PerChannel(scaling.typed_data() + i * in.channels, in.channels) : PerChannel(in.channels);
  };
  const Before before{in, normalised, pooled, numbers(0), numbers(1)};
  const Padding padding{pads[0], pads[1], pads[2], pads[3]};
  const Image whole = padding.around(before.out());
  const Image out{whole.height - ks[0] + 1, whole.width - ks[1] + 1, ks[3]};
  if (std::min(out.height, out.width) < 1 || !is_shape(sums, {2, out.channels})) return {};
  if (!is_shape(y, {xs[0], out.height, out.width, out.channels})) return {};
  return Layer{xs[0], ks[0], ks[1], before, padding, out};
}

ffi::Error wrong() { return ffi::Error(ffi::ErrorCode::kInvalidArgument, "convolution: the shapes do not fit"); }

ffi::Error forward_call(ffi::ThreadPool pool, Array x, Array scaling, Array k, Pads pads, bool pooled, Result y,
                        Result sums) {
  const auto layer = layer_of(x, scaling, k, pads, pooled, y->dimensions(), sums->dimensions());
  if (!layer) return wrong();
  const Kernel kernel = Kernel::from(k.typed_data(), layer->kernel_height, layer->kernel_width,
                                     layer->before.in.channels, layer->out.channels);
  forward(pool, *layer, x.typed_data(), kernel, y->typed_data(), sums->typed_data());
  return ffi::Error::Success();
}

ffi::Error backward_call(ffi::ThreadPool pool, Array x, Array scaling, Array k, Array y, Array dy, Array d_sums,
                         Pads pads, bool pooled, Result dx, Result d_scaling, Result dk) {
  const auto layer = layer_of(x, scaling, k, pads, pooled, y.dimensions(), d_sums.dimensions());
  const bool wanted = !is_shape(dx->dimensions(), {0});
  if (!layer || !same(dy.dimensions(), y.dimensions()) || !same(dk->dimensions(), k.dimensions()) ||
      (wanted && !same(dx->dimensions(), x.dimensions())) ||
      !is_shape(d_scaling->dimensions(), {2, layer->before.in.channels}))
    return wrong();
  const Kernel turned = Kernel::turned(k.typed_data(), layer->kernel_height, layer->kernel_width,
                                       layer->before.in.channels, layer->out.channels);
  backward(pool, *layer, x.typed_data(), turned, y.typed_data(), dy.typed_data(), d_sums.typed_data(),
           wanted ? dx->typed_data() : nullptr, d_scaling->typed_data(), dk->typed_data());
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(mnist_flax_forward, forward_call,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Arg<Array>()
                                  .Attr<Pads>("pads").Attr<bool>("pooled").Ret<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(mnist_flax_backward, backward_call,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Arg<Array>()
                                  .Arg<Array>().Arg<Array>().Arg<Array>().Attr<Pads>("pads").Attr<bool>("pooled")
                                  .Ret<Array>().Ret<Array>().Ret<Array>());
