"""Puts the results of a workdir into a table and a page.

  python -m train.report --workdir=runs/digits

The code is in gmpq_tf/train/report.py; `--help` prints the rest.
"""

from gmpq_tf.train.report import run

if __name__ == "__main__":
    run()
