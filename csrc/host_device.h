// SFTN_HOST_DEVICE: functions that the host and a GPU both run, always inlined.
#pragma once

#ifdef __CUDACC__
#define SFTN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SFTN_HOST_DEVICE inline __attribute__((always_inline))
#endif
