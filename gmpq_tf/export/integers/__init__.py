"""What every integer target shares: grids, folded weights, layouts."""
