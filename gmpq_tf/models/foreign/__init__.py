"""Weights and models that other frameworks and older Keras versions wrote."""
