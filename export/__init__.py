"""Doors of the exporters: `python -m export.tflite` in a checkout."""
