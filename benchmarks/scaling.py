"""What ImageNet fine-tuning and sweeps cost on a number of accelerators.

    python benchmarks/scaling.py --images_per_second=909 --network=resnet50_v1_5

`hours = epochs images 3 MACs ratio / (R devices efficiency) / 3600`, with the speed of
one device `R = images_per_second 3 MACs(network)`, measured in float training of
`network` at 224 pixels: a step is one pass forward and two backward. `ratio` is the
time of the step over a float step (`benchmarks/search_step.py`).
"""

from __future__ import annotations

import argparse

IMAGENET_IMAGES = 1_281_167
EPOCHS = 40  # section 4.1 of the paper
PASSES = 3  # forward, and backward for inputs and for weights
NETWORKS = ("resnet18", "resnet50_v1_5")


def macs_of(network: str) -> int:
    """Multiply-adds of a built-in network on one image of ImageNet."""
    from gmpq_tf.graph import layer_macs
    from gmpq_tf.models import build_model

    return sum(layer_macs(build_model(network, (224, 224, 3), 1000)).values())


def hours(
    macs: float, speed: float, devices: int, ratio: float, efficiency: float
) -> float:
    """Hours of fine-tuning on ImageNet.

    Args:
        macs: multiply-adds of an image.
        speed: multiply-adds a second of one device in float training.
        devices: how many share each batch.
        ratio: time of a fine-tuning step over a float step.
        efficiency: speed of `devices` over that of one, times `devices`; 0 to 1.
    """
    work = EPOCHS * IMAGENET_IMAGES * PASSES * macs * ratio
    return work / (speed * devices * efficiency) / 3600


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images_per_second", type=float, default=909.0)
    parser.add_argument("--network", default="resnet50_v1_5", help="it was measured on")
    parser.add_argument("--ratio", type=float, default=1.25, help="over a float step")
    parser.add_argument("--policies", type=int, default=100, help="points of the sweep")
    parser.add_argument(
        "--efficiency", default="1:1,8:0.96,64:0.86", help="devices:efficiency, ..."
    )
    args = parser.parse_args()
    macs = {name: macs_of(name) for name in {*NETWORKS, args.network}}
    speed = args.images_per_second * PASSES * macs[args.network]
    print(f"R = {speed / 1e12:.1f} TMAC/s a device\n")
    print(f"| network | accelerators | one fine-tuning | {args.policies} policies |")
    print("|---|---|---|---|")
    for name in NETWORKS:
        for pair in args.efficiency.split(","):
            devices, efficiency = int(pair.split(":")[0]), float(pair.split(":")[1])
            one = hours(macs[name], speed, devices, args.ratio, efficiency)
            # Each policy on a device of its own: nothing is lost in communication.
            alone = hours(macs[name], speed, 1, args.ratio, 1.0)
            rounds = -(-args.policies // devices)
            print(f"| {name} | {devices} | {one:.1f} h | {rounds * alone:,.0f} h |")


if __name__ == "__main__":
    main()
