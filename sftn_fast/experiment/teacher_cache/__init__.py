"""The teacher's logits of each epoch, cached in files."""
