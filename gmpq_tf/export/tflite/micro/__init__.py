"""What a file for TFLite Micro comes with: C source, arena, and CMSIS-NN's INT4."""
