"""Run a .tflite file in TFLite Micro: run_micro.py MODEL INPUTS.npz OUTPUTS.npz.

The arrays in INPUTS.npz, in the order of the model's inputs, hold what the file takes,
batch after batch; OUTPUTS.npz gets what it gives.
"""

import sys
from pathlib import Path

import numpy as np
from tflite_micro import runtime

ARENA_BYTES = 1 << 26


def main(model, inputs, outputs):
    interpreter = runtime.Interpreter.from_bytes(
        Path(model).read_bytes(), arena_size=ARENA_BYTES
    )
    arrays = list(np.load(inputs).values())
    batch = interpreter.get_input_details(0)["shape"][0]
    results = []
    for start in range(0, len(arrays[0]), batch):
        for index, array in enumerate(arrays):
            interpreter.set_input(array[start : start + batch], index)
        interpreter.invoke()
        results.append(every_output(interpreter))
    np.savez(outputs, *map(np.concatenate, zip(*results, strict=True)))


def every_output(interpreter):
    found = []
    while True:
        try:
            interpreter.get_output_details(len(found))
        except (IndexError, ValueError, RuntimeError):
            return found
        found.append(np.array(interpreter.get_output(len(found))))


if __name__ == "__main__":
    main(*sys.argv[1:])
