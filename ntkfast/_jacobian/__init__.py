"""Per-sample gradients of a torch network, and what the kernel needs of them.

====================  ==========================================================================
``inputs``            what users pass as ``X`` becomes batches on the model's device
``state``             eval mode, and all else of the model that must come back unchanged
``functional``        the reference: torch.func, or one autograd call per sample
``sketch``            the count-sketch: hash and sign computed from the parameter index
====================  ==========================================================================
"""
