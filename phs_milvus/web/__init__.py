"""What speaks HTTP: a base for such servers (settings, serving, access, places, bodies, problems), and /rerank."""
