"""``python -m sftn_fast.verify ROOT``: find image files that can't be decoded."""
