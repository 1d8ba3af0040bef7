"""Drop-in replacements: other projects' class names and signatures around the losses of :mod:`sftn_fast.ops`."""
