"""Searches and fine-tunes at every point of a grid, and draws accuracy against BOPs.

  python -m train.sweep --spec=sweep.json --model=model.keras --workdir=runs/sweep

The code is in gmpq_tf/train/sweep.py; `--help` prints the rest.
"""

from gmpq_tf.train.sweep import run

if __name__ == "__main__":
    run()
