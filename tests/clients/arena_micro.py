"""What TFLite Micro allocates: arena_micro.py MODEL INPUTS.npz OUTPUT.txt."""

import os
import sys
from pathlib import Path

from tflite_micro import runtime

ARENA_BYTES = 1 << 26


def main(model, inputs, output):
    interpreter = runtime.Interpreter.from_bytes(
        Path(model).read_bytes(),
        arena_size=ARENA_BYTES,
        intrepreter_config=runtime.InterpreterConfig.kAllocationRecording,
    )
    # The runtime prints, below Python.
    with Path(output).open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        interpreter.print_allocations()


if __name__ == "__main__":
    main(*sys.argv[1:])
