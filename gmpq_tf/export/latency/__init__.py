"""Measures how long the operators of exported files take, shape by shape."""
