import keras

from gmpq_tf import distribution
from gmpq_tf.distribution import support_workers, synchronized_statistics


def model():
    inputs = keras.Input((4, 4, 2))
    x = keras.layers.BatchNormalization(name="a")(inputs)
    inner = keras.Sequential([keras.layers.BatchNormalization(name="b")])
    x = keras.layers.BatchNormalization(name="c", synchronized=True)(inner(x))
    return keras.Model(inputs, x)


def synchronized(model):
    layers = model._flatten_layers()
    norms = [x for x in layers if isinstance(x, keras.layers.BatchNormalization)]
    return {layer.name: layer.synchronized for layer in norms}


def test_statistics_are_of_the_whole_batch_inside_the_block_only(monkeypatch):
    net = model()
    before = {"a": False, "b": False, "c": True}
    with synchronized_statistics(net):
        assert synchronized(net) == before  # one replica: nothing to do
    monkeypatch.setattr(distribution, "replica_count", lambda: 2)
    with synchronized_statistics(net):
        assert synchronized(net) == dict.fromkeys("abc", True)
    assert synchronized(net) == before


def test_models_of_other_strategies_stay_as_keras_made_them():
    net = model()
    before = net.make_train_function
    support_workers(net)
    assert net.make_train_function == before
