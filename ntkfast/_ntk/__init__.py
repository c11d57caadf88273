"""Per-sample gradients of a torch network, and what the kernel needs of them.

==============  ================================================================================
``inputs``      what users pass as ``X`` becomes batches on the model's device
``unwrap``      the network inside the wrappers that users put around it
``replica``     a private copy of the model's structure, so that nothing of the model changes
``record``      one forward pass that shows every use of a parameter
``rules``       what the torch functions do with parameters, and gradients of these
``attention``   ... of attention
``recurrent``   ... of recurrent layers, step by step
``layers``      per-sample gradients of a weight as factors
``trace``       the operations of a pass: whether rows may have moved since the last one
``owners``      which rows belong to which point, measured
``capture``     per-sample gradients of a batch from all of these, checked against autograd
``functional``  the reference: torch.func, or one autograd call per sample
``contract``    gradients, sketches and Gram blocks from layer factors (pure functions)
``sketch``      count-sketch and tensor-sketch: hash and sign computed from the parameter index
``choose``      the cheapest sketch of every parameter within an error
``features``    gradients added up to features
``gram``        Gram matrices, block by block, from panels of points
``files``       results in memory-mapped files
``stored``      what a folder of features needs to know, for one process or several
``explain``     a table of what is done for every parameter
==============  ================================================================================
"""
