"""A session on a lent GPU: everything that needs one, within minutes, on a machine without a network.

`python -m bench.gpu.pack` makes the folder that travels with the sources. `python -m bench.gpu OUTPUT_FOLDER` runs
there and leaves one archive. `python -m bench.gpu.read ARCHIVE` reads it into bench/results and redraws the pages.
`python -m bench.gpu.rehearse` tries all of that on a machine without a GPU.
"""
