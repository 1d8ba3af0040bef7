"""Drop-in replacements for other projects: their class names and signatures on the losses of :mod:`sftn_fast.ops`."""
