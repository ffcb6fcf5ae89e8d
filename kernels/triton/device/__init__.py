"""What runs on the GPU: Triton's kernels, and the functions that they share. Importing any of it loads Triton."""
