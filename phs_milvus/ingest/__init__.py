"""Turns a folder of pictures into rows of a collection."""
