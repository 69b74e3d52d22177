// Convolutions of small images with few channels, with BatchNorm, ReLU and max-pool before them: the CPU's fast path.
//
// XLA's CPU convolutions reach a quarter of the chip's multiply-add rate at 8 to 20 channels, because they pack patches
// into matrices. Here nothing is packed. A vector holds the same number of kLanes *images*: so it is full, whatever the
// number of channels. A pack of images is (height, width, channels) vectors. The vectors under one row of a kernel,
// `kernel_width * c_in` of them, are neighbours; we call each a tap. A tile is a few neighbouring output pixels and
// channels, and its sums are in registers:
//
//                     one row of the kernel                       a tile of 3 pixels x 4 channels
//      input  . . [a a b b c c] d d . .                           pixel 0   sums[0][0 1 2 3]
//      row          ^ tap of pixel 0                              pixel 1   sums[1][0 1 2 3]
//                 . . . . [b b c c d d]                           pixel 2   sums[2][0 1 2 3]
//                          ^ the same tap of pixel 1
//
// For each tap, it is loaded once for each pixel, and its weight once for each channel, which a load copies to all
// lanes. So a tile of P pixels and C channels takes P + C loads for P * C multiply-adds. A core starts two of either in
// a cycle: see `kPixels`.
//
// - The gradient of the inputs is the same function with the kernel turned round and the other padding.
// - The gradient of the kernel has tiles of taps x channels, runs over pixels, and in the end adds up the lanes.
// - BatchNorm and ReLU need no passes of their own over memory. Rows are normalised as they are copied into the cache,
//   just before they are convolved. The sums that the next BatchNorm needs are taken as the result is written. The
//   backward pass does the same: what lies between two convolutions never leaves the cache.
// - Each pack is a task for XLA's threads. What tasks sum up, each writes to a place of its own, and it is added in the
//   order of the tasks: no bit depends on the number of threads.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

#if defined(__AVX512F__)
constexpr int kLanes = 16, kPixels = 6;
#elif defined(__ARM_NEON)
constexpr int kLanes = 4, kPixels = 5;
#else
constexpr int kLanes = 8, kPixels = 3;
#endif
// A tile has kPixels x kChannels sums, and needs kPixels registers for taps and one for a weight: 16 with AVX2, which
// has 16, and 31 with AVX-512, which has 32. (NEON has 32 too, and keeps four weights in registers.)
// At least 8 sums keep two units with a latency of 4 cycles busy. All layers have a multiple of 4 channels.
constexpr int kChannels = 4;
constexpr int64_t kBlockBytes = 16384;  // of the cotangent, that the kernel's gradient runs over before the next tile

// A vector of floats, as GCC and Clang have it; they make AVX, NEON or SSE of it.
typedef float Vec __attribute__((vector_size(4 * kLanes), may_alias));

// Compilers would rather read an operand from memory at each use than keep it in a register.
inline void keep_in_register(Vec& vector) {
#if defined(__AVX512F__)
  asm("" : "+v"(vector));
#elif defined(__AVX__)
  asm("" : "+x"(vector));
#elif defined(__ARM_NEON)
  asm("" : "+w"(vector));
#endif
}

Vec all(float x) { return Vec{} + x; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t whole_tiles(int64_t channels) { return ceil_div(channels, kChannels) * kChannels; }

// Vectors in memory of our own, from the start of a cache line, at first zeros.
class Vecs {
 public:
  explicit Vecs(int64_t size) : size_(size), memory_(size * kLanes + kLineBytes / 4) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    first_ = reinterpret_cast<Vec*>(ceil_div(address, kLineBytes) * kLineBytes);
  }
  Vecs(const Vecs&) = delete;
  Vec* data() { return first_; }
  const Vec* data() const { return first_; }
  void clear() { std::fill(first_, first_ + size_, Vec{}); }
  // Adds to `sums` the sum of each vector's lanes.
  void add_lanes(float* sums) const {
    for (int64_t i = 0; i < size_; ++i)
      for (int lane = 0; lane < kLanes; ++lane) sums[i] += first_[i][lane];
  }

 private:
  static constexpr int64_t kLineBytes = 64;
  int64_t size_;
  std::vector<float> memory_;
  Vec* first_;
};

// Runs tasks 0 ... count - 1 on XLA's threads and on this one; returns when all are done. `new_worker()` returns a
// function of the task; each thread calls one of its own, which may have memory for the tasks that follow one another.
//
// A thread of the pool that starts late finds nothing left to do, so we never wait for one that has not started.
template <typename NewWorker>
void parallel_for(ffi::ThreadPool& pool, int64_t count, const NewWorker& new_worker) {
  struct Shared {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto shared = std::make_shared<Shared>();
  const NewWorker* workers = &new_worker;
  auto work = [shared, workers, count] {
    int64_t task = shared->next++, mine = 0;
    if (task >= count) return;
    auto worker = (*workers)();
    for (; task < count; task = shared->next++, ++mine) worker(task);
    std::lock_guard<std::mutex> lock(shared->mutex);
    if ((shared->done += mine) == count) shared->all_done.notify_all();
  };
  const int64_t helpers = std::min(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(work));
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == count; });
}

// Sizes of a pack of images; rows and wholes are counted in vectors.
struct Size {
  int64_t height, width, channels;
  int64_t row() const { return width * channels; }
  int64_t whole() const { return height * row(); }
};

struct Padding {
  int64_t top, bottom, left, right;
  Size around(Size size) const { return {size.height + top + bottom, size.width + left + right, size.channels}; }
};

// The rows of a pack, padded with zeros, that are worked on. They come one after the other, and only the last few are
// kept, so that they stay in the cache.
class Rows {
 public:
  Rows(Size size, Padding padding, int64_t kept)
      : size_(size), padding_(padding), kept_(kept), row_(padding.around(size).row()),
        memory_(row_ * (kept + kSpare) + kChannels) {}  // the last tile may have more channels than there are
  void start_again() { first_ = end_ = 0; }
  // Goes on until there are `end` rows of the padded pack: calls write(row of the pack, where to) for each.
  template <typename Write>
  void write_until(int64_t end, const Write& write) {
    for (; end_ < end; ++end_) {
      if (end_ - first_ == kept_ + kSpare) {
        std::copy(at(end_ - kept_ + 1), at(end_), memory_.data());
        first_ = end_ - kept_ + 1;
      }
      Vec* to = at(end_) + padding_.left * size_.channels;
      const int64_t row = end_ - padding_.top;
      if (row < 0 || row >= size_.height)
        std::fill(to, to + size_.row(), Vec{});
      else
        write(row, to);
    }
  }
  // Where a row of the padded pack begins.
  const Vec* at(int64_t row) const { return memory_.data() + (row - first_) * row_; }
  Vec* at(int64_t row) { return memory_.data() + (row - first_) * row_; }
  // Where a row of the pack begins.
  const Vec* inside(int64_t row) const { return at(row + padding_.top) + padding_.left * size_.channels; }
  int64_t row() const { return row_; }
  Size size() const { return size_; }

 private:
  static constexpr int64_t kSpare = 4;  // rows; when there is none left, the last ones are moved to the start
  Size size_;
  Padding padding_;
  int64_t kept_, row_, first_ = 0, end_ = 0;
  Vecs memory_;
};

// ---------------------------------------------------------------------------------------------------- convolution

// A kernel as tiles read it: for each group of kChannels output channels, (height, taps, kChannels). The last group is
// filled up with zeros.
struct Kernel {
  int64_t height, width, c_in, c_out;
  std::vector<float> weights;
  int64_t taps() const { return width * c_in; }

  static Kernel from(const float* k, int64_t height, int64_t width, int64_t c_in, int64_t c_out) {
    Kernel kernel{height, width, c_in, c_out, {}};
    kernel.fill([&](int64_t y, int64_t x, int64_t i, int64_t o) {
      return k[((y * width + x) * c_in + i) * c_out + o];
    });
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
    weights.assign(height * taps() * whole_tiles(c_out), 0.0f);
    float* to = weights.data();
    for (int64_t first = 0; first < c_out; first += kChannels)
      for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; ++x)
          for (int64_t i = 0; i < c_in; ++i, to += kChannels)
            for (int64_t o = first; o < std::min(first + kChannels, c_out); ++o) to[o - first] = get(y, x, i, o);
  }
};

// `Tile<N>::run` for a number that is known only now.
template <template <int> class Tile, int... N>
auto tile_of(int64_t number, std::integer_sequence<int, N...>) {
  static constexpr decltype(&Tile<1>::run) tiles[] = {Tile<N + 1>::run...};
  return tiles[number - 1];
}

// Calls body(tile, first) for as few tiles as `count` pixels or taps take, all of about the same size.
template <template <int> class Tile, typename Body>
void for_tiles(int64_t count, const Body& body) {
  const int64_t tiles = ceil_div(count, kPixels);
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = count * i / tiles;
    body(tile_of<Tile>(count * (i + 1) / tiles - first, std::make_integer_sequence<int, kPixels>()), first);
  }
}

// P neighbouring output pixels, and kChannels of their channels, of which the first `channels` are wanted.
template <int P>
struct OutputTile {
  static void run(const Vec* x, int64_t row, const Kernel& kernel, const float* w, int64_t channels, const Vec& mask,
                  Vec* y, Vec* totals) {
    Vec sums[P][kChannels] = {};
    for (int64_t r = 0; r < kernel.height; ++r, x += row)
      for (int64_t tap = 0; tap < kernel.taps(); ++tap, w += kChannels) {
        Vec taps[P];
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) keep_in_register(taps[p] = x[p * kernel.c_in + tap]);
#pragma GCC unroll 8
        for (int c = 0; c < kChannels; ++c)
#pragma GCC unroll 8
          for (int p = 0; p < P; ++p) sums[p][c] += taps[p] * w[c];
      }
#pragma GCC unroll 8
    for (int c = 0; c < kChannels; ++c) {
      if (c >= channels) break;
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        const Vec value = sums[p][c] * mask;
        y[p * kernel.c_out + c] = value;
        totals[c] += value;
        totals[kernel.c_out + c] += value * value;
      }
    }
  }
};

// Row r of the output. To the first half of `totals` it adds the sum for each channel, to the second its squares'.
void convolve(const Rows& x, int64_t r, const Kernel& kernel, const Vec& mask, Vec* y, Vec* totals) {
  for_tiles<OutputTile>(x.row() / kernel.c_in - kernel.width + 1, [&](auto tile, int64_t first) {
    const float* w = kernel.weights.data();
    for (int64_t c = 0; c < kernel.c_out; c += kChannels, w += kernel.height * kernel.taps() * kChannels)
      tile(x.at(r) + first * kernel.c_in, x.row(), kernel, w, kernel.c_out - c, mask, y + first * kernel.c_out + c,
           totals + c);
  });
}

// ------------------------------------------------------------------------------------------- the kernel's gradient

// Adds to the gradient of T taps and kChannels channels what `rows` rows of output pixels give.
template <int T>
struct GradientTile {
  static void run(const Vec* x, int64_t x_row, int64_t c_in, const Vec* dy, int64_t dy_row, int64_t c_out, int64_t rows,
                  int64_t width, Vec* dw, int64_t dw_row) {
    Vec sums[T][kChannels];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 8
      for (int c = 0; c < kChannels; ++c) sums[t][c] = dw[t * dw_row + c];
    for (int64_t row = 0; row < rows; ++row, x += x_row, dy += dy_row) {
      const Vec *taps = x, *cotangents = dy;
      for (int64_t column = 0; column < width; ++column, taps += c_in, cotangents += c_out) {
        Vec values[T];
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) keep_in_register(values[t] = taps[t]);
#pragma GCC unroll 8
        for (int c = 0; c < kChannels; ++c) {
          Vec cotangent = cotangents[c];
          keep_in_register(cotangent);
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) sums[t][c] += values[t] * cotangent;
        }
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 8
      for (int c = 0; c < kChannels; ++c) dw[t * dw_row + c] = sums[t][c];
  }
};

// Adds to `dw`, (height, taps, channels filled up to whole tiles), what `rows` rows of output pixels from `row` on
// give.
void add_kernel_gradient(const Rows& x, const Rows& dy, int64_t row, int64_t rows, int64_t height, int64_t taps,
                         Vec* dw) {
  const int64_t channels = dy.size().channels, dw_row = whole_tiles(channels);
  for (int64_t r = 0; r < height; ++r)
    for_tiles<GradientTile>(taps, [&](auto tile, int64_t first) {
      for (int64_t c = 0; c < channels; c += kChannels)
        tile(x.at(row + r) + first, x.row(), x.size().channels, dy.inside(row) + c, dy.row(), channels, rows,
             dy.size().width, dw + (r * taps + first) * dw_row + c, dw_row);
    });
}

// ------------------------------------------------------------------------------- what comes before a convolution

// Like JAX's: not a number stays what it is.
Vec relu(Vec x) { return x < 0.0f ? Vec{} : x; }
Vec larger(Vec a, Vec b) { return a > b ? a : b; }
// Of two numbers that were compared, the first one's share of the cotangent of the larger: one half if they are equal.
Vec share(Vec a, Vec b) { return a > b ? all(1.0f) : a < b ? Vec{} : all(0.5f); }

// y = relu(factor x + offset) for each channel, then a 2x2 max-pool if asked for; or y = x if there is no factor.
struct Before {
  Size in;  // x
  bool pooled;
  const float *factor, *offset;  // null if there is none

  Size out() const { return pooled ? Size{in.height / 2, in.width / 2, in.channels} : in; }
  Vec normalised(const Vec* x, int64_t c) const { return x[c] * factor[c] + offset[c]; }
  // Where the first of the 2x2 pixels is that are pooled into one of row r.
  int64_t square(int64_t r, int64_t column) const { return 2 * r * in.row() + 2 * column * in.channels; }

  // Row r of y.
  void apply(const Vec* x, int64_t r, Vec* y) const {
    if (!factor) {
      std::copy(x + r * in.row(), x + (r + 1) * in.row(), y);
      return;
    }
    for (int64_t column = 0; column < out().width; ++column, y += in.channels) {
      const Vec* from = x + (pooled ? square(r, column) : r * in.row() + column * in.channels);
      for (int64_t c = 0; c < in.channels; ++c) {
        const auto at = [&](int64_t place) { return relu(normalised(from + place, c)); };
        y[c] = !pooled ? at(0)
                       : larger(larger(at(0), at(in.row())), larger(at(in.channels), at(in.row() + in.channels)));
      }
    }
  }

  // From the cotangent of row r of y that of x, and adds to those of factor and offset.
  void differentiate(const Vec* x, int64_t r, const Vec* dy, Vec* dx, Vec* d_scales) const {
    if (!factor) {
      std::copy(dy, dy + in.row(), dx + r * in.row());
      return;
    }
    // The cotangent of factor x + offset is that of its relu where it is positive.
    const auto finish = [&](int64_t i, int64_t c, Vec inside, Vec d_relu) {
      const Vec g = inside > 0.0f ? d_relu : Vec{};
      d_scales[c] += g * x[i];
      d_scales[in.channels + c] += g;
      dx[i] = g * factor[c];
    };
    for (int64_t column = 0; column < out().width; ++column, dy += in.channels) {
      if (!pooled) {
        const int64_t i = r * in.row() + column * in.channels;
        for (int64_t c = 0; c < in.channels; ++c) finish(i + c, c, normalised(x + i, c), dy[c]);
        continue;
      }
      const int64_t i = square(r, column);
      const int64_t places[] = {i, i + in.row(), i + in.channels, i + in.row() + in.channels};
      for (int64_t c = 0; c < in.channels; ++c) {
        Vec inside[4], value[4];
        for (int k = 0; k < 4; ++k) value[k] = relu(inside[k] = normalised(x + places[k], c));
        const Vec left = share(larger(value[0], value[1]), larger(value[2], value[3]));
        for (int k = 0; k < 4; ++k)
          finish(places[k] + c, c, inside[k], dy[c] * (k < 2 ? left : 1.0f - left) * share(value[k], value[k ^ 1]));
      }
    }
  }
};

// ---------------------------------------------------------------------------------------------------- whole batches

// A convolution of a batch of images, and what comes before it.
struct Layer {
  int64_t images, kernel_height, kernel_width;
  Before before;
  Padding padding;
  Size out;

  int64_t taps() const { return kernel_width * before.in.channels; }
  int64_t packs() const { return ceil_div(images, kLanes); }
  // 1 for each image of a pack, 0 for a lane without one.
  Vec mask(int64_t pack) const {
    Vec mask{};
    for (int64_t i = 0; i < std::min<int64_t>(kLanes, images - pack * kLanes); ++i) mask[i] = 1.0f;
    return mask;
  }
  // Of a row of y, whose sums of values and of squares have cotangents too.
  void cotangent(const Vec* y, const Vec* dy, const float* d_sums, const Vec& mask, Vec* to) const {
    for (int64_t column = 0; column < out.width; ++column)
      for (int64_t c = 0; c < out.channels; ++c, ++y, ++dy, ++to)
        *to = (*dy + d_sums[c] + 2.0f * d_sums[out.channels + c] * *y) * mask;
  }
};

// Adds what each task has summed up to the first task's, in the order of the tasks.
void add_up(std::vector<float>& parts, int64_t size) {
  for (size_t first = size; first < parts.size(); first += size)
    for (int64_t i = 0; i < size; ++i) parts[i] += parts[first + i];
}

// Also the sums over batch and space of y and of its squares, for each channel.
void forward(ffi::ThreadPool& pool, const Layer& layer, const Vec* x, const Kernel& kernel, Vec* y, float* sums) {
  const Size in = layer.before.in, out = layer.out;
  const int64_t size = 2 * out.channels;
  std::vector<float> parts(std::max<int64_t>(layer.packs(), 1) * size);
  parallel_for(pool, layer.packs(), [&] {
    return [&, rows = Rows(layer.before.out(), layer.padding, kernel.height),
            totals = Vecs(size)](int64_t pack) mutable {
      const Vec* from = x + pack * in.whole();
      Vec* to = y + pack * out.whole();
      const Vec mask = layer.mask(pack);
      rows.start_again();
      totals.clear();
      for (int64_t r = 0; r < out.height; ++r) {
        rows.write_until(r + kernel.height, [&](int64_t row, Vec* at) { layer.before.apply(from, row, at); });
        convolve(rows, r, kernel, mask, to + r * out.row(), totals.data());
      }
      totals.add_lanes(parts.data() + pack * size);
    };
  });
  add_up(parts, size);
  std::copy_n(parts.begin(), size, sums);
}

// The cotangents of x (unless `dx` is null), of factor and offset, and of the kernel, from those of y and of its sums.
void backward(ffi::ThreadPool& pool, const Layer& layer, const Vec* x, const Kernel& turned, const Vec* y,
              const Vec* dy, const float* d_sums, Vec* dx, float* d_scaling, float* dk) {
  const Size in = layer.before.in, convolved = layer.before.out(), out = layer.out;
  const Padding p = layer.padding, spread{layer.kernel_height - 1 - p.top, layer.kernel_height - 1 - p.bottom,
                                          layer.kernel_width - 1 - p.left, layer.kernel_width - 1 - p.right};
  const int64_t taps = layer.kernel_height * layer.taps(), dk_row = whole_tiles(out.channels), dk_size = taps * dk_row;
  const int64_t size = dk_size + 2 * in.channels;
  std::vector<float> parts(std::max<int64_t>(layer.packs(), 1) * size);
  // The gradient of the kernel takes `block` rows of output pixels at a time.
  const int64_t block = std::max<int64_t>(1, kBlockBytes / (sizeof(Vec) * out.row()));
  const int64_t kept = block + layer.kernel_height - 1;
  parallel_for(pool, layer.packs(), [&] {
    return [&, inputs = Rows(convolved, p, kept), cotangents = Rows(out, spread, kept), d_kernel = Vecs(dk_size),
            d_scales = Vecs(2 * in.channels), d_row = Vecs(convolved.row()),
            unused = Vecs(2 * in.channels)](int64_t pack) mutable {
      const Vec *from = x + pack * in.whole(), *result = y + pack * out.whole(), *d_result = dy + pack * out.whole();
      const Vec mask = layer.mask(pack);
      inputs.start_again();
      cotangents.start_again();
      d_kernel.clear();
      d_scales.clear();
      int64_t begin = 0;  // of the rows of y that `d_kernel` does not contain yet
      for (int64_t r = 0; r < convolved.height; ++r) {
        cotangents.write_until(r + layer.kernel_height, [&](int64_t row, Vec* to) {
          layer.cotangent(result + row * out.row(), d_result + row * out.row(), d_sums, mask, to);
        });
        const int64_t end = std::min(out.height, r + layer.kernel_height - spread.top);
        if (end >= begin + block || (end == out.height && end > begin)) {
          inputs.write_until(end + layer.kernel_height - 1,
                             [&](int64_t row, Vec* to) { layer.before.apply(from, row, to); });
          add_kernel_gradient(inputs, cotangents, begin, end - begin, layer.kernel_height, layer.taps(),
                              d_kernel.data());
          begin = end;
        }
        if (!dx) continue;
        convolve(cotangents, r, turned, mask, d_row.data(), unused.data());
        layer.before.differentiate(from, r, d_row.data(), dx + pack * in.whole(), d_scales.data());
      }
      d_kernel.add_lanes(parts.data() + pack * size);
      d_scales.add_lanes(parts.data() + pack * size + dk_size);
    };
  });
  add_up(parts, size);
  for (int64_t tap = 0; tap < taps; ++tap)
    std::copy_n(parts.data() + tap * dk_row, out.channels, dk + tap * out.channels);
  std::copy_n(parts.data() + dk_size, 2 * in.channels, d_scaling);
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
const Vec* vectors(Array a) { return reinterpret_cast<const Vec*>(a.typed_data()); }
Vec* vectors(Result& a) { return reinterpret_cast<Vec*>(a->typed_data()); }
// XLA's buffers begin where a cache line does.
bool aligned(std::initializer_list<const Vec*> vectors) {
  return std::all_of(vectors.begin(), vectors.end(),
                     [](const Vec* v) { return reinterpret_cast<uintptr_t>(v) % sizeof(Vec) == 0; });
}

// What the shapes say, if they fit. `scaling` is (2, channels): factor and offset, or (0,).
std::optional<Layer> layer_of(int64_t images, Array x, Array scaling, Array k, Pads pads, bool pooled, Shape y,
                              Shape sums) {
  const Shape xs = x.dimensions(), ks = k.dimensions();
  if (xs.size() != 5 || ks.size() != 4 || pads.size() != 4) return {};
  if (images < 0 || xs[0] != ceil_div(images, kLanes) || xs[4] != kLanes) return {};
  const Size in{xs[1], xs[2], xs[3]};
  if (std::min({in.height, in.width, in.channels}) < 1) return {};
  const bool scaled = !is_shape(scaling.dimensions(), {0});
  if (scaled && !is_shape(scaling.dimensions(), {2, in.channels})) return {};
  if (pooled && (!scaled || in.height % 2 || in.width % 2)) return {};
  if (ks[2] != in.channels || std::min({ks[0], ks[1], ks[3]}) < 1) return {};
  if (*std::min_element(pads.begin(), pads.end()) < 0) return {};
  if (std::max(pads[0], pads[1]) >= ks[0] || std::max(pads[2], pads[3]) >= ks[1]) return {};
  const float* factor = scaled ? scaling.typed_data() : nullptr;
  const Before before{in, pooled, factor, scaled ? factor + in.channels : nullptr};
  const Padding padding{pads[0], pads[1], pads[2], pads[3]};
  const Size whole = padding.around(before.out()), out{whole.height - ks[0] + 1, whole.width - ks[1] + 1, ks[3]};
  if (std::min(out.height, out.width) < 1 || !is_shape(sums, {2, out.channels})) return {};
  if (!is_shape(y, {xs[0], out.height, out.width, out.channels, kLanes})) return {};
  return Layer{images, ks[0], ks[1], before, padding, out};
}

ffi::Error wrong() {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, "convolution: the shapes do not fit, or memory is not aligned");
}

ffi::Error forward_call(ffi::ThreadPool pool, Array x, Array scaling, Array k, int64_t images, Pads pads, bool pooled,
                        Result y, Result sums) {
  const auto layer = layer_of(images, x, scaling, k, pads, pooled, y->dimensions(), sums->dimensions());
  if (!layer || !aligned({vectors(x), vectors(y)})) return wrong();
  const Kernel kernel = Kernel::from(k.typed_data(), layer->kernel_height, layer->kernel_width,
                                     layer->before.in.channels, layer->out.channels);
  forward(pool, *layer, vectors(x), kernel, vectors(y), sums->typed_data());
  return ffi::Error::Success();
}

ffi::Error backward_call(ffi::ThreadPool pool, Array x, Array scaling, Array k, Array y, Array dy, Array d_sums,
                         int64_t images, Pads pads, bool pooled, Result dx, Result d_scaling, Result dk) {
  const auto layer = layer_of(images, x, scaling, k, pads, pooled, y.dimensions(), d_sums.dimensions());
  const bool wanted = !is_shape(dx->dimensions(), {0});
  if (!layer || !same(dy.dimensions(), y.dimensions()) || !same(dk->dimensions(), k.dimensions()) ||
      (wanted && !same(dx->dimensions(), x.dimensions())) ||
      !is_shape(d_scaling->dimensions(), {2, layer->before.in.channels}) ||
      !aligned({vectors(x), vectors(y), vectors(dy), wanted ? vectors(dx) : nullptr}))
    return wrong();
  const Kernel turned = Kernel::turned(k.typed_data(), layer->kernel_height, layer->kernel_width,
                                       layer->before.in.channels, layer->out.channels);
  backward(pool, *layer, vectors(x), turned, vectors(y), vectors(dy), d_sums.typed_data(),
           wanted ? vectors(dx) : nullptr, d_scaling->typed_data(), dk->typed_data());
  return ffi::Error::Success();
}

}  // namespace

extern "C" int mnist_flax_lanes() { return kLanes; }

XLA_FFI_DEFINE_HANDLER_SYMBOL(mnist_flax_forward, forward_call,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Arg<Array>()
                                  .Attr<int64_t>("images").Attr<Pads>("pads").Attr<bool>("pooled").Ret<Array>()
                                  .Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(mnist_flax_backward, backward_call,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Arg<Array>()
                                  .Arg<Array>().Arg<Array>().Arg<Array>().Attr<int64_t>("images").Attr<Pads>("pads")
                                  .Attr<bool>("pooled").Ret<Array>().Ret<Array>().Ret<Array>());
