"""Compresses a trained model to a budget: bits, corrections, a verified .tflite file.

  python -m train.compress --model=model.keras --scaling=0..255 --images=FOLDER \
      --budget=60kB --workdir=runs/me

The code is in gmpq_tf/train/compress.py; `--help` prints the rest.
"""

from gmpq_tf.train.compress import run

if __name__ == "__main__":
    run()
