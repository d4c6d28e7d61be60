"""Prints what a model costs, layer by layer: MACs, BOPs, bytes.

  python -m train.cost --model=resnet18 --image_size=224 --num_classes=1000
  python -m train.cost --model=model.keras --policy=runs/digits/search/policy.json
  python -m train.cost --model=model.keras --policy=uniform:3,3 --format=csv
  python -m train.cost --model=model.keras --budget=W4A4,60kB

The code is in gmpq_tf/train/cost.py; `--help` prints the rest.
"""

from gmpq_tf.train.cost import run

if __name__ == "__main__":
    run()
