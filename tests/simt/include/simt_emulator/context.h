// Switches between stacks: one context for each CUDA thread, and one for the scheduler.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt_emulator {

struct Context {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t saved;
#endif
  // AddressSanitizer must know on which stack the program runs.
  const void* stack = nullptr;
  std::size_t stack_bytes = 0;
  void* fake_stack = nullptr;
};

#if defined(__x86_64__)
// Saves the callee-saved registers on one stack and restores them from the other; ucontext would also make two system
// calls for the signal mask. `noipa` hides that it touches no memory: other threads do meanwhile.
__attribute__((naked, noipa)) inline void swap_stacks(void** /*from*/, void** /*to*/) {
  asm("push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
      "mov %rsp, (%rdi); mov (%rsi), %rsp\n"
      "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret");
}
#endif

inline void prepare_context(Context& context, char* stack, std::size_t bytes, void (*entry)()) {
  context.stack = stack;
  context.stack_bytes = bytes;
  context.fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack, bytes);  // a thread leaves its last frame without returning
#endif
#if defined(__x86_64__)
  constexpr int kSavedRegisters = 6;
  const auto top = reinterpret_cast<std::uintptr_t>(stack + bytes) & ~std::uintptr_t(15);
  void** pointer = reinterpret_cast<void**>(top) - 2;  // the ABI wants rsp % 16 == 8 on entry
  *pointer = reinterpret_cast<void*>(entry);
  pointer -= kSavedRegisters;
  std::memset(pointer, 0, kSavedRegisters * sizeof(void*));
  context.stack_pointer = pointer;
#else
  getcontext(&context.saved);
  context.saved.uc_stack.ss_sp = stack;
  context.saved.uc_stack.ss_size = bytes;
  context.saved.uc_link = nullptr;
  makecontext(&context.saved, entry, 0);
#endif
}

inline void switch_context(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
#if defined(__x86_64__)
  swap_stacks(&from.stack_pointer, &to.stack_pointer);
#else
  swapcontext(&from.saved, &to.saved);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// The first action of a new context: read the stack of the context that started it.
inline void enter_context([[maybe_unused]] Context& starter) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &starter.stack, &starter.stack_bytes);
#endif
}

}  // namespace simt_emulator
