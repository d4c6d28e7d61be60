"""Measures how long the layers of a model take in an exported file, shape by shape.

  python -m train.latency --model=model.keras --output=latency.json
  python -m train.latency --model=model.keras --output=latency.json --policy=uniform:4,4

The code is in gmpq_tf/train/latency.py; `--help` prints the rest.
"""

from gmpq_tf.train.latency import run

if __name__ == "__main__":
    run()
