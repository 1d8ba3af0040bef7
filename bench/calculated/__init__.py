"""Times of the CUDA kernels on an H200, calculated without a GPU: `python -m bench.calculated`.

Registers and machine code are nvcc's, for sm_90. Launches and their accesses to memory are the emulator's, which runs
the same sources with the grids of 132 multiprocessors.
"""
