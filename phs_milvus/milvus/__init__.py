"""Collections. The only package that imports pymilvus."""
