from gmpq_tf.names import suggest


def test_names_the_nearest():
    assert suggest("conv_2", ["conv1", "conv2", "dense"]) == "Did you mean 'conv2'?"


def test_lists_all_where_none_is_near():
    assert suggest("xyz", ["conv1", "dense"]) == "Valid names: 'conv1', 'dense'."
    assert suggest("xyz", []) == "Valid names: none."
