// Convolutions of small images with few channels, with BatchNorm, ReLU and max-pool before them: the CPU's fast path.
// docs/kernels.md says why it is as it is.
//
// A vector holds the same number of kLanes *images*: so it is full, whatever the number of channels. A pack of so many
// images is (height, width, channels) vectors. The vectors under one row of a kernel, `side * c_in` of them, are
// neighbours; we call each a tap. A tile is a few neighbouring output pixels and channels, whose sums are in registers:
//
//                     one row of the kernel                       a tile of 3 pixels x 4 channels
//      input  . . [a a b b c c] d d . .                           pixel 0   sums[0][0 1 2 3]
//      row          ^ tap of pixel 0                              pixel 1   sums[1][0 1 2 3]
//                 . . . . [b b c c d d]                           pixel 2   sums[2][0 1 2 3]
//                          ^ the same tap of pixel 1
//
// For each tap, it is loaded once for each pixel, and its weight once for each channel, which a load copies to all
// lanes. So a tile of P pixels and C channels takes P + C loads for P * C multiply-adds: see `multiply_add`.
//
// - The gradient of the inputs is the same function with the kernel turned round and the other padding.
// - The gradient of the kernel has tiles of taps x channels, runs over pixels, and in the end adds up the lanes.
// - A row is normalised as it is copied into the cache, just before it is convolved: see `Rows`.
// - Each pack is a task for XLA's threads, and has sums of its own: see `parallel_sums`.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

// A tile has kPixels x kChannels sums, and needs kPixels registers for taps and one for a weight: 16 with AVX2, which
// has 16, and 31 with AVX-512, which has 32. (NEON has 32 too, and keeps four weights in registers.) A core starts two
// multiply-adds and two loads in a cycle, and a multiply-add takes four: so at least 8 sums keep it busy. All layers
// have a multiple of 4 channels.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kPixels = 6;
#elif defined(__ARM_NEON)
constexpr int kLanes = 4, kPixels = 5;
#else
constexpr int kLanes = 8, kPixels = 3;
#endif
constexpr int kChannels = 4;
// The gradient of the kernel runs over so much of the cotangent before the next tile: most of a first-level cache.
constexpr int64_t kBlockBytes = 20000;
constexpr int64_t kCacheLine = 64;
// A tile asks for so many lines of the next row: enough for the tiles of a row of a 3x3 layer to ask for all.
constexpr int kLinesAhead = 6;

// A vector of floats, as GCC and Clang have it; they make AVX, NEON or SSE of it.
typedef float Vec __attribute__((vector_size(4 * kLanes), may_alias));
using Vecs = std::vector<Vec>;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t whole_tiles(int64_t channels) { return ceil_div(channels, kChannels) * kChannels; }

// Sizes of a pack of images; rows and wholes are counted in vectors.
struct Size {
  int64_t height, width, channels;
  int64_t row() const { return width * channels; }
  int64_t whole() const { return height * row(); }
};

// The last few rows of a pack, with zeros left and right, that are worked on: so few that they stay in the cache. They
// are written one after the other, each in the place of one that is not needed any more.
class Rows {
 public:
  const Size size;  // without the padding
  const int64_t padding;
  const int64_t length;  // of a row with its padding

  // Each row will be written from `source_row` vectors of each source.
  Rows(Size size, int64_t padding, int64_t kept, int64_t source_row)
      : size(size), padding(padding), length((size.width + 2 * padding) * size.channels), source_row_(source_row) {
    while (places_ < kept) places_ *= 2;
    memory_.resize(places_ * length + kChannels);  // the last tile may have more channels than there are
  }
  void start_again(std::initializer_list<const Vec*> sources) {
    sources_ = sources;
    written_ = asked_ = 0;
  }
  // Goes on until there are rows 0 ... end - 1, if there are so many: calls write(row, where to) for each.
  template <typename Write>
  void write_until(int64_t end, const Write& write) {
    for (; written_ < std::min(end, size.height); ++written_, asked_ = 0) write(written_, inside(written_));
  }
  // Asks for some of what the next row will be written from: memory takes so long that it must be asked while something
  // else is computed.
  void ask_ahead() {
    if (written_ == size.height) return;
    for (int i = 0; i < kLinesAhead && asked_ < source_row_; ++i, asked_ += kCacheLine / sizeof(Vec))
      for (const Vec* source : sources_) __builtin_prefetch(source + written_ * source_row_ + asked_, 0, 2);
  }
  // Where a row with its padding begins, and where it does without.
  Vec* at(int64_t row) { return memory_.data() + (row & (places_ - 1)) * length; }
  Vec* inside(int64_t row) { return at(row) + padding * size.channels; }
  // An output's row r takes row r + k - padding for row k of the kernel. Of `begin` ... `end`, those r, for a k, or
  // those k, for an r, for which there is such a row: the others would add zeros.
  std::pair<int64_t, int64_t> existing(int64_t other, int64_t begin, int64_t end) const {
    return {std::max(begin, padding - other), std::min(end, size.height + padding - other)};
  }

 private:
  int64_t source_row_, places_ = 1, written_ = 0, asked_ = 0;  // places: a power of two
  std::vector<const Vec*> sources_;
  Vecs memory_;
};

// Runs tasks 0 ... count - 1 on XLA's threads and on this one. `new_worker()` returns a function of the task and of
// `size` sums to add to; each thread calls one of its own, which may have memory for the tasks that follow one another.
// Returns the sums over all tasks and lanes. They are added in the order of the tasks: no bit depends on the threads.
//
// A thread of the pool that starts late finds nothing left to do, so we never wait for one that has not started.
template <typename NewWorker>
std::vector<float> parallel_sums(ffi::ThreadPool& pool, int64_t count, int64_t size, const NewWorker& new_worker) {
  struct Shared {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto shared = std::make_shared<Shared>();
  std::vector<float> parts(count * size), total(size);
  auto work = [shared, count, size, &parts, &new_worker] {
    int64_t task = shared->next++, mine = 0;
    if (task >= count) return;
    auto worker = new_worker();
    Vecs sums(size);
    for (; task < count; task = shared->next++, ++mine) {
      std::fill(sums.begin(), sums.end(), Vec{});
      worker(task, sums.data());
      for (int64_t i = 0; i < size; ++i)
        for (int lane = 0; lane < kLanes; ++lane) parts[task * size + i] += sums[i][lane];
    }
    std::lock_guard<std::mutex> lock(shared->mutex);
    if ((shared->done += mine) == count) shared->all_done.notify_all();
  };
  const int64_t helpers = std::min(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(work));
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == count; });
  for (int64_t task = 0; task < count; ++task)
    for (int64_t i = 0; i < size; ++i) total[i] += parts[task * size + i];
  return total;
}

// ------------------------------------------------------------------------------- a layer, and what comes before it

// Like JAX's: not a number stays what it is.
Vec relu(Vec x) { return x < 0.0f ? Vec{} : x; }
Vec larger(Vec a, Vec b) { return a > b ? a : b; }
// Of two numbers that were compared, the first one's share of the cotangent of the larger: one half if they are equal.
Vec share(Vec a, Vec b) { return a > b ? Vec{} + 1.0f : a < b ? Vec{} : Vec{} + 0.5f; }

// The convolution by a side x side kernel of relu(factor x + offset), max-pooled (2x2) if asked for; or of x if there
// is no factor.
struct Layer {
  int64_t images, side, padding;
  bool pooled;
  const float *factor, *offset;  // for each channel; null if there is none
  Size in, middle, out;          // x, what is convolved, and the result

  int64_t packs() const { return ceil_div(images, kLanes); }
  // 1 for each image of a pack, 0 for a lane without one.
  Vec mask(int64_t pack) const {
    Vec mask{};
    for (int64_t i = 0; i < std::min<int64_t>(kLanes, images - pack * kLanes); ++i) mask[i] = 1.0f;
    return mask;
  }
  Vec normalised(Vec x, int64_t c) const { return x * factor[c] + offset[c]; }
  // Where in x a pixel of what is convolved comes from: the first of four pixels if they are pooled.
  int64_t source(int64_t r, int64_t column) const { return (pooled ? 2 : 1) * (r * in.row() + column * in.channels); }

  // The rows of what is convolved.
  Rows rows(int64_t kept) const { return Rows(middle, padding, kept, source(1, 0)); }

  // Row r of them.
  void apply(const Vec* x, int64_t r, Vec* to) const {
    if (!factor) {
      std::copy_n(x + r * in.row(), in.row(), to);
      return;
    }
    for (int64_t column = 0; column < middle.width; ++column, to += in.channels) {
      const Vec* pixel = x + source(r, column);
      for (int64_t c = 0; c < in.channels; ++c) {
        const auto at = [&](int64_t place) { return relu(normalised(pixel[place + c], c)); };
        to[c] = !pooled ? at(0)
                        : larger(larger(at(0), at(in.row())), larger(at(in.channels), at(in.row() + in.channels)));
      }
    }
  }

  // From the cotangent of row r of what is convolved that of x, and adds to those of factor and offset.
  void differentiate(const Vec* x, int64_t r, const Vec* cotangent, Vec* dx, Vec* d_scaling) const {
    if (!factor) {
      std::copy_n(cotangent, in.row(), dx + r * in.row());
      return;
    }
    // The cotangent of factor x + offset is that of its relu where it is positive.
    const auto finish = [&](int64_t i, int64_t c, Vec inside, Vec d_relu) {
      const Vec g = inside > 0.0f ? d_relu : Vec{};
      d_scaling[c] += g * x[i];
      d_scaling[in.channels + c] += g;
      dx[i] = g * factor[c];
    };
    for (int64_t column = 0; column < middle.width; ++column, cotangent += in.channels) {
      const int64_t i = source(r, column);
      const int64_t pixels[] = {i, i + in.row(), i + in.channels, i + in.row() + in.channels};
      for (int64_t c = 0; c < in.channels && !pooled; ++c) finish(i + c, c, normalised(x[i + c], c), cotangent[c]);
      for (int64_t c = 0; c < in.channels && pooled; ++c) {
        Vec inside[4], value[4];
        for (int k = 0; k < 4; ++k) value[k] = relu(inside[k] = normalised(x[pixels[k] + c], c));
        const Vec left = share(larger(value[0], value[1]), larger(value[2], value[3]));
        for (int k = 0; k < 4; ++k)
          finish(pixels[k] + c, c, inside[k],
                 cotangent[c] * (k < 2 ? left : 1.0f - left) * share(value[k], value[k ^ 1]));
      }
    }
  }
};

// ---------------------------------------------------------------------------------------------------------- tiles

// For loops over a tile: their numbers must be constants for the tile's sums to be registers.
#define UNROLL _Pragma("GCC unroll 8")
// A tile takes all registers of AVX2. Inlined, it has to share them, and a sum in memory makes it half as fast.
#define ALL_REGISTERS __attribute__((noinline))

// Compilers would rather read a vector from memory at each use. A weight is copied to all lanes as it is read.
inline float in_register(float weight) { return weight; }
inline Vec in_register(Vec vector) {
#if defined(__AVX512F__)
  asm("" : "+v"(vector));
#elif defined(__AVX__)
  asm("" : "+x"(vector));
#elif defined(__ARM_NEON)
  asm("" : "+w"(vector));
#endif
  return vector;
}

// What takes the time: for N pixels or taps, `step` vectors apart, and kChannels weights or cotangents.
template <int N, typename Factor>
inline void multiply_add(const Vec* values, int64_t step, const Factor* factors, Vec (&sums)[N][kChannels]) {
  Vec kept[N];
  UNROLL for (int n = 0; n < N; ++n) kept[n] = in_register(values[n * step]);
  UNROLL for (int c = 0; c < kChannels; ++c) {
    const auto factor = in_register(factors[c]);
    UNROLL for (int n = 0; n < N; ++n) sums[n][c] += kept[n] * factor;
  }
}

// Calls body(N) with N = number as a constant: each size of tile has its own loops.
template <int N = kPixels, typename Body>
void with_constant(int64_t number, const Body& body) {
  if (number == N)
    body(std::integral_constant<int, N>());
  else if constexpr (N > 1)
    with_constant<N - 1>(number, body);
}

// Calls body(size, first) for as few tiles as `count` pixels or taps take, all of about the same size.
template <typename Body>
void for_tiles(int64_t count, const Body& body) {
  const int64_t tiles = ceil_div(count, kPixels);
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = count * i / tiles, end = count * (i + 1) / tiles;
    with_constant(end - first, [&](auto size) { body(size, first); });
  }
}

// A kernel as tiles read it: for each group of kChannels output channels, (side, taps, kChannels). The last group is
// filled up with zeros.
struct Kernel {
  int64_t side, c_in, c_out;
  std::vector<float> weights;
  int64_t taps() const { return side * c_in; }

  // From (side, side, channels in, channels out), or turned by 180 degrees and from output to input channels.
  Kernel(const Layer& layer, const float* k, bool turned)
      : side(layer.side), c_in(turned ? layer.out.channels : layer.in.channels),
        c_out(turned ? layer.in.channels : layer.out.channels), weights(side * taps() * whole_tiles(c_out)) {
    const int64_t places = side * side;
    float* to = weights.data();
    for (int64_t first = 0; first < c_out; first += kChannels)
      for (int64_t place = 0; place < places; ++place)
        for (int64_t i = 0; i < c_in; ++i, to += kChannels)
          for (int64_t o = first; o < std::min(first + kChannels, c_out); ++o)
            to[o - first] = k[turned ? ((places - 1 - place) * c_out + o) * c_in + i : (place * c_in + i) * c_out + o];
  }
};

// P output pixels of row r from column `first` on, and kChannels of their channels from c on, if there are so many.
template <int P>
ALL_REGISTERS void output_tile(Rows& x, const Kernel& kernel, int64_t r, int64_t first, int64_t c, Vec* y,
                               Vec* totals) {
  Vec sums[P][kChannels] = {};
  y += first * kernel.c_out + c;
  UNROLL for (int p = 0; p < P; ++p)  // which shall be at hand when the sums are
    UNROLL for (int i = 0; i < kChannels; i += kCacheLine / sizeof(Vec))
      __builtin_prefetch(y + p * kernel.c_out + i, 1);
  const auto [begin, end] = x.existing(r, 0, kernel.side);
  const float* w = kernel.weights.data() + (c * kernel.side + begin * kChannels) * kernel.taps();
  for (int64_t k = begin; k < end; ++k) {
    const Vec* taps = x.at(r + k - x.padding) + first * kernel.c_in;
    for (int64_t tap = 0; tap < kernel.taps(); ++tap, w += kChannels) multiply_add(taps + tap, kernel.c_in, w, sums);
  }
  UNROLL for (int i = 0; i < kChannels; ++i) {
    if (c + i >= kernel.c_out) break;
    UNROLL for (int p = 0; p < P; ++p) y[p * kernel.c_out + i] = sums[p][i];
    if (!totals) continue;
    Vec sum = sums[0][i], squares = sum * sum;
    UNROLL for (int p = 1; p < P; ++p) {
      sum += sums[p][i];
      squares += sums[p][i] * sums[p][i];
    }
    totals[c + i] += sum;
    totals[kernel.c_out + c + i] += squares;
  }
}

// Row r of the output. To the first half of `totals` it adds the sum for each channel, to the second its squares'.
void convolve(Rows& x, const Kernel& kernel, int64_t r, Vec* y, Vec* totals) {
  for_tiles(x.length / kernel.c_in - kernel.side + 1, [&](auto pixels, int64_t first) {
    for (int64_t c = 0; c < kernel.c_out; c += kChannels) {
      x.ask_ahead();
      output_tile<pixels>(x, kernel, r, first, c, y, totals);
    }
  });
}

// Adds to the gradient of T taps of the kernel's row k from `first` on, and of kChannels channels from c on, what the
// output's rows `begin` to `end` give.
template <int T>
void gradient_tile(Rows& x, Rows& dy, int64_t begin, int64_t end, int64_t k, int64_t first, int64_t c, Vec* dw,
                   int64_t dw_row) {
  Vec sums[T][kChannels];
  UNROLL for (int t = 0; t < T; ++t)
    UNROLL for (int i = 0; i < kChannels; ++i) sums[t][i] = dw[t * dw_row + i];
  for (int64_t r = begin; r < end; ++r) {
    const Vec *taps = x.at(r + k - x.padding) + first, *cotangents = dy.inside(r) + c;
    for (int64_t column = 0; column < dy.size.width; ++column) {
      multiply_add(taps, 1, cotangents, sums);
      taps += x.size.channels;
      cotangents += dy.size.channels;
    }
  }
  UNROLL for (int t = 0; t < T; ++t)
    UNROLL for (int i = 0; i < kChannels; ++i) dw[t * dw_row + i] = sums[t][i];
}

// The same for the whole kernel, whose gradient is (side, taps, channels filled up to whole tiles).
ALL_REGISTERS void add_kernel_gradient(Rows& x, Rows& dy, int64_t begin, int64_t end, int64_t side, Vec* dw) {
  const int64_t taps = side * x.size.channels, dw_row = whole_tiles(dy.size.channels);
  for (int64_t k = 0; k < side; ++k) {
    const auto [first_row, end_row] = x.existing(k, begin, end);
    for_tiles(taps, [&, first_row = first_row, end_row = end_row](auto number, int64_t first) {
      x.ask_ahead();
      for (int64_t c = 0; c < dw_row; c += kChannels)
        gradient_tile<number>(x, dy, first_row, end_row, k, first, c, dw + (k * taps + first) * dw_row + c, dw_row);
    });
  }
}

// ---------------------------------------------------------------------------------------------------- whole batches

// Also the sums over batch and space of y and of its squares, for each channel.
void forward(ffi::ThreadPool& pool, const Layer& layer, const Vec* x, const float* k, Vec* y, float* sums) {
  const Size in = layer.in, out = layer.out;
  const Kernel kernel(layer, k, false);
  const auto found = parallel_sums(pool, layer.packs(), 2 * out.channels, [&] {
    return [&, rows = layer.rows(layer.side)](int64_t pack, Vec* totals) mutable {
      const Vec* from = x + pack * in.whole();
      const Vec mask = layer.mask(pack);
      rows.start_again({from});
      for (int64_t r = 0; r < out.height; ++r) {
        rows.write_until(r + layer.side - layer.padding, [&](int64_t row, Vec* to) { layer.apply(from, row, to); });
        convolve(rows, kernel, r, y + pack * out.whole() + r * out.row(), totals);
      }
      for (int64_t i = 0; i < 2 * out.channels; ++i) totals[i] *= mask;
    };
  });
  std::copy(found.begin(), found.end(), sums);
}

// The cotangents of x (unless `dx` is null), of factor and offset, and of the kernel, from those of y and of its sums.
void backward(ffi::ThreadPool& pool, const Layer& layer, const Vec* x, const float* k, const Vec* y, const Vec* dy,
              const float* d_sums, Vec* dx, float* d_scaling, float* dk) {
  const Size in = layer.in, middle = layer.middle, out = layer.out;
  const Kernel turned(layer, k, true);
  const int64_t side = layer.side, spread = side - 1 - layer.padding;  // the padding of the cotangent of y
  const int64_t dk_row = whole_tiles(out.channels), dk_size = side * side * in.channels * dk_row;
  // The kernel's gradient takes `block` rows of y at a time; the first row of x already needs 1 + padding of them.
  const int64_t block = std::max<int64_t>(1, kBlockBytes / (sizeof(Vec) * out.row()));
  const int64_t kept = std::max(block, 1 + layer.padding) + side - 1;
  const auto found = parallel_sums(pool, layer.packs(), dk_size + 2 * in.channels, [&] {
    return [&, inputs = layer.rows(kept), cotangents = Rows(out, spread, kept, out.row()),
            d_row = Vecs(middle.row())](int64_t pack, Vec* sums) mutable {
      const Vec *from = x + pack * in.whole(), *result = y + pack * out.whole(), *d_result = dy + pack * out.whole();
      const Vec mask = layer.mask(pack);
      inputs.start_again({from});
      cotangents.start_again({result, d_result});
      int64_t begin = 0;  // of the rows of y that the kernel's gradient does not contain yet
      for (int64_t r = 0; r < middle.height; ++r) {
        const int64_t end = std::min(out.height, r + side - spread);
        // The sums of y and of its squares have cotangents too.
        cotangents.write_until(end, [&](int64_t row, Vec* to) {
          for (int64_t i = row * out.row(); i < (row + 1) * out.row(); i += out.channels)
            for (int64_t c = 0; c < out.channels; ++c)
              *to++ = (d_result[i + c] + d_sums[c] + 2.0f * d_sums[out.channels + c] * result[i + c]) * mask;
        });
        if (end >= begin + block || (end == out.height && end > begin)) {
          inputs.write_until(end + side - 1 - layer.padding, [&](int64_t row, Vec* to) { layer.apply(from, row, to); });
          add_kernel_gradient(inputs, cotangents, begin, end, side, sums);
          begin = end;
        }
        if (!dx) continue;
        convolve(cotangents, turned, r, d_row.data(), nullptr);
        layer.differentiate(from, r, d_row.data(), dx + pack * in.whole(), sums + dk_size);
      }
    };
  });
  for (int64_t i = 0; i < dk_size / dk_row; ++i)
    std::copy_n(found.data() + i * dk_row, out.channels, dk + i * out.channels);
  std::copy_n(found.data() + dk_size, 2 * in.channels, d_scaling);
}

// -------------------------------------------------------------------------------------------- what XLA calls

using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Array>;

bool has_shape(Array a, std::initializer_list<int64_t> shape) {
  return std::equal(a.dimensions().begin(), a.dimensions().end(), shape.begin(), shape.end());
}
Vec* vectors(Array a) { return reinterpret_cast<Vec*>(a.typed_data()); }
// Whether these are packs of images of a size. (XLA's buffers begin where a cache line does.)
bool are_packs(Array a, int64_t packs, Size size) {
  return has_shape(a, {packs, size.height, size.width, size.channels, kLanes}) &&
         reinterpret_cast<uintptr_t>(a.typed_data()) % sizeof(Vec) == 0;
}

// What the shapes say, if they fit. `scaling` is (2, channels): factor and offset, or (0,).
std::optional<Layer> layer_of(int64_t images, int64_t padding, bool pooled, Array x, Array scaling, Array k, Array y,
                              Array sums) {
  const auto xs = x.dimensions(), ks = k.dimensions();
  if (images < 0 || xs.size() != 5 || ks.size() != 4 || padding < 0 || padding >= ks[0]) return {};
  const Size in{xs[1], xs[2], xs[3]}, middle = pooled ? Size{xs[1] / 2, xs[2] / 2, xs[3]} : in;
  const int64_t side = ks[0], shrinking = side - 1 - 2 * padding;
  const Size out{middle.height - shrinking, middle.width - shrinking, ks[3]};
  const bool scaled = !has_shape(scaling, {0});
  if (std::min({in.height, in.width, in.channels, side, out.height, out.width, out.channels}) < 1) return {};
  if (scaled && !has_shape(scaling, {2, in.channels})) return {};
  if (pooled && (!scaled || in.height % 2 || in.width % 2)) return {};
  const float* factor = scaled ? scaling.typed_data() : nullptr;
  const Layer layer{images, side, padding, pooled, factor, scaled ? factor + in.channels : nullptr, in, middle, out};
  if (!are_packs(x, layer.packs(), in) || !has_shape(k, {side, side, in.channels, out.channels})) return {};
  if (!are_packs(y, layer.packs(), out) || !has_shape(sums, {2, out.channels})) return {};
  return layer;
}

ffi::Error wrong() {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, "convolution: the shapes do not fit, or memory is not aligned");
}

ffi::Error forward_call(ffi::ThreadPool pool, int64_t images, int64_t padding, bool pooled, Array x, Array scaling,
                        Array k, Result y, Result sums) {
  const auto layer = layer_of(images, padding, pooled, x, scaling, k, *y, *sums);
  if (!layer) return wrong();
  forward(pool, *layer, vectors(x), k.typed_data(), vectors(*y), sums->typed_data());
  return ffi::Error::Success();
}

ffi::Error backward_call(ffi::ThreadPool pool, int64_t images, int64_t padding, bool pooled, Array x, Array scaling,
                         Array k, Array y, Array dy, Array d_sums, Result dx, Result d_scaling, Result dk) {
  const auto layer = layer_of(images, padding, pooled, x, scaling, k, y, d_sums);
  const bool wanted = !has_shape(*dx, {0});
  if (!layer || !are_packs(dy, layer->packs(), layer->out) || (wanted && !are_packs(*dx, layer->packs(), layer->in)) ||
      !has_shape(*d_scaling, {2, layer->in.channels}) ||
      !has_shape(*dk, {layer->side, layer->side, layer->in.channels, layer->out.channels}))
    return wrong();
  backward(pool, *layer, vectors(x), k.typed_data(), vectors(y), vectors(dy), d_sums.typed_data(),
           wanted ? vectors(*dx) : nullptr, d_scaling->typed_data(), dk->typed_data());
  return ffi::Error::Success();
}

// What both take first.
auto bind() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<int64_t>("images").Attr<int64_t>("padding").Attr<bool>("pooled")
      .Arg<Array>().Arg<Array>().Arg<Array>();
}

}  // namespace

extern "C" int mnist_flax_lanes() { return kLanes; }

XLA_FFI_DEFINE_HANDLER_SYMBOL(mnist_flax_forward, forward_call, bind().Ret<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(mnist_flax_backward, backward_call,
                              bind().Arg<Array>().Arg<Array>().Arg<Array>().Ret<Array>().Ret<Array>().Ret<Array>());
