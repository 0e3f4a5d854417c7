// Runs a CUDA kernel on the CPU, for tests: every CUDA thread is a fiber, a block's fibers run one at a time
// in an order that a seed decides, and change at barriers and warp operations only. A value that is read
// before the barrier that should have made it visible is therefore old in some order, and one that is written
// too early is lost.
//
// The tensor cores' operations follow the fragment layouts of the PTX manual. An asynchronous copy arrives at
// once, or as late as it may: when its thread waits for it. What this does not model is the GPU's memory order
// between fibers of one warp, and speed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include <ucontext.h>

struct dim3 {
    unsigned x, y, z;
};

struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};

struct __half {
    _Float16 value;
};
struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __half2float(__half x) { return (float)x.value; }
inline __half __float2half_rn(float x) { return {(_Float16)x}; }
inline float __bfloat162float(__nv_bfloat16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return {0x7fff};
    bits += 0x7fff + (bits >> 16 & 1);
    return {(uint16_t)(bits >> 16)};
}

namespace on_cpu {

enum class State { Ready, AtWarp, AtBlock, Done };

struct Copy {
    void* to;
    unsigned char from[16];
};

struct Fiber {
    ucontext_t context;
    State state;
    dim3 index;
    unsigned number;
    // Asynchronous copies that have not arrived, group by group; the last group is open.
    std::vector<std::vector<Copy>> copies;
};

struct Warp {
    // What each lane gives to an operation of the warp.
    alignas(16) unsigned char given[32][64];
};

struct Block {
    ucontext_t scheduler;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Fiber* running;
    dim3 index, size, grid;
    const char* error;
    std::mt19937* random;
    void (*body)(void*);
    void* arguments;
};

inline Block* block;

inline void leave(State state) {
    block->running->state = state;
    swapcontext(&block->running->context, &block->scheduler);
}

// Stops the block: the run answers with this sentence.
inline void fail(const char* why) {
    if (!block->error) block->error = why;
    leave(State::Done);
}

inline unsigned lane() { return block->running->number % 32; }

// Every lane of the warp gives a value; then use(of) may ask for that of any lane.
template <class T, class F>
void exchange(const T& mine, F use) {
    static_assert(sizeof(T) <= 64, "a lane gives at most 64 bytes");
    unsigned number = block->running->number;
    if (block->fibers.size() < (number / 32 + 1) * 32) fail("a warp operation in a warp that is not whole");
    Warp& warp = block->warps[number / 32];
    std::memcpy(warp.given[number % 32], &mine, sizeof(T));
    leave(State::AtWarp);
    use([&](unsigned lane) -> const T& { return *(const T*)warp.given[lane]; });
    leave(State::AtWarp);
}

inline void enter() {
    block->body(block->arguments);
    leave(State::Done);
}

constexpr size_t STACK = 128 * 1024;

// Runs one block. A warp goes on as far as it can, to a barrier of the block or its end, before another does: what
// no barrier holds back is as far apart as it can be. The warps' order, and that of a warp's threads, is random.
inline const char* run_block(Block& b, std::vector<unsigned char>& stacks, std::mt19937& random) {
    block = &b;
    b.random = &random;
    unsigned count = b.size.x * b.size.y * b.size.z, warps = (count + 31) / 32;
    auto shuffle = [&](std::vector<unsigned>& order) {
        for (unsigned i = (unsigned)order.size() - 1; i > 0; i--) std::swap(order[i], order[random() % (i + 1)]);
    };
    b.fibers.assign(count, Fiber{});
    b.warps.resize(warps);
    b.error = nullptr;
    if (stacks.size() < count * STACK) stacks.resize(count * STACK);
    std::vector<unsigned> warp_order(warps);
    std::vector<std::vector<unsigned>> orders(warps);
    for (unsigned i = 0; i < count; i++) {
        Fiber& f = b.fibers[i];
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = &stacks[i * STACK];
        f.context.uc_stack.ss_size = STACK;
        f.context.uc_link = nullptr;
        makecontext(&f.context, enter, 0);
        f.state = State::Ready;
        f.index = {i % b.size.x, i / b.size.x % b.size.y, i / (b.size.x * b.size.y)};
        f.number = i;
        f.copies.resize(1);
        warp_order[i / 32] = i / 32;
        orders[i / 32].push_back(i);
    }
    for (;;) {
        shuffle(warp_order);
        for (unsigned warp : warp_order) {
            std::vector<unsigned>& order = orders[warp];
            for (bool waits_for_itself = true; waits_for_itself;) {
                shuffle(order);
                for (unsigned i : order) {
                    if (b.fibers[i].state != State::Ready) continue;
                    b.running = &b.fibers[i];
                    swapcontext(&b.scheduler, &b.running->context);
                    if (b.error) return b.error;
                }
                for (unsigned i : order) waits_for_itself &= b.fibers[i].state == State::AtWarp;
                if (waits_for_itself)
                    for (unsigned i : order) b.fibers[i].state = State::Ready;
            }
        }
        unsigned at_block = 0, done = 0;
        for (const Fiber& f : b.fibers) at_block += f.state == State::AtBlock, done += f.state == State::Done;
        if (done == count) return nullptr;
        if (at_block < count) return "threads of a block wait at different places, or left before a barrier";
        for (Fiber& f : b.fibers) f.state = State::Ready;
    }
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<A>*)arguments[I]...);
}

// Runs a whole grid, its blocks in a random order. arguments: pointers to the values, as for cuLaunchKernel.
template <class... A>
const char* launch(void (*kernel)(A...), dim3 grid, dim3 size, void** arguments, unsigned seed) {
    using Call = std::pair<void (*)(A...), void**>;
    Call what{kernel, arguments};
    std::mt19937 random(seed);
    std::vector<unsigned char> stacks;
    Block b{};
    b.grid = grid;
    b.size = size;
    b.arguments = &what;
    b.body = [](void* c) { call(((Call*)c)->first, ((Call*)c)->second, std::index_sequence_for<A...>()); };
    std::vector<unsigned> order(grid.x * grid.y * grid.z);
    for (unsigned i = 0; i < order.size(); i++) order[i] = i;
    for (unsigned i = order.size() - 1; i > 0 && i < order.size(); i--) std::swap(order[i], order[random() % (i + 1)]);
    for (unsigned i : order) {
        b.index = {i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)};
        if (const char* error = run_block(b, stacks, random)) return error;
    }
    return nullptr;
}

}  // namespace on_cpu

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
// The blocks of a test run one after another, so what a block shares may be static.
#define __shared__ static
#define threadIdx (on_cpu::block->running->index)
#define blockIdx (on_cpu::block->index)
#define blockDim (on_cpu::block->size)
#define gridDim (on_cpu::block->grid)

inline void __syncthreads() { on_cpu::leave(on_cpu::State::AtBlock); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    if (mask != 0xffffffffu) on_cpu::fail("a shuffle without all lanes");
    T result;
    on_cpu::exchange(value, [&](auto of) { result = of(on_cpu::lane() ^ lanes); });
    return result;
}

namespace device {

inline float half_of(uint32_t bits, int which, __half) {
    __half x;
    uint16_t half = (uint16_t)(bits >> (16 * which));
    std::memcpy(&x, &half, 2);
    return __half2float(x);
}
inline float half_of(uint32_t bits, int which, __nv_bfloat16) { return __bfloat162float({(uint16_t)(bits >> (16 * which))}); }

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": with g = lane / 4, t = lane % 4,
// a[0] is row g, columns 2t and 2t + 1; a[1] row g + 8; a[2] and a[3] the same, eight columns on; b[0] is
// rows 2t and 2t + 1 of column g, b[1] eight rows on; c[0], c[1] row g, columns 2t, 2t + 1; c[2], c[3] row g + 8.
template <class T>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T type) {
    struct Fragments {
        uint32_t a[4], b[2];
    } mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    unsigned g = on_cpu::lane() / 4, t = on_cpu::lane() % 4;
    on_cpu::exchange(mine, [&](auto of) {
        for (int i = 0; i < 4; i++) {
            unsigned row = g + (i / 2) * 8, column = 2 * t + i % 2;
            float sum = 0.0f;
            for (unsigned k = 0; k < 16; k++) {
                const Fragments &left = of(row % 8 * 4 + k % 8 / 2), &right = of(column * 4 + k % 8 / 2);
                sum += half_of(left.a[row / 8 + k / 8 * 2], k % 2, type) * half_of(right.b[k / 8], k % 2, type);
            }
            c[i] += sum;
        }
    });
}

inline void load_matrices(uint32_t (&r)[4], const void* row, bool transposed) {
    if ((uintptr_t)row % 16) on_cpu::fail("ldmatrix from an address that is not aligned");
    unsigned g = on_cpu::lane() / 4, t = on_cpu::lane() % 4;
    on_cpu::exchange(row, [&](auto of) {
        for (int matrix = 0; matrix < 4; matrix++) {
            uint16_t pair[2];
            for (unsigned i = 0; i < 2; i++) {
                unsigned line = transposed ? 2 * t + i : g, column = transposed ? g : 2 * t + i;
                std::memcpy(&pair[i], (const uint16_t*)of(matrix * 8 + line) + column, 2);
            }
            std::memcpy(&r[matrix], pair, 4);
        }
    });
}
inline void load_matrices(uint32_t (&r)[4], const void* row) { load_matrices(r, row, false); }
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) { load_matrices(r, row, true); }

inline void copy_16_bytes(void* shared, const void* global, bool valid) {
    if ((uintptr_t)shared % 16 || (valid && (uintptr_t)global % 16)) on_cpu::fail("cp.async with an address that is not aligned");
    on_cpu::Copy copy{shared, {}};
    if (valid) std::memcpy(copy.from, global, 16);
    if ((*on_cpu::block->random)() % 2)
        std::memcpy(shared, copy.from, 16);
    else
        on_cpu::block->running->copies.back().push_back(copy);
}
inline void commit_copies() { on_cpu::block->running->copies.emplace_back(); }
template <int N>
void wait_for_copies() {
    auto& groups = on_cpu::block->running->copies;
    while (groups.size() > N + 1) {
        for (const on_cpu::Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, 16);
        groups.erase(groups.begin());
    }
}

}  // namespace device

// An entry that a test calls by name: grid and block of three each.
#define CUDA_ON_CPU_ENTRY(name)                                                                                                  \
    extern "C" __attribute__((visibility("default"))) const char* run_##name(const unsigned* grid, const unsigned* size, void** arguments, unsigned seed) {             \
        return on_cpu::launch(name, {grid[0], grid[1], grid[2]}, {size[0], size[1], size[2]}, arguments, seed);                  \
    }
