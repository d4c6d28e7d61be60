"""Trains the float model.

  python -m train.pretrain --dataset=digits --model=digits_cnn --workdir=runs/digits
  python -m train.pretrain --model=resnet8.h5 --epochs=0 --scaling=0..255

The code is in gmpq_tf/train/pretrain.py; `--help` prints the rest.
"""

from gmpq_tf.train.pretrain import run

if __name__ == "__main__":
    run()
