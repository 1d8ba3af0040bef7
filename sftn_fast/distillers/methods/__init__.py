"""One file a method, named as the method is: ``kd.py`` registers ``kd``. A file put here is found by its name."""
