// Spelling of the compilers that read our sources: nvcc, g++ for the CPU, g++ under the CUDA emulation of the tests.
#pragma once

#if defined(__CUDACC__)
#define FSSOPS_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Always inlined, so that no copy made for one instruction set can stand in for another's.
#define FSSOPS_HOST_DEVICE inline __attribute__((always_inline))
#endif
