"""Searches how many bits each layer's weights and activations need.

  python -m train.search --workdir=runs/digits --bit_ops_budget=0.011

The code is in gmpq_tf/train/search.py; `--help` prints the rest.
"""

from gmpq_tf.train.search import run

if __name__ == "__main__":
    run()
