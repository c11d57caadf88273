"""Per-sample gradients of a torch network, and what the kernel needs of them.

==============  ================================================================================
``inputs``      what users pass as ``X`` becomes batches on the model's device
``state``       eval mode, and all else of the model that must come back unchanged
``functional``  the reference: torch.func, or one autograd call per sample
``layers``      rules: a layer's input and output gradient give those of its parameters
``attention``   self-attention with its projections in the open
``capture``     one forward and backward pass with hooks; the plan, checked against autograd
``contract``    gradients, sketches and Gram blocks from layer factors (pure functions)
``sketch``      count-sketch and tensor-sketch: hash and sign computed from the parameter index
``choose``      the cheapest sketch of every parameter within an error
``panels``      Gram blocks of panels of points
``files``       results in memory-mapped files
``explain``     a table of what is done for every parameter
==============  ================================================================================
"""
