// Replaces CUDA's header when a host compiler builds a .cu file: g++ -x c++ -I tests/simt/include kernel.cu
//
// Blocks run one after another and the threads of a block are fibers that give up control only at a barrier or a warp
// collective. What a GPU leaves undefined is an error here: barriers that some threads never reach, collectives that
// lanes call differently, reads of shared memory that nobody wrote (it holds poison). schedule.seed shuffles blocks,
// warps and lanes, so that a missing barrier becomes a wrong result; under AddressSanitizer and UBSan an access out of
// bounds or misaligned is reported at its line of the .cu file.
//
// It covers only the part of CUDA that the project's kernels use; anything else fails to compile.
#pragma once

#define SIMT_EMULATOR 1

#include "simt_emulator/context.h"
#include "simt_emulator/intrinsics.h"
#include "simt_emulator/language.h"
#include "simt_emulator/launch.h"
#include "simt_emulator/memory.h"
#include "simt_emulator/runtime.h"
#include "simt_emulator/scheduler.h"
