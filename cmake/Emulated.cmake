# The CUDA sources compiled by the host compiler against tests/simt/include.
# AddressSanitizer reports every access through what the second line leaves out: null, an object that is too small, an
# address that overflowed. Each of them would check each pointer once more, which doubles the time to compile.
set(SFTN_SANITIZE
    -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
    -fno-sanitize=null,object-size,pointer-overflow,vptr,nonnull-attribute,returns-nonnull-attribute)

# Calls before each access; tests/simt/include/simt_emulator/memory.h defines what is called. They hide from the compiler
# that a loop without items leaves nothing uninitialised.
set(SFTN_WATCH -fsanitize=thread --param=tsan-instrument-func-entry-exit=0 -Wno-maybe-uninitialized)

# What differs between the two variants: "asan" carries AddressSanitizer and UBSan, "plain" watches memory itself. That is
# as fast with -Og as with -O2, because most time goes into switching between the device's threads, and compiles in half
# the time.
function(sftn_emulate target variant)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/tests/simt/include)
  target_compile_options(${target} PRIVATE -Wall -Wno-unknown-pragmas)
  if(variant STREQUAL "asan")
    target_compile_options(${target} PRIVATE -O0 -g1 ${SFTN_SANITIZE})
    target_link_options(${target} PRIVATE ${SFTN_SANITIZE})
  else()
    target_compile_options(${target} PRIVATE -Og ${SFTN_WATCH})
  endif()
endfunction()

# Compiles .cu files as C++ in this directory.
file(GLOB SFTN_CUDA_SOURCES CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/cuda/*.cu)
set_source_files_properties(${SFTN_CUDA_SOURCES} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")

# A library `sftn_emulated.so` that registers torch.ops.sftn_fast_emulated, in `folder`.
function(sftn_emulated_library target variant folder)
  add_library(${target} MODULE EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/tests/simt/module.cpp ${SFTN_CUDA_SOURCES})
  sftn_emulate(${target} ${variant})
  target_link_libraries(${target} PRIVATE torch_stable)
  # Parsing them takes a tenth of the build, in every source.
  target_precompile_headers(${target} PRIVATE <cuda_runtime.h> ${PROJECT_SOURCE_DIR}/csrc/tensor.h)
  if(variant STREQUAL "plain")
    target_link_options(${target} PRIVATE -Wl,--wrap=aoti_torch_empty_strided)  # in module.cpp
  endif()
  set_target_properties(${target} PROPERTIES PREFIX "" OUTPUT_NAME sftn_emulated SUFFIX .so
                                             LIBRARY_OUTPUT_DIRECTORY ${folder})
endfunction()
