"""Fine-tune a dual encoder on the shop's own photos: the image side is trained, the text side is frozen.

`data` gathers photos, pictures and captions; `weights` chooses which weights are trained; `losses` holds the loss;
`trainer` does one step and `fine_tuning` the whole job; `comparison` makes the table before and after and the gate;
`output` writes the checkpoint. Torch is imported inside functions.
"""
