"""The likeliest labels of rows of logits."""

import numpy as np

from psaq_jax.predictions import likeliest

NAMES = ("a", "b", "c")


def test_they_are_the_softmax_in_falling_order():
    found = likeliest(np.log(np.float32([[0.2, 0.7, 0.1], [0.5, 0.125, 0.375]])), NAMES, 2)
    assert found == [
        [{"label": "b", "probability": 0.7}, {"label": "a", "probability": 0.2}],
        [{"label": "a", "probability": 0.5}, {"label": "c", "probability": 0.375}],
    ]


def test_all_where_there_are_fewer():
    assert [label["label"] for label in likeliest(np.float32([[0, 1, 2]]), NAMES)[0]] == ["c", "b", "a"]


def test_far_logits_keep_their_order_where_probabilities_are_zero():
    (row,) = likeliest(np.float32([[-2000, 3000, -1000]]), NAMES)
    assert [(x["label"], x["probability"]) for x in row] == [("b", 1.0), ("c", 0.0), ("a", 0.0)]


def test_of_equal_logits_the_first_class_comes_first():
    (row,) = likeliest(np.zeros((1, 3), np.float32), NAMES)
    assert [(x["label"], x["probability"]) for x in row] == [("a", 0.333333), ("b", 0.333333), ("c", 0.333333)]
