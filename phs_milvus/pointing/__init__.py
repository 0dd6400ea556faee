"""Turns a click, a box or a lasso into a mask of the upright image."""
