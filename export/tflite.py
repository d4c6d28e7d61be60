"""Writes the .tflite file of a fine-tuned model and compares it with the Keras model.

  python -m export.tflite --workdir=runs/digits
  python -m export.tflite --workdir=runs/digits --storage=smallest

The code is in gmpq_tf/export/command.py and gmpq_tf/export/tflite/; `--help` prints
the rest.
"""

from gmpq_tf.export.command import run
from gmpq_tf.export.tflite import ExportReport, RegionDetector, export_tflite

__all__ = ["ExportReport", "RegionDetector", "export_tflite", "run"]

if __name__ == "__main__":
    run()
