# Defines the target `torch_stable`: LibTorch's headers and libraries, as far as its stable ABI needs them.
#
# Taken from the torch of Python_EXECUTABLE. Its own TorchConfig.cmake is not used: it wants a CUDA toolkit wherever
# torch was built with CUDA.
execute_process(
  COMMAND ${Python_EXECUTABLE} -c
          "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
  OUTPUT_VARIABLE SFTN_TORCH_DIR
  OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)

# The oldest libtorch whose stable ABI the sources use, as in setup.py.
set(SFTN_TORCH_TARGET_VERSION 0x020a000000000000)

add_library(torch_stable INTERFACE)
target_include_directories(torch_stable SYSTEM INTERFACE ${SFTN_TORCH_DIR}/include)
target_compile_definitions(torch_stable INTERFACE TORCH_TARGET_VERSION=${SFTN_TORCH_TARGET_VERSION})
target_link_directories(torch_stable INTERFACE ${SFTN_TORCH_DIR}/lib)
target_link_libraries(torch_stable INTERFACE torch_cpu c10)
