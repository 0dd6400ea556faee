"""A click, a box or a lasso becomes a mask of the upright image."""
