# The target `cuda_check`: compiles every .cu with nvcc for one architecture and throws the result away.
find_program(SFTN_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin)
set(SFTN_CUDA_CHECK_ARCH "sm_90" CACHE STRING "Architecture that cuda_check compiles for")

if(SFTN_NVCC)
  set(objects)
  foreach(source IN LISTS SFTN_CUDA_SOURCES)
    get_filename_component(name ${source} NAME_WE)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/cuda_check/${name}.o)
    add_custom_command(
      OUTPUT ${object}
      COMMAND
        ${SFTN_NVCC} -std=c++17 -O3 -arch=${SFTN_CUDA_CHECK_ARCH} -DUSE_CUDA
        -DTORCH_TARGET_VERSION=${SFTN_TORCH_TARGET_VERSION} -isystem ${SFTN_TORCH_DIR}/include -MD -MF ${object}.d -c
        ${source} -o ${object}
      DEPENDS ${source}
      DEPFILE ${object}.d
      COMMENT "nvcc ${name}.cu for ${SFTN_CUDA_CHECK_ARCH}"
      VERBATIM)
    list(APPEND objects ${object})
  endforeach()
  file(MAKE_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/cuda_check)
  add_custom_target(cuda_check DEPENDS ${objects})
else()
  add_custom_target(cuda_check COMMAND ${CMAKE_COMMAND} -E echo "cuda_check: no nvcc found, nothing compiled")
endif()
