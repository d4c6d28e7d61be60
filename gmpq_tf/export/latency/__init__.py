"""How long the operators of exported files take, one shape after the other."""
