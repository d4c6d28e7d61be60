"""Writes a LiteRT quantizer recipe; the code is in gmpq_tf/export/litert_recipe.py."""

from gmpq_tf.export.litert_recipe import recipe, write_recipe

__all__ = ["recipe", "write_recipe"]
