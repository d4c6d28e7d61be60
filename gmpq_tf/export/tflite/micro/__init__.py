"""What is written with a file for TFLite Micro: C source, arena size, INT4 kernels."""
