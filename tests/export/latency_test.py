import keras
import pytest

from gmpq_tf.export.latency.phone import (
    Folder,
    parse_output,
    read_folder,
    write_folder,
)
from gmpq_tf.export.latency.pieces import File, pieces_of
from gmpq_tf.export.latency.programs import student_of as student_of_policy
from gmpq_tf.export.latency.timing import Timing, lower_quartile, time_files
from gmpq_tf.export.tflite.flatbuffer import read_model, stored_codes
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.latency import LatencyError
from gmpq_tf.policy import BitwidthPolicy
from tests.export.nets import NETS, randomize, student_of

# As `benchmark_model` of TensorFlow 2.16 prints it on a phone.
OUTPUT = """INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Num threads: [1]
INFO: Graph: [/data/local/tmp/gmpq_latency/0000.tflite]
INFO: Loaded model /data/local/tmp/gmpq_latency/0000.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: The input model file size (MB): 0.004
INFO: Initialized session in 5.685ms.
INFO: Running benchmark for at least 10 iterations and at least 0.5 seconds but \
terminate if exceeding 150 seconds.
INFO: count=1800 first=2350 curr=241 min=238 max=2350 avg=275.6 std=90
INFO: Inference timings in us: Init: 5685, First inference: 2350, Warmup (avg): 275.6, \
Inference (avg): {}
INFO: Note: as the benchmark tool itself affects memory footprint, the following is \
only APPROXIMATE to the actual memory footprint of the model at runtime.
INFO: Memory footprint delta from the start of the tool (MB): init=1.2 overall=2.1
"""


@pytest.mark.parametrize("storage", ["fast", "smallest"])
@pytest.mark.parametrize("net", ["residual", "inverted"])
def test_pieces_are_all_operators_once(net, storage):
    lowered = lower(student_of(randomize(NETS[net](), 0), 2, 4), storage)
    pieces, file = pieces_of(lowered), File(lowered.content)
    numbers = [number for piece in pieces for number in piece.operators]
    assert numbers == list(range(len(file.operators)))
    kernels = [piece.layer for piece in pieces if piece.kernel]
    assert sorted(kernels) == sorted(kernel.name for kernel in lowered.kernels)


def test_a_piece_computes_what_it_does_in_the_file():
    lowered = lower(student_of(randomize(NETS["residual"](), 0), 2, 4), "smallest")
    file = File(lowered.content)
    kernels = {kernel.name: kernel.tensor for kernel in lowered.kernels}
    for piece in pieces_of(lowered):
        content = file.cut(piece.operators, 3)
        TFLiteModel(content).interpreter.invoke()
        cut = read_model(content)
        subgraph = cut.subgraphs[0]
        assert len(subgraph.operators) == 3 * len(piece.operators)
        assert len(subgraph.outputs) == 3
        if piece.kernel:
            wanted = stored_codes(file.model, kernels[piece.layer])
            held = [
                number
                for number, tensor in enumerate(subgraph.tensors)
                if list(tensor.shape) == list(wanted.shape) and tensor.buffer
            ]
            assert any((stored_codes(cut, n) == wanted).all() for n in held)


def test_equal_layers_are_one_shape_and_others_are_not():

    def keys(seed, weight_bits):
        inputs = keras.Input((16,))
        x = keras.layers.Dense(32, name="first")(inputs)
        for name in ("a", "b"):
            x = keras.layers.Dense(32, activation="relu", name=name)(x)
        model = randomize(keras.Model(inputs, x), seed)
        policy = BitwidthPolicy.uniform(model, weight_bits, 8, pinned={})
        pieces = pieces_of(lower(student_of_policy(model, policy), "smallest"))
        return [piece.key for piece in pieces if piece.kernel]

    assert keys(0, 8) == keys(1, 8)  # the numbers in a kernel do not matter
    first, a, b = keys(0, 8)
    assert first != a
    assert a == b
    assert not {*keys(0, 8)} & {*keys(0, 2)}


def test_times_are_the_lower_quartile_of_turns():
    now, costs = [0.0], {"a": 1.0, "b": 10.0}
    runs = {"a": 0, "b": 0}

    def opened(content, threads):
        assert threads == 2
        name = content.decode()

        def invoke():
            runs[name] += 1
            slow = 100.0 if runs[name] > 24 else 1.0  # the last of four turns
            now[0] += costs[name] * slow

        return invoke

    timing = Timing(threads=2, rounds=4, invocations=5, clock=lambda: now[0])
    assert time_files({"a": b"a", "b": b"b"}, timing, opened) == {
        "a": 1000.0,
        "b": 10000.0,
    }
    assert runs == {"a": 32, "b": 32}  # three of each turn are not timed
    assert lower_quartile([5.0, 1.0, 3.0, 2.0]) == 2.0


@pytest.mark.parametrize(
    ("text", "ms"), [("251.5", 0.2515), ("1.79e+06", 1790.0), ("12", 0.012)]
)
def test_what_benchmark_model_prints(tmp_path, text, ms):
    path = tmp_path / "0000.txt"
    path.write_text(OUTPUT.format(text))
    assert parse_output(path) == pytest.approx(ms)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ERROR: Failed to load model",
        OUTPUT.format("nan"),
        OUTPUT.format("-3"),
        OUTPUT.format("0"),
        OUTPUT.format("soon"),
        OUTPUT.format("3") + OUTPUT.format("4"),
        OUTPUT.format("3")[:-600],
    ],
)
def test_other_outputs_are_refused_by_name(tmp_path, text):
    path = tmp_path / "0007.txt"
    path.write_text(text)
    with pytest.raises(LatencyError, match=r"0007\.txt"):
        parse_output(path)


def test_a_folder_for_a_phone(tmp_path):
    folder = Folder({"0000": "conv", "0001": "add"}, 4, 2, [], ("conv", "add", "add"))
    write_folder(tmp_path, {"0000": b"c", "0001": b"a"}, folder, b"w")
    script = (tmp_path / "run.sh").read_text()
    assert "--num_threads=2 " in script
    assert (tmp_path / "whole.tflite").read_bytes() == b"w"
    for name, time in (("0000", 800), ("0001", 40), ("whole", 205)):
        with pytest.raises(LatencyError, match=rf"{name}\.txt"):
            read_folder(tmp_path)
        (tmp_path / f"{name}.txt").write_text(OUTPUT.format(time))
    found, rows, whole = read_folder(tmp_path)
    assert found == folder
    assert rows == {"conv": 0.2, "add": 0.01}
    assert whole == 0.205
    (tmp_path / "index.json").write_text('{"format": 1, "names": {}}')
    with pytest.raises(LatencyError, match="index"):
        read_folder(tmp_path)
