// Calls kernels.cc as XLA does, without XLA and Python: to run it under sanitizers and on an emulated processor.
//
// With an argument, prints the number of lanes. Without, reads calls from the standard input until it ends, and writes
// their results to the standard output. A call is int64 numbers (whether backward, images, padding, pooled, then for
// each argument and result its rank and shape), then the arguments' floats. A call that is refused ends it.

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace xla::ffi {

std::vector<std::thread> threads;

struct OwnThreadPool {
  int64_t num_threads() const { return 3; }
  void Schedule(std::function<void()> task) { threads.emplace_back(std::move(task)); }
};

template <>
struct CtxDecoding<OwnThreadPool> {
  using Type = OwnThreadPool;
  static std::optional<Type> Decode(const XLA_FFI_Api*, XLA_FFI_ExecutionContext*, DiagnosticEngine&) { return Type(); }
};

}  // namespace xla::ffi

#define ThreadPool OwnThreadPool
#include "kernels.cc"

void read(void* to, size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) std::exit(2);
}

int64_t number() {
  int64_t read_number;
  read(&read_number, sizeof(read_number));
  return read_number;
}

// An array, in memory that ends where it ends.
struct Memory {
  std::vector<int64_t> shape;
  size_t bytes = sizeof(float);
  XLA_FFI_Buffer buffer{};

  Memory() : shape(number()) {
    for (int64_t& side : shape) bytes *= side = number();
    buffer.struct_size = XLA_FFI_Buffer_STRUCT_SIZE;
    buffer.dtype = XLA_FFI_DataType_F32;
    buffer.rank = static_cast<int64_t>(shape.size());
    buffer.dims = shape.data();
    buffer.data = ::operator new(bytes, std::align_val_t(64));
  }
  Memory(const Memory&) = delete;
  ~Memory() { ::operator delete(buffer.data, std::align_val_t(64)); }
  operator Array() const { return Array(&buffer); }
  operator Result() const { return Result(Array(&buffer)); }
};

int main(int num_arguments, char**) {
  if (num_arguments > 1) return std::printf("%d\n", kLanes) < 0;
  for (int64_t backward; std::fread(&backward, sizeof(backward), 1, stdin) == 1;) {
    const int64_t images = number(), padding = number(), pooled = number();
    const size_t arguments = backward ? 6 : 3, arrays = backward ? 9 : 5;
    std::vector<std::unique_ptr<Memory>> a;
    while (a.size() < arrays) a.push_back(std::make_unique<Memory>());
    for (size_t i = 0; i < arguments; ++i) read(a[i]->buffer.data, a[i]->bytes);
    const ffi::Error error = backward ? backward_call({}, images, padding, pooled, *a[0], *a[1], *a[2], *a[3], *a[4],
                                                      *a[5], *a[6], *a[7], *a[8])
                                      : forward_call({}, images, padding, pooled, *a[0], *a[1], *a[2], *a[3], *a[4]);
    for (std::thread& thread : ffi::threads) thread.join();
    ffi::threads.clear();
    if (error.failure()) return 1;
    for (size_t i = arguments; i < arrays; ++i) std::fwrite(a[i]->buffer.data, 1, a[i]->bytes, stdout);
  }
}
