"""Distillation methods, one file each, named after the method: ``kd.py`` registers ``kd``. New files are found here."""
