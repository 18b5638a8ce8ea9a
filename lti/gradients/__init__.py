"""Per-sample gradients, their projections, and the store that keeps them."""
