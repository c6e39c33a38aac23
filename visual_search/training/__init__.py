"""Fine-tune a dual encoder on the shop's own photos: the image side learns, the text side stays as it is.

`data` gathers what is learned from, `weights` says which weights learn, `losses` what is wanted of them, `trainer` is
the loop, `comparison` the table and the gate, `output` the folder that comes out. Torch is imported inside functions.
"""
