"""A folder of pictures becomes rows of a collection."""
