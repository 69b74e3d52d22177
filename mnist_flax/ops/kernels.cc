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
// That is the direct form. Minimal filtering (Winograd) halves the multiply-adds of a 3x3 kernel. Four neighbouring
// outputs are a group. Each part below is a row like the one above, but has one pixel for each group, whose tap is one
// channel; it has weights of its own, and tiles of groups x channels. The six parts of the output are then combined:
//
//      input row   a b c d e f g h i j ...       a, b, ... : pixels; group 0 depends on a to f, group 1 on e to j, ...
//                  v          six sums of the six pixels, for each channel: `from_inputs`
//      part 0      A0 E0 I0 ...
//       ...                   each is multiplied with its weights: `output_tiles`
//      part 5      A5 E5 I5 ...
//                  v          four sums of the six parts: `to_outputs`
//      output row  a b c d e f g h ...
//
// - The gradient of the inputs is the same function with the kernel turned round and the other padding.
// - The gradient of the kernel has tiles of taps x channels, runs over pixels or groups, and in the end adds up the
//   lanes. With minimal filtering it takes the same six parts of the inputs, and six of the cotangent.
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
// The gradient of the kernel takes so many rows at once. Fewer, and the loads and stores of its sums take longer; more,
// and a part of them is too much for a first-level cache.
constexpr int64_t kBlock = 4;

// A vector of floats, as GCC and Clang have it; they make AVX, NEON or SSE of it.
typedef float Vec __attribute__((vector_size(4 * kLanes), may_alias));
using Vecs = std::vector<Vec>;
constexpr int64_t kLine = 64 / sizeof(Vec);  // vectors in a line of the cache

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t whole_tiles(int64_t channels) { return ceil_div(channels, kChannels) * kChannels; }

// Sizes of a pack of images; rows and wholes are counted in vectors.
struct Size {
  int64_t height, width, channels;
  int64_t row() const { return width * channels; }
  int64_t whole() const { return height * row(); }
};

// ------------------------------------------------------------------------------------------------ minimal filtering

// Winograd's F(4, 3): four outputs of a filter of three weights by six multiplications instead of twelve. `from_inputs`
// and `from_filter` give their factors, and `to_outputs` takes their results. For the gradients there are the
// transposes of the last two: `from_outputs` and `to_filter`.
constexpr int64_t kOutputs = 4, kParts = 6;

inline void from_inputs(const Vec* d, int64_t step, Vec* to, int64_t to_step) {
  const Vec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  const Vec even = d4 - 4.0f * d2, odd = d3 - 4.0f * d1, even2 = d4 - d2, odd2 = d3 - d1;
  to[0] = 4.0f * d0 + (d4 - 5.0f * d2);
  to[to_step] = even + odd;
  to[2 * to_step] = even - odd;
  to[3 * to_step] = even2 + 2.0f * odd2;
  to[4 * to_step] = even2 - 2.0f * odd2;
  to[5 * to_step] = 4.0f * d1 + (d5 - 5.0f * d3);
}

inline void from_filter(const float* g, int64_t step, float* u, int64_t u_step) {
  const float even = (g[0] + g[2 * step]) / 6, odd = g[step] / 6;
  const float even2 = (g[0] + 4 * g[2 * step]) / 24, odd2 = g[step] / 12;
  u[0] = g[0] / 4;
  u[u_step] = -even - odd;
  u[2 * u_step] = odd - even;
  u[3 * u_step] = even2 + odd2;
  u[4 * u_step] = even2 - odd2;
  u[5 * u_step] = g[2 * step];
}

inline void to_outputs(const Vec* m, int64_t step, Vec (&y)[kOutputs]) {
  const Vec m1 = m[step], m2 = m[2 * step], m3 = m[3 * step], m4 = m[4 * step];
  const Vec even = m1 + m2, odd = m1 - m2, even2 = m3 + m4, odd2 = m3 - m4;
  y[0] = m[0] + even + even2;
  y[1] = odd + 2.0f * odd2;
  y[2] = even + 4.0f * even2;
  y[3] = odd + 8.0f * odd2 + m[5 * step];
}

inline void from_outputs(const Vec* y, int64_t step, Vec* to, int64_t to_step) {
  const Vec y0 = y[0], y1 = y[step], y2 = y[2 * step], y3 = y[3 * step];
  const Vec even = y0 + y2, odd = y1 + y3, even2 = y0 + 4.0f * y2, odd2 = y1 + 4.0f * y3;
  to[0] = y0;
  to[to_step] = even + odd;
  to[2 * to_step] = even - odd;
  to[3 * to_step] = even2 + 2.0f * odd2;
  to[4 * to_step] = even2 - 2.0f * odd2;
  to[5 * to_step] = y3;
}

inline void to_filter(const Vec* u, int64_t step, Vec* g, int64_t g_step) {
  const Vec u1 = u[step], u2 = u[2 * step], u3 = u[3 * step], u4 = u[4 * step];
  const Vec even = (u1 + u2) * (1 / 6.0f), odd = (u2 - u1) * (1 / 6.0f);
  const Vec even2 = (u3 + u4) * (1 / 24.0f), odd2 = (u3 - u4) * (1 / 12.0f);
  g[0] = 0.25f * u[0] - even + even2;
  g[g_step] = odd + odd2;
  g[2 * g_step] = 4.0f * even2 - even + u[5 * step];
}

// Calls one of them for each group and channel of a row. The parts of the result are `part_step` vectors apart.
template <typename Sums>
void for_groups(const Vec* row, int64_t groups, int64_t channels, Vec* __restrict to, int64_t part_step,
                const Sums& sums) {
  for (int64_t g = 0; g < groups; ++g, row += kOutputs * channels, to += channels)
    for (int64_t c = 0; c < channels; ++c) sums(row + c, channels, to + c, part_step);
}

// ------------------------------------------------------------------------------------------------------------- rows

// The last few rows of something, which has one or more parts: so few that they stay in the cache. They are written one
// after the other, each in the place of one that is not needed any more.
class Ring {
 public:
  // Of `length` vectors for a part of a row. A tile may read `beyond` vectors more than there are.
  Ring(int64_t parts, int64_t kept, int64_t length, int64_t beyond) : parts_(parts), length_(length) {
    while (places_ < kept) places_ *= 2;
    memory_.resize(parts * part_step() + beyond);
  }
  int64_t part_step() const { return places_ * length_; }
  Vec* at(int64_t part, int64_t row) {
    return memory_.data() + part * part_step() + ((row - first_) & (places_ - 1)) * length_;
  }
  // Makes rows `begin` to `end` neighbours, before all are written: if the last places are too few for them, moves those
  // from `begin` on to the first.
  void make_neighbours(int64_t begin, int64_t end) {
    if (end - first_ <= places_) return;
    for (int64_t part = 0; part < parts_; ++part)
      std::copy_n(at(part, begin), (first_ + places_ - begin) * length_, at(part, first_));
    first_ = begin;
  }
  void start_again() { first_ = 0; }

 private:
  int64_t parts_, length_, places_ = 1, first_ = 0;  // places: a power of two
  Vecs memory_;
};

// The last few rows of a pack, with zeros left and right, as they are multiplied: in one part, or in kParts.
class Rows {
 public:
  const Size size;  // without the padding
  const int64_t side, padding, parts;
  const int64_t columns, tiled;  // of the output, and how many of them or of their groups there are
  const int64_t pixels;          // of a part of a row

  Rows(Size size, int64_t side, int64_t padding, int64_t parts, int64_t kept)
      : size(size), side(side), padding(padding), parts(parts), columns(size.width + 2 * padding - side + 1),
        tiled(parts > 1 ? ceil_div(columns, kOutputs) : columns), pixels(parts > 1 ? tiled : size.width + 2 * padding),
        plain_(parts > 1 ? (tiled * kOutputs + kParts) * size.channels : 0),
        ring_(parts, kept, pixels * size.channels, (side + kPixels) * size.channels) {}
  void start_again() {
    written_ = 0;
    ring_.start_again();
  }
  int64_t written() const { return written_; }
  // Goes on until there are rows 0 ... end - 1, if there are so many: calls write(row, where to) for each. They can be
  // `neighbours` of each other and of the `side - 1` rows before them.
  template <typename Write>
  void write_until(int64_t end, const Write& write, bool neighbours = false) {
    end = std::min(end, size.height);
    if (neighbours) ring_.make_neighbours(written_ - side + 1, end);
    for (; written_ < end; ++written_) {
      Vec* to = at(0, written_);
      Vec* plain = parts > 1 ? plain_.data() : to;
      write(written_, plain + padding * size.channels);
      if (parts > 1) for_groups(plain, tiled, size.channels, to, ring_.part_step(), from_inputs);
    }
  }
  // Where a part of a row with its padding begins.
  Vec* at(int64_t part, int64_t row) { return ring_.at(part, row); }
  // An output's row r takes row r + k - padding for row k of the kernel. Of `begin` ... `end`, those r, for a k, or
  // those k, for an r, for which there is such a row: the others would add zeros.
  std::pair<int64_t, int64_t> existing(int64_t other, int64_t begin, int64_t end) const {
    return {std::max(begin, padding - other), std::min(end, size.height + padding - other)};
  }

 private:
  int64_t written_ = 0;
  Vecs plain_;  // a row before it is made parts of
  Ring ring_;
};

// Memory takes so long that it must be asked while something else is computed: asks for the i-th of n shares of a row
// that will be read, or of memory that will be written. (The i-th lines of each n: neighbours are slower to write.)
void ask(const Vec* row, int64_t length, int64_t i, int64_t n) {
  for (int64_t at = length * i / n; at < length * (i + 1) / n; at += kLine) __builtin_prefetch(row + at, 0, 2);
}
void ask_to_write(Vec* to, int64_t length, int64_t i, int64_t n) {
  for (int64_t at = i * kLine; at < length; at += n * kLine) __builtin_prefetch(to + at, 1);
}

// The sum over N lanes from `first` on: halves first, which are vectors again.
template <int N = kLanes>
float add_lanes(const Vec& x, int first = 0) {
  if constexpr (N == 1)
    return x[first];
  else
    return add_lanes<N / 2>(x, first) + add_lanes<N / 2>(x, first + N / 2);
}

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
      for (int64_t i = 0; i < size; ++i) parts[task * size + i] = add_lanes(sums[i]);
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
  // Where in x a pixel of what is convolved comes from: the first of four pixels if they are pooled.
  int64_t source(int64_t r, int64_t column) const { return (pooled ? 2 : 1) * (r * in.row() + column * in.channels); }

  // By minimal filtering, if that is faster: with fewer channels its sums cost more than the multiply-adds it saves.
  int64_t parts() const { return side == 3 && std::min(in.channels, out.channels) >= 4 ? kParts : 1; }
  // The rows of what is convolved.
  Rows rows(int64_t kept) const { return Rows(middle, side, padding, parts(), kept); }

  // Row r of them.
  void apply(const Vec* x, int64_t r, Vec* __restrict to) const {
    const int64_t channels = in.channels, row = in.row();
    const float *f = factor, *o = offset;
    x += source(r, 0);
    if (!f) {
      std::copy_n(x, row, to);
      return;
    }
    if (pooled)
      for (int64_t column = 0; column < middle.width; ++column, x += 2 * channels, to += channels)
        for (int64_t c = 0; c < channels; ++c) {
          const auto at = [&](int64_t place) { return relu(x[place + c] * f[c] + o[c]); };
          to[c] = larger(larger(at(0), at(row)), larger(at(channels), at(row + channels)));
        }
    else
      for (int64_t column = 0; column < middle.width; ++column, x += channels, to += channels)
        for (int64_t c = 0; c < channels; ++c) to[c] = relu(x[c] * f[c] + o[c]);
  }

  // From the cotangent of row r of what is convolved that of x, and adds to those of factor and offset.
  void differentiate(const Vec* x, int64_t r, const Vec* cotangent, Vec* __restrict dx, Vec* d_scaling) const {
    const int64_t channels = in.channels, row = in.row();
    x += source(r, 0), dx += source(r, 0);
    if (!factor) {
      std::copy_n(cotangent, row, dx);
      return;
    }
    for (int64_t c = 0; c < channels; ++c) {
      const float f = factor[c], o = offset[c];
      Vec d_factor{}, d_offset{};
      // The cotangent of factor x + offset is that of its relu where it is positive.
      const auto finish = [&](int64_t i, Vec inside, Vec d_relu) {
        const Vec g = inside > 0.0f ? d_relu : Vec{};
        d_factor += g * x[i];
        d_offset += g;
        dx[i] = g * f;
      };
      if (!pooled) {
        for (int64_t i = c; i < middle.width * channels; i += channels) finish(i, x[i] * f + o, cotangent[i]);
      } else {
        for (int64_t column = 0, i = c; column < middle.width; ++column, i += 2 * channels) {
          const int64_t pixels[] = {i, i + row, i + channels, i + row + channels};
          Vec inside[4], value[4];
          for (int k = 0; k < 4; ++k) value[k] = relu(inside[k] = x[pixels[k]] * f + o);
          const Vec left = share(larger(value[0], value[1]), larger(value[2], value[3]));
          for (int k = 0; k < 4; ++k)
            finish(pixels[k], inside[k],
                   cotangent[column * channels + c] * (k < 2 ? left : 1.0f - left) * share(value[k], value[k ^ 1]));
        }
      }
      d_scaling[c] += d_factor;
      d_scaling[channels + c] += d_offset;
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

// A kernel as tiles read it: for each part and each group of kChannels output channels, (side, taps, kChannels). The
// last group is filled up with zeros.
struct Kernel {
  int64_t side, parts, c_in, c_out, taps, part_step;
  std::vector<float> weights;

  // From (side, side, channels in, channels out), or turned by 180 degrees and from output to input channels.
  Kernel(const Layer& layer, const float* k, bool turned)
      : side(layer.side), parts(layer.parts()), c_in(turned ? layer.out.channels : layer.in.channels),
        c_out(turned ? layer.in.channels : layer.out.channels), taps(parts > 1 ? c_in : side * c_in),
        part_step(whole_tiles(c_out) * side * taps), weights(parts * part_step) {
    const int64_t next = (turned ? -1 : 1) * c_in * c_out;  // place
    for (int64_t row = 0; row < side; ++row)
      for (int64_t i = 0; i < c_in; ++i)
        for (int64_t o = 0; o < c_out; ++o) {
          const float* from = turned ? k + (((side - row) * side - 1) * c_out + o) * c_in + i
                                     : k + (row * side * c_in + i) * c_out + o;
          float* to = weights.data() + ((o / kChannels * side + row) * taps + i) * kChannels + o % kChannels;
          if (parts > 1)
            from_filter(from, next, to, part_step);
          else
            for (int64_t column = 0; column < side; ++column) to[column * c_in * kChannels] = from[column * next];
        }
  }
};

// A part of row r of the output: N pixels or groups from `first` on, all their channels.
template <int N>
ALL_REGISTERS void output_tiles(Rows& x, const Kernel& kernel, int64_t r, int64_t part, int64_t first, Vec* to) {
  const int64_t c_in = kernel.c_in, c_out = kernel.c_out, taps = kernel.taps;
  const auto [begin, end] = x.existing(r, 0, kernel.side);
  for (int64_t c = 0; c < c_out; c += kChannels) {
    Vec sums[N][kChannels] = {};
    const float* w = kernel.weights.data() + part * kernel.part_step + (c * kernel.side + begin * kChannels) * taps;
    for (int64_t k = begin; k < end; ++k) {
      const Vec* values = x.at(part, r + k - x.padding) + first * c_in;
      for (int64_t tap = 0; tap < taps; ++tap, w += kChannels) multiply_add(values + tap, c_in, w, sums);
    }
    UNROLL for (int i = 0; i < kChannels; ++i) {
      if (c + i >= c_out) break;
      UNROLL for (int n = 0; n < N; ++n) to[n * c_out + c + i] = sums[n][i];
    }
  }
}

// At most `columns` pixels of the output, from the parts of N pixels or groups. To the first half of `totals` it adds
// the sum for each channel, to the second their squares'.
template <int N, bool minimal>
void finish(const Vec* parts, int64_t c_out, int64_t columns, Vec* __restrict y, Vec* __restrict totals) {
  constexpr int outputs = minimal ? kOutputs : 1;
  for (int64_t c = 0; c < c_out; ++c) {
    Vec sum{}, squares{};
    UNROLL for (int n = 0; n < N; ++n) {
      Vec values[outputs];
      if constexpr (minimal)
        to_outputs(parts + n * c_out + c, N * c_out, values);
      else
        values[0] = parts[n * c_out + c];
      UNROLL for (int i = 0; i < outputs; ++i) {
        if (minimal && n * outputs + i >= columns) continue;
        y[(n * outputs + i) * c_out + c] = values[i];
        sum += values[i];
        squares += values[i] * values[i];
      }
    }
    if (!totals) continue;
    totals[c] += sum;
    totals[c_out + c] += squares;
  }
}

// Row r of the output, with memory for the `found` parts of a tile. Calls ask_ahead(i, n) for i in 0 ... n - 1.
template <typename AskAhead>
void convolve(Rows& x, const Kernel& kernel, int64_t r, Vec* y, Vec* totals, Vecs& found, const AskAhead& ask_ahead) {
  const int64_t parts = x.parts, c_out = kernel.c_out, outputs = parts > 1 ? kOutputs : 1;
  const int64_t calls = ceil_div(x.tiled, kPixels) * parts;
  int64_t call = 0;
  found.resize(parts * kPixels * c_out);
  for_tiles(x.tiled, [&](auto number, int64_t first) {
    const int64_t columns = x.columns - first * outputs;
    Vec* to = y + first * outputs * c_out;
    for (int64_t part = 0; part < parts; ++part) {
      ask_ahead(call++, calls);
      if (totals) ask_to_write(to, std::min(columns, number * outputs) * c_out, part, parts);
      output_tiles<number>(x, kernel, r, part, first, found.data() + part * number * c_out);
    }
    if (parts > 1)
      finish<number, true>(found.data(), c_out, columns, to, totals);
    else
      finish<number, false>(found.data(), c_out, columns, to, totals);
  });
}

// Adds to the gradient of N taps and kChannels channels what `count` pixels or groups give.
template <int N>
void gradient_tile(const Vec* taps, int64_t c_in, const Vec* dy, int64_t c_out, int64_t count, Vec* dw,
                   int64_t dw_row) {
  Vec sums[N][kChannels];
  UNROLL for (int n = 0; n < N; ++n)
    UNROLL for (int i = 0; i < kChannels; ++i) sums[n][i] = dw[n * dw_row + i];
  for (; count > 0; --count, taps += c_in, dy += c_out) multiply_add(taps, 1, dy, sums);
  UNROLL for (int n = 0; n < N; ++n)
    UNROLL for (int i = 0; i < kChannels; ++i) dw[n * dw_row + i] = sums[n][i];
}

// Adds to the gradient of the kernel what the output's rows `begin` to `end` give. It is (parts, side, taps, channels
// filled up to whole tiles). In x and in dy these rows must be neighbours, and of the same width.
ALL_REGISTERS void add_kernel_gradient(Rows& x, Ring& dy, int64_t c_out, int64_t begin, int64_t end, Vec* dw) {
  const int64_t c_in = x.size.channels, taps = x.parts > 1 ? c_in : x.side * c_in, dw_row = whole_tiles(c_out);
  for (int64_t part = 0; part < x.parts; ++part)
    for (int64_t k = 0; k < x.side; ++k, dw += taps * dw_row) {
      const auto [first_row, end_row] = x.existing(k, begin, end);
      const Vec *row = x.at(part, first_row + k - x.padding), *d_row = dy.at(part, first_row);
      const int64_t count = (end_row - first_row) * x.pixels;
      for_tiles(taps, [&](auto number, int64_t tap) {
        for (int64_t c = 0; c < dw_row; c += kChannels)
          gradient_tile<number>(row + tap, c_in, d_row + c, c_out, count, dw + tap * dw_row + c, dw_row);
      });
    }
}

// ---------------------------------------------------------------------------------------------------- whole batches

// Also the sums over batch and space of y and of its squares, for each channel.
void forward(ffi::ThreadPool& pool, const Layer& layer, const Vec* x, const float* k, Vec* y, float* sums) {
  const Size in = layer.in, out = layer.out;
  const Kernel kernel(layer, k, false);
  const auto found = parallel_sums(pool, layer.packs(), 2 * out.channels, [&] {
    return [&, rows = layer.rows(layer.side), parts = Vecs()](int64_t pack, Vec* totals) mutable {
      const Vec* from = x + pack * in.whole();
      const Vec mask = layer.mask(pack);
      rows.start_again();
      for (int64_t r = 0; r < out.height; ++r) {
        rows.write_until(r + layer.side - layer.padding, [&](int64_t row, Vec* to) { layer.apply(from, row, to); });
        const Vec* next = from + layer.source(rows.written(), 0);
        convolve(rows, kernel, r, y + pack * out.whole() + r * out.row(), totals, parts,
                 [&](int64_t i, int64_t n) { ask(next, layer.source(1, 0), i, n); });
      }
      for (int64_t i = 0; i < 2 * out.channels; ++i) totals[i] *= mask;
    };
  });
  std::copy(found.begin(), found.end(), sums);
}

// The cotangent of a row of y from those of y and of its sums, in which are y and its square.
void add_cotangents(const Vec* y, const Vec* dy, const float* d_sums, Vec mask, Size out, Vec* __restrict to) {
  for (int64_t i = 0; i < out.row(); i += out.channels)
    for (int64_t c = 0; c < out.channels; ++c)
      to[i + c] = (dy[i + c] + d_sums[c] + 2.0f * d_sums[out.channels + c] * y[i + c]) * mask;
}

// The cotangents of x (unless `dx` is null), of factor and offset, and of the kernel, from those of y and of its sums.
void backward(ffi::ThreadPool& pool, const Layer& layer, const Vec* x, const float* k, const Vec* y, const Vec* dy,
              const float* d_sums, Vec* dx, float* d_scaling, float* dk) {
  const Size in = layer.in, middle = layer.middle, out = layer.out;
  const Kernel turned(layer, k, true);
  const int64_t side = layer.side, spread = side - 1 - layer.padding;  // the padding of the cotangent of y
  const int64_t parts = layer.parts(), dk_row = whole_tiles(out.channels), dk_rows = in.channels * dk_row;
  const int64_t dk_size = side * side * dk_rows;
  // The kernel's gradient takes `block` rows of y at a time; the first row of x already needs 1 + padding of them.
  const int64_t block = std::max(kBlock, 1 + layer.padding);
  const auto found = parallel_sums(pool, layer.packs(), dk_size + 2 * in.channels, [&] {
    Rows inputs = layer.rows(block + side - 1);
    // Of the cotangent there are rows to be convolved, and rows for the gradient of the kernel.
    Rows cotangents(out, side, spread, parts, side);
    Ring factors(parts, block, inputs.pixels * out.channels, kChannels);
    return [&, inputs = std::move(inputs), cotangents = std::move(cotangents), factors = std::move(factors),
            d_parts = Vecs(parts > 1 ? parts * side * dk_rows : 0), d_row = Vecs(middle.row()),
            found = Vecs()](int64_t pack, Vec* sums) mutable {
      const Vec *from = x + pack * in.whole(), *result = y + pack * out.whole(), *d_result = dy + pack * out.whole();
      const Vec mask = layer.mask(pack);
      inputs.start_again();
      cotangents.start_again();
      factors.start_again();
      std::fill(d_parts.begin(), d_parts.end(), Vec{});
      int64_t begin = 0;  // of the rows of y that the kernel's gradient does not contain yet
      for (int64_t r = 0; r < middle.height; ++r) {
        const int64_t end = std::min(out.height, r + side - spread);
        cotangents.write_until(end, [&](int64_t row, Vec* to) {
          factors.make_neighbours(begin, row + 1);
          Vec* factor = factors.at(0, row);
          const int64_t i = row * out.row();
          add_cotangents(result + i, d_result + i, d_sums, mask, out, parts > 1 ? to : factor);
          if (parts > 1)
            for_groups(to, inputs.tiled, out.channels, factor, factors.part_step(), from_outputs);
          else if (dx)
            std::copy_n(factor, out.row(), to);
        });
        if (end >= begin + block || (end == out.height && end > begin)) {
          const auto apply = [&](int64_t row, Vec* to) { layer.apply(from, row, to); };
          inputs.write_until(end + side - 1 - layer.padding, apply, true);
          add_kernel_gradient(inputs, factors, out.channels, begin, end, parts > 1 ? d_parts.data() : sums);
          begin = end;
        }
        if (!dx) continue;
        const int64_t next = cotangents.written() * out.row();
        convolve(cotangents, turned, r, d_row.data(), nullptr, found, [&](int64_t i, int64_t n) {
          ask(result + next, out.row(), i, n);
          ask(d_result + next, out.row(), i, n);
        });
        layer.differentiate(from, r, d_row.data(), dx + pack * in.whole(), sums + dk_size);
      }
      for (int64_t row = 0; row < side && parts > 1; ++row)
        for (int64_t i = row * dk_rows; i < (row + 1) * dk_rows; ++i)
          to_filter(d_parts.data() + i, side * dk_rows, sums + i + row * (side - 1) * dk_rows, dk_rows);
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
