"""Student-friendly teachers and knowledge distillation, with fused C++/CUDA losses."""

__version__ = "0.1.0"
