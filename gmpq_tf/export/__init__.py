"""Exporters: from a quantized Keras model to the files that devices run."""
