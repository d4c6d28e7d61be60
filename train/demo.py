"""The whole path on real images: float model, policy, .tflite, report.

  python -m train.demo                                  4 minutes on 2 cores
  python -m train.demo --dataset=cifar10 --workdir=runs/cifar10

The code is in gmpq_tf/train/demo.py; `--help` prints the rest.
"""

from gmpq_tf.train.demo import run

if __name__ == "__main__":
    run()
