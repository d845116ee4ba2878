// Runs CUDA sources on a CPU: g++ -x c++ -include cuda_on_cpu.h kernel.cu. For tests of results, never of speed.
//
// The threads of a block are fibers on one thread of the system. Each runs until it waits (barrier, shuffle, mma) or ends;
// then the next one does, forwards, backwards or in shuffled order. So a run repeats exactly, a missing barrier shows as a
// difference between orders, and a barrier that some thread does not reach is an error with its line, not a hang.
// Shared memory is NaN (0xFF bytes) before every block, and dynamic shared memory ends at a guard. Blocks run one after
// another. Not covered: bank conflicts, coalescing, caches, asynchronous copies, atomics between blocks, the GPU's own
// rounding of exp2f and of sums inside mma.
// Needs -fno-strict-aliasing: kernels read neighbouring numbers as one wide word, which CUDA allows and C++ does not.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

struct dim3 { unsigned x, y, z; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };

// Linked in by the name of the section that __shared__ variables are put in.
extern "C" char __start_cuda_shared[] __attribute__((weak));
extern "C" char __stop_cuda_shared[] __attribute__((weak));

namespace cpu {

enum class State { fresh, ready, at_barrier, in_warp, ended };
struct Value { unsigned char bytes[32]; };
struct Fiber {
  ucontext_t entry;
  jmp_buf point;
  dim3 index;
  State state;
  int line;     // where it waits
  Value given;  // to the warp
};

inline std::vector<Fiber> fibers;
inline std::vector<std::vector<Value>> received;  // by warp and lane
inline std::vector<char> stacks, dynamic_shared;
inline Fiber* current;
inline jmp_buf scheduler;
inline dim3 grid, block, block_index;
inline std::function<void()> body;
inline std::string error;
constexpr size_t STACK = 96 << 10, GUARD = 64;

inline int place() { return int(current - fibers.data()); }
inline int lane() { return place() % 32; }

inline void wait(State state, int line) {
  current->state = state;
  current->line = line;
  if (!_setjmp(current->point)) _longjmp(scheduler, 1);
}

inline void entry() {
  body();
  current->state = State::ended;
  _longjmp(scheduler, 1);
}

inline void resume(Fiber& fiber) {
  current = &fiber;
  if (_setjmp(scheduler)) return;
  bool is_fresh = fiber.state == State::fresh;
  fiber.state = State::ready;
  if (is_fresh) setcontext(&fiber.entry);
  _longjmp(fiber.point, 1);
}

// Every lane gives a value and receives those of all lanes.
template <class T>
const std::vector<Value>& exchange(const T& value, int line) {
  static_assert(sizeof(T) <= sizeof(Value));
  memcpy(current->given.bytes, &value, sizeof(T));
  wait(State::in_warp, line);
  return received[place() / 32];
}

template <class T>
T taken_from(const std::vector<Value>& values, int source) {
  T result;
  memcpy(&result, values[source].bytes, sizeof(T));
  return result;
}

// Warps of which all lanes wait at one line go on; whether there was one.
inline bool release_warps() {
  bool any = false;
  for (size_t warp = 0; warp < received.size(); ++warp) {
    Fiber* first = &fibers[warp * 32];
    bool is_complete = std::all_of(first, first + 32, [&](const Fiber& f) { return f.state == State::in_warp && f.line == first->line; });
    if (!is_complete) continue;
    for (int i = 0; i < 32; ++i) {
      received[warp][i] = first[i].given;
      first[i].state = State::ready;
    }
    any = true;
  }
  return any;
}

inline bool fail(const char* what, int line) {
  size_t waiting = 0, ended = 0;
  for (Fiber& f : fibers) waiting += f.state != State::ended, ended += f.state == State::ended;
  error = std::string(what) + " at line " + std::to_string(line) + ": " + std::to_string(waiting) + " threads wait, " +
          std::to_string(ended) + " have ended";
  return false;
}

inline bool run_block(int order, std::mt19937& random) {
  std::vector<size_t> turns(fibers.size());
  for (size_t i = 0; i < turns.size(); ++i) turns[i] = order == 1 ? turns.size() - 1 - i : i;
  for (;;) {
    if (order == 2) std::shuffle(turns.begin(), turns.end(), random);
    for (size_t i : turns)
      if (fibers[i].state == State::fresh || fibers[i].state == State::ready) resume(fibers[i]);
    if (release_warps()) continue;
    auto all = [&](State state) { return std::all_of(fibers.begin(), fibers.end(), [&](const Fiber& f) { return f.state == state && f.line == fibers[0].line; }); };
    if (std::all_of(fibers.begin(), fibers.end(), [](const Fiber& f) { return f.state == State::ended; })) return true;
    if (all(State::at_barrier)) {
      for (Fiber& f : fibers) f.state = State::ready;
      continue;
    }
    for (Fiber& f : fibers)
      if (f.state == State::in_warp) return fail("a warp's exchange that not all lanes reach", f.line);
    for (Fiber& f : fibers)
      if (f.state == State::at_barrier) return fail("a barrier that not all threads reach", f.line);
  }
}

inline void launch(dim3 blocks, dim3 threads, size_t shared_bytes, int order, std::function<void()> kernel) {
  grid = blocks;
  block = threads;
  body = std::move(kernel);
  error.clear();
  size_t n = size_t(threads.x) * threads.y * threads.z, num_blocks = size_t(blocks.x) * blocks.y * blocks.z;
  if (n % 32) { error = "blocks of threads must be whole warps"; return; }
  fibers.resize(n);
  received.assign(n / 32, std::vector<Value>(32));
  stacks.resize(n * STACK);
  std::mt19937 random(7);
  for (size_t k = 0; k < num_blocks; ++k) {
    size_t i = order == 1 ? num_blocks - 1 - k : k;
    block_index = {unsigned(i % blocks.x), unsigned(i / blocks.x % blocks.y), unsigned(i / blocks.x / blocks.y)};
    dynamic_shared.assign(shared_bytes + GUARD, char(0xFF));
    if (__start_cuda_shared) memset(__start_cuda_shared, 0xFF, __stop_cuda_shared - __start_cuda_shared);
    for (size_t t = 0; t < n; ++t) {
      Fiber& fiber = fibers[t];
      fiber.state = State::fresh;
      fiber.index = {unsigned(t % threads.x), unsigned(t / threads.x % threads.y), unsigned(t / threads.x / threads.y)};
      getcontext(&fiber.entry);
      fiber.entry.uc_stack.ss_sp = &stacks[t * STACK];
      fiber.entry.uc_stack.ss_size = STACK;
      fiber.entry.uc_link = nullptr;
      makecontext(&fiber.entry, entry, 0);
    }
    if (!run_block(order, random)) return;
    for (size_t g = 0; g < GUARD; ++g)
      if (dynamic_shared[shared_bytes + g] != char(0xFF)) { error = "written behind the dynamic shared memory"; return; }
  }
}

// Kernels by name, called as cuLaunchKernel calls them: with pointers to their arguments.
inline std::map<std::string, std::function<std::function<void()>(void**)>>& kernels() {
  static std::map<std::string, std::function<std::function<void()>(void**)>> all;
  return all;
}
template <class... A, size_t... I>
std::function<void()> bound(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  return [=] { kernel(*static_cast<A*>(arguments[I])...); };
}
template <class... A>
bool add(const char* name, void (*kernel)(A...)) {
  kernels()[name] = [=](void** arguments) { return bound(kernel, arguments, std::index_sequence_for<A...>()); };
  return true;
}

inline float from_bf16(unsigned bits) {
  bits <<= 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline unsigned to_bf16(float value) {  // to nearest, ties to even; NaN stays NaN
  unsigned bits;
  memcpy(&bits, &value, 4);
  return value != value ? 0x7FFF : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

}  // namespace cpu

extern "C" inline int cuda_on_cpu_launch(const char* name, const unsigned* grid, const unsigned* block, unsigned shared_bytes, void** arguments, int order) {
  auto found = cpu::kernels().find(name);
  if (found == cpu::kernels().end()) {
    cpu::error = std::string("no kernel of the name ") + name;
    return 1;
  }
  cpu::launch({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared_bytes, order, found->second(arguments));
  return !cpu::error.empty();
}
extern "C" inline const char* cuda_on_cpu_error() { return cpu::error.c_str(); }
__attribute__((used)) inline void* cuda_on_cpu_exports[] = {(void*)cuda_on_cpu_launch, (void*)cuda_on_cpu_error};

#define EXPORT(kernel) static bool is_known_##kernel = cpu::add(#kernel, kernel);
#define __global__
#define __device__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ __attribute__((section("cuda_shared"))) static
#define DYNAMIC_SHARED(name) char* name = cpu::dynamic_shared.data()
#define threadIdx (cpu::current->index)
#define blockIdx (cpu::block_index)
#define blockDim (cpu::block)
#define gridDim (cpu::grid)
#define __syncthreads() cpu::wait(cpu::State::at_barrier, __LINE__)
#define __shfl_xor_sync(mask, value, x) \
  cpu::taken_from<std::decay_t<decltype(value)>>(cpu::exchange(value, __LINE__), cpu::lane() ^ (x))

using std::max;
using std::min;
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffsll(unsigned long long x) { return __builtin_ffsll((long long)x); }
inline float __int_as_float(unsigned bits) { float value; memcpy(&value, &bits, 4); return value; }
inline int atomicMax(int* p, int value) { int old = *p; *p = max(old, value); return old; }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  unsigned long long both = low | (unsigned long long)high << 32;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) out |= unsigned(both >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  return out;
}
inline unsigned pack(float low, float high) { return cpu::to_bf16(high) << 16 | cpu::to_bf16(low); }

struct Fragments { unsigned a[4], b[2]; };
inline void mma_at(int line, float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  Fragments mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const std::vector<cpu::Value>& all = cpu::exchange(mine, line);
  for (int i = 0; i < 4; ++i) {
    int row = cpu::lane() / 4 + i / 2 * 8, column = cpu::lane() % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      Fragments left = cpu::taken_from<Fragments>(all, row % 8 * 4 + k % 8 / 2);
      Fragments right = cpu::taken_from<Fragments>(all, column * 4 + k % 8 / 2);
      unsigned a_two = left.a[row / 8 + k / 8 * 2], b_two = right.b[k / 8];
      c[i] += cpu::from_bf16(a_two >> k % 2 * 16 & 0xFFFF) * cpu::from_bf16(b_two >> k % 2 * 16 & 0xFFFF);
    }
  }
}
#define mma(...) mma_at(__LINE__, __VA_ARGS__)
