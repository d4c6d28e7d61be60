"""Texts are worked out by hand; terminals are emulated as far as the display needs."""

import io
import re
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import gmpq_tf as gmpq
from gmpq_tf import progress
from gmpq_tf.progress import Pace, number, ordered, status
from gmpq_tf.search import PolicySearch, TrainingProgress

SEARCH_LOGS = {
    "loss": 1.25,
    "accuracy": 0.5,
    "expected_bit_ops": 0.138e9,
    "task_risk": 0.75,
    "complexity_risk": 0.0108,
    "generalization_risk": 0.003,
    "rank_distance": 12.5,
    "p": 1.5,
    "zeta": 51.2,
}
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")  # all but the end of a line


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and what one would show."""

    encoding = "utf-8"

    def isatty(self):
        return True

    def screen(self):
        rows, row, column = {}, 0, 0
        for token in re.findall(r"\x1b\[A|[^\x1b]", self.getvalue()):
            if token == "\x1b[A":
                row -= 1
            elif token == "\n":
                row, column = row + 1, 0
            elif token == "\r":
                column = 0
            else:
                rows[row, column] = token
                column += 1
        height = 1 + max(r for r, _ in rows)
        width = 1 + max(c for _, c in rows)
        lines = (
            "".join(rows.get((r, c), " ") for c in range(width)) for r in range(height)
        )
        return "\n".join(line.rstrip() for line in lines).rstrip("\n").split("\n")


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "perf_counter", clock)
    monkeypatch.setenv("COLUMNS", "80")
    return clock


def started(file, budget=None, epochs=3, steps=4, kind="auto"):
    shown = TrainingProgress(kind, batch_size=100, file=file)
    optimizer = SimpleNamespace(learning_rate=0.1)
    shown.set_model(SimpleNamespace(optimizer=optimizer, budget=budget))
    shown.set_params({"epochs": epochs, "steps": steps})
    shown.on_train_begin()
    return shown


def steps(shown, clock, seconds, logs, first=0):
    for batch, duration in enumerate(seconds, first):
        clock.now += duration
        shown.on_train_batch_end(batch, logs)


def epoch(shown, clock, number, seconds, logs, validation=0.0):
    shown.on_epoch_begin(number)
    steps(shown, clock, seconds, logs)
    shown.on_test_begin()
    clock.now += validation
    shown.on_epoch_end(number, logs)


def test_time_left_leaves_out_the_step_that_compiles():
    pace = Pace()
    pace.begin(0.0)
    pace.step(10.0, 1)
    assert pace.steps_per_second == 0
    pace.step(12.0, 2)
    pace.step(14.0, 3)
    assert pace.steps_per_second == 0.5
    assert pace.left_in_epoch(5) == 2 * 2
    assert pace.left_in_run(5, 1) == 2 * 2 + 5 * 2
    pace.step(18.0, 5)
    pace.end(21.0)
    assert (pace.seconds, pace.between_epochs) == (21.0, 3.0)
    assert pace.left_after_epoch(2) == 2 * (5 * 2 + 3)
    pace.begin(30.0)
    pace.step(31.0, 1)  # nothing compiles any more
    assert pace.left_in_run(5, 1) == 4 + 3 + (5 + 3)


def test_epochs_of_one_step_have_a_speed():
    pace = Pace()
    for began, seconds, expected in ((0.0, 10.0, 0.1), (20.0, 2.0, 0.5)):
        pace.begin(began)
        pace.step(began + seconds, 1)
        pace.end(began + seconds)
        assert pace.steps_per_second == expected


def test_a_terminal_shows_bar_speed_time_left_and_the_search(clock):
    terminal = Terminal()
    shown = started(terminal, budget=0.1369e9)
    shown.on_epoch_begin(0)
    assert terminal.screen() == [f"Epoch 1/3  0/4 |{' ' * 54}| starting"]
    steps(shown, clock, [30.0, 2.0], SEARCH_LOGS)
    # Left: 2 of 4 steps of 2 s, then two epochs of 4 steps.
    right = "left: epoch 00:04, run 00:20; 50 images/s"
    # 21 columns are left for the bar: ten and a half are full.
    assert terminal.screen() == [
        f"Epoch 1/3  2/4 |{'█' * 10}▌{' ' * 10}| {right}",
        "loss 1.250  accuracy 0.5000  0.1380 of 0.1369 GBOPs",
        "risks: task 0.7500  complexity 0.01080  generalization 0.003000  zeta 51.20  "
        "ran",  # 80 columns are full
    ]
    shown.on_test_begin()
    assert terminal.screen()[0].startswith("Epoch 1/3  validation |█")


def test_rows_stay_on_a_terminal_and_the_bar_goes(clock):
    terminal = Terminal()
    shown = started(terminal)
    for n in range(3):
        epoch(shown, clock, n, [2.0] * 4, {"loss": 0.5, "accuracy": 0.25}, 1.0)
    shown.on_train_end()
    assert terminal.screen() == [
        "   epoch   seconds  images/s  learning_rate      loss  accuracy      left",
        "     1/3       9.0        50         0.1000    0.5000    0.2500     00:18",
        "     2/3       9.0        50         0.1000    0.5000    0.2500     00:09",
        "     3/3       9.0        50         0.1000    0.5000    0.2500     00:00",
    ]


def test_an_error_in_fit_leaves_no_bar(clock):
    terminal = Terminal()
    shown = started(terminal)
    shown.on_epoch_begin(0)
    steps(shown, clock, [1.0, 1.0], SEARCH_LOGS)
    shown.close()
    assert terminal.screen() == [""]
    shown.close()


def test_a_file_gets_a_row_an_epoch_and_at_most_a_line_a_minute(clock):
    file = io.StringIO()
    shown = started(file, budget=0.1369e9, epochs=100, steps=10)
    epoch(shown, clock, 8, [25.0] * 10, SEARCH_LOGS)
    step = (
        "loss 1.250  accuracy 0.5000  0.1380 of 0.1369 GBOPs  risks: task 0.7500  "
        "complexity 0.01080  generalization 0.003000  zeta 51.20  rank 12.50  p 1.500"
    )
    # 25 s a step: 250 s an epoch, 91 epochs to come: 6:19:10.
    assert file.getvalue().splitlines() == [
        f"Epoch 9/100  3/10  left: epoch 02:55, run 6:22:05; 4 images/s  {step}",
        f"Epoch 9/100  6/10  left: epoch 01:40, run 6:20:50; 4 images/s  {step}",
        f"Epoch 9/100  9/10  left: epoch 00:25, run 6:19:35; 4 images/s  {step}",
        "   epoch   seconds  images/s  learning_rate      loss  accuracy"
        "  GBOPs of 0.1369      task  complexity  generalization      zeta      rank"
        "         p      left",
        "   9/100     250.0         4         0.1000     1.250    0.5000"
        "           0.1380    0.7500     0.01080        0.003000     51.20     12.50"
        "     1.500   6:19:10",
    ]
    assert not CONTROL.search(file.getvalue())


def test_short_epochs_have_no_line_before_their_row(clock):
    file = io.StringIO()
    shown = started(file, epochs=100)
    for n in range(100):
        epoch(shown, clock, n, [10.0] * 4, {"loss": 0.5})
    lines = file.getvalue().splitlines()
    headers = [n for n, line in enumerate(lines) if "epoch" in line]
    assert headers == [0, 21, 42, 63, 84]  # again after 20 rows
    assert len(lines) == 100 + 5 and len({len(line) for line in lines}) == 1


def test_a_column_that_comes_later_has_a_heading(clock):
    file = io.StringIO()
    shown = started(file)
    epoch(shown, clock, 0, [1.0] * 4, {"loss": 0.5})
    epoch(shown, clock, 1, [1.0] * 4, {"loss": 0.5, "top5": 0.9, "val_loss": 0.25})
    lines = file.getvalue().splitlines()
    assert lines[2].split()[4:] == ["loss", "val_loss", "top5", "left"]
    assert lines[3].split()[4:] == ["0.5000", "0.2500", "0.9000", "00:04"]


def test_nothing_is_shown_where_nothing_is_asked(clock):
    terminal = Terminal()
    shown = started(terminal, kind="none")
    epoch(shown, clock, 0, [100.0] * 4, SEARCH_LOGS)
    shown.on_train_end()
    assert terminal.getvalue() == ""


def test_the_number_of_steps_may_be_unknown_at_first(clock):
    file = io.StringIO()
    shown = started(file, epochs=2, steps=None)
    epoch(shown, clock, 0, [50.0] * 3, {"loss": 0.5})
    epoch(shown, clock, 1, [50.0] * 3, {"loss": 0.5})
    lines = [line for line in file.getvalue().splitlines() if "Epoch" in line]
    assert lines == [
        "Epoch 1/2  2/?  2 images/s  loss 0.5000",
        "Epoch 2/2  2/3  left: epoch 00:50, run 00:50; 2 images/s  loss 0.5000",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (2.30259, "2.303"),
        (0.98765, "0.9877"),
        (0.001, "0.001000"),
        (0.000123456, "1.23e-04"),
        (999.96, "1000"),
        (1857.6, "1858"),
        (-247.17, "-247.2"),
        (123456.7, "1.23e+05"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_have_four_digits(value, text):
    assert number(value) == text


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"kind='bars'\. Did you mean 'bar'"):
        TrainingProgress("bars")


def small_classifier():
    x = inputs = keras.Input((6, 6, 1))
    x = keras.layers.Conv2D(2, 3, activation="relu")(x)
    x = keras.layers.Conv2D(2, 3, activation="relu")(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def row(text):
    heading, values = (re.split(r"\s{2,}", line.strip()) for line in text.splitlines())
    return dict(zip(heading, values, strict=True))


def fit(model, file, *optimizers):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(*optimizers, loss=loss, metrics=["accuracy"])
    random = np.random.default_rng(0)
    data = random.random((32, 6, 6, 1), "float32"), random.integers(0, 3, 32)
    shown = gmpq.TrainingProgress(batch_size=8, file=file)
    return model.fit(
        *data, 8, validation_data=data, verbose=0, callbacks=[shown]
    ).history


def test_fit_of_any_model_shows_what_keras_logs():
    file = io.StringIO()
    history = fit(small_classifier(), file, keras.optimizers.SGD(0.25))
    found = row(file.getvalue())
    for name, (value,) in history.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-3)
    assert found["epoch"] == "1/1" and found["learning_rate"] == "0.2500"
    assert float(found["images/s"]) > 0


def test_fit_of_a_search_shows_bit_operations_and_risks():
    file = io.StringIO()
    search = PolicySearch(small_classifier(), bit_ops_budget=0.046)
    history = fit(search, file, "sgd", "sgd")
    found = row(file.getvalue())
    (gbops,) = (name for name in found if name.startswith("GBOPs of "))
    assert float(gbops.split()[-1]) == pytest.approx(search.budget / 1e9, rel=5e-3)
    expected = history["expected_bit_ops"][0] / 1e9
    assert float(found[gbops]) == pytest.approx(expected, rel=5e-3)
    for name in ("task_risk", "complexity_risk", "generalization_risk", "zeta", "p"):
        value = float(found[name.removesuffix("_risk")])
        assert value == pytest.approx(history[name][0], rel=5e-3)


def test_fit_of_a_search_shows_every_budget():
    file = io.StringIO()
    search = PolicySearch(
        small_classifier(),
        budget={"weight_bytes": "500B", "bit_ops": "W3A3"},
        eta=0.0,
    )
    history = fit(search, file, "sgd", "sgd")
    found = row(file.getvalue())
    expected = history["expected_weight_bytes"][0]
    assert float(found["weight B of 500.0"]) == pytest.approx(expected, rel=5e-3)
    assert any(name.startswith("GBOPs of ") for name in found)
    first, second = status(
        {name: value[0] for name, value in history.items()},
        search.budget,
        search.limits,
    )
    assert f"weight {expected:#.4g} of 500.0 B" in first and "GBOPs" in first
    assert "zeta_bit_ops" in second and "expected" not in first + second
    names = ordered({"zeta_bit_ops": 1, "zeta": 1, "mine": 1}, search.limits)
    assert names == ["mine", "zeta", "zeta_bit_ops"]
