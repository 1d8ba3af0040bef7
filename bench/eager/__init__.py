"""The baselines: the losses as their authors write them in PyTorch, one module a family."""
