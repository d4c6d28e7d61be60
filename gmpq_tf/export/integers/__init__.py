"""Code that all integer targets share: grids, folded weights, kernel layouts."""
