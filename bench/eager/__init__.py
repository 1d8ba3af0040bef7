"""The baselines: the losses as their authors write them in PyTorch, one module for each family."""
