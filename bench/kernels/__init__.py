"""Times of the Triton kernels against other libraries, configurations to try, and roofline bounds.

``bench/kernels/gpu.sh`` runs the GPU tests and benchmarks of the kernels in one command.
"""
