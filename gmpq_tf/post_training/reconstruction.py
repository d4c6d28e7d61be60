"""Learns a student block by block from images without labels (BRECQ)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import keras
import numpy as np
from tqdm import tqdm

from gmpq_tf.files import DamagedFileError, replace_file
from gmpq_tf.post_training.blocks import find_blocks
from gmpq_tf.post_training.open_block import Learned, OpenBlock
from gmpq_tf.post_training.open_layer import BlockConfig
from gmpq_tf.post_training.rounding import check_grids
from gmpq_tf.post_training.walk import Walk


def learn_blocks(
    student: keras.Model,
    model: keras.Model,
    dataset: Any,
    batches: int | None = None,
    config: BlockConfig | None = None,
    seed: int = 0,
    state: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> dict[str, Learned]:
    """Learns codes, steps, ranges and biases so that blocks match the float network.

    `min ||f(x) - f_q(x_q)||^2` for each block of three layers or more, such as an
    inverted residual of MobileNetV2, in the order of the graph. Here f is the block of
    the float network and `x_q` the input of the student's block. Kernel codes are
    learned as in `learn_rounding`; also a factor for each channel's kernel step, a
    shift for each bias, and the range of each activation that is not tied to another
    grid. A block is left unchanged if its error on these images was smaller before. The
    rounding of a kernel is left unchanged if it has more than half as many weights a
    channel as there are sums of that channel on all images, as in a last layer with
    many classes.

    Unlike the paper errors are not weighted by the task's gradient, and kernel steps
    and biases are learned too.

    Args:
        student: from `quantize_model` with kernel quantizer "lsq", calibrated; changed
            in place.
        model: the float model it was made of; not changed.
        dataset: images, as `calibrate` takes them; the tensors that a block reads and
            writes are kept in memory for all of them.
        batches: how many batches to use; None: all.
        config: options; None: the defaults.
        seed: seed for drawing the images of each step.
        state: file that is written after each block, and from which an interrupted call
            is resumed; None: no file. A file of another student, of other options or
            images is overwritten.
        progress: whether a bar is shown on a terminal.

    Returns:
        Name of a block's last layer -> its result. Layers used more than once are not
        learned; a warning names them.

    Raises:
        CalibrationError: the student is not calibrated or of another model, or has
            kernels whose steps are not learned or whose codes are not whole numbers.
        InputError: there are no images, or they do not fit the model.
        DamagedFileError: `state` is a file of another kind.

    Source: Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block
    Reconstruction", ICLR 2021, section 3.2.
    """
    config = config or BlockConfig()
    check_grids(student)
    walk = Walk(student, model, dataset, batches)
    graph, reference = walk.student.graph, walk.reference
    blocks = find_blocks(graph, reference.graph, config.kernels)
    saved = Saved(state, student, (dataclasses.asdict(config), seed), walk.student)
    found = saved.restore()
    hidden = None if progress else True  # None: shown on terminals only
    with tqdm(total=len(blocks) * config.steps, unit="step", disable=hidden) as bar:
        bar.update(len(found) * config.steps)
        for number, block in enumerate(blocks):
            if block.name in found:
                continue
            bar.set_description(block.name)
            x = _joined(walk.student.tensors(block.start))
            y = {
                index: np.concatenate([*reference.outputs(call)])
                for index, call in sorted(block.targets.items(), key=lambda p: p[1])
            }
            random = np.random.default_rng((seed, number))
            opened = OpenBlock(graph, block, config, walk.student.images)
            targets = [y[index] for index in opened.targets]
            found[block.name] = opened.learn(x, targets, random, bar.update)
            saved.keep(found)
    if walk.shared:
        warnings.warn(
            "These layers are used more than once and keep their rounding: "
            f"{', '.join(walk.shared)}.",
            stacklevel=2,
        )
    return found


def _joined(batches: Iterator[dict[int, Any]]) -> dict[int, np.ndarray]:
    """Concatenates batches: tensor number -> values of all images, [images, ...]."""
    found: dict[int, list[np.ndarray]] = {}
    for tensors in batches:
        for index, value in tensors.items():
            found.setdefault(index, []).append(np.asarray(value))
    return {index: np.concatenate(parts) for index, parts in found.items()}


class Saved:
    """A file with the student's weights after each block, for resuming.

    The file has a hash of the student's first weights, the options and the images. Only
    a file with the same hash is used.

    Args:
        path: the file; None: nothing is saved.
        student: the student.
        options: everything else that determines the result, as plain JSON values.
        run: has the images.
    """

    def __init__(self, path: Any, student: keras.Model, options: Any, run: Any) -> None:
        self.path = None if path is None else Path(path)
        self.student = student
        digest = hashlib.sha256(json.dumps(options).encode())
        arrays = [*student.weights, *(v for t in run.given for v in t.values())]
        for array in arrays if self.path else ():
            digest.update(np.ascontiguousarray(array).tobytes())
        self.identity = digest.hexdigest()

    def restore(self) -> dict[str, Learned]:
        """Restores the student's weights; returns the results of an earlier call.

        Raises:
            DamagedFileError: the file is damaged, or was written by something else.
        """
        if self.path is None or not self.path.exists():
            return {}
        try:
            with np.load(self.path, allow_pickle=False) as file:
                record = json.loads(str(file["record"]))
                if record["identity"] != self.identity:
                    return {}
                for number, weight in enumerate(self.student.weights):
                    weight.assign(file[str(number)])
        except (ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise DamagedFileError(
                "The state must be a file that learning blocks has written. "
                f"Received: state={str(self.path)!r}, which is something else. Pass "
                "the path of a new file."
            ) from error
        return {
            name: Learned(**{**values, "layers": tuple(values["layers"])})
            for name, values in record["blocks"].items()
        }

    def keep(self, found: dict[str, Learned]) -> None:
        """Saves the student's weights and the results so far."""
        if self.path is None:
            return
        blocks = {name: dataclasses.asdict(done) for name, done in found.items()}
        record = json.dumps({"identity": self.identity, "blocks": blocks})
        weights = {str(n): np.asarray(w) for n, w in enumerate(self.student.weights)}
        with replace_file(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, record=np.array(record), **weights)
