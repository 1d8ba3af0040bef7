"""Files for deployment, made of an exported network, see :func:`sftn_fast.export.formats.write`."""

FORMATS = ("onnx", "onnx-legacy", "pt2", "torchscript", "state_dict")
"""Names of the formats."""
