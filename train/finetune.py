"""Fine-tunes the quantized model of a policy.

  python -m train.finetune --workdir=runs/digits
  python -m train.finetune --workdir=runs/digits --name=uniform --policy=uniform:3,3

The code is in gmpq_tf/train/finetune.py; `--help` prints the rest.
"""

from gmpq_tf.train.finetune import run

if __name__ == "__main__":
    run()
