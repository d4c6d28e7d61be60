"""Measures the models of a workdir: accuracy, and agreement of .tflite with Keras.

  python -m train.evaluate --workdir=runs/digits --split=test

The code is in gmpq_tf/train/evaluate.py; `--help` prints the rest.
"""

from gmpq_tf.train.evaluate import run

if __name__ == "__main__":
    run()
