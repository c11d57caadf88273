// The vocabulary every other header starts from: which functions a GPU may also run.
#pragma once

#if defined(__CUDACC__)
#define NTKFAST_HD __host__ __device__
#else
#define NTKFAST_HD
#endif

// What runs once per point, in double: a GPU calls it instead of compiling it anew for every
// criterion.
#if defined(__CUDACC__)
#define NTKFAST_HD_CALL __host__ __device__ __noinline__
#else
#define NTKFAST_HD_CALL inline
#endif

// Vector registers passed by value are only free when the call disappears.
#if defined(NTKFAST_INLINE)  // by builds that should take little time: NTKFAST_SANITIZE, EMULATED
#elif defined(_MSC_VER)
#define NTKFAST_INLINE __forceinline
#else
#define NTKFAST_INLINE inline __attribute__((always_inline))
#endif

// Unrolls loops whose trip count is a template argument, so that small arrays stay in registers.
#if defined(__CUDACC__)
#define NTKFAST_UNROLL _Pragma("unroll")
#elif defined(__clang__)
#define NTKFAST_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define NTKFAST_UNROLL _Pragma("GCC unroll 16")
#else
#define NTKFAST_UNROLL
#endif

// The same in a function template over K classes, of which K <= 0 stands for any number: nvcc
// unrolls a loop of unknown length as it likes.
#if defined(__CUDACC__)
#define NTKFAST_UNROLL_CLASSES _Pragma("unroll (K > 0 ? K : 2)")
#define NTKFAST_UNROLL_HOT_CLASSES _Pragma("unroll (K > 0 ? K : kLabelsAtOnce)")
#define NTKFAST_KEEP_LOOP _Pragma("unroll 1")
#define NTKFAST_UNROLL_CLASSES_ON_GPU _Pragma("unroll (K > 0 ? K : 1)")
#else
#define NTKFAST_UNROLL_CLASSES_ON_GPU
#define NTKFAST_UNROLL_CLASSES NTKFAST_UNROLL
#define NTKFAST_UNROLL_HOT_CLASSES NTKFAST_UNROLL
#define NTKFAST_KEEP_LOOP
#endif
